"""Synthetic captures: objects, textures, cameras, and the ray tracer that draws them."""
