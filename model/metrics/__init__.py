"""Scores of generated pictures against real ones."""
