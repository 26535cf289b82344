"""Stage register: the evaluated model becomes a version in MLflow's registry, champion if it beats the present one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.tracking.experiment import Tracking
from infra.tracking.registry import RegisteredVersion, Registry
from infra.tracking.run import Run
from infra.tracking.tags import CHAMPION, FINGERPRINT_TAG, FOLDER_TAG
from pipelines.evaluation.scoring import common_psnr
from pipelines.operations.champion import (
    BASE_TAG,
    CAPTURES_TAG,
    CHECKPOINT_TAG,
    DATASET_TAG,
    REFUSED_TAG,
    Comparison,
    decide,
    find_version,
    recorded_decision,
)
from pipelines.settings.run import RegisterConfig
from pipelines.spine.artifacts import Checkpoint, EvaluationReport, read_record
from pipelines.spine.runtime import RuntimeConfig
from preprocessing.shards.schema import read_manifest

FORMER_CHAMPION = "former champion"

_UPLOAD_SECONDS = 600  # in which a server has to say that it has stored a file of some gigabytes


def register(config: RegisterConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    """Register the checkpoint's model; returns its name, version, alias, the reason for that, and both scores.

    `inputs`: raw, shards, base, checkpoint, evaluation, report and, if the model has to beat another, that one's scores
    on the same held-out objects as champion_evaluation. A version of the same checkpoint that exists keeps what was
    decided about it. A registration that was interrupted is finished.

    Raises:
        ChampionChangedError: another version became champion since the comparison.
        UserError: MLflow does not answer.
    """
    Tracking(runtime.tracking).check()
    registry = Registry(runtime.tracking, config.model_name)
    comparison = _comparison(inputs)
    checkpoint, versions = inputs["checkpoint"].fingerprint, registry.versions()
    version = find_version(versions, checkpoint)
    if version is None:
        added = _add(registry, inputs)
        # Another command may have added the same model meanwhile: all decide about the first version of it.
        versions = registry.versions()
        version = find_version(versions, checkpoint) or added
    decision = recorded_decision(version)
    if decision is None:
        rival = comparison.rival and find_version(versions, comparison.rival)
        decision = decide(registry, version, comparison, rival=str(rival.version) if rival else "")
        alias = decision.alias
    else:
        is_former = decision.alias == CHAMPION and registry.aliases().get(CHAMPION) != version.version
        alias = FORMER_CHAMPION if is_former else decision.alias
    return {
        "model_name": config.model_name,
        "version": version.version,
        "alias": alias,
        "reason": decision.reason,
        "psnr": comparison.psnr,
        "champion_psnr": comparison.rival_psnr,
    }


def _comparison(inputs: Mapping[str, Any]) -> Comparison:
    """With the champion over the objects that have scores in both evaluations."""
    evaluation: EvaluationReport = inputs["evaluation"]
    champion: EvaluationReport | None = inputs.get("champion_evaluation")
    if champion is None:
        return Comparison(_mean_psnr(evaluation))
    rival = read_record(champion.folder)["inputs"]["checkpoint"]["fingerprint"]
    common = common_psnr(evaluation.objects_path, champion.objects_path)
    return Comparison(common.first, rival, common.second)


def _mean_psnr(evaluation: EvaluationReport) -> float:
    """Mean PSNR over the held-out objects that have scores, dB."""
    return float(json.loads(evaluation.summary_path.read_text())["psnr"])


def _add(registry: Registry, inputs: Mapping[str, Any]) -> RegisteredVersion:
    """A new version, about which nothing is decided yet."""
    checkpoint: Checkpoint = inputs["checkpoint"]
    psnr = _mean_psnr(inputs["evaluation"])
    with registry.tracking.answering(seconds=_UPLOAD_SECONDS):
        run = _run_of(registry.tracking, checkpoint)
        model_id = run.log_model(checkpoint.model_dir, name=registry.name)
        run.log_scores({"held_out_psnr": psnr}, model_id=model_id)
    manifest = read_manifest(inputs["shards"].data)
    refused = Counter(item["category"] for item in manifest["rejected"])
    tags = {
        FINGERPRINT_TAG: checkpoint.fingerprint,
        CHECKPOINT_TAG: checkpoint.fingerprint,
        BASE_TAG: inputs["base"].fingerprint,
        DATASET_TAG: inputs["raw"].fingerprint,
        CAPTURES_TAG: json.dumps(manifest["categories"]),
        REFUSED_TAG: json.dumps(refused),
        "viewdiff.report": inputs["report"].fingerprint,
        "viewdiff.held_out_psnr": f"{psnr:.4f}",
    }
    return registry.add(model_id=model_id, run_id=run.id, tags=tags)


def _run_of(tracking: Tracking, checkpoint: Checkpoint) -> Run:
    """The training's run; in a store that did not record the training, a run that only holds its model."""
    if (run := tracking.find(checkpoint.facts["mlflow_run_id"])) is not None:
        return run
    tags = {FINGERPRINT_TAG: checkpoint.fingerprint, FOLDER_TAG: str(checkpoint.folder)}
    run = tracking.start(f"train {checkpoint.fingerprint[:8]}", tags=tags)
    run.finish()
    return run
