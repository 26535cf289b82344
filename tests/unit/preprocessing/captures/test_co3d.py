"""The reader of CO3Dv2's annotation files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import UserError
from preprocessing.captures.captions import default_caption, read_captions
from preprocessing.captures.co3d import open_root, read_category, read_jgz, select_categories
from preprocessing.captures.set_lists import EvalBatch, read_eval_batches, read_set_lists
from tests.support.captures import SIZE, make_capture, write_annotations, write_jgz

NAN = float("nan")


@pytest.mark.parametrize("intrinsics_format", ["ndc_isotropic", "ndc_norm_image_bounds"])
def test_camera_projects_as_pytorch3d_defines(intrinsics_format: str, tmp_path: Path) -> None:
    """Against PyTorch3D's own formula, written out: X_cam = X R + T, ndc = f X_cam / Z + p, +x left, +y up."""
    capture = make_capture(intrinsics_format=intrinsics_format)
    write_annotations(tmp_path, [capture])
    (sequence,) = read_category(tmp_path, "apple")
    height, width = SIZE
    units = np.array([24.0, 24.0] if intrinsics_format == "ndc_isotropic" else [32.0, 24.0])
    for frame, entry in zip(sequence.frames, capture.frames, strict=True):
        raw = entry["viewpoint"]
        camera_points = capture.points @ np.array(raw["R"]) + np.array(raw["T"])
        ndc = np.array(raw["focal_length"]) * camera_points[:, :2] / camera_points[:, 2:] + raw["principal_point"]
        expected = np.array([width, height]) / 2 - units * ndc
        assert frame.viewpoint is not None
        pose, matrix = frame.viewpoint.to_opencv(SIZE)
        homogeneous = (capture.points @ pose[:3, :3].T + pose[:3, 3]) @ matrix.T
        # Float64 on both sides; pixels of order 100.
        np.testing.assert_allclose(homogeneous[:, :2] / homogeneous[:, 2:], expected, atol=1e-9)
        np.testing.assert_allclose(pose, capture.world_to_camera[frame.number], atol=1e-12)
        np.testing.assert_allclose(matrix, capture.intrinsics[frame.number], atol=1e-12)


def test_format_defaults_to_image_bounds(tmp_path: Path) -> None:
    captures = [make_capture(name=f"s{i}", intrinsics_format="ndc_norm_image_bounds") for i in range(3)]
    for entry in captures[1].frames:
        del entry["viewpoint"]["intrinsics_format"]
    for entry in captures[2].frames:
        entry["viewpoint"]["intrinsics_format"] = NAN
    write_annotations(tmp_path, captures)
    named, absent, nan = read_category(tmp_path, "apple")
    assert named.frames[0].viewpoint == absent.frames[0].viewpoint == nan.frames[0].viewpoint


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    capture = make_capture()
    capture.frames[3]["viewpoint"]["intrinsics_format"] = "pixels"
    write_annotations(tmp_path, [capture])
    with pytest.raises(UserError, match=r"entry 3: intrinsics_format is 'pixels'.*ndc_isotropic"):
        read_category(tmp_path, "apple")


def test_nulls_nans_and_unknown_keys_are_tolerated(tmp_path: Path) -> None:
    capture = make_capture()
    frames = capture.frames
    frames[0]["novel_key"] = {"deep": [1, None]}
    frames[1]["viewpoint"] = None
    frames[2]["mask"] = None
    frames[3]["image"] = NAN
    frames[4]["viewpoint"]["T"] = [NAN, None, 0.0]
    frames[5]["viewpoint"]["R"] = [[1, 0], [0, 1]]
    frames[6]["image"]["size"] = [NAN, 64]
    frames[7]["mask"]["path"] = None
    frames[8]["viewpoint"]["focal_length"] = [10**400, 1]
    capture.sequence |= {"point_cloud": None, "viewpoint_quality_score": NAN, "video": NAN, "novel": 1}
    write_annotations(tmp_path, [capture])
    (sequence,) = read_category(tmp_path, "apple")
    assert sequence.point_cloud_path is None
    assert sequence.viewpoint_quality is None
    read = sequence.frames
    assert read[1].viewpoint is read[5].viewpoint is read[8].viewpoint is None
    assert read[2].mask_path is read[7].mask_path is None
    assert read[3].image_path is None
    assert read[6].image_size is None
    assert read[4].viewpoint is not None
    assert np.isnan(read[4].viewpoint.translation).tolist() == [True, True, False]
    assert read[0].image_size == SIZE


def test_sequences_of_either_file_are_listed(tmp_path: Path) -> None:
    with_both, frames_only, annotated_only = (make_capture(name=name) for name in ("b", "a", "c"))
    write_annotations(tmp_path, [with_both, frames_only, annotated_only])
    write_jgz(tmp_path / "apple/frame_annotations.jgz", with_both.frames[::-1] + frames_only.frames)
    write_jgz(tmp_path / "apple/sequence_annotations.jgz", [with_both.sequence, annotated_only.sequence])
    sequences = read_category(tmp_path, "apple")
    assert [(item.name, len(item.frames), item.point_cloud_path is None) for item in sequences] == [
        ("a", 12, True),
        ("b", 12, False),
        ("c", 0, False),
    ]
    assert [frame.number for frame in sequences[1].frames] == list(range(12))


@pytest.mark.parametrize(("name", "value"), [("frame_number", None), ("frame_number", -1), ("sequence_name", None)])
def test_frames_without_identity_are_refused(tmp_path: Path, name: str, value: object) -> None:
    capture = make_capture()
    capture.frames[2][name] = value
    write_annotations(tmp_path, [capture])
    with pytest.raises(UserError, match=rf"frame_annotations.jgz, entry 2: {name} is {value}"):
        read_category(tmp_path, "apple")


@pytest.mark.parametrize("path", ["../outside.jpg", "/etc/passwd", "apple/../../x.jpg", "apple/a\0b.jpg"])
@pytest.mark.parametrize("field", ["image", "mask", "point_cloud"])
def test_paths_stay_inside_the_root(tmp_path: Path, path: str, field: str) -> None:
    capture = make_capture()
    (capture.sequence if field == "point_cloud" else capture.frames[0])[field]["path"] = path
    write_annotations(tmp_path, [capture])
    with pytest.raises(UserError, match=r"leads out of the dataset's root; correct"):
        read_category(tmp_path, "apple")


GOOD = gzip.compress(json.dumps([{"frame_number": i} for i in range(500)]).encode(), mtime=0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        GOOD[: len(GOOD) // 2],
        GOOD[:-4],
        GOOD[:60] + bytes([GOOD[60] ^ 0xFF]) + GOOD[61:],
        gzip.compress(b"{not json"),
        gzip.compress(b'["\xff\xfe"]'),
        gzip.compress(b"[" * 100_000),
    ],
    ids=["empty", "no gzip", "half", "no end", "flipped bits", "no JSON", "no UTF-8", "too deep"],
)
def test_damaged_annotations_are_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "frame_annotations.jgz"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"frame_annotations\.jgz: damaged .*; download it again$") as caught:
        read_jgz(path)
    assert "\n" not in str(caught.value)


def test_missing_and_misshaped_annotations(tmp_path: Path) -> None:
    write_annotations(tmp_path, [make_capture()])
    write_jgz(tmp_path / "apple/frame_annotations.jgz", {"frames": []})
    with pytest.raises(UserError, match="not a JSON list of objects"):
        read_category(tmp_path, "apple")
    write_jgz(tmp_path / "apple/frame_annotations.jgz", [])
    (tmp_path / "apple/sequence_annotations.jgz").unlink()
    with pytest.raises(UserError, match=r"sequence_annotations.jgz: missing"):
        read_category(tmp_path, "apple")


def test_expanded_size_is_capped(tmp_path: Path) -> None:
    path = tmp_path / "frame_annotations.jgz"
    path.write_bytes(gzip.compress(b" " * 10_000 + b"[]"))
    assert read_jgz(path, max_bytes=10_002) == []
    with pytest.raises(UserError, match="expands to more than 10,001 bytes"):
        read_jgz(path, max_bytes=10_001)


def test_root_must_be_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder"):
        open_root(tmp_path / "nowhere")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match="no CO3Dv2 dataset"):
        open_root(tmp_path)


def test_uco3d_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "metadata.sqlite").touch()
    with pytest.raises(UserError, match=r"this is uCO3D .* not supported"):
        open_root(tmp_path)


def test_unknown_category_lists_the_nearest_first(tmp_path: Path) -> None:
    for category in ("zebra", "apple", "teddybear", "hydrant"):
        write_annotations(tmp_path, [make_capture(category)])
    assert select_categories(tmp_path, ()) == ("apple", "hydrant", "teddybear", "zebra")
    assert select_categories(tmp_path, ("zebra", "apple", "zebra")) == ("apple", "zebra")
    with pytest.raises(UserError, match=r"'tedybear' is not in .*; choose from: teddybear, "):
        select_categories(tmp_path, ("apple", "tedybear"))


def test_set_lists_name_the_splits_of_sequences(tmp_path: Path) -> None:
    write_annotations(
        tmp_path,
        [make_capture()],
        {
            "fewview_dev": {"train": [["a", 0, "p"], ["a", 1, "p"]], "val": [], "test": [["b", 0, "p"]]},
            "manyview_dev_0": {"train": [["c", 0, "p"]], "val": None, "test": [["c", 1, "p"]], "more": 3},
        },
    )
    assert read_set_lists(tmp_path, "apple") == {
        "fewview_dev": {"a": {"train"}, "b": {"test"}},
        "manyview_dev_0": {"c": {"train", "test"}},
    }


@pytest.mark.parametrize("value", [[], {"train": 3}, {"train": [3]}, {"test": [[]]}])
def test_misshaped_set_lists_are_one_line(tmp_path: Path, value: Any) -> None:
    write_annotations(tmp_path, [make_capture()], {"x": value})
    with pytest.raises(UserError, match=r"set_lists_x.json: not a JSON object"):
        read_set_lists(tmp_path, "apple")


def test_eval_batches_are_frames_of_one_sequence(tmp_path: Path) -> None:
    write_annotations(tmp_path, [make_capture()])
    assert read_eval_batches(tmp_path, "apple") == {}
    path = tmp_path / "apple/eval_batches/eval_batches_fewview_dev.json"
    path.parent.mkdir()
    path.write_text(json.dumps([[["a", 3, "p"], ["a", 0, "p"], ["a", 7, "p"]], [["b", 1, "p"], ["b", 2, "p"]]]))
    batches = (EvalBatch("apple", "a", (3, 0, 7)), EvalBatch("apple", "b", (1, 2)))
    assert read_eval_batches(tmp_path, "apple") == {"fewview_dev": batches}
    for value in ({}, [3], [[["a", 0, "p"]]], [[["a", 0, "p"], ["b", 1, "p"]]], [[["a", "0", "p"], ["a", 1, "p"]]]):
        path.write_text(json.dumps(value))
        if value:
            with pytest.raises(UserError, match=r"eval_batches_fewview_dev.json: not a JSON list of batches"):
                read_eval_batches(tmp_path, "apple")


def test_captions(tmp_path: Path) -> None:
    (tmp_path / "toy_truck").mkdir()
    assert read_captions(tmp_path, "toy_truck") == {}
    assert default_caption("toy_truck") == "a photo of a toy truck"
    assert default_caption("apple") == "a photo of an apple"
    path = tmp_path / "toy_truck" / "captions.json"
    path.write_text(json.dumps({"a": "one", "b": ["two", "three"]}))
    assert read_captions(tmp_path, "toy_truck") == {"a": ("one",), "b": ("two", "three")}
    for value in ([], {"a": 3}, {"a": []}, {"a": [" "]}, {"a": "\ud800"}):
        path.write_text(json.dumps(value))
        with pytest.raises(UserError, match=r"captions.json: not a JSON object"):
            read_captions(tmp_path, "toy_truck")
