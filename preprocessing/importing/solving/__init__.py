"""Cameras for photos and videos that have none, found with pycolmap."""
