"""What is put into the U-Net: cross-frame attention, camera conditioning, projection layers."""
