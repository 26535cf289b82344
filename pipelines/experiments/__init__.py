"""Comparison of trainings."""
