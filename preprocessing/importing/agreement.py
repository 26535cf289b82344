"""Do the pictures as they were written agree with their cameras? Two measures, of which neither trusts the reader.

The reprojection error takes the source's own observations along through turning, scaling and straightening. It cannot
know whether the pictures are those that were observed. The epipolar distance of features that neighbouring pictures
share (`epipolar.py`) knows nothing but the written pictures and cameras.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from infra.errors import UserError
from preprocessing.picking import evenly
from preprocessing.sequences.epipolar import Features, detect, epipolar_distance, match
from preprocessing.sequences.normalization import camera_centers

# Features are looked for in pictures of at most this side, and distances are in pixels of these.
CHECKED_SIDE = 640
PAIRS = 8
MOST_TRIED = 24  # pairs that are looked at to find these
# Eight matches fit some two cameras by chance.
MINIMUM_MATCHES = 16
FIT_SHARE = 0.4
FIT_PIXELS, FIT_CONFIDENCE, FIT_ROUNDS = 1.5, 0.999, 2000
# Fewer pairs with enough matches say nothing.
MINIMUM_PAIRS = 3
# A CO3D sequence has 0.3, with a focal length that is wrong by a third 2 to 3, with wrong axes or orientations 7 to 30.
DOUBTFUL_PIXELS = 1.0
REFUSED_PIXELS = 5.0
# A median reprojection error of this share of a picture's longer side is no matter of precision.
REFUSED_SHARE = 0.01
# Two cameras nearer to each other than this share of the capture's extent have no epipolar lines.
MINIMUM_BASELINE = 0.01


class WrittenPhoto(NamedTuple):
    """A picture, and where it was written."""

    image: Path
    mask: Path | None
    world_to_camera: np.ndarray  # [4, 4]
    intrinsics: np.ndarray  # [3, 3]


@dataclass(frozen=True)
class Agreement:
    """How far features of pairs of pictures are from their epipolar lines."""

    pixels: float  # median over the pairs, pixels of pictures whose longer side is at most CHECKED_SIDE
    pairs: int


def measure_agreement(photos: Sequence[WrittenPhoto]) -> Agreement | None:
    """The epipolar distance over some pairs of pictures; None if too few have features in common.

    Neighbours by name come first, which hold whatever the cameras say; then those whose cameras are nearest.
    """
    for pairs in (_by_name(photos), _by_place(photos)):
        distances = (_distance(photos[first], photos[second]) for first, second in pairs)
        found = list(islice((distance for distance in distances if distance is not None), PAIRS))
        if len(found) >= MINIMUM_PAIRS:
            return Agreement(float(np.median(found)), len(found))
    return None


def require_agreement(source: Path, agreement: Agreement | None, errors: np.ndarray, side: int) -> None:
    """Raise UserError if pictures, points and cameras have nothing to do with each other. `errors` [M] are those of
    `Photo.reprojection_errors`, possibly none, in pixels of pictures with a longer side of `side`.
    """
    if len(errors) and not np.median(errors) <= REFUSED_SHARE * side:
        raise UserError(
            f"{source}: its points lie {np.median(errors):.1f} px (median) from where it says that they were seen: "
            "cameras, lenses or points are not those of one reconstruction; export it again"
        )
    if agreement is not None and agreement.pixels > REFUSED_PIXELS:
        raise UserError(
            f"{source}: features that neighbouring pictures share lie {agreement.pixels:.1f} px off their epipolar "
            f"lines (median of {agreement.pairs} pairs, pictures {CHECKED_SIDE} px wide; real captures have 1): the "
            "cameras are not of these photos, or mean another convention; name the right photos with --images. If the "
            "object turned before a still background, give masks of it"
        )


def _by_name(photos: Sequence[WrittenPhoto]) -> Iterator[tuple[int, int]]:
    centers = camera_centers(np.stack([photo.world_to_camera for photo in photos]))
    least = MINIMUM_BASELINE * float(np.ptp(centers, axis=0).max())
    steps = np.linalg.norm(np.diff(centers, axis=0), axis=1)
    apart = np.flatnonzero(steps > least)
    return ((int(number), int(number) + 1) for number in _spread(apart))


def _by_place(photos: Sequence[WrittenPhoto]) -> Iterator[tuple[int, int]]:
    centers = camera_centers(np.stack([photo.world_to_camera for photo in photos]))
    least = MINIMUM_BASELINE * float(np.ptp(centers, axis=0).max())
    for number in _spread(np.arange(len(photos))):
        distances = np.linalg.norm(centers - centers[number], axis=1)
        distances[distances <= least] = np.inf
        if np.isfinite(distances.min()):
            yield int(number), int(distances.argmin())


def _spread(numbers: np.ndarray) -> np.ndarray:
    """At most MOST_TRIED of the numbers, first PAIRS that are evenly spread, then those between them."""
    chosen = evenly(len(numbers), MOST_TRIED)
    stride = max(1, len(chosen) // PAIRS)
    return numbers[np.concatenate([chosen[start::stride] for start in range(stride)])] if len(chosen) else numbers


def _distance(first: WrittenPhoto, second: WrittenPhoto) -> float | None:
    """None if the pictures have too little in common.

    Matches count if some two cameras, whichever, could have seen them (a fundamental matrix that most of them fit):
    things that look alike match anywhere, and say nothing about these cameras.
    """
    (features, matrix), (others, other_matrix) = _features(first), _features(second)
    pixels = match(features, others)
    if len(pixels[0]) < MINIMUM_MATCHES:
        return None
    _, fits = cv2.findFundamentalMat(*pixels, cv2.FM_RANSAC, FIT_PIXELS, FIT_CONFIDENCE, FIT_ROUNDS)
    if fits is None or fits.sum() < max(MINIMUM_MATCHES, FIT_SHARE * len(fits)):
        return None
    pixels = (pixels[0][fits.ravel() > 0], pixels[1][fits.ravel() > 0])
    poses = (first.world_to_camera, second.world_to_camera)
    with np.errstate(divide="ignore", invalid="ignore"):  # of two cameras in one place there are no lines
        distance = epipolar_distance(pixels, poses, (matrix, other_matrix))
    return distance if np.isfinite(distance) else None


def _features(photo: WrittenPhoto) -> tuple[Features, np.ndarray]:
    """Features of the object where a mask shows it, else of the whole picture, which is made smaller; its intrinsics.

    On a turntable the object moves and what stands around it does not.
    """
    image = cv2.imread(str(photo.image), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    assert image is not None, "written before"
    height, width = image.shape[:2]
    scale = min(1.0, CHECKED_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    features = detect(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    if photo.mask is not None:
        mask = cv2.resize(cv2.imread(str(photo.mask), cv2.IMREAD_GRAYSCALE), size, interpolation=cv2.INTER_AREA)
        columns, rows = np.minimum(features.positions.astype(int), np.array(size) - 1).T
        kept = mask[rows, columns] >= 128
        features = Features(features.positions[kept], features.descriptors[kept])
    return features, np.diag([size[0] / width, size[1] / height, 1.0]) @ photo.intrinsics
