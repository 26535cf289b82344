"""What a capture must be like to be stored: each gate with its reason, on captures spoiled in that one way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from infra.errors import UserError
from preprocessing.config import PreprocessConfig
from preprocessing.sequences.normalization import coverage_degrees
from preprocessing.shards.planning import plan_shards
from preprocessing.shards.writing import ShardRecord, write_shard
from tests.support.captures import (
    SIZE,
    Capture,
    make_capture,
    orbit,
    write_annotations,
    write_dataset,
    write_point_cloud,
)

CONFIG = PreprocessConfig(image_size=32, minimum_frames=8)


def store(root: Path, **gates: Any) -> ShardRecord:
    """The only shard of the captures below `root`, with these gates."""
    config = replace(CONFIG, **gates)
    (root / "out").mkdir(exist_ok=True)
    (task,) = plan_shards(root / "raw", config).tasks
    return write_shard(task, root / "raw", root / "out", config)


def reasons(record: ShardRecord) -> dict[str, str]:
    return {item.sequence: item.reason for item in record.rejected}


def dropped(record: ShardRecord) -> dict[int, str]:
    """By frame number, of the only sequence."""
    return {number: reason for _, _, number, reason in record.defects}


def annotate(entry: dict[str, Any], pose: np.ndarray) -> None:
    """Say in a frame's annotation that it was taken by this camera [4, 4]."""
    flipped = np.diag([-1.0, -1.0, 1.0]) @ pose[:3]
    entry["viewpoint"] |= {"R": flipped[:, :3].T.tolist(), "T": flipped[:, 3].tolist()}


def half_an_orbit() -> Capture:
    """The camera goes from 0 to 180 degrees."""
    capture = make_capture(name="half", moved=False)
    capture.world_to_camera = orbit(23)[:12]
    for entry, pose in zip(capture.frames, capture.world_to_camera, strict=True):
        annotate(entry, pose)
    return capture


def test_coverage_is_the_turn_without_its_largest_gap() -> None:
    assert coverage_degrees(orbit(12)) == pytest.approx(330)
    assert coverage_degrees(orbit(12)[:4]) == pytest.approx(90)
    assert coverage_degrees(orbit(12)[[5, 0, 1]]) == pytest.approx(150)  # from any start, in any order
    assert coverage_degrees(orbit(12)[[11, 0, 1]]) == pytest.approx(60)  # across the start of the circle


def test_cameras_that_do_not_go_around_are_rejected(tmp_path: Path) -> None:
    write_dataset(tmp_path / "raw", [make_capture(name="whole"), half_an_orbit()])
    assert reasons(store(tmp_path)) == {}
    assert reasons(store(tmp_path, minimum_coverage_degrees=250)) == {"half": "cameras cover less than 250 degrees"}


def test_point_cloud_quality_can_be_asked_for(tmp_path: Path) -> None:
    captures = [make_capture(name=name) for name in ("good", "bad", "unknown")]
    for capture, quality in zip(captures, (0.5, -2.0, float("nan")), strict=True):
        capture.sequence["point_cloud"]["quality_score"] = quality
    write_dataset(tmp_path, captures)
    assert plan_shards(tmp_path, CONFIG).rejected == ()
    rejected = plan_shards(tmp_path, replace(CONFIG, minimum_point_cloud_quality=0.0)).rejected
    assert [item.sequence for item in rejected] == ["bad", "unknown"]
    assert {item.reason for item in rejected} == {"point cloud quality below 0 or unknown"}


def test_one_subset_can_be_taken_alone(tmp_path: Path) -> None:
    lists = {
        "fewview_dev": {"train": [["a", 0, "p"]], "test": [["b", 0, "p"]]},
        "manyview_dev_0": {"train": [["b", 0, "p"]], "test": [["b", 1, "p"]]},
    }
    write_annotations(tmp_path, [make_capture(name=name) for name in ("a", "b", "c")], lists)
    plan = plan_shards(tmp_path, replace(CONFIG, subset="fewview_dev"))
    splits = {item.sequence.name: item.split for task in plan.tasks for item in task.sequences}
    assert splits == {"a": "train", "b": "test"}  # without the other subset, in which b is in two splits
    assert [(item.sequence, item.reason) for item in plan.rejected] == [("c", "not in the set lists of fewview_dev")]
    with pytest.raises(
        UserError, match=r"subset 'fewview_x' has no set lists in \S+; there are: fewview_dev, manyview"
    ):
        plan_shards(tmp_path, replace(CONFIG, subset="fewview_x"))


def test_small_pictures_are_told_from_the_annotations_alone(tmp_path: Path) -> None:
    write_dataset(tmp_path, [make_capture()])
    height = min(SIZE)
    assert plan_shards(tmp_path, replace(CONFIG, minimum_image_side=height)).rejected == ()
    (rejected,) = plan_shards(tmp_path, replace(CONFIG, minimum_image_side=height + 1)).rejected
    assert rejected.reason == "fewer than 8 usable frames, mostly: image side below 49 pixels"


def test_blurred_pictures_are_dropped(tmp_path: Path) -> None:
    write_dataset(tmp_path / "raw", [make_capture()])
    path = tmp_path / "raw/apple/seq_1/images/frame000004.jpg"
    cv2.imwrite(str(path), cv2.GaussianBlur(cv2.imread(str(path)), (0, 0), 6))
    assert dropped(store(tmp_path)) == {}
    assert dropped(store(tmp_path, minimum_sharpness=100)) == {4: "image blurred"}


def test_objects_that_are_small_in_the_picture_are_dropped(tmp_path: Path) -> None:
    write_dataset(tmp_path / "raw", [make_capture()])
    path = tmp_path / "raw/apple/seq_1/masks/frame000007.png"
    mask = np.zeros(SIZE, np.uint8)
    mask[20:24, 20:24] = 255
    cv2.imwrite(str(path), mask)
    assert dropped(store(tmp_path)) == {}
    assert dropped(store(tmp_path, minimum_mask_share=0.05)) == {7: "mask covers less than 0.05 of the picture"}


def textured_sphere(root: Path, name: str, *, wrong: bool) -> Capture:
    """A capture whose pictures show a textured sphere from its cameras; `wrong` turns the annotated ones."""
    size, radius = (192, 192), 1.0
    capture = make_capture(name=name, num_frames=24, moved=False)
    random = np.random.default_rng(0)
    texture = cv2.resize(random.integers(0, 256, (64, 128, 3), np.uint8), (1024, 512), interpolation=cv2.INTER_CUBIC)
    matrix = np.array([[220.0, 0, 96], [0, 220, 96], [0, 0, 1]])
    v, u = np.mgrid[: size[0], : size[1]] + 0.5
    for number, pose in enumerate(capture.world_to_camera):
        center = -pose[:3, :3].T @ pose[:3, 3]
        rays = np.stack([u, v, np.ones(size)], -1) @ np.linalg.inv(matrix).T @ pose[:3, :3]
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        along = rays @ -center
        inside = radius**2 - center @ center + along**2
        points = center + (along - np.sqrt(np.maximum(inside, 0)))[..., None] * rays
        columns = (np.arctan2(points[..., 1], points[..., 0]) / (2 * np.pi) % 1 * 1024).astype(int) % 1024
        rows = np.clip(np.arccos(np.clip(points[..., 2], -1, 1)) / np.pi * 512, 0, 511).astype(int)
        picture = np.where((inside > 0)[..., None], texture[rows, columns], 90).astype(np.uint8)
        folder = root / "apple" / name / "images"
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"frame{number:06d}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 98])
        entry = capture.frames[number]
        entry["image"]["size"], entry["mask"] = list(size), None
        annotated = capture.world_to_camera[number]
        if wrong:  # rolled about the viewing direction by up to 6 degrees
            roll = np.deg2rad(6) * random.uniform(-1, 1)
            annotated = annotated.copy()
            turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
            annotated[:3] = turn @ annotated[:3]
        annotate(entry, annotated)
        entry["viewpoint"] |= {"focal_length": [220 / 96, 220 / 96], "principal_point": [0, 0]}
    return capture


def test_pictures_that_disagree_with_their_cameras_are_rejected(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    captures = [textured_sphere(root, "right", wrong=False), textured_sphere(root, "wrong", wrong=True)]
    write_annotations(root, captures)
    for capture in captures:
        write_point_cloud(root, capture)
    gates = {"image_size": 192, "maximum_epipolar_pixels": 1.0}
    record = store(tmp_path, **gates)
    assert reasons(record) == {"wrong": "pictures are more than 1 pixels off their cameras"}
    assert record.num_sequences == 1


def test_pictures_without_anything_in_common_are_rejected(tmp_path: Path) -> None:
    write_dataset(tmp_path / "raw", [make_capture()])
    record = store(tmp_path, maximum_epipolar_pixels=1.0)
    assert reasons(record) == {"seq_1": "neighbouring pictures have nothing in common"}


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({"minimum_coverage_degrees": 360}, "minimum_coverage_degrees is 360, must be at least 0 and below 360"),
        ({"minimum_mask_share": -0.1}, r"minimum_mask_share is -0\.1"),
        ({"minimum_sharpness": float("nan")}, "minimum_sharpness is nan"),
        ({"maximum_epipolar_pixels": 0.0}, r"maximum_epipolar_pixels is 0\.0, must be positive"),
        ({"minimum_image_side": 0}, "minimum_image_side is 0, must be at least 1"),
    ],
)
def test_gates_out_of_range_are_refused(gate: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **gate)
