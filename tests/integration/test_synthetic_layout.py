"""The synthetic dataset read back by a small reader of its own, written from the description of CO3Dv2's layout.

It shares no code with preprocessing/captures/co3d.py: what both misread, they would have to misread in two different
ways.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from plyfile import PlyData

from preprocessing.synthetic.config import SyntheticConfig
from preprocessing.synthetic.dataset import write_dataset
from preprocessing.synthetic.objects import CATEGORIES

CONFIG = SyntheticConfig(categories=CATEGORIES, objects_per_category=4, frames_per_sequence=3, image_size=96, seed=7)
FORMATS = ("ndc_isotropic", "ndc_norm_image_bounds")
FLOAT16_STEP = 2.0**-11  # largest relative error of rounding to float16


@dataclass
class Seen:
    """A frame with the sequence's point cloud in its image."""

    entry: dict[str, Any]
    mask: NDArray  # [H, W] 0..255
    depth: NDArray  # [H, W] world units, 0 = unknown
    pixels: NDArray  # [N, 2] of the point cloud
    distance: NDArray  # [N] camera depth of the point cloud


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("co3d")
    write_dataset(CONFIG, root, num_processes=1)
    return root


def _entries(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)


def _project(points: NDArray, view: dict[str, Any], size: tuple[int, int], name: str) -> tuple[NDArray, NDArray]:
    """Row vectors, X_cam = X R + T, x left, y up; NDC in units of half the short side, or of half of each side."""
    height, width = size
    half_x, half_y = (min(size) / 2, min(size) / 2) if name == "ndc_isotropic" else (width / 2, height / 2)
    x, y, z = (points @ np.array(view["R"]) + np.array(view["T"])).T
    (fx, fy), (px, py) = view["focal_length"], view["principal_point"]
    left, up = fx * x / z + px, fy * y / z + py
    return np.stack([width / 2 - left * half_x, height / 2 - up * half_y], axis=1), z


def _cloud(root: Path, path: str) -> NDArray:
    vertices = PlyData.read(str(root / path))["vertex"]
    return np.stack([vertices[axis] for axis in "xyz"], axis=1).astype(np.float64)


@pytest.fixture(scope="module")
def seen(root: Path) -> list[Seen]:
    found = []
    for category in CATEGORIES:
        clouds = {
            entry["sequence_name"]: _cloud(root, entry["point_cloud"]["path"])
            for entry in _entries(root / category / "sequence_annotations.jgz")
        }
        for entry in _entries(root / category / "frame_annotations.jgz"):
            view, size = entry["viewpoint"], tuple(entry["image"]["size"])
            pixels, distance = _project(clouds[entry["sequence_name"]], view, size, view["intrinsics_format"])
            bits = np.asarray(Image.open(root / entry["depth"]["path"])).astype(np.uint16)
            depth = bits.view(np.float16).astype(np.float64) * entry["depth"]["scale_adjustment"]
            mask = np.asarray(Image.open(root / entry["mask"]["path"]))
            found.append(Seen(entry=entry, mask=mask, depth=depth, pixels=pixels, distance=distance))
    return found


def _on_mask(mask: NDArray, pixels: NDArray) -> float:
    height, width = mask.shape
    column, row = np.floor(pixels).astype(int).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return float((mask[row[inside], column[inside]] > 0).sum() / len(pixels))


@pytest.mark.parametrize("name", FORMATS)
def test_projected_point_cloud_lies_on_the_masks(seen: list[Seen], name: str) -> None:
    frames = [frame for frame in seen if frame.entry["viewpoint"]["intrinsics_format"] == name]
    assert len(frames) == len(seen) / 2
    shares = [_on_mask(frame.mask, frame.pixels) for frame in frames]
    assert np.mean(shares) >= 0.99
    # In a single frame a little less: 16 rays a pixel miss slivers of the object in pixels on its rim.
    assert min(shares) >= 0.98
    assert max(np.mean(frame.mask > 127) for frame in frames) < 0.6, "a mask that is everything would prove nothing"


def test_the_other_format_or_no_axis_flip_misses_the_masks(root: Path, seen: list[Seen]) -> None:
    frame = next(f for f in seen if f.entry["viewpoint"]["intrinsics_format"] == FORMATS[1])
    height, width = frame.entry["image"]["size"]
    assert height != width, "in square images the formats are the same"
    entries = _entries(root / frame.entry["image"]["path"].split("/")[0] / "sequence_annotations.jgz")
    sequence = next(e for e in entries if e["sequence_name"] == frame.entry["sequence_name"])
    points = _cloud(root, sequence["point_cloud"]["path"])
    pixels, _ = _project(points, frame.entry["viewpoint"], (height, width), FORMATS[0])
    assert _on_mask(frame.mask, pixels) < 0.97
    assert _on_mask(frame.mask, [width, height] - frame.pixels) < 0.9


def _bilinear(depth: NDArray, pixels: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Depth between the four nearest pixel centres, and the least and greatest of those four."""
    corner = np.floor(pixels - 0.5).astype(int)
    (a, b), (column, row) = (pixels - 0.5 - corner).T, corner.T
    four = np.stack([depth[row, column], depth[row, column + 1], depth[row + 1, column], depth[row + 1, column + 1]])
    weights = np.stack([(1 - a) * (1 - b), a * (1 - b), (1 - a) * b, a * b])
    return (four * weights).sum(0), four.min(0), four.max(0)


def test_depth_maps_hold_the_point_clouds_depth(seen: list[Seen]) -> None:
    for frame in seen:
        value, least, greatest = _bilinear(frame.depth, frame.pixels)
        # Between four pixels of one smooth piece of the object (2 % of depth: less than any two parts are apart there).
        smooth = (least > 0) & (greatest < 1.02 * least)
        assert smooth.mean() > 0.35
        error = (frame.distance[smooth] - value[smooth]) / value[smooth]
        visible = error < 0.015  # the others are hidden behind what the depth map shows
        assert visible.mean() > 0.35, frame.entry["image"]
        # Interpolated values average float16's rounding; a wrong scale or half a pixel's shift is many times that.
        assert np.median(np.abs(error[visible])) < FLOAT16_STEP
        # Nothing lies before what is seen, but for the bend of the surface between the pixels.
        assert np.mean(error < -0.01) < 0.01


def test_ground_is_in_the_depth_map_and_the_far_background_is_not(seen: list[Seen]) -> None:
    beside = [frame.depth[frame.mask == 0] for frame in seen]
    assert all((depth > 0).mean() > 0.15 for depth in beside)
    assert any((depth == 0).mean() > 0.05 for depth in beside)
    assert all(np.isfinite(frame.depth).all() for frame in seen)


def test_every_field_of_a_frame(root: Path, seen: list[Seen]) -> None:
    numbers: dict[str, list[int]] = {}
    for frame in seen:
        entry = frame.entry
        assert set(entry) == {
            "sequence_name",
            "frame_number",
            "frame_timestamp",
            "image",
            "depth",
            "mask",
            "viewpoint",
            "meta",
        }
        numbers.setdefault(f"{entry['image']['path'].split('/')[0]}/{entry['sequence_name']}", []).append(
            entry["frame_number"]
        )
        assert isinstance(entry["frame_timestamp"], float)
        height, width = entry["image"]["size"]
        with Image.open(root / entry["image"]["path"]) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (width, height))
        with Image.open(root / entry["mask"]["path"]) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (width, height))
        with Image.open(root / entry["depth"]["path"]) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "I;16", (width, height))
        with Image.open(root / entry["depth"]["mask_path"]) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "1", (width, height))
            assert np.asarray(image)[frame.depth == 0].sum() == 0, "unknown depth is not to be trusted"
        assert isinstance(entry["depth"]["scale_adjustment"], float)
        assert entry["mask"]["mass"] == pytest.approx(frame.mask.sum() / 255)
        assert 0 < np.mean((frame.mask > 0) & (frame.mask < 255)) < 0.2, "edges are anti-aliased"
        _check_viewpoint(entry["viewpoint"])
    assert set(map(tuple, numbers.values())) == {tuple(range(CONFIG.frames_per_sequence))}
    assert len(numbers) == len(CATEGORIES) * CONFIG.objects_per_category


def _check_viewpoint(view: dict[str, Any]) -> None:
    assert set(view) == {"R", "T", "focal_length", "principal_point", "intrinsics_format"}
    rotation = np.array(view["R"])
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert np.shape(view["T"]) == (3,)
    assert np.shape(view["focal_length"]) == np.shape(view["principal_point"]) == (2,)
    assert view["principal_point"] != [0, 0]
    assert view["intrinsics_format"] in FORMATS


def test_every_field_of_a_sequence(root: Path) -> None:
    for category in CATEGORIES:
        entries = _entries(root / category / "sequence_annotations.jgz")
        assert len(entries) == CONFIG.objects_per_category
        for entry in entries:
            assert set(entry) == {"sequence_name", "category", "video", "point_cloud", "viewpoint_quality_score"}
            assert entry["category"] == category
            assert isinstance(entry["viewpoint_quality_score"], float)
            assert isinstance(entry["point_cloud"]["quality_score"], float)
            vertices = PlyData.read(str(root / entry["point_cloud"]["path"]))["vertex"]
            assert vertices.count == entry["point_cloud"]["n_points"]
            assert 1000 <= vertices.count <= 3000
            assert [p.name for p in vertices.properties] == ["x", "y", "z", "red", "green", "blue"]


def test_world_frames_are_arbitrary(seen: list[Seen]) -> None:
    """Scale over more than a factor of 10 among the sequences, and up along no axis."""
    distances = {frame.entry["image"]["path"].split("images")[0]: np.median(frame.distance) for frame in seen}
    assert max(distances.values()) / min(distances.values()) > 10
    forward = np.stack([np.array(frame.entry["viewpoint"]["R"])[:, 2] for frame in seen])
    assert (np.abs(forward.mean(0)) < 0.5).all()


def test_lists_of_the_subset(root: Path) -> None:
    assert json.loads((root / "category_to_subset_name_list.json").read_text()) == {
        c: ["fewview_dev"] for c in CATEGORIES
    }
    for category in CATEGORIES:
        frames = {
            (entry["sequence_name"], entry["frame_number"]): entry["image"]["path"]
            for entry in _entries(root / category / "frame_annotations.jgz")
        }
        lists = json.loads((root / category / "set_lists" / "set_lists_fewview_dev.json").read_text())
        assert set(lists) == {"train", "val", "test"}
        listed = [tuple(item) for split in lists.values() for item in split]
        assert {(name, number): path for name, number, path in listed} == frames
        assert len(listed) == len(frames), "every frame in one split, once"
        sequences = {split: {name for name, _, _ in items} for split, items in lists.items()}
        assert not sequences["train"] & sequences["test"], "splits are by object"
        batches = json.loads((root / category / "eval_batches" / "eval_batches_fewview_dev.json").read_text())
        assert batches
        for batch in batches:
            assert len(batch) >= 2
            assert len({name for name, _, _ in batch}) == 1
            assert batch[0][0] in sequences["test"]
            assert len({number for _, number, _ in batch}) == len(batch)
            assert all(frames[name, number] == path for name, number, path in batch)


def test_pictures_show_what_the_mask_says(root: Path, seen: list[Seen]) -> None:
    """The object differs from its surroundings, exposure changes between frames, nothing is black or blown out."""
    means = []
    for frame in seen:
        image = np.asarray(Image.open(root / frame.entry["image"]["path"]), np.float64) / 255
        assert 0.08 < image.mean() < 0.92
        assert image.std() > 0.05
        means.append(image.mean())
    assert np.std(np.reshape(means, (-1, CONFIG.frames_per_sequence)), axis=1).mean() > 0.005
