"""Settings, determinism, resuming and defects of synthetic datasets; integration tests check their geometry."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from infra.errors import UserError
from infra.storage.files import digest_folder
from pipelines.spine.runtime import RuntimeConfig
from pipelines.stages.synth import write_synthetic
from preprocessing.synthetic.config import SyntheticConfig
from preprocessing.synthetic.dataset import RECORD_NAME, split_of, write_dataset, write_sequence
from preprocessing.synthetic.defects import DEFECTS

SMALL = SyntheticConfig(categories=("apple", "donut"), objects_per_category=2, frames_per_sequence=2, image_size=24)


def _read(path: Path) -> Any:
    return json.loads(gzip.decompress(path.read_bytes()) if path.suffix == ".jgz" else path.read_bytes())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small")
    write_dataset(SMALL, root, num_processes=1)
    return root


def test_two_runs_write_the_same_bytes_whatever_the_number_of_processes(small: Path, tmp_path: Path) -> None:
    counts = write_dataset(SMALL, tmp_path, num_processes=2)
    assert counts == {"num_categories": 2, "num_sequences": 4, "num_frames": 8}
    assert digest_folder(tmp_path) == digest_folder(small)
    assert not list(tmp_path.glob("**/.partial-*"))


def test_another_seed_gives_other_pictures(small: Path, tmp_path: Path) -> None:
    write_sequence(replace(SMALL, seed=1), tmp_path, "apple", 0)
    path = "apple/synthetic_00000/images/frame000001.jpg"
    assert (tmp_path / path).read_bytes() != (small / path).read_bytes()


def test_more_categories_and_objects_change_no_existing_sequence(small: Path, tmp_path: Path) -> None:
    write_dataset(replace(SMALL, categories=("apple",)), tmp_path, num_processes=1)
    before = digest_folder(tmp_path)
    write_dataset(replace(SMALL, categories=("apple", "donut")), tmp_path, num_processes=1)
    after = digest_folder(tmp_path)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"category_to_subset_name_list.json"}
    assert after == digest_folder(small), "in two steps or in one"
    write_dataset(replace(SMALL, categories=("hydrant",), objects_per_category=1), tmp_path, num_processes=1)
    assert set(_read(tmp_path / "category_to_subset_name_list.json")) == {"apple", "donut", "hydrant"}
    write_dataset(replace(SMALL, categories=("hydrant",), objects_per_category=2), tmp_path, num_processes=1)
    assert all(digest_folder(tmp_path)[name] == digest for name, digest in after.items() if name.startswith("donut"))
    assert [entry["sequence_name"] for entry in _read(tmp_path / "hydrant" / "sequence_annotations.jgz")] == [
        "synthetic_00000",
        "synthetic_00001",
    ]


def test_an_interrupted_run_goes_on_and_renders_nothing_twice(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, int]] = []

    def interrupted(config: SyntheticConfig, root: Path, category: str, index: int) -> str:
        if len(written) == 2:
            leftover = root / category / f".partial-synthetic_{index:05d}"
            leftover.mkdir(parents=True)
            (leftover / RECORD_NAME).write_text("{")  # as if killed while writing
            raise KeyboardInterrupt
        written.append((category, index))
        return write_sequence(config, root, category, index)

    monkeypatch.setattr("preprocessing.synthetic.dataset.write_sequence", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(SMALL, tmp_path, num_processes=1)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/synthetic_*/images/*")}
    assert len(stamps) == 2 * SMALL.frames_per_sequence
    monkeypatch.setattr("preprocessing.synthetic.dataset.write_sequence", write_sequence)
    write_dataset(SMALL, tmp_path, num_processes=1)
    assert digest_folder(tmp_path) == digest_folder(small)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_other_settings_in_the_same_folder_are_refused(small: Path) -> None:
    before = digest_folder(small)
    for other in (replace(SMALL, seed=5), replace(SMALL, frames_per_sequence=4), replace(SMALL, defects=True)):
        with pytest.raises(UserError, match="other settings"):
            write_dataset(other, small, num_processes=1)
    assert digest_folder(small) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": ("unicorn",)}, "unicorn.*choose from teddybear"),
        ({"categories": ()}, "at least one"),
        ({"categories": ("apple", "apple")}, "each once"),
        ({"objects_per_category": 0}, "objects_per_category 0: must be at least 1"),
        ({"frames_per_sequence": 1}, "frames_per_sequence 1: must be at least 2"),
        ({"image_size": 8}, "image_size 8: must be at least 16"),
    ],
)
def test_bad_settings_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        replace(SMALL, **change)
    assert "\n" not in str(caught.value)


def test_splits_are_by_object_and_about_80_5_15() -> None:
    splits = [split_of(index) for index in range(200)]
    assert [splits.count(name) for name in ("train", "val", "test")] == [160, 10, 30]
    assert {split_of(index) for index in range(2)} == {"train", "test"}, "two objects are enough for both"


def test_captions_name_the_colour_the_category_and_the_ground(small: Path) -> None:
    for category in SMALL.categories:
        captions = _read(small / category / "captions.json")
        assert set(captions) == {"synthetic_00000", "synthetic_00001"}
        for first, *others in captions.values():
            assert first.split()[0] in ("a", "an")
            assert f" {category} on a " in first
            assert others
            assert all(category in other for other in others)


def test_stage_function_reports_counts(tmp_path: Path) -> None:
    config = replace(SMALL, categories=("apple",), objects_per_category=1)
    facts = write_synthetic(config, {}, tmp_path, RuntimeConfig(root=str(tmp_path), num_workers=1))
    assert facts == {"categories": ["apple"], "num_categories": 1, "num_sequences": 1, "num_frames": 2}


@pytest.fixture(scope="module")
def defective(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("defective")
    config = replace(SMALL, categories=("apple",), objects_per_category=2 * len(DEFECTS), defects=True)
    write_dataset(config, root, num_processes=1)
    return root


def test_defects_are_listed_and_half_of_the_sequences_have_none(defective: Path) -> None:
    listed = _read(defective / "defects.json")
    assert sorted(defect for found in listed.values() for defect in found) == sorted(DEFECTS)
    assert len(_read(defective / "apple" / "sequence_annotations.jgz")) == 2 * len(DEFECTS)


Frame = dict[str, Any]


def _is_black(root: Path, frame: Frame) -> bool:
    return not _is_cut(root, frame) and int(cv2.imread(str(root / frame["image"]["path"])).max()) < 3


def _is_cut(root: Path, frame: Frame) -> bool:
    return not (root / frame["image"]["path"]).read_bytes().endswith(b"\xff\xd9")


def _has_wrong_size(root: Path, frame: Frame) -> bool:
    with Image.open(root / frame["image"]["path"]) as image:
        return [image.height, image.width] != frame["image"]["size"]


FRAME_CHECKS: dict[str, Callable[[Path, Frame], bool]] = {
    "null_viewpoint": lambda root, frame: frame["viewpoint"] is None,
    "nan_camera": lambda root, frame: frame["viewpoint"] is not None and bool(np.isnan(frame["viewpoint"]["T"]).all()),
    "null_fields": lambda root, frame: frame["mask"] is None and frame["depth"] is None,
    "lost_mask": lambda root, frame: frame["mask"] is not None and not (root / frame["mask"]["path"]).exists(),
    "black_frame": _is_black,
    "truncated_jpeg": _is_cut,
    "wrong_size": _has_wrong_size,
}
SEQUENCE_CHECKS: dict[str, Callable[[Path, Frame], bool]] = {
    "no_point_cloud": lambda root, entry: entry["point_cloud"] is None,
    "lost_point_cloud": lambda root, entry: (
        entry["point_cloud"] is not None and not (root / entry["point_cloud"]["path"]).exists()
    ),
    "nan_quality": lambda root, entry: entry["viewpoint_quality_score"] != entry["viewpoint_quality_score"],
    "null_quality": lambda root, entry: entry["viewpoint_quality_score"] is None,
}


def test_every_defect_is_there_and_only_where_it_is_listed(defective: Path) -> None:
    assert set(FRAME_CHECKS) | set(SEQUENCE_CHECKS) == set(DEFECTS)
    listed = _read(defective / "defects.json")
    frames = _read(defective / "apple" / "frame_annotations.jgz")
    for entry in _read(defective / "apple" / "sequence_annotations.jgz"):
        name = entry["sequence_name"]
        own = [frame for frame in frames if frame["sequence_name"] == name]
        found = {defect for defect, check in SEQUENCE_CHECKS.items() if check(defective, entry)}
        found |= {defect for defect, check in FRAME_CHECKS.items() if any(check(defective, frame) for frame in own)}
        assert found == set(listed.get(f"apple/{name}", [])), name
