"""Ray: the connection to a cluster, tasks that may be repeated, and the worker processes of a training."""
