"""What a run was made from, told to MLflow."""

from __future__ import annotations

from infra.mlflow_run import Run
from pipelines.artifacts import Artifact
from preprocessing.schema import manifest_digest, read_manifest


def log_shards(run: Run, shards: Artifact, *, context: str) -> None:
    """The shards as the run's input, with the counts that their stage reported. `context`: what they serve for."""
    run.log_dataset(
        name=f"shards-{shards.fingerprint}",
        digest=manifest_digest(read_manifest(shards.data)),
        source=shards.data,
        profile=shards.facts,
        context=context,
    )
