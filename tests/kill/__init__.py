"""Preprocessing is killed at random moments, again and again, and must end with the bytes of an undisturbed run."""
