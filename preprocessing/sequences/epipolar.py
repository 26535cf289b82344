"""Do photos agree with their cameras? A point seen in two photos lies on the epipolar line that the two cameras draw in
the other photo (Hartley and Zisserman 2004, section 9.2). The distance from it, over SIFT matches of neighbouring
frames, is small only if axes, intrinsics and pixel convention are all right.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

MINIMUM_MATCHES = 10  # of a pair of photos; fewer say nothing
MATCH_RATIO = 0.75  # Lowe's test: the second best match must be clearly worse


class Features(NamedTuple):
    """What SIFT finds in a photo."""

    positions: np.ndarray  # [N, 2] pixels, centres at half-integers
    descriptors: np.ndarray  # [N, 128]


class PosedPhoto(NamedTuple):
    """A photo and its camera."""

    image: np.ndarray  # [H, W, 3] uint8 RGB
    world_to_camera: np.ndarray  # [4, 4]
    intrinsics: np.ndarray  # [3, 3] pixels of the image


def detect(image: np.ndarray) -> Features:
    """SIFT features of a picture [H, W, 3] uint8 RGB."""
    keypoints, descriptors = cv2.SIFT.create().detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    if descriptors is None:
        return Features(np.empty((0, 2)), np.empty((0, 128), np.float32))
    # OpenCV puts pixel centres at whole numbers.
    return Features(np.array([keypoint.pt for keypoint in keypoints]) + 0.5, descriptors)


def match(first: Features, second: Features) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [M, 2] in both photos of features that choose each other clearly."""
    forward, backward = _choices(first, second), _choices(second, first)
    mutual = [(i, j) for i, j in forward.items() if backward.get(j) == i]
    rows = np.array(mutual, dtype=int).reshape(-1, 2)
    return first.positions[rows[:, 0]], second.positions[rows[:, 1]]


def epipolar_distance(
    pixels: tuple[np.ndarray, np.ndarray], poses: tuple[np.ndarray, np.ndarray], matrices: tuple[np.ndarray, np.ndarray]
) -> float:
    """Median over matches [M, 2] of the mean distance in pixels from the epipolar lines in both pictures.

    poses are the two world_to_camera [4, 4], matrices the intrinsics [3, 3].
    """
    relative = poses[1] @ np.linalg.inv(poses[0])
    x, y, z = relative[:3, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ relative[:3, :3]
    fundamental = np.linalg.inv(matrices[1]).T @ essential @ np.linalg.inv(matrices[0])
    first, second = (np.c_[points, np.ones(len(points))] for points in pixels)
    lines_second, lines_first = first @ fundamental.T, second @ fundamental
    product = np.abs((second * lines_second).sum(axis=1))
    lengths = [np.linalg.norm(lines[:, :2], axis=1) for lines in (lines_first, lines_second)]
    return float(np.median((product / lengths[0] + product / lengths[1]) / 2))


def sequence_distance(photos: Iterable[PosedPhoto]) -> float | None:
    """Median over neighbouring photos of their epipolar distance in pixels; None if none have enough matches.

    Of a long sequence only two photos' features are in memory at a time.
    """
    described = ((detect(photo.image), photo.world_to_camera, photo.intrinsics) for photo in photos)
    distances = []
    for (first, *first_camera), (second, *second_camera) in pairwise(described):
        pixels = match(first, second)
        if len(pixels[0]) >= MINIMUM_MATCHES:
            poses, matrices = zip(first_camera, second_camera, strict=True)
            distances.append(epipolar_distance(pixels, poses, matrices))
    return float(np.median(distances)) if distances else None


def _choices(first: Features, second: Features) -> dict[int, int]:
    if min(len(first.positions), len(second.positions)) < 2:
        return {}
    candidates = cv2.BFMatcher().knnMatch(first.descriptors, second.descriptors, k=2)
    return {best.queryIdx: best.trainIdx for best, other in candidates if best.distance < MATCH_RATIO * other.distance}
