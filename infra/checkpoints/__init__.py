"""Checkpoints of a training: complete or invisible, copied elsewhere, written in the background."""
