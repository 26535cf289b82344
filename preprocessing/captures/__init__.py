"""Captures as a dataset stores them: CO3Dv2's annotations, set lists and captions."""
