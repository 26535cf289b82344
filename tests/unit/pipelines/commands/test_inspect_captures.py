"""`viewdiff inspect`: what it says of captures, and the contact sheet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from infra.errors import UserError
from pipelines.cli import main
from preprocessing.config import PreprocessConfig
from preprocessing.sequences.inspection import SHEET_FRAMES, TILE_SIDE, TITLE_HEIGHT, contact_sheet, summarize_category
from tests.support.captures import SIZE, make_capture, write_annotations, write_dataset

CONFIG = PreprocessConfig(image_size=32, minimum_frames=8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four apples, two of them usable, in a subset, and a hydrant. No files but the annotations."""
    apples = [make_capture(name=name) for name in ("fine", "cloudless", "short", "other")]
    apples[1].sequence["point_cloud"] = None
    del apples[2].frames[7:]
    for entry in apples[3].frames[:2]:
        entry["viewpoint"] = None
    lists = {"manyview_dev_0": {"train": [["fine", 0, "p"]], "test": [["fine", 1, "p"], ["other", 0, "p"]]}}
    write_annotations(tmp_path, apples, lists)
    (tmp_path / "apple/eval_batches").mkdir()
    batches = [[["fine", number, "p"], ["fine", number + 1, "p"]] for number in range(3)]
    (tmp_path / "apple/eval_batches/eval_batches_manyview_dev_0.json").write_text(json.dumps(batches))
    write_annotations(tmp_path, [make_capture("hydrant", intrinsics_format="ndc_norm_image_bounds")])
    return tmp_path


def test_a_summary_counts_what_the_annotations_say(root: Path) -> None:
    summary = summarize_category(root, "apple", CONFIG)
    assert (summary.num_sequences, summary.num_frames, summary.num_usable) == (4, 12 + 12 + 7 + 12, 2)
    assert summary.reasons == {"no point cloud": 1, "fewer than 8 usable frames": 1}
    assert summary.examples == {"no point cloud": "cloudless", "fewer than 8 usable frames": "short"}
    assert summary.intrinsics_formats == {"ndc_isotropic": 12 + 12 + 7 + 10}
    assert summary.subsets == {"manyview_dev_0": {"train": 1, "test": 2}}
    assert summary.eval_batches == {"manyview_dev_0": 3}


def test_cameras_that_do_not_show_what_the_others_look_at_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned, fine = make_capture(name="turned"), make_capture(name="fine")
    for place, half_turn in ((0, [-1, 1, -1]), (5, [-1, 1, -1])):  # about the camera's upward axis: it looks away
        viewpoint = turned.frames[place]["viewpoint"]
        viewpoint["R"] = (np.array(viewpoint["R"]) * half_turn).tolist()
        viewpoint["T"] = (np.array(viewpoint["T"]) * half_turn).tolist()
    write_annotations(tmp_path, [turned, fine])
    summary = summarize_category(tmp_path, "apple", CONFIG)
    assert (summary.framing.total, summary.framing.away, summary.framing.missed) == (24, 2, 2)
    assert summary.unframed == ("turned",)
    main.dispatch(["inspect", str(tmp_path)])
    said = (
        "cameras: the object is out of the picture in 2 of 24 cameras (2 look away), in 1 sequence (as turned); R and"
    )
    assert said in capsys.readouterr().out


def test_the_command_prints_every_category_and_their_sum(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main.dispatch(["inspect", str(root), "--preprocess.minimum-frames", "8"])
    assert capsys.readouterr().out.splitlines() == [
        "apple: 4 sequences, 43 frames, 2 usable",
        "        1  no point cloud (as cloudless)",
        "        1  fewer than 8 usable frames (as short)",
        "  intrinsics: ndc_isotropic 41",
        "  set lists of manyview_dev_0: test 2, train 1",
        "  evaluation batches: manyview_dev_0 3",
        "hydrant: 1 sequence, 12 frames, 1 usable",
        "  intrinsics: ndc_norm_image_bounds 12",
        "2 categories: 5 sequences, 55 frames, 3 usable",
    ]


def test_wrong_use_is_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^viewdiff inspect needs captures \(Folder of captures in CO3Dv2 layout\)$"):
        main.dispatch(["inspect"])
    with pytest.raises(UserError, match=r"no such folder"):
        main.dispatch(["inspect", str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=r"of 2 categories: name one .*; there are apple, hydrant"):
        main.dispatch(["inspect", str(root), "--contact-sheet", str(tmp_path / "sheet.png")])
    one = ["inspect", str(root), "--preprocess.categories", "hydrant", "--contact-sheet"]
    with pytest.raises(UserError, match=r"no folder .*make it or choose another"):
        main.dispatch([*one, str(tmp_path / "no/sheet.png")])
    with pytest.raises(UserError, match="no sequence passes"):
        main.dispatch([*one, str(tmp_path / "sheet.png"), "--preprocess.minimum-frames", "13"])
    assert not (tmp_path / "sheet.png").exists()


def test_points_lie_on_the_object(tmp_path: Path) -> None:
    capture = make_capture()
    write_dataset(tmp_path / "raw", [capture])
    with_points = contact_sheet(tmp_path / "raw", "apple", CONFIG)
    assert with_points.shape == (TITLE_HEIGHT + TILE_SIDE, SHEET_FRAMES * TILE_SIDE, 3)
    (tmp_path / "raw/apple/seq_1/pointcloud.ply").unlink()
    changed = (contact_sheet(tmp_path / "raw", "apple", CONFIG) != with_points).any(-1)
    scale = TILE_SIDE / max(SIZE)
    for place, number in enumerate(np.linspace(0, 11, SHEET_FRAMES).round().astype(int)):
        rows, columns = np.nonzero(changed[TITLE_HEIGHT:, place * TILE_SIDE : (place + 1) * TILE_SIDE])
        pose, matrix = capture.world_to_camera[number], capture.intrinsics[number]
        pixels = (capture.points @ pose[:3, :3].T + pose[:3, 3]) @ matrix.T
        margin = (0, (TILE_SIDE - scale * SIZE[0]) // 2)  # the pictures are wide and stand in the middle
        expected = scale * pixels[:, :2] / pixels[:, 2:] + margin
        assert 100 < len(rows) <= len(expected)  # some hide others
        found = {(u, v) for u, v in zip(columns.tolist(), rows.tolist(), strict=True)}
        assert found <= {(int(u), int(v)) for u, v in expected}


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    write_dataset(tmp_path / "raw", [make_capture(name=name) for name in ("a", "b")])
    shutil.rmtree(tmp_path / "raw/apple/a/images")
    path = tmp_path / "sheet.png"
    main.dispatch(["inspect", str(tmp_path / "raw"), "--contact-sheet", str(path)])
    image = cv2.imread(str(path))
    assert image.shape == (2 * (TITLE_HEIGHT + TILE_SIDE), SHEET_FRAMES * TILE_SIDE, 3)
    first, second = image[TITLE_HEIGHT : TITLE_HEIGHT + TILE_SIDE], image[2 * TITLE_HEIGHT + TILE_SIDE :]
    assert first.mean() > 240  # white, with a line of text
    assert first.min() < 100
    assert second.mean() < 240
