"""What is in a folder of shards, in numbers: distributions over frames and sequences, counts per category.

Pure functions of the index, by whole columns, so that a million frames take seconds. No picture is read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.cameras import Cameras
from preprocessing.captures.set_lists import SPLITS
from preprocessing.sequences.normalization import coverage_degrees
from preprocessing.sequences.screening import KEPT_MARK
from preprocessing.shards.reading import FrameIndex, SequenceRecord

MOST_BARS, FEWEST_BARS = 40, 8
# A histogram spans all values unless they reach this many times as far as the central 98 %: then it spans those.
OUTLIER_RATIO = 4.0
_CENTRAL = (0.01, 0.99)


@dataclass(frozen=True, eq=False, kw_only=True)
class Distribution:
    """One quantity of every frame or of every sequence."""

    name: str
    unit: str
    counted: str
    """What has a value each: "frame" or "sequence"."""
    values: np.ndarray
    """[N] float64, finite."""
    resolution: float
    """Smaller differences than this mean nothing: no bar is narrower."""
    limits: tuple[float, float] | None = None
    """Ends of the axis, where the quantity has natural ones; without them it follows the values."""
    whole: bool = False
    """Whether the values are whole numbers, which are to lie in the middle of a bar."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Histogram:
    """Counts of values in bars of equal width."""

    edges: np.ndarray  # [B + 1] rising
    counts: np.ndarray  # [B]
    num_below: int  # values before the first bar
    num_above: int  # values behind the last bar


@dataclass(frozen=True, kw_only=True)
class CategoryCounts:
    """How much there is of one category."""

    sequences: Mapping[str, int]  # by split
    frames: Mapping[str, int]  # by split
    num_bytes: int  # of pictures and masks


def distributions(index: FrameIndex) -> tuple[Distribution, ...]:
    """Cameras, brightness and lengths of everything in the index.

    Raises:
        ValueError: the frames' images differ in size.
    """
    sequences = index.sequences()
    cameras = index.cameras(np.arange(len(index)))
    centers = cameras.centers().double().numpy()
    radii = np.linalg.norm(centers, axis=1)
    intensity = index.intensity(np.arange(len(index))).double().numpy()
    poses = cameras.world_to_camera.numpy()
    coverage = [coverage_degrees(poses[item.rows.start : item.rows.stop]) for item in sequences]
    elevations = np.degrees(np.arcsin(np.clip(centers[:, 2] / np.maximum(radii, 1e-12), -1, 1)))
    lengths = np.array([len(item.rows) for item in sequences], dtype=np.float64)
    return (
        *_intrinsics(cameras),
        _of_frames("Camera radius", "world units from the object's centre", radii, 0.05),
        _of_frames("Camera elevation", "degrees above the horizon", elevations, 5, limits=(-90, 90)),
        Distribution(
            name="Azimuth coverage",
            unit="degrees of the turn",
            counted="sequence",
            values=np.array(coverage),
            resolution=10,
            limits=(0, 360),
        ),
        _of_frames("Intensity mean", "of RGB in 0 to 1", intensity[:, 0], 0.025, limits=(0, 1)),
        _of_frames("Intensity variance", "of RGB in 0 to 1", intensity[:, 1], 0.0025),
        Distribution(
            name="Frames per sequence", unit="frames", counted="sequence", values=lengths, resolution=1, whole=True
        ),
    )


def _intrinsics(cameras: Cameras) -> list[Distribution]:
    """Focal lengths and principal points in units of the image's side along the same axis."""
    matrices, (height, width) = cameras.intrinsics.double().numpy(), cameras.image_size
    focal_lengths = [("x", matrices[:, 0, 0] / width), ("y", matrices[:, 1, 1] / height)]
    offsets = [
        ("x", "right of", matrices[:, 0, 2] / width - 0.5),
        ("y", "below", matrices[:, 1, 2] / height - 0.5),
    ]
    return [
        *(_of_frames(f"Focal length {axis}", "image sides", values, 0.02) for axis, values in focal_lengths),
        *(
            _of_frames(f"Principal point {axis}", f"image sides {side} the middle", values, 0.01)
            for axis, side, values in offsets
        ),
    ]


def _of_frames(
    name: str, unit: str, values: np.ndarray, resolution: float, *, limits: tuple[float, float] | None = None
) -> Distribution:
    return Distribution(name=name, unit=unit, counted="frame", values=values, resolution=resolution, limits=limits)


def histogram(distribution: Distribution) -> Histogram:
    """Bars whose edges are round numbers.

    They span the natural limits or else all values; where single values lie so far out that all others would share a
    bar, the central 98 %, and the others are only counted.
    """
    values = distribution.values
    low, high = distribution.limits or _span(values, distribution.resolution)
    wanted = MOST_BARS if distribution.limits else min(MOST_BARS, max(FEWEST_BARS, 2 * math.isqrt(len(values))))
    width = _round_up(max(distribution.resolution, (high - low) / wanted))
    # An edge's own rounding error must not make a bar of it.
    first, last = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
    if distribution.limits is None:
        last = max(last, first + 1, math.floor(high / width + 1e-9) + 1)  # the largest value lies before the last edge
        missing = max(0, FEWEST_BARS - (last - first))
        first, last = first - missing // 2, last + missing - missing // 2
    edges = np.round(np.arange(first, last + 1) * width - (0.5 if distribution.whole else 0), 12)
    inside = np.round(values, 12)
    counts, _ = np.histogram(inside, edges)
    return Histogram(
        edges=edges,
        counts=counts,
        num_below=int((inside < edges[0]).sum()),
        num_above=int((inside > edges[-1]).sum()),
    )


def _span(values: np.ndarray, resolution: float) -> tuple[float, float]:
    """What the bars have to cover."""
    low, high = float(values.min()), float(values.max())
    central = np.quantile(values, _CENTRAL)
    typical = max(float(central[1] - central[0]), FEWEST_BARS * resolution)
    return (float(central[0]), float(central[1])) if high - low > OUTLIER_RATIO * typical else (low, high)


def _round_up(width: float) -> float:
    """The next number of 1, 2, 2.5 or 5 times a power of ten."""
    magnitude = 10.0 ** math.floor(math.log10(width))
    return next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= width * (1 - 1e-9))


def category_counts(index: FrameIndex) -> dict[str, CategoryCounts]:
    """Sequences, frames and bytes of each category, by name."""
    ends = np.concatenate([[0], np.cumsum(index.image_spans[:, 1] + index.mask_spans[:, 1])])
    grouped: dict[str, list[SequenceRecord]] = {}
    for item in index.sequences():
        grouped.setdefault(item.category, []).append(item)
    return {
        category: CategoryCounts(
            sequences={split: sum(item.split == split for item in items) for split in SPLITS},
            frames={split: sum(len(item.rows) for item in items if item.split == split) for split in SPLITS},
            num_bytes=sum(int(ends[item.rows.stop] - ends[item.rows.start]) for item in items),
        )
        for category, items in sorted(grouped.items())
    }


def count_defects(defects: Iterable[Mapping[str, Any]]) -> tuple[Counter[str], Counter[str]]:
    """Frames of stored sequences by reason, from `frame_defects` of dataset.json: dropped ones, and ones that were kept
    without their mask.
    """
    dropped, kept = Counter[str](), Counter[str]()
    for item in defects:
        reason = item["reason"]
        (kept if reason.endswith(KEPT_MARK) else dropped)[reason.removesuffix(KEPT_MARK)] += 1
    return dropped, kept
