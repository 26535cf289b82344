"""The pretrained model that the network is built from: a Stable Diffusion, or a small stand-in."""
