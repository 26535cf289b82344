"""MLflow: experiments, runs, the model registry, the local database, and servers that do not answer."""
