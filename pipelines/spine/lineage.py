"""What a run was made from and by, told to MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping

from infra.provenance.code_version import git_commit, package_versions
from infra.provenance.fingerprint import plain
from infra.tracking.experiment import flatten
from infra.tracking.run import Run
from infra.tracking.tags import COMMIT_TAG, INPUT_PREFIX, VERSION_PREFIX
from pipelines.spine.artifacts import Artifact
from preprocessing.shards.schema import manifest_digest, read_manifest


def log_shards(run: Run, shards: Artifact, *, context: str) -> None:
    """The shards as the run's input, with the counts that their stage reported. `context`: what they serve for."""
    run.log_dataset(
        name=f"shards-{shards.fingerprint}",
        digest=manifest_digest(read_manifest(shards.data)),
        source=shards.data,
        profile=shards.facts,
        context=context,
    )


def log_config(run: Run, config: object) -> None:
    """A stage's config: every field as a param, and the whole as config.json. What says how the work is done may change
    before it is finished: the param keeps what it was at first.
    """
    resolved, known = plain(config), run.params()
    run.log_params({name: value for name, value in flatten(resolved).items() if name not in known})
    run.log_text(json.dumps(resolved, indent=2) + "\n", "config.json")


def code_tags(command: str) -> dict[str, str]:
    """Which program this is: the command, the commit (with `+` when files differ from it), versions of packages."""
    versions = {f"{VERSION_PREFIX}{name}": version for name, version in package_versions().items()}
    commit = git_commit()
    return {
        "mlflow.source.name": f"viewdiff {command}",
        **({} if commit is None else {COMMIT_TAG: commit}),
        **versions,
    }


def input_tags(inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Fingerprint of every input."""
    return {f"{INPUT_PREFIX}{role}": artifact.fingerprint for role, artifact in inputs.items()}
