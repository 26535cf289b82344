"""The defects that real captures have, put into synthetic ones on purpose, so that a reader's filters can be tried."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

Entry = dict[str, Any]
NAN = float("nan")


def defect_of(category: str, index: int) -> str | None:
    """The defect of a category's object number `index`, None for every second one.

    The others go through DEFECTS in turn, from another start in every category.
    """
    if index % 2 == 0:
        return None
    return DEFECTS[(index // 2 + zlib.crc32(category.encode())) % len(DEFECTS)]


def add_defect(defect: str, *, frames: list[Entry], sequence: Entry, folder: Path) -> None:
    """Damage a finished sequence: its annotation entries in place and its files in `folder`.

    Defects of frames hit every third frame from the second on.
    """
    if defect in _SEQUENCE_DEFECTS:
        _SEQUENCE_DEFECTS[defect](sequence, folder)
        return
    for frame in frames[1::3]:
        _FRAME_DEFECTS[defect](frame, folder)


def _no_point_cloud(sequence: Entry, folder: Path) -> None:
    (folder / "pointcloud.ply").unlink()
    sequence["point_cloud"] = None


def _lost_point_cloud(sequence: Entry, folder: Path) -> None:
    (folder / "pointcloud.ply").unlink()


def _nan_quality(sequence: Entry, folder: Path) -> None:
    sequence["viewpoint_quality_score"] = NAN
    sequence["point_cloud"]["quality_score"] = NAN


def _null_quality(sequence: Entry, folder: Path) -> None:
    sequence["viewpoint_quality_score"] = None


def _null_viewpoint(frame: Entry, folder: Path) -> None:
    frame["viewpoint"] = None


def _nan_camera(frame: Entry, folder: Path) -> None:
    frame["viewpoint"]["T"] = [NAN, NAN, NAN]


def _null_fields(frame: Entry, folder: Path) -> None:
    frame["mask"], frame["depth"], frame["frame_timestamp"] = None, None, NAN
    for name in ("masks", "depths", "depth_masks"):
        for path in (folder / name).glob(f"{_stem(frame)}.*"):
            path.unlink()


def _lost_mask(frame: Entry, folder: Path) -> None:
    (folder / "masks" / f"{_stem(frame)}.png").unlink()


def _black_frame(frame: Entry, folder: Path) -> None:
    height, width = frame["image"]["size"]
    _, data = cv2.imencode(".jpg", np.zeros((height, width, 3), np.uint8))
    _image(frame, folder).write_bytes(data.tobytes())


def _truncated_jpeg(frame: Entry, folder: Path) -> None:
    data = _image(frame, folder).read_bytes()
    _image(frame, folder).write_bytes(data[: len(data) * 3 // 4])  # the header is whole, also in small images


def _wrong_size(frame: Entry, folder: Path) -> None:
    height, width = frame["image"]["size"]
    frame["image"]["size"] = [height + 16, width - 8]


def _stem(frame: Entry) -> str:
    return Path(frame["image"]["path"]).stem


def _image(frame: Entry, folder: Path) -> Path:
    return folder / "images" / Path(frame["image"]["path"]).name


_SEQUENCE_DEFECTS: dict[str, Callable[[Entry, Path], None]] = {
    "no_point_cloud": _no_point_cloud,
    "lost_point_cloud": _lost_point_cloud,
    "nan_quality": _nan_quality,
    "null_quality": _null_quality,
}
_FRAME_DEFECTS: dict[str, Callable[[Entry, Path], None]] = {
    "null_viewpoint": _null_viewpoint,
    "nan_camera": _nan_camera,
    "null_fields": _null_fields,
    "lost_mask": _lost_mask,
    "black_frame": _black_frame,
    "truncated_jpeg": _truncated_jpeg,
    "wrong_size": _wrong_size,
}
DEFECTS = (*_FRAME_DEFECTS, *_SEQUENCE_DEFECTS)
