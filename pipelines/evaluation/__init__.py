"""Evaluation: which objects are generated, how they are asked for, how they are scored."""
