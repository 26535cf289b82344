"""The cache of what the frozen parts compute: latents, caption embeddings, prior samples."""
