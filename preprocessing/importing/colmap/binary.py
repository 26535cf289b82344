"""COLMAP's binary files as rows. pycolmap's own reader asks for all memory when a count is damaged."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pycolmap

from preprocessing.importing.colmap.rows import CameraRow, ImageRow, PointRow
from preprocessing.importing.reconstructions import MAX_VALUE, refuse_value

# Models by the number that the files have for them.
MODELS = {int(model.value): name for name, model in pycolmap.CameraModelId.__members__.items() if name != "INVALID"}
NUM_PARAMETERS = {
    name: len(pycolmap.Camera.create_from_model_name(1, name, 1.0, 2, 2).params) for name in MODELS.values()
}
_MAX_NAME_BYTES = 4096
_KEYPOINT = np.dtype([("xy", "<f8", 2), ("point", "<u8")])


class _Reader:
    """Takes little-endian values off a file, and knows when it is at an end."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at, self.place = path, path.read_bytes(), 0, "number of entries"

    def entries(self) -> Iterator[int]:
        """Counts the entries of the file, as many as it says."""
        count = int(self.values("<Q")[0])
        for entry in range(count):
            self.place = f"entry {entry + 1} of {count}"
            yield entry
        if self.at != len(self.data):
            refuse_value(self.path, "end", f"{len(self.data) - self.at} bytes follow its {count} entries")

    def values(self, layout: str) -> tuple[int | float, ...]:
        return struct.unpack(layout, self.bytes(struct.calcsize(layout)))

    def bytes(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            refuse_value(self.path, self.place, f"the file ends within it, after {len(self.data)} bytes")
        self.at += count
        return self.data[self.at - count : self.at]

    def text(self) -> str:
        end = self.data.find(b"\0", self.at, self.at + _MAX_NAME_BYTES)
        if end < 0:
            refuse_value(self.path, self.place, "its name does not end")
        name, self.at = self.data[self.at : end], end + 1
        try:
            return name.decode()
        except UnicodeDecodeError:
            refuse_value(self.path, self.place, f"its name {name[:40]!r} is not UTF-8")


def read_cameras(path: Path) -> Iterator[CameraRow]:
    """The cameras of cameras.bin."""
    reader = _Reader(path)
    for _ in reader.entries():
        number, model, width, height = (int(value) for value in reader.values("<IiQQ"))
        if model not in MODELS:
            refuse_value(path, reader.place, f"camera model {model} is none that COLMAP {pycolmap.__version__} knows")
        params = reader.values(f"<{NUM_PARAMETERS[MODELS[model]]}d")
        yield CameraRow(reader.place, number, MODELS[model], width, height, list(params))


def read_images(path: Path) -> Iterator[ImageRow]:
    """The photos of images.bin, which are those with a pose."""
    reader = _Reader(path)
    for _ in reader.entries():
        number, *pose, camera = reader.values("<I7dI")
        name = reader.text()
        count = int(reader.values("<Q")[0])
        keypoints = np.frombuffer(reader.bytes(count * _KEYPOINT.itemsize), dtype=_KEYPOINT)
        used = keypoints["point"] < 2**63  # those of no point have the largest number there is
        pixels, points = keypoints["xy"][used].astype(np.float64), keypoints["point"][used].astype(np.int64)
        if not (np.abs(pixels) < MAX_VALUE).all():
            refuse_value(path, reader.place, "a keypoint's place is no number")
        yield ImageRow(reader.place, int(number), name, int(camera), np.array(pose), pixels, points)


def read_points(path: Path) -> Iterator[PointRow]:
    """The points of points3D.bin; colours, errors and tracks are not needed."""
    reader = _Reader(path)
    for _ in reader.entries():
        number, *position = reader.values("<Q3d")
        *_, track = reader.values("<3BdQ")
        reader.bytes(int(track) * 8)
        yield int(number), [float(value) for value in position]
