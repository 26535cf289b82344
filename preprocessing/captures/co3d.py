"""Reader of CO3Dv2's annotation files: categories, sequences, frames and cameras, without PyTorch3D.

Layout on disk, all paths in annotations being relative to ROOT:

    ROOT/<category>/frame_annotations.jgz                  gzip of a JSON list, one entry per frame
    ROOT/<category>/sequence_annotations.jgz               gzip of a JSON list, one entry per sequence

Real files hold bare NaN literals, nulls and unknown keys. What a frame lacks becomes None here; whether it can do
without is decided in `sequences/screening.py`.
"""

from __future__ import annotations

import difflib
import gzip
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, NoReturn

from infra.errors import UserError
from infra.storage.files import StoragePath
from preprocessing.captures.capture import FORMATS, Frame, Sequence, Viewpoint

FRAMES_NAME = "frame_annotations.jgz"
SEQUENCES_NAME = "sequence_annotations.jgz"
UCO3D_NAME = "metadata.sqlite"  # of uCO3D, CO3Dv2's successor in another layout
# The largest category has some 300,000 frames of about 1 kB; more than this is a decompression bomb or not CO3D.
MAX_EXPANDED_BYTES = 4 << 30


def open_root(root: StoragePath) -> tuple[str, ...]:
    """Names of the categories below `root`, sorted.

    Raises:
        UserError: `root` is not a CO3Dv2 dataset.
    """
    if not root.is_dir():
        raise UserError(f"dataset root {root}: no such folder; name the folder that holds the category folders")
    categories = sorted(path.parent.name for path in root.glob(f"*/{FRAMES_NAME}"))
    if not categories and (root / UCO3D_NAME).is_file():
        raise UserError(
            f"dataset root {root}: this is uCO3D ({UCO3D_NAME}, frames inside videos), which is not supported; give "
            "CO3Dv2, or add single captures with `viewdiff import`"
        )
    if not categories:
        raise UserError(
            f"dataset root {root}: no CO3Dv2 dataset, it has no <category>/{FRAMES_NAME}; "
            "name the folder that holds the category folders"
        )
    return tuple(categories)


def select_categories(root: StoragePath, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The wanted categories of `root`, sorted, each once; all of them when none is wanted in particular.

    Raises:
        UserError: as `open_root`, or a wanted one does not exist; the message lists those that do, the most similar
        first.
    """
    existing = open_root(root)
    for name in wanted:
        if name not in existing:
            ranked = sorted(existing, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
            raise UserError(f"category {name!r} is not in {root}; choose from: {', '.join(ranked)}")
    return tuple(sorted(set(wanted))) or existing


def read_category(root: StoragePath, category: str) -> list[Sequence]:
    """All sequences of a category, sorted by name; also those that only one of the two annotation files knows.

    Raises:
        UserError: an annotation file is missing, damaged, or not what CO3Dv2 defines; or one of its paths leads out of
        `root`.
    """
    frames: dict[str, list[Frame]] = defaultdict(list)
    path = root / category / FRAMES_NAME
    for position, entry in enumerate(_entries(path)):
        frames[_name(entry, path, position)].append(_frame(entry, path, position))
    path = root / category / SEQUENCES_NAME
    annotations: dict[str, Mapping[str, Any]] = {}
    for position, entry in enumerate(_entries(path)):
        name = _name(entry, path, position)
        if name in annotations:
            _malformed(path, position, f"sequence {name!r} is listed a second time")
        annotations[name] = entry
    return [
        _sequence(category, name, frames.get(name, []), annotations.get(name, {}), path)
        for name in sorted(frames.keys() | annotations.keys())
    ]


def read_jgz(path: StoragePath, max_bytes: int = MAX_EXPANDED_BYTES) -> Any:
    """The JSON inside a gzip file; NaN and Infinity literals are accepted.

    Raises:
        UserError: the file is missing, damaged, no JSON, or expands to more than `max_bytes` bytes.
    """
    try:
        with path.open("rb") as raw, gzip.open(raw) as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise UserError(
                f"annotation file {path}: expands to more than {max_bytes:,} bytes, which no CO3Dv2 category does; "
                "download it again"
            )
        return json.loads(data)
    except FileNotFoundError as error:
        raise UserError(
            f"annotation file {path}: missing; download the category again or leave it out of --preprocess.categories"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise UserError(
            f"annotation file {path}: damaged ({type(error).__name__}: {error}); download it again"
        ) from error


def encode_jgz(value: Any) -> bytes:
    """JSON inside a gzip file, without a time stamp: the same data gives the same bytes."""
    return gzip.compress(json.dumps(value).encode(), mtime=0)


def _entries(path: StoragePath) -> list[Mapping[str, Any]]:
    entries = read_jgz(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"annotation file {path}: not a JSON list of objects; download it again")
    return entries


def _malformed(path: StoragePath, position: int, what: str) -> NoReturn:
    raise UserError(f"annotation file {path}, entry {position}: {what}; correct the entry or download the file again")


def _name(entry: Mapping[str, Any], path: StoragePath, position: int) -> str:
    name = entry.get("sequence_name")
    if not isinstance(name, str) or not name:
        _malformed(path, position, f"sequence_name is {name!r}, not a name")
    return name


def _frame(entry: Mapping[str, Any], path: StoragePath, position: int) -> Frame:
    number = entry.get("frame_number")
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        _malformed(path, position, f"frame_number is {number!r}, not a number from 0 on")
    image, mask = _object(entry.get("image")), _object(entry.get("mask"))
    return Frame(
        number=number,
        image_path=_inside(image.get("path"), path, position),
        image_size=_size(image.get("size")),
        mask_path=_inside(mask.get("path"), path, position),
        viewpoint=_viewpoint(_object(entry.get("viewpoint")), path, position),
    )


def _sequence(
    category: str, name: str, frames: list[Frame], annotation: Mapping[str, Any], path: StoragePath
) -> Sequence:
    point_cloud = _object(annotation.get("point_cloud"))
    return Sequence(
        category=category,
        name=name,
        frames=tuple(sorted(frames, key=lambda frame: frame.number)),
        point_cloud_path=_inside(point_cloud.get("path"), path, name),
        viewpoint_quality=_score(annotation.get("viewpoint_quality_score")),
        point_cloud_quality=_score(point_cloud.get("quality_score")),
    )


def _score(value: Any) -> float | None:
    """A number; null, NaN and whatever is no number mean that there is none."""
    numbers = _floats([value], 1)
    return numbers[0] if numbers and math.isfinite(numbers[0]) else None


def _object(value: Any) -> Mapping[str, Any]:
    """What ought to be a JSON object; null and NaN mean that there is nothing."""
    return value if isinstance(value, dict) else {}


def _inside(value: Any, path: StoragePath, entry: object) -> str | None:
    """A path from an annotation, checked to stay below the root; null and NaN mean that there is none."""
    if not isinstance(value, str) or not value:
        return None
    relative = PurePosixPath(value)
    if relative.is_absolute() or ".." in relative.parts or "\0" in value:
        raise UserError(
            f"annotation file {path}, entry {entry}: the path {value!r} leads out of the dataset's root; "
            "correct the entry"
        )
    return value


def _size(value: Any) -> tuple[int, int] | None:
    sides = _floats(value, 2)
    if sides is None or not all(side > 0 and side.is_integer() for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _viewpoint(value: Mapping[str, Any], path: StoragePath, position: int) -> Viewpoint | None:
    rows = value.get("R")
    flat = [item for row in rows if isinstance(row, list) for item in row] if isinstance(rows, list) else None
    rotation, translation = _floats(flat, 9), _floats(value.get("T"), 3)
    focal_length, principal_point = _floats(value.get("focal_length"), 2), _floats(value.get("principal_point"), 2)
    if rotation is None or translation is None or focal_length is None or principal_point is None:
        return None
    name = value.get("intrinsics_format")
    if not isinstance(name, str):
        name = FORMATS[0]
    if name not in FORMATS:
        _malformed(path, position, f"intrinsics_format is {name!r}, known are {' and '.join(FORMATS)}")
    return Viewpoint(rotation, translation, focal_length, principal_point, name)


def _floats(value: Any, count: int) -> tuple[float, ...] | None:
    """`count` numbers, null among them as NaN; None when the value is anything else."""
    if not isinstance(value, list) or len(value) != count:
        return None
    if not all(item is None or (isinstance(item, int | float) and not isinstance(item, bool)) for item in value):
        return None
    try:
        return tuple(float("nan") if item is None else float(item) for item in value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
