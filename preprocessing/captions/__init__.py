"""Captions of sequences: files of them, and descriptions by BLIP-2."""
