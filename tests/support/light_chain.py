"""The chain of stages with all that is heavy left out: real plans of captures, records, runs and registry, no network.

A training's score is `train.seed` modulo 100, dB; one that starts from another model gains 1 dB, or loses it if it has
only one step.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from safetensors.numpy import save_file

from infra.tracking.experiment import Tracking
from infra.tracking.tags import FINGERPRINT_TAG, FOLDER_TAG
from pipelines.chain import checks, running
from pipelines.chain.table import STAGES
from pipelines.evaluation.scoring import OBJECTS_SCHEMA, SCORE_COLUMNS
from pipelines.operations.champion import BASE_TAG, CHECKPOINT_TAG
from pipelines.settings.run import TrainConfig
from pipelines.spine.runtime import RuntimeConfig
from pipelines.spine.stage import final_dir
from preprocessing.config import PreprocessConfig
from preprocessing.shards.planning import plan_shards
from preprocessing.shards.schema import DATASET_NAME, SCHEMA_VERSION, write_manifest
from tests.support.captures import make_capture, write_annotations

UNREADABLE = "unreadable"  # a file in a category's folder: preprocessing finds no picture of it usable


def use_light_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every stage but register write only what the others ask for."""
    light = {
        "preprocess": _preprocess,
        "captions": _nothing,
        "base": _base,
        "latents": _nothing,
        "train": _train,
        "evaluate": _evaluate,
        "report": _nothing,
    }
    stages = [replace(stage, run=light.get(stage.name, stage.run)) for stage in STAGES]
    monkeypatch.setattr(running, "STAGES", stages)
    monkeypatch.setattr(checks, "check_held_out", lambda config, folder: None)


def write_captures(root: Path, categories: Mapping[str, int]) -> None:
    """Annotations of so many sequences of each category."""
    for category, count in categories.items():
        write_annotations(root, [make_capture(category, f"seq_{number}") for number in range(count)])


def registry_state(uri: str, name: str) -> dict[str, Any]:
    """What the registry holds of a model, but for fingerprints of what led to it."""
    client = MlflowClient(uri, uri)
    versions = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda item: int(item.version))
    own = (CHECKPOINT_TAG, BASE_TAG, "viewdiff.fingerprint", "viewdiff.report")
    return {
        "aliases": {alias: int(number) for alias, number in client.get_registered_model(name).aliases.items()},
        "versions": [{key: value for key, value in item.tags.items() if key not in own} for item in versions],
        "models": [_logged_models(client, str(item.run_id)) for item in versions],
    }


def _logged_models(client: MlflowClient, run_id: str) -> list[Any]:
    run = client.get_run(run_id)
    models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    return [
        (
            str(model.status),
            sorted(item.path for item in client.list_logged_model_artifacts(model.model_id)),
            [(metric.key, metric.value) for metric in model.metrics or []],
            len(client.get_metric_history(run_id, "held_out_psnr")),
        )
        for model in models
    ]


def _nothing(config: Any, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    return {}


def _preprocess(
    config: PreprocessConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig
) -> dict[str, Any]:
    root = inputs["raw"].data
    planned = [item.sequence for task in plan_shards(root, config).tasks for item in task.sequences]
    stored = Counter(item.category for item in planned if not (root / item.category / UNREADABLE).exists())
    rejected = [
        {"category": item.category, "sequence": item.name, "reason": "pictures are unreadable"}
        for item in planned
        if item.category not in stored
    ]
    manifest = {"schema_version": SCHEMA_VERSION, "categories": dict(stored), "rejected": rejected}
    write_manifest(folder / DATASET_NAME, manifest)
    return {}


def _base(config: Any, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    for part in ("unet", "vae", "text_encoder"):
        _write_network(folder / part)
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text('{"num_train_timesteps": 1000}')
    return {}


def _train(config: TrainConfig, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    _write_network(folder / "model")
    psnr = float(config.seed % 100)
    if "initial" in inputs:
        psnr = inputs["initial"].facts["psnr"] + (1 if config.num_steps > 1 else -1)
    final = final_dir(folder)
    run = Tracking(runtime.tracking).start("train", tags={FINGERPRINT_TAG: final.name, FOLDER_TAG: str(final)})
    return {"mlflow_run_id": run.id, "psnr": psnr}


def _evaluate(config: Any, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
    psnr = inputs["checkpoint"].facts["psnr"]
    (folder / "summary.json").write_text(json.dumps({"psnr": psnr}))
    names = {"category": "apple", "sequence": "seq_1", "known_frame": 0, "target_frames": [1]}
    scores = dict.fromkeys(SCORE_COLUMNS, psnr)
    pq.write_table(pa.Table.from_pylist([names | scores], schema=OBJECTS_SCHEMA), folder / "objects.parquet")
    return {}


def _write_network(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file({"weight": np.zeros(2, np.float32)}, folder / "model.safetensors")
