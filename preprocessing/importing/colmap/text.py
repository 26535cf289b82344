"""COLMAP's text files as rows. pycolmap's own reader cuts names at the first space, and takes every second line of
images.txt for points whatever it holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from infra.errors import UserError
from preprocessing.importing.colmap.rows import QUATERNION_TOLERANCE, CameraRow, ImageRow, PointRow, no_keypoints
from preprocessing.importing.reconstructions import MAX_VALUE, refuse_value

HEAD = 1000  # characters that hold the comments of a file
_COUNT = re.compile(r"^# Number of \w+: (\d{1,18})\b", re.MULTILINE)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are no comments; empty ones too, as they mean something in images.txt.

    Raises:
        UserError: the file is not UTF-8, or has zero bytes, as files that were not written or copied whole often have.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {place}: is not UTF-8; save the file in that encoding") from error
    if "\0" in text:
        place = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path}: line {place}: holds zero bytes: a part of the file is lost; copy or export it again")
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.lstrip().startswith("#"):
            yield number, line.strip()


def read_cameras(path: Path) -> Iterator[CameraRow]:
    """The cameras of cameras.txt."""
    for line, text in _lines(path):
        if not text:
            continue
        fields, place = text.split(), f"line {line}"
        if len(fields) < 5:
            _refuse_line(path, line, text, "CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]")
        number, width, height = (_integer(field) for field in (fields[0], *fields[2:4]))
        params = [_float(field) for field in fields[4:]]
        if number is None or width is None or height is None or None in params:
            _refuse_line(path, line, text, "CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]")
        yield CameraRow(place, number, fields[1], width, height, [value for value in params if value is not None])


def read_images(path: Path) -> Iterator[ImageRow]:
    """The photos of images.txt.

    A line is told by its fields: a number, a quaternion of length 1, a translation and a number begin a photo; other
    numbers in threes are the keypoints of the photo before. So the second line may be missing, as scripts for known
    poses leave it out.
    """
    photo = None  # the photo that waits for its second line, which may be empty
    for line, text in _lines(path):
        keypoints = None if photo is None or _has_pose(text) else _keypoints(text)
        if photo is not None:
            has_line = keypoints is not None
            pixels, points = keypoints if keypoints is not None else no_keypoints()
            yield replace(photo, pixels=pixels, points=points, has_second_line=has_line)
            photo = None
            if has_line:
                continue
        if text:
            photo = _photo_line(line, text)
            if photo is None:
                photo_fields = "IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME"
                _refuse_line(
                    path, line, text, f"{photo_fields}, or X, Y, POINT3D_ID for each point of the photo before"
                )
    if photo is not None:
        yield photo


def said_count(path: Path) -> int | None:
    """How many entries COLMAP's comment at the head of a file says that there are."""
    with path.open(encoding="utf-8", errors="replace") as file:
        said = _COUNT.search(file.read(HEAD))
    return int(said[1]) if said else None


def _photo_line(line: int, text: str) -> ImageRow | None:
    fields = text.split(maxsplit=9)  # the name is the rest of the line, with its spaces
    if len(fields) < 10:
        return None
    number, camera, pose = _integer(fields[0]), _integer(fields[8]), [_float(field) for field in fields[1:8]]
    if number is None or camera is None or None in pose:
        return None
    return ImageRow(f"line {line}", number, fields[9], camera, np.array(pose, dtype=np.float64), *no_keypoints())


def _has_pose(text: str) -> bool:
    """Whether a line begins as a photo's does. Keypoints would have to lie within a pixel of the corner for that."""
    fields = text.split(maxsplit=9)[:9]
    if len(fields) < 9 or _integer(fields[0]) is None or _integer(fields[8]) is None:
        return False
    quaternion = [value for field in fields[1:5] if (value := _float(field)) is not None]
    return len(quaternion) == 4 and abs(math.hypot(*quaternion) - 1) < QUATERNION_TOLERANCE


def _keypoints(text: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Pixels [M, 2] and point numbers [M] of the keypoints that belong to a point, if the line is one of keypoints."""
    try:
        values = np.array(text.split(), dtype=np.float64)
    except ValueError:
        return None
    if len(values) % 3:
        return None
    table = values.reshape(-1, 3)
    numbers = table[:, 2]
    if not (np.abs(table) < MAX_VALUE).all() or not ((numbers == np.floor(numbers)) & (numbers >= -1)).all():
        return None
    used = (numbers >= 0) & (numbers < 2**63)
    return table[used, :2], numbers[used].astype(np.int64)


def read_points(path: Path) -> Iterator[PointRow]:
    """The points of points3D.txt; colours, errors and tracks are not needed."""
    for line, text in _lines(path):
        fields = text.split(maxsplit=4)
        if not fields:
            continue
        number, position = _integer(fields[0]), [_float(field) for field in fields[1:4]]
        if number is None or len(position) < 3 or None in position:
            _refuse_line(path, line, text, "POINT3D_ID, X, Y, Z, R, G, B, ERROR, TRACK[]")
        yield number, [value for value in position if value is not None]


def _integer(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _refuse_line(path: Path, line: int, text: str, expected: str) -> NoReturn:
    fields = len(text.split())
    refuse_value(path, f"line {line}", f"has {fields} fields ({text[:60]!r}), but should hold {expected}")
