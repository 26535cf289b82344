"""Statistics of an index against the truth that the cameras were made from."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from preprocessing.shards.reading import FrameIndex
from preprocessing.shards.schema import INDEX_SCHEMA
from preprocessing.shards.statistics import (
    FEWEST_BARS,
    MOST_BARS,
    Distribution,
    category_counts,
    count_defects,
    distributions,
    histogram,
)
from tests.support.captures import orbit

SIDE = 40
# (category, sequence, split, number of frames, elevation in radians, distance, bytes of a picture)
SEQUENCES = (
    ("apple", "a", "train", 4, 0.25, 5.0, 100),
    ("apple", "b", "val", 6, -0.5, 3.0, 200),
    ("pear", "a", "train", 8, 1.0, 4.0, 300),
)


@pytest.fixture(scope="module")
def index() -> FrameIndex:
    rows = []
    for number, (category, sequence, split, num_frames, elevation, distance, num_bytes) in enumerate(SEQUENCES):
        for frame, pose in enumerate(orbit(num_frames, elevation=elevation, distance=distance)):
            intrinsics = np.array([[50.0 + number, 0, 22.0], [0, 60.0, 18.0 + number], [0, 0, 1]])
            rows.append(
                {
                    "category": category,
                    "sequence": sequence,
                    "frame_number": frame,
                    "split": split,
                    "shard": "shard-000000.tar",
                    "image_length": num_bytes,
                    "mask_length": 10 if frame == 0 else 0,
                    **dict.fromkeys(("image_offset", "image_crc32", "mask_offset", "mask_crc32"), 0),
                    "world_to_camera": pose.ravel().tolist(),
                    "intrinsics": intrinsics.ravel().tolist(),
                    "height": SIDE,
                    "width": SIDE,
                    "intensity_mean": 0.125 * (number + 1),
                    "intensity_variance": 0.01 * frame,
                    "caption": [category],
                    "scene_bounds": [-1.0] * 3 + [1.0] * 3,
                }
            )
    return FrameIndex(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), {})


def per_frame(*values: float) -> np.ndarray:
    return np.repeat(values, [frames for _, _, _, frames, *_ in SEQUENCES])


def test_distributions_are_those_that_the_cameras_were_made_with(index: FrameIndex) -> None:
    found = {item.name: item.values for item in distributions(index)}
    frames = np.concatenate([np.arange(frames) for _, _, _, frames, *_ in SEQUENCES])
    truth = {
        "Focal length x": per_frame(1.25, 1.275, 1.3),
        "Focal length y": per_frame(1.5, 1.5, 1.5),
        "Principal point x": per_frame(0.05, 0.05, 0.05),  # 22 of 40 pixels
        "Principal point y": per_frame(-0.05, -0.025, 0.0),
        "Camera radius": per_frame(5, 3, 4),
        "Camera elevation": np.degrees(per_frame(0.25, -0.5, 1.0)),
        "Azimuth coverage": [270, 300, 315],  # a full turn less one step
        "Intensity mean": per_frame(0.125, 0.25, 0.375),
        "Intensity variance": 0.01 * frames,
        "Frames per sequence": [4, 6, 8],
    }
    assert found.keys() == truth.keys()
    for name, values in truth.items():
        np.testing.assert_allclose(found[name], values, atol=1e-4, err_msg=name)  # float32, degrees


def test_categories_are_counted_by_split(index: FrameIndex) -> None:
    counts = category_counts(index)
    assert list(counts) == ["apple", "pear"]
    assert counts["apple"].sequences == {"train": 1, "val": 1, "test": 0}
    assert counts["apple"].frames == {"train": 4, "val": 6, "test": 0}
    assert counts["apple"].num_bytes == 4 * 100 + 6 * 200 + 2 * 10
    assert counts["pear"].num_bytes == 8 * 300 + 10


def distribution(values: object, **settings: object) -> Distribution:
    defaults = {"name": "n", "unit": "u", "counted": "frame", "resolution": 0.1}
    return Distribution(values=np.array(values, dtype=float), **(defaults | settings))  # type: ignore[arg-type]


RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    "values",
    [
        [3.7],
        [0.0, 0.0],
        [1e-9, -1e-9],
        RANDOM.normal(size=1000),
        RANDOM.normal(1e6, 1e5, size=1000),
        np.linspace(0, 1, 11),
        [*RANDOM.normal(size=5000), 1e5],
        [*np.ones(5000), -50.0],
    ],
)
def test_every_value_is_counted_once(values: np.ndarray) -> None:
    bars = histogram(distribution(values))
    assert bars.counts.sum() + bars.num_below + bars.num_above == len(values)
    assert FEWEST_BARS <= len(bars.counts) <= MOST_BARS + 2
    widths = np.diff(bars.edges)
    np.testing.assert_allclose(widths, widths[0], rtol=1e-6)
    assert widths[0] >= 0.1 - 1e-9
    for value, edge in zip(bars.counts, range(len(bars.counts)), strict=True):
        low, high = bars.edges[edge : edge + 2]
        last = edge == len(bars.counts) - 1
        rounded = np.round(values, 12)
        assert value == ((rounded >= low) & ((rounded <= high) if last else (rounded < high))).sum()


def test_one_wild_value_does_not_flatten_the_others() -> None:
    values = [*RANDOM.normal(size=5000), 1e5]
    bars = histogram(distribution(values))
    assert bars.edges[-1] < 10
    assert bars.num_above >= 1
    assert np.count_nonzero(bars.counts) > 10


def test_natural_limits_are_the_axis_and_their_ends_belong_to_it() -> None:
    bars = histogram(distribution([0, 0, 360, 90], resolution=10, limits=(0, 360)))
    assert (bars.edges[0], bars.edges[-1], len(bars.counts)) == (0, 360, 36)
    assert (bars.counts[0], bars.counts[9], bars.counts[-1]) == (2, 1, 1)


def test_whole_numbers_lie_in_the_middle_of_their_bars() -> None:
    bars = histogram(distribution([12, 12, 14], resolution=1, whole=True))
    middles = (bars.edges[1:] + bars.edges[:-1]) / 2
    assert {middle: count for middle, count in zip(middles, bars.counts, strict=True) if count} == {12: 2, 14: 1}


def test_kept_frames_are_not_dropped_ones() -> None:
    reasons = ["image black", "mask empty (frame kept)", "image black", "image missing"]
    dropped, kept = count_defects([{"reason": reason} for reason in reasons])
    assert dropped == {"image black": 2, "image missing": 1}
    assert kept == {"mask empty": 1}
