"""Stage register: the evaluated model becomes a version in MLflow's registry, champion if it beats the present one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.errors import UserError
from infra.mlflow_registry import CHALLENGER, CHAMPION, RegisteredVersion, Registry
from infra.storage import StoragePath
from infra.tracking import FINGERPRINT_TAG, Tracking
from pipelines.artifacts import Artifact, BaseFolder, Checkpoint, EvaluationReport, load_artifact
from pipelines.config import RegisterConfig
from pipelines.runtime import RuntimeConfig
from preprocessing.co3d import open_root, read_category

# Tags of a version: what it was trained on and with, for the next decision.
DATASET_TAG = "viewdiff.dataset"  # fingerprint of the captures
CAPTURES_TAG = "viewdiff.captures"  # JSON {category: number of sequences}
CHECKPOINT_TAG = "viewdiff.checkpoint"  # fingerprint of the training's result
BASE_TAG = "viewdiff.base"  # fingerprint of the base model
RIVAL_TAG = "viewdiff.compared_with"  # version of the champion that it had to beat, "" for the first one


def register(config: RegisterConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    """Register the checkpoint's model; returns its name, version, alias and both scores.

    `inputs`: raw, base, checkpoint, evaluation, report and, if there is another champion, champion_evaluation: that
    one's scores on the same held-out objects. Repeated for the same checkpoint, the version that exists is used.
    """
    tracking = Tracking(runtime.tracking)
    tracking.check()
    checkpoint, evaluation = inputs["checkpoint"], inputs["evaluation"]
    psnr = mean_psnr(evaluation)
    champion = inputs.get("champion_evaluation")
    champion_psnr = None if champion is None else mean_psnr(champion)
    alias = CHAMPION if champion_psnr is None or psnr > champion_psnr else CHALLENGER

    rival = find_rival(config, runtime, checkpoint.fingerprint)
    run = tracking.resume(checkpoint.facts["mlflow_run_id"])
    model_id = run.log_model(checkpoint.model_dir, name=config.model_name)
    run.log_scores({"held_out_psnr": psnr}, model_id=model_id)
    tags = {
        FINGERPRINT_TAG: checkpoint.fingerprint,
        CHECKPOINT_TAG: checkpoint.fingerprint,
        BASE_TAG: inputs["base"].fingerprint,
        DATASET_TAG: inputs["raw"].fingerprint,
        "viewdiff.report": inputs["report"].fingerprint,
        RIVAL_TAG: "" if rival is None else str(rival.version),
        CAPTURES_TAG: json.dumps(count_captures(inputs["raw"].data)),
        "viewdiff.held_out_psnr": f"{psnr:.4f}",
    }
    registry = Registry(runtime.tracking, config.model_name)
    version = registry.register(model_id=model_id, run_id=run.id, tags=tags)
    registry.set_alias(alias, version.version)
    return {
        "model_name": config.model_name,
        "version": version.version,
        "alias": alias,
        "psnr": psnr,
        "champion_psnr": champion_psnr,
    }


def mean_psnr(evaluation: EvaluationReport) -> float:
    """Mean PSNR over the held-out objects, dB."""
    return float(json.loads(evaluation.summary_path.read_text())["psnr"])


def count_captures(root: StoragePath) -> dict[str, int]:
    """Sequences of each category in a CO3Dv2 root, read from the annotations alone."""
    return {category: len(read_category(root, category)) for category in open_root(root)}


def find_champion(config: RegisterConfig, runtime: RuntimeConfig) -> RegisteredVersion | None:
    """The registry's present champion."""
    return Registry(runtime.tracking, config.model_name).champion()


def find_rival(config: RegisterConfig, runtime: RuntimeConfig, checkpoint: str) -> RegisteredVersion | None:
    """The version that the model of a checkpoint has to beat: the champion, or who was that when it was registered.

    So running a finished pipeline again after a newer champion compares nothing anew.
    """
    versions = Registry(runtime.tracking, config.model_name).versions()
    for version in versions:
        if version.tags.get(CHECKPOINT_TAG) == checkpoint:
            return next((rival for rival in versions if str(rival.version) == version.tags.get(RIVAL_TAG)), None)
    return find_champion(config, runtime)


def open_champion(version: RegisteredVersion, runtime: RuntimeConfig) -> tuple[Checkpoint, BaseFolder]:
    """A registered version's checkpoint and base model, below the root.

    Raises:
        UserError: they are not there.
    """
    checkpoint = _open(runtime, "train", version.tags[CHECKPOINT_TAG], Checkpoint, version)
    return checkpoint, _open(runtime, "base", version.tags[BASE_TAG], BaseFolder, version)


def _open(runtime: RuntimeConfig, stage: str, fingerprint: str, kind: type[Any], version: RegisteredVersion) -> Any:
    folder = runtime.root_dir / stage / fingerprint
    if not folder.is_dir():
        raise UserError(
            f"{version.name} version {version.version}: its {stage} result {fingerprint} is not below "
            f"{runtime.root_dir}, so nothing can be compared with it; name the root that it was trained in with "
            "--root, or another --register.model-name"
        )
    artifact: Artifact = load_artifact(folder, kind)
    return artifact
