"""Training's objective and sampling: noise, losses, denoising, long camera paths in windows."""
