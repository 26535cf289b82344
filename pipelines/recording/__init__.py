"""The records of a training: from metrics.jsonl to MLflow, while it runs."""
