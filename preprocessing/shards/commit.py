"""Joins the records of committed shards into index.parquet and dataset.json, which make the folder count."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.storage.files import StoragePath, atomic_write
from preprocessing.captures.set_lists import SPLITS, EvalBatch
from preprocessing.shards.planning import RejectedSequence
from preprocessing.shards.schema import DATASET_NAME, INDEX_NAME, SCHEMA_VERSION, shard_name, write_manifest
from preprocessing.shards.writing import ShardRecord, read_rows, record_path


def commit_folder(
    folder: StoragePath,
    records: list[ShardRecord],
    rejected: Iterable[RejectedSequence],
    image_size: int,
    *,
    eval_batches: Iterable[EvalBatch] = (),
    made_by: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write index.parquet, then dataset.json, then remove the records. Returns the contents of dataset.json.

    `records` are those of all shards, in order; `rejected` is everything that is not stored; `eval_batches` are
    kept for the evaluation, `made_by` for people: the settings as `config`, the code's version as `git_commit`.
    """
    tables = [read_rows(folder, number) for number in range(len(records))]
    index = pa.concat_tables(tables).replace_schema_metadata(None).unify_dictionaries()
    buffer = io.BytesIO()
    pq.write_table(index, buffer)
    data = buffer.getvalue()
    atomic_write(folder / INDEX_NAME, data)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "image_size": image_size,
        **(made_by or {}),
        **_counts(index),
        "captions": sorted(set(pc.list_flatten(index["caption"]).to_pylist())),
        "eval_batches": [asdict(batch) for batch in eval_batches],
        "index_bytes": len(data),
        "index_sha256": hashlib.sha256(data).hexdigest(),
        **_lists(records, rejected),
    }
    write_manifest(folder / DATASET_NAME, manifest)
    remove_records(folder)
    return manifest


def _lists(records: list[ShardRecord], rejected: Iterable[RejectedSequence]) -> dict[str, Any]:
    """The shards, and what is not in them."""
    return {
        "shards": [
            {
                "name": record.name,
                "bytes": record.num_bytes,
                "sha256": record.sha256,
                "num_sequences": record.num_sequences,
                "num_frames": record.num_frames,
            }
            for record in records
            if record.num_sequences
        ],
        "rejected": [
            {"category": item.category, "sequence": item.sequence, "reason": item.reason}
            for item in sorted(rejected, key=lambda item: (item.category, item.sequence))
        ],
        "frame_defects": [
            {"category": category, "sequence": sequence, "frame_number": number, "reason": reason}
            for record in records
            for category, sequence, number, reason in record.defects
        ],
    }


def remove_records(folder: StoragePath) -> None:
    """Remove the shards' records, which a complete folder does not need."""
    for path in folder.glob("shard-*.rows.parquet"):
        path.unlink()


def discard(folder: StoragePath, num_shards: int) -> None:
    """Remove every shard and record: nothing of it is usable."""
    for number in range(num_shards):
        (folder / shard_name(number)).unlink(missing_ok=True)
        record_path(folder, number).unlink(missing_ok=True)


def _counts(index: pa.Table) -> dict[str, Any]:
    """Numbers of sequences and frames: all, per category and split."""
    keys = ("category", "sequence", "split")
    frames = Counter(zip(*(index[key].to_pylist() for key in keys), strict=True))
    categories = sorted({category for category, _, _ in frames})
    return {
        "num_sequences": len(frames),
        "num_frames": index.num_rows,
        "categories": {name: sum(1 for category, _, _ in frames if category == name) for name in categories},
        "splits": {
            name: {
                "num_sequences": sum(1 for _, _, split in frames if split == name),
                "num_frames": sum(count for (_, _, split), count in frames.items() if split == name),
            }
            for name in SPLITS
        },
    }
