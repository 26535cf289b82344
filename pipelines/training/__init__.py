"""A training: the job on the cluster, the worker process, the loop over steps."""
