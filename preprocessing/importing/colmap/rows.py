"""Rows of a COLMAP model's files: what is written there, with the place where it stands.

Format: https://colmap.github.io/format.html. rigs and frames, which COLMAP 4 adds, are not read: each photo's own pose
stands in images as ever.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class CameraRow:
    """A line of cameras.txt, or an entry of cameras.bin."""

    place: str
    number: int
    model: str
    width: int
    height: int
    params: list[float]


@dataclass(frozen=True, eq=False)
class ImageRow:
    """One or two lines of images.txt, or an entry of images.bin."""

    place: str
    number: int
    name: str
    camera: int
    pose: np.ndarray  # [7] quaternion w, x, y, z and translation, world to camera
    pixels: np.ndarray  # [M, 2] of the keypoints that points were made of
    points: np.ndarray  # [M] numbers of those points
    has_second_line: bool = True  # in images.txt


# What the length of a quaternion may differ from 1 by: text has few digits.
QUATERNION_TOLERANCE = 0.01
# Number and position [3] of a point.
PointRow = tuple[int, list[float]]


def no_keypoints() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [0, 2] and points [0] of a photo in which nothing was found."""
    return np.empty((0, 2)), np.empty(0, dtype=np.int64)
