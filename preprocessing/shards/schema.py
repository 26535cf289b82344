"""What a folder of shards holds; the single truth for the writer (`writing.py`) and the reader (`reading.py`).

shard-000000.tar ...  webdataset; one sample = one sequence, key `<category>/<sequence>`, in tar members
    <key>.000123.jpg       RGB, S×S, JPEG quality 95, 4:4:4; the number is the frame's
    <key>.000123.mask.png  foreground probability · 255, where the frame has a mask
    <key>.cameras.npz      frame_number [N], world_to_camera [N, 4, 4], intrinsics [N, 3, 3], image_size (height, width)
    <key>.meta.json        captions, split, scene_bounds, normalization (capture's -> normalised world, 4×4), source
index.parquet         one row per frame, sorted by (category, sequence, frame_number); the row number is the frame's
                      id everywhere else
dataset.json          written last: without it the folder does not count. Version, counts, digests (also of itself),
                      splits, captions, what was rejected and why, settings and code version
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from infra.errors import UserError
from infra.storage.files import StoragePath, atomic_write

SCHEMA_VERSION = 3
DATASET_NAME = "dataset.json"
INDEX_NAME = "index.parquet"
_PLAIN_NAME = re.compile(r"[a-z]+(-[0-9]{6})?\.[a-z]+")

INDEX_SCHEMA = pa.schema(
    [
        ("category", pa.dictionary(pa.int32(), pa.string())),
        ("sequence", pa.dictionary(pa.int32(), pa.string())),
        ("frame_number", pa.int32()),
        ("split", pa.dictionary(pa.int8(), pa.string())),
        ("shard", pa.dictionary(pa.int32(), pa.string())),
        ("image_offset", pa.int64()),  # first byte of the JPEG in the shard
        ("image_length", pa.int64()),
        ("image_crc32", pa.uint32()),  # of the JPEG: a flipped bit in it may decode to another picture without an error
        ("mask_offset", pa.int64()),
        ("mask_length", pa.int64()),  # 0: the frame has no mask
        ("mask_crc32", pa.uint32()),
        ("world_to_camera", pa.list_(pa.float32(), 16)),
        ("intrinsics", pa.list_(pa.float32(), 9)),  # pixels of the stored image
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("intensity_mean", pa.float32()),  # of RGB in [0, 1], over pixels and channels
        ("intensity_variance", pa.float32()),
        ("caption", pa.list_(pa.string())),  # of the sequence, repeated in each of its rows
        ("scene_bounds", pa.list_(pa.float32(), 6)),  # of the sequence: minimum corner, maximum corner
    ]
)


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:06d}.tar"


def check_names(folder: StoragePath, names: Iterable[str]) -> None:
    """Check that files which a manifest names are plain files beside it.

    Raises:
        UserError: one is a path, a URL, or a command to run (as `pipe:` is for webdataset).
    """
    for name in names:
        if not _PLAIN_NAME.fullmatch(name):
            raise UserError(f"{folder}: file name {name!r} is none that this project writes; do not use this folder")


def image_member(frame_number: int) -> str:
    """Extension of a frame's picture within its sample."""
    return f"{frame_number:06d}.jpg"


def mask_member(frame_number: int) -> str:
    """Extension of a frame's mask within its sample."""
    return f"{frame_number:06d}.mask.png"


def cameras_npz(
    frame_numbers: list[int], world_to_camera: np.ndarray, intrinsics: np.ndarray, image_size: tuple[int, int]
) -> bytes:
    """The member cameras.npz: [N], [N, 4, 4], [N, 3, 3] and (height, width). The same arguments give the same bytes."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        frame_number=np.array(frame_numbers, dtype=np.int32),
        world_to_camera=world_to_camera.astype(np.float32),
        intrinsics=intrinsics.astype(np.float32),
        image_size=np.array(image_size, dtype=np.int32),
    )
    return buffer.getvalue()


def stable_json(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys, for people and programs; the same value gives the same bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_manifest(path: StoragePath, manifest: Mapping[str, Any]) -> None:
    """Write a folder's dataset.json or latents.json, with a digest of what else is in it."""
    atomic_write(path, stable_json({**manifest, "sha256": manifest_digest(manifest)}))


def unseal(data: bytes, version: int) -> dict[str, Any]:
    """The contents of a file that `write_manifest` wrote; of one of another schema version only what it says.

    Raises:
        ValueError, KeyError, TypeError, AttributeError or RecursionError: it is damaged.
    """
    manifest = json.loads(data)
    if manifest["schema_version"] == version and manifest.pop("sha256") != manifest_digest(manifest):
        raise ValueError("its digest is another")
    return manifest


def read_manifest(folder: StoragePath) -> dict[str, Any]:
    """The contents of a folder's dataset.json.

    Raises:
        UserError: the folder does not exist, was never completed, is damaged, or was written by a newer version.
    """
    path = folder / DATASET_NAME
    if not folder.is_dir():
        raise UserError(f"shards {folder}: no such folder; name the folder that `viewdiff preprocess` printed")
    if not path.is_file():
        raise UserError(
            f"shards {folder}: no {DATASET_NAME}, so preprocessing has not finished; "
            "run `viewdiff preprocess` again, it resumes"
        )
    try:
        manifest = unseal(path.read_bytes(), SCHEMA_VERSION)
        version = manifest["schema_version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"shards {folder}: {DATASET_NAME} is damaged ({error}); restore it or preprocess again"
        ) from error
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        remedy = "update this checkout" if newer else "preprocess again"
        raise UserError(f"shards {folder}: format version {version!r}, this code reads {SCHEMA_VERSION}; {remedy}")
    return manifest


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what `read_manifest` returns, in hex: through the digests in it, of the whole folder."""
    return hashlib.sha256(stable_json(manifest)).hexdigest()
