"""A finished evaluation on disk, made without any model, to write reports from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.evaluation.scoring import OBJECTS_SCHEMA, REASON, SCORE_COLUMNS, summarize
from pipelines.generation.pictures import ObjectPictures, pictures_path
from pipelines.spine.artifacts import (
    RECORD_NAME,
    Artifact,
    BaseFolder,
    Checkpoint,
    EvaluationReport,
    RawDataset,
    Shards,
)
from preprocessing.shards.schema import DATASET_NAME, SCHEMA_VERSION, write_manifest

NUM_VIEWS, SIDE, NUM_STEPS = 5, 16, 30
OBJECTS = (("apple", "12_3_4"), ("teddybear", "5_<b>6"))
CAPTION = 'a <b>bold</b> "apple" & more'


def view_color(view: int, *, truth: bool = False) -> tuple[int, int, int]:
    """Each view is one flat colour, by which a test can tell what is shown."""
    return (40 * view + 20, 200 if truth else 60, 120)


def write_evaluated_run(root: Path, run_ids: dict[str, str]) -> dict[str, Artifact]:
    """The report's inputs by role; `run_ids` are MLflow's for "train" and "evaluate"."""
    raw = _artifact(root, "synth", RawDataset, {}, {})
    shards = _artifact(root, "preprocess", Shards, {"raw": raw}, {})
    rejected = [{"category": "apple", "sequence": "9_9_9", "reason": "no point cloud"}]
    manifest = {"schema_version": SCHEMA_VERSION, "num_sequences": 7, "rejected": rejected}
    write_manifest(shards.folder / DATASET_NAME, manifest)
    base = _artifact(root, "base", BaseFolder, {"shards": shards}, {})
    checkpoint = _artifact(
        root, "train", Checkpoint, {"shards": shards, "base": base}, {"mlflow_run_id": run_ids["train"]}
    )
    lines = [
        {"step": step, "loss": 1 / step, "loss_views": 2 / step, "gradient_norm": 3.0, "time/seconds": 0.5}
        for step in range(1, NUM_STEPS + 1)
    ]
    checkpoint.metrics_path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    inputs = {"shards": shards, "base": base, "checkpoint": checkpoint}
    evaluation = _artifact(root, "evaluate", EvaluationReport, inputs, {"mlflow_run_id": run_ids["evaluate"]})
    _write_objects(evaluation)
    return {"evaluation": evaluation, "checkpoint": checkpoint, "shards": shards, "base": base}


def _write_objects(evaluation: EvaluationReport) -> None:
    evaluation.pictures_dir.mkdir()
    for name in OBJECTS:
        _pictures(from_text=False).save(pictures_path(evaluation.pictures_dir, *name))
    _pictures(from_text=True).save(pictures_path(evaluation.pictures_dir, "text-0"))
    columns: dict[str, Any] = {
        "category": [category for category, _ in OBJECTS],
        "sequence": [sequence for _, sequence in OBJECTS],
        "known_frame": [0, 1],
        "target_frames": [list(range(10, 10 + NUM_VIEWS))] * 2,
    }
    columns |= {name: [1.25 + number, 2.5 + number] for number, name in enumerate(SCORE_COLUMNS)}
    columns[REASON] = [None, None]
    pq.write_table(pa.table(columns, schema=OBJECTS_SCHEMA), evaluation.objects_path)
    summary = summarize(columns) | {"num_objects": len(OBJECTS), "num_text_objects": 1, "failed_texts": {}}
    evaluation.summary_path.write_text(json.dumps(summary))


def _pictures(*, from_text: bool) -> ObjectPictures:
    """Views in scrambled order around the object: view number k is the k-th by azimuth."""
    order = np.array([3, 0, 4, 2, 1])
    flat = np.ones((NUM_VIEWS, SIDE, SIDE, 3), np.uint8)
    azimuth = (order + 0.5) * 2 * np.pi / NUM_VIEWS
    azimuth = np.where(azimuth > np.pi, azimuth - 2 * np.pi, azimuth).astype(np.float32)
    pictures = {
        "generated": flat * np.array([view_color(view) for view in order], np.uint8)[:, None, None],
        "azimuth": azimuth,
        "elevation": np.full(NUM_VIEWS, 0.5, np.float32),
        "depth": np.linspace(1, 9, NUM_VIEWS * 16, dtype=np.float32).reshape(NUM_VIEWS, 4, 4),
        "opacity": np.ones((NUM_VIEWS, 4, 4), np.float32),
    }
    if not from_text:
        truth = flat * np.array([view_color(view, truth=True) for view in order], np.uint8)[:, None, None]
        pictures |= {
            "known": flat[0] * 255,
            "known_angles": np.array([0.0, 0.5]),
            "truth": truth,
            "reconstructed": truth,
        }
    return ObjectPictures(caption=CAPTION, **pictures)


def _artifact(root: Path, stage: str, kind: type[Any], inputs: dict[str, Artifact], facts: dict[str, Any]) -> Any:
    number = len(list(root.glob("*"))) if root.exists() else 0
    fingerprint = f"{number:016x}"
    folder = root / stage / fingerprint
    folder.mkdir(parents=True)
    record = {
        "kind": kind.__name__,
        "stage": stage,
        "fingerprint": fingerprint,
        "config": {"seed": 0},
        "inputs": {role: {"kind": "", "fingerprint": artifact.fingerprint} for role, artifact in inputs.items()},
        "git_commit": "0123456789abcdef",
        "versions": {"torch": "2.13.0"},
        "created": f"2026-01-01T00:00:{number:02d}.000+00:00",
        "seconds": 30.0 * (number + 1),
        "resumed": stage == "train",
        "facts": facts,
    }
    (folder / RECORD_NAME).write_text(json.dumps(record))
    return kind(fingerprint=fingerprint, folder=folder, facts=facts)
