"""Batches of a training: which views, in which order, for which rank, and the processes that load them."""
