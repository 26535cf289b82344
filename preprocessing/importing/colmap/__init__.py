"""Readers of COLMAP's models, text and binary."""
