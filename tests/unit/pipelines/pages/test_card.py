"""The dataset card: boxes where cameras see them, the same bytes every time, and odd data."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.provenance.fingerprint import plain
from model.cameras import Cameras
from pipelines.pages.card import MAX_REJECTED_ROWS, dataset_card, write_card
from pipelines.pages.card_pictures import MOST_FRAMES, box_lines, choose_frames, frame_figure, mask_outline
from pipelines.pages.charts import histogram_chart
from preprocessing.config import PreprocessConfig
from preprocessing.shards.commit import commit_folder
from preprocessing.shards.planning import RejectedSequence, plan_shards
from preprocessing.shards.reading import FrameIndex, SequenceRecord
from preprocessing.shards.statistics import Distribution
from preprocessing.shards.writing import write_shard
from tests.support.captures import Capture, make_capture, write_dataset
from tests.support.factories import look_at_cameras
from tests.unit.pipelines.stages.test_report import check_nesting

CONFIG = PreprocessConfig(image_size=32, sequences_per_shard=2, minimum_frames=8)
BOUNDS = np.array([[-1.0, -0.7, -0.4], [1.0, 0.7, 0.4]], dtype=np.float32)


def write_shards(
    folder: Path, captures: list[Capture], *, captions: dict[str, Any] | None = None, rejected: tuple[Any, ...] = ()
) -> Path:
    """A folder of shards of the captures."""
    raw = folder.parent / f"{folder.name}-raw"
    write_dataset(raw, captures)
    for category, texts in (captions or {}).items():
        (raw / category / "captions.json").write_text(json.dumps(texts))
    folder.mkdir()
    plan = plan_shards(raw, CONFIG)
    records = [write_shard(task, raw, folder, CONFIG) for task in plan.tasks]
    made_by = {"config": plain(CONFIG), "git_commit": "0123abc+"}
    everything = [*plan.rejected, *(item for record in records for item in record.rejected), *rejected]
    commit_folder(folder, records, everything, CONFIG.image_size, made_by=made_by)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    captures = [make_capture("apple", f"a_{number}", seed=number) for number in range(4)]
    captures += [make_capture("pear", "b", num_frames=10, seed=9), make_capture("pear", "short", num_frames=5)]
    captures[0].frames[3]["viewpoint"] = None
    captures[1].frames[2]["mask"] = None
    return write_shards(tmp_path_factory.mktemp("card") / "shards", captures)


def record(category: str, sequence: str, start: int, num_frames: int) -> SequenceRecord:
    return SequenceRecord(category, sequence, "train", ("x",), BOUNDS, range(start, start + num_frames))


def corners(camera: Cameras) -> np.ndarray:
    points = torch.tensor([[x, y, z] for x in BOUNDS[:, 0] for y in BOUNDS[:, 1] for z in BOUNDS[:, 2]])
    return camera.project(points)[0].numpy()


@pytest.mark.parametrize("seed", range(4))
def test_the_box_is_drawn_where_the_camera_sees_it(seed: int) -> None:
    camera = look_at_cameras(1, seed=seed)[0]
    lines = box_lines(camera, BOUNDS)
    assert len(lines) == 12
    projected = corners(camera)
    ends = np.array([[start, end] for _, start, end in lines])
    which = np.abs(ends[:, :, None] - projected).max(-1).argmin(-1)  # [12, 2] corner of each end
    np.testing.assert_allclose(ends, projected[which], atol=1e-4)
    # An edge joins corners that differ along one axis, and each corner has three edges.
    assert {bin(int(a) ^ int(b)).count("1") for a, b in which} == {1}
    assert np.bincount(which.ravel(), minlength=8).tolist() == [3] * 8
    base = {frozenset(pair) for (kinds, *_), pair in zip(lines, which.tolist(), strict=True) if "base" in kinds}
    assert base == {frozenset(pair) for pair in ((0, 2), (0, 4), (2, 6), (4, 6))}  # even corners have the lower z


@pytest.mark.parametrize("seed", range(4))
def test_hidden_edges_lie_behind_the_box(seed: int) -> None:
    camera = look_at_cameras(1, seed=seed)[0]
    center = camera.centers().numpy()
    directions = np.linalg.inv(camera.intrinsics.numpy() @ camera.rotation.numpy())
    for kinds, start, end in box_lines(camera, BOUNDS):
        ray = directions @ np.array([*(start + end) / 2, 1.0])
        with np.errstate(divide="ignore"):
            near, far = np.sort((BOUNDS - center) / ray, axis=0)
        # The ray to an edge's middle touches the box in one point if the edge is its outline, goes through it if not.
        enters, leaves = near.max(), far.min()
        middles = center + np.array([enters, leaves])[:, None] * ray
        on_edge = (np.abs(np.abs(middles) - BOUNDS[1]) < 1e-3).sum(axis=1) >= 2
        if leaves - enters > 1e-3:
            assert on_edge.tolist() == ([False, True] if "hidden" in kinds else [True, False])


def test_lines_end_at_a_camera_within_the_box() -> None:
    camera = look_at_cameras(1, seed=1, radius=0.3)[0]
    lines = box_lines(camera, BOUNDS)
    assert 0 < len(lines) < 12
    for kinds, start, end in lines:
        assert "hidden" not in kinds
        assert np.isfinite([start, end]).all()
    behind = Cameras(camera.world_to_camera.clone(), camera.intrinsics, camera.image_size)
    behind.world_to_camera[2, 3] = -9.0
    assert box_lines(behind, BOUNDS) == []


def test_a_figure_holds_the_box_and_the_outline() -> None:
    camera = look_at_cameras(1, seed=3, image_size=(32, 32))[0]
    mask = np.zeros((32, 32), np.uint8)
    mask[8:24, 10:20] = 255
    mask[12:16, 13:17] = 0  # a hole
    html = frame_figure(np.zeros((32, 32, 3), np.uint8), mask, camera, BOUNDS, title="frame <1>", of="a & b")
    drawn = re.findall(r'class="edge[^"]*" d="M([\d.-]+) ([\d.-]+)L([\d.-]+) ([\d.-]+)"', html)
    ends = np.array(drawn, dtype=float).reshape(-1, 2, 2)
    np.testing.assert_allclose(ends, [line[1:] for line in box_lines(camera, BOUNDS)], atol=0.051)  # one decimal
    path = re.search(r'class="outline" d="([^"]*)"', html)
    assert path
    outer, hole = (
        [tuple(map(float, point.split())) for point in part.rstrip("Z").split("L")] for part in path[1].split("M")[1:]
    )
    assert sorted(outer) == [(10.5, 8.5), (10.5, 23.5), (19.5, 8.5), (19.5, 23.5)]
    assert all(12 < u < 18 and 11 < v < 17 for u, v in hole)
    assert 'alt="frame &lt;1&gt; of a &amp; b"' in html
    assert "outline" not in frame_figure(np.zeros((32, 32, 3), np.uint8), None, camera, BOUNDS, title="", of="")
    assert mask_outline(np.zeros((32, 32), np.uint8)) == ""
    check_nesting(html)


def test_samples_are_spread_over_categories_sequences_and_turns() -> None:
    two = [record(category, str(number), 0, 12) for category in "ab" for number in range(9)]
    picks = choose_frames(two)
    assert [(item.category, item.sequence) for item, _ in picks] == [(c, s) for c in "ab" for s in ("0", "3", "6")]
    assert [rows for _, rows in picks] == [[0, 6]] * 6
    assert [rows for _, rows in choose_frames([record("a", "0", 100, 8)])] == [[100, 101, 102, 104, 105, 106]]


@pytest.mark.parametrize("num_categories", [1, 2, 3, 5, 7, 12, 13, 340])
@pytest.mark.parametrize("num_sequences", [1, 2, 50])
def test_pictures_stay_few(num_categories: int, num_sequences: int) -> None:
    sequences = [record(f"c{a:03}", str(b), 0, 3) for a in range(num_categories) for b in range(num_sequences)]
    picks = choose_frames(sequences)
    assert 1 <= sum(len(rows) for _, rows in picks) <= MOST_FRAMES
    assert all(rows for _, rows in picks)
    assert len({item.category for item, _ in picks}) == min(num_categories, MOST_FRAMES)


def test_the_card_tells_what_is_there(shards: Path) -> None:
    html = dataset_card(shards)
    check_nesting(html)
    text = re.sub(r"<[^>]*>", " ", html)
    index = FrameIndex.open(shards)
    assert (index.manifest["num_sequences"], index.manifest["num_frames"]) == (5, 57)
    assert "5 sequences of apple, pear" in text
    assert (
        "57 frames  of 32 × 32 pixels from 5 of 6 captures; 1 sequence rejected, 1 frame of the others dropped" in text
    )
    assert re.search(r"fewer than 8 usable frames\s+1\s", text)
    assert re.search(r"no camera in the annotation\s+1\s", text)
    assert re.search(r"pear / short\s+fewer than 8 usable frames", text)
    for value in (
        "0123abc+",
        index.manifest["index_sha256"],
        json.loads((shards / "dataset.json").read_text())["sha256"],
    ):
        assert value in text
    assert "sequences_per_shard" in text
    assert html.count('<figure class="curve histogram">') == 10
    assert html.count("<img ") <= MOST_FRAMES
    assert str(shards) not in html


def test_the_same_shards_have_the_same_card(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dataset_card(shards)
    moved = shutil.copytree(shards, tmp_path / "elsewhere")
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    write_card(moved)
    assert (moved / "card.html").read_text() == first
    (moved / "card.html").write_text("kept")
    write_card(moved)
    assert (moved / "card.html").read_text() == "kept"


def test_one_sequence_without_masks_and_odd_texts(tmp_path: Path) -> None:
    capture = make_capture("apple", "only")
    for frame in capture.frames:
        frame["mask"] = None
    odd = ["<script>alert(1)</script> & “äpfel” 苹果", "</p>\"'"]
    rejected = (RejectedSequence("<i>x</i>", "y", "<b>because</b>"),)
    html = dataset_card(write_shards(tmp_path / "s", [capture], captions={"apple": {"only": odd}}, rejected=rejected))
    check_nesting(html)
    assert 'class="outline"' not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; “äpfel” 苹果" in html
    for text in ("<script>alert", "<i>x", "<b>because", "</p>\"'"):
        assert text not in html
    assert not re.search(r"\bnan\b", html)


def test_rejected_sequences_are_capped_but_counted(tmp_path: Path) -> None:
    rejected = tuple(RejectedSequence("apple", f"r{number}", f"reason {number % 2}") for number in range(301))
    html = dataset_card(write_shards(tmp_path / "s", [make_capture()], rejected=rejected))
    assert html.count('<th scope="row">apple / r') == MAX_REJECTED_ROWS
    text = re.sub(r"<[^>]*>", " ", html)
    assert re.search(r"reason 0\s+151\s+reason 1\s+150\s", text)
    assert f"({MAX_REJECTED_ROWS} of 301 shown)" in text


def test_many_categories(tmp_path: Path) -> None:
    captures = [make_capture(f"kind{number:03}", "s", num_frames=8, seed=number) for number in range(40)]
    html = dataset_card(write_shards(tmp_path / "s", captures))
    check_nesting(html)
    assert "40 sequences of 40 categories" in html
    assert "Evenly picked from 12 of the 40 categories" in html
    assert html.count("<img ") == MOST_FRAMES
    assert len(re.findall(r'<th scope="row">kind\d+</th>', html)) == 40


def test_bars_are_as_high_as_their_counts() -> None:
    values = np.array([0.5] * 2 + [2.5] * 8 + [7.5] * 4)
    html = histogram_chart(Distribution(name="<n>", unit="u & v", counted="frame", values=values, resolution=1))
    check_nesting(html)
    bars = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)"><title>([^<]*)<', html)
    assert [float(height) for _, _, height, _ in bars] == [37.5, 150, 75]
    assert [title for *_, title in bars] == ["0 to 1: 2 frames", "2 to 3: 8 frames", "7 to 8: 4 frames"]
    assert all(float(y) + float(height) == 150 for _, y, height, _ in bars)
    assert 'aria-label="&lt;n&gt;, u &amp; v: 14 frames, 0 to 8, median 2"' in html


@pytest.mark.parametrize("values", [[0.0], [5.0] * 3, [-1e-12, 0.0], [1e-3, 1e6], [3.0, 4.0, 1e9]])
def test_charts_of_odd_values_are_drawn(values: list[float]) -> None:
    html = histogram_chart(Distribution(name="n", unit="u", counted="frame", values=np.array(values), resolution=0.01))
    check_nesting(html)
    assert "<rect" in html
    assert "nan" not in html
    for place in re.findall(r'<span style="left:([\d.-]+)%', html):
        assert -0.01 <= float(place) <= 100.01
    assert len(re.findall(r'<span style="left:', html)) >= 2
