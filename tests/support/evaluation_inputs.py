"""Inputs of an evaluation of seconds: shards with real pictures, an untrained base model and an untrained network."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from infra.provenance.fingerprint import plain
from infra.storage.files import digest_file
from model.base.stable_diffusion import save_base
from model.base.stand_in import build_tiny_base
from model.unet import ViewDiffUNet
from pipelines.spine.artifacts import RECORD_NAME, Artifact, BaseFolder, Captions, Checkpoint, Shards
from preprocessing.captions.files import write_sequence_captions
from preprocessing.shards.reading import FrameIndex, ShardReader
from preprocessing.shards.schema import DATASET_NAME, INDEX_NAME, INDEX_SCHEMA, SCHEMA_VERSION, write_manifest
from tests.support.training_inputs import BASE, CAPTIONS, IMAGE_SIZE, index_table, open_index, train_config

HELD_OUT = "val"  # split of the one sequence that is not for training
SHARD = "shard-000000.tar"


def write_evaluation_inputs(root: Path, *, train_run_id: str | None = None) -> dict[str, Artifact]:
    """The stage's inputs below `root`, laid out and recorded as stages do it."""
    shards = _publish(root, "preprocess", Shards, {}, {})
    _write_shards(shards.folder)
    captions = _publish(root, "captions", Captions, {"shards": shards}, {})
    write_sequence_captions(captions.folder, CAPTIONS)
    base = _publish(root, "base", BaseFolder, {}, {})
    parts = build_tiny_base(BASE, image_size=IMAGE_SIZE, words=["red", "apple"], seed=0)
    save_base(parts, base.folder)
    facts = {} if train_run_id is None else {"mlflow_run_id": train_run_id}
    checkpoint = _publish(root, "train", Checkpoint, {"shards": shards, "captions": captions, "base": base}, facts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViewDiffUNet(parts.unet, train_config().model).save_pretrained(checkpoint.folder / "model")
    return {"shards": shards, "captions": captions, "base": base, "checkpoint": checkpoint}


def open_shards(inputs: dict[str, Artifact]) -> tuple[FrameIndex, ShardReader]:
    """Index, with the captions stage's captions, and reader of the shards."""
    index = open_index(inputs)
    return index, ShardReader(inputs["shards"].folder, index)


def _write_shards(folder: Path) -> None:
    """Smooth pictures, a JPEG each; readers take them by offset, so no tar is needed around them."""
    rows, shard = index_table().to_pylist(), b""
    for number, row in enumerate(rows):
        ramp = np.linspace(0, 255, IMAGE_SIZE)
        channels = [
            np.add.outer(ramp, ramp) / 2,
            np.full((IMAGE_SIZE, IMAGE_SIZE), 12 * number),
            np.outer(ramp, ramp) / 255,
        ]
        _, data = cv2.imencode(".jpg", np.stack(channels, axis=-1).astype(np.uint8))
        crc32 = zlib.crc32(data)
        row |= {"shard": SHARD, "image_offset": len(shard), "image_length": len(data), "image_crc32": crc32}
        shard += data.tobytes()
    (folder / SHARD).write_bytes(shard)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), folder / INDEX_NAME)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "eval_batches": [],
        "index_sha256": digest_file(folder / INDEX_NAME),
        "index_bytes": (folder / INDEX_NAME).stat().st_size,
        "shards": [{"name": SHARD, "bytes": len(shard), "sha256": digest_file(folder / SHARD)}],
    }
    write_manifest(folder / DATASET_NAME, manifest)


def _publish(
    root: Path, stage: str, kind: type[Artifact], inputs: dict[str, Artifact], facts: dict[str, str]
) -> Artifact:
    identity = f"{stage}-0"
    folder = root / stage / identity
    folder.mkdir(parents=True)
    record = {
        "kind": kind.__name__,
        "stage": stage,
        "fingerprint": identity,
        "inputs": {role: {"kind": "", "fingerprint": item.fingerprint} for role, item in inputs.items()},
        "created": "2026-01-01T00:00:00.000+00:00",
        "facts": plain(facts),
    }
    (folder / RECORD_NAME).write_text(json.dumps(record))
    return kind(fingerprint=identity, folder=folder, facts=facts)
