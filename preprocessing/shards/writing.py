"""One shard: written to a temporary file, synced, renamed, then committed by a record beside it.

The record is a Parquet file with the shard's index rows and, as metadata, its digest and what was rejected. A shard
without a valid record does not exist for anybody. Which worker writes a shard, and how often, changes no byte.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset

from infra.cluster.malloc import keep_freed_memory
from infra.errors import UserError
from infra.storage.cache import fetched
from infra.storage.files import StoragePath, atomic_write, digest_file, num_bytes, publishing
from infra.storage.tables import footer_entries, read_table
from preprocessing.captures.capture import RejectionError
from preprocessing.config import PreprocessConfig
from preprocessing.sequences.screening import StoredSequence, needed_files, store_sequence
from preprocessing.shards.planning import PlannedSequence, RejectedSequence, ShardTask
from preprocessing.shards.schema import (
    DATASET_NAME,
    INDEX_NAME,
    INDEX_SCHEMA,
    cameras_npz,
    image_member,
    mask_member,
    shard_name,
    stable_json,
)

_METADATA_KEY = b"viewdiff"
_REMEDY = "delete it and run the same command again: the shard is made again"


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What is known about a committed shard."""

    task: str  # digest of the task that it was written for
    name: str
    num_bytes: int
    sha256: str  # of the tar; empty when no sequence was usable, and then there is no tar
    num_sequences: int
    num_frames: int
    rejected: tuple[RejectedSequence, ...]
    defects: tuple[tuple[str, str, int, str], ...]  # (category, sequence, frame number, reason)


def write_planned_shard(
    row: dict[str, Any], *, root: StoragePath, folder: StoragePath, config: PreprocessConfig
) -> dict[str, Any]:
    """A Ray task: the shard of `row["task"]`, unless it is committed by now."""
    keep_freed_memory()
    cv2.setNumThreads(1)  # one task per core: more threads would only get into each other's way
    torch.set_num_threads(1)
    # A worker that dies between committing and saying so is replaced, and another run's may still be at work.
    record = committed_record(folder, row["task"], config) or write_shard(row["task"], root, folder, config)
    return {"frames": record.num_frames}


def record_path(folder: StoragePath, number: int) -> StoragePath:
    """Where the record of a committed shard lies, until the whole folder is committed."""
    return folder / f"{shard_name(number)}.rows.parquet"


def committed_record(folder: StoragePath, task: ShardTask, config: PreprocessConfig) -> ShardRecord | None:
    """The record of a shard that an earlier run finished for this very task; None if it is still to be written.

    Raises:
        UserError: there is a damaged one.
    """
    path = record_path(folder, task.number)
    if not path.is_file():
        return None
    try:
        fields = json.loads(footer_entries(path.read_bytes())[_METADATA_KEY])
        fields["rejected"] = tuple(RejectedSequence(**item) for item in fields["rejected"])
        fields["defects"] = tuple(tuple(item) for item in fields["defects"])
        record = ShardRecord(**fields)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
    whole = not record.num_sequences or num_bytes(folder / record.name) == record.num_bytes
    return record if whole and record.task == task.digest(config) else None


def read_rows(folder: StoragePath, number: int) -> pa.Table:
    """The index rows in the record of a committed shard.

    Raises:
        UserError: they are damaged, or other columns than these.
    """
    path = record_path(folder, number)
    return read_table(path.read_bytes(), INDEX_SCHEMA, name=str(path), remedy=_REMEDY)


def require_record(folder: StoragePath, task: ShardTask, config: PreprocessConfig) -> ShardRecord:
    """The record of a shard that was just written.

    Raises:
        RuntimeError: it is not there: something else writes to the folder.
    """
    record = committed_record(folder, task, config)
    if record is None:
        raise RuntimeError(f"{folder / shard_name(task.number)} was committed and is gone or changed")
    return record


def sweep(folder: StoragePath, keep: set[int]) -> None:
    """Remove what killed writers left half-written or uncommitted: all but the shards of these numbers."""
    names = {name for number in keep for name in (shard_name(number), record_path(folder, number).name)}
    for pattern in ("shard-*", ".shard-*", f".{INDEX_NAME}.*", f".{DATASET_NAME}.*"):
        for path in folder.glob(pattern):
            if path.name not in names:
                path.unlink(missing_ok=True)


def write_shard(task: ShardTask, root: StoragePath, folder: StoragePath, config: PreprocessConfig) -> ShardRecord:
    """Write and commit one shard. Two writers of the same task do not disturb each other: their bytes are the same and
    renames are atomic.
    """
    final = folder / shard_name(task.number)
    rows: list[dict[str, Any]] = []
    rejected: list[RejectedSequence] = []
    defects: list[tuple[str, str, int, str]] = []
    with publishing(final) as partial:
        with partial.open("xb") as file, webdataset.TarWriter(file, encoder=False, mtime=0, user="", group="") as tar:
            for planned, stored in _stored(task, root, config, rejected):
                tar.write(_sample(planned, stored, config.image_size))
                rows += _rows(planned, stored, final.name, config.image_size)
                key = planned.sequence.category, planned.sequence.name
                defects += [(*key, number, reason) for number, reason in stored.defects]
        _locate(rows, partial)
        record = ShardRecord(
            task=task.digest(config),
            name=final.name,
            num_bytes=num_bytes(partial) if rows else 0,
            sha256=digest_file(partial) if rows else "",
            num_sequences=len(task.sequences) - len(rejected),
            num_frames=len(rows),
            rejected=tuple(rejected),
            defects=tuple(defects),
        )
        if not rows:
            partial.unlink()
    _commit(record_path(folder, task.number), record, rows)
    return record


def _stored(
    task: ShardTask, root: StoragePath, config: PreprocessConfig, rejected: list[RejectedSequence]
) -> Iterator[tuple[PlannedSequence, StoredSequence]]:
    """The usable sequences one by one; appends the others to `rejected`."""
    files = (needed_files(planned.sequence) for planned in task.sequences)
    with closing(fetched(root, files)) as folders:
        for planned, local in zip(task.sequences, folders, strict=True):
            try:
                yield planned, store_sequence(local, planned.sequence, config)
            except RejectionError as reason:
                rejected.append(RejectedSequence(planned.sequence.category, planned.sequence.name, str(reason)))


def _sample(planned: PlannedSequence, stored: StoredSequence, image_size: int) -> dict[str, Any]:
    """The webdataset sample of a sequence."""
    sequence, transform = planned.sequence, stored.normalization
    sample: dict[str, Any] = {"__key__": f"{sequence.category}/{sequence.name}"}
    for frame in stored.frames:
        sample[image_member(frame.number)] = frame.image
        if frame.mask is not None:
            sample[mask_member(frame.number)] = frame.mask
    sample["cameras.npz"] = cameras_npz(
        [frame.number for frame in stored.frames],
        np.stack([frame.world_to_camera for frame in stored.frames]),
        np.stack([frame.intrinsics for frame in stored.frames]),
        (image_size, image_size),
    )
    source = {
        "category": sequence.category,
        "sequence": sequence.name,
        "point_cloud": sequence.point_cloud_path,
        "num_frames": len(sequence.frames),
        "viewpoint_quality": sequence.viewpoint_quality,
    }
    meta = {
        "captions": planned.captions,
        "scene_bounds": transform.scene_bounds.tolist(),
        "normalization": transform.matrix().tolist(),
        "split": planned.split,
        "source": source,
    }
    sample["meta.json"] = stable_json(meta)
    return sample


def _rows(planned: PlannedSequence, stored: StoredSequence, shard: str, image_size: int) -> list[dict[str, Any]]:
    """Index rows of a sequence; where in the shard the members lie is filled in by `_locate`."""
    return [
        {
            "category": planned.sequence.category,
            "sequence": planned.sequence.name,
            "frame_number": frame.number,
            "split": planned.split,
            "shard": shard,
            "image_crc32": zlib.crc32(frame.image),
            "mask_crc32": zlib.crc32(frame.mask or b""),
            "world_to_camera": frame.world_to_camera.ravel().tolist(),
            "intrinsics": frame.intrinsics.ravel().tolist(),
            "height": image_size,
            "width": image_size,
            "intensity_mean": frame.intensity[0],
            "intensity_variance": frame.intensity[1],
            "caption": list(planned.captions),
            "scene_bounds": stored.normalization.scene_bounds.ravel().tolist(),
        }
        for frame in stored.frames
    ]


def _locate(rows: list[dict[str, Any]], shard: Path) -> None:
    """Add each member's offset and length in bytes, as tarfile finds them in the finished file."""
    with tarfile.open(shard, "r|") as tar:
        spans = {member.name: (member.offset_data, member.size) for member in tar}
    for row in rows:
        key = f"{row['category']}/{row['sequence']}"
        row["image_offset"], row["image_length"] = spans[f"{key}.{image_member(row['frame_number'])}"]
        mask = spans.get(f"{key}.{mask_member(row['frame_number'])}", (0, 0))
        row["mask_offset"], row["mask_length"] = mask


def _commit(path: StoragePath, record: ShardRecord, rows: list[dict[str, Any]]) -> None:
    """Publish a shard's record: from now on the shard counts."""
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({_METADATA_KEY: stable_json(asdict(record))}), buffer)
    atomic_write(path, buffer.getvalue())
