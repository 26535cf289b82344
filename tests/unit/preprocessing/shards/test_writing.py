"""Plan, one shard, its commit, and the joined folder. No Ray here."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from infra.errors import UserError
from infra.provenance.fingerprint import plain
from preprocessing.captures.capture import Sequence
from preprocessing.captures.set_lists import choose_split
from preprocessing.config import PreprocessConfig
from preprocessing.shards.commit import commit_folder
from preprocessing.shards.planning import ShardPlan, plan_shards, require_sequences
from preprocessing.shards.schema import manifest_digest, read_manifest
from preprocessing.shards.writing import ShardRecord, committed_record, record_path, require_record, sweep, write_shard
from tests.support.captures import Capture, make_capture, write_annotations, write_dataset, write_files

CONFIG = PreprocessConfig(image_size=32, sequences_per_shard=2, minimum_frames=8)


def write_all(root: Path, folder: Path, config: PreprocessConfig = CONFIG) -> tuple[ShardPlan, list[ShardRecord]]:
    folder.mkdir(exist_ok=True)
    plan = plan_shards(root, config)
    return plan, [write_shard(task, root, folder, config) for task in plan.tasks]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    captures = [make_capture(category, name, seed=index) for index, (category, name) in enumerate(NAMES)]
    write_dataset(tmp_path / "raw", captures)
    return tmp_path / "raw"


NAMES = [("apple", "b_2"), ("apple", "a_1"), ("hydrant", "c_3")]


def test_plan_is_sorted_and_cut(root: Path) -> None:
    plan = plan_shards(root, CONFIG)
    names = [[(item.sequence.category, item.sequence.name) for item in task.sequences] for task in plan.tasks]
    assert names == [[("apple", "a_1"), ("apple", "b_2")], [("hydrant", "c_3")]]
    assert plan == plan_shards(root, CONFIG)
    assert [task.num_frames for task in plan.tasks] == [24, 12]


def test_the_same_bytes_every_time(root: Path, tmp_path: Path) -> None:
    plan, _ = write_all(root, tmp_path / "a")
    (tmp_path / "b").mkdir()
    for task in reversed([*plan.tasks, *plan.tasks]):  # another order, and each twice
        write_shard(task, root, tmp_path / "b", CONFIG)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert len(files) == 4
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_record_tells_the_digest(root: Path, tmp_path: Path) -> None:
    _, records = write_all(root, tmp_path / "out")
    for record in records:
        data = (tmp_path / "out" / record.name).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (record.sha256, record.num_bytes)


def test_index_points_at_the_members(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    _, records = write_all(root, folder)
    commit_folder(folder, records, (), CONFIG.image_size)
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    keys = [(row["category"], row["sequence"], row["frame_number"]) for row in rows]
    assert keys == sorted((*name, number) for name in NAMES for number in range(12))
    members: dict[str, bytes] = {}
    for shard in folder.glob("*.tar"):
        with tarfile.open(shard) as tar:
            members |= {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    for row in rows:
        data = (folder / row["shard"]).read_bytes()
        stem = f"{row['category']}/{row['sequence']}.{row['frame_number']:06d}"
        for kind, name in (("image", ".jpg"), ("mask", ".mask.png")):
            offset, length = row[f"{kind}_offset"], row[f"{kind}_length"]
            assert data[offset : offset + length] == members[stem + name]


def test_webdataset_reads_the_shards_securely(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset.utils, "enforce_security", True)  # what WDS_SECURE=1 sets at import
    folder = tmp_path / "out"
    _, records = write_all(root, folder)
    manifest = commit_folder(folder, records, (), CONFIG.image_size)
    urls = [str(folder / shard["name"]) for shard in manifest["shards"]]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == ["apple/a_1", "apple/b_2", "hydrant/c_3"]
    index = pq.read_table(folder / "index.parquet").to_pylist()
    for position, sample in enumerate(samples):
        rows = index[12 * position : 12 * position + 12]
        assert sample["000003.jpg"].shape == (32, 32, 3)
        assert sample["000003.mask.png"].shape[:2] == (32, 32)
        cameras, meta = sample["cameras.npz"], sample["meta.json"]
        assert cameras["frame_number"].tolist() == list(range(12))
        assert cameras["image_size"].tolist() == [32, 32]
        for name in ("world_to_camera", "intrinsics"):
            np.testing.assert_array_equal(cameras[name].reshape(12, -1), [row[name] for row in rows])
        assert meta["captions"] == rows[0]["caption"]
        assert meta["split"] == rows[0]["split"]
        assert meta["source"]["category"] == sample["__key__"].split("/")[0]
        np.testing.assert_allclose(np.ravel(meta["scene_bounds"]), rows[0]["scene_bounds"], rtol=1e-6)
        assert np.shape(meta["normalization"]) == (4, 4)


def committed_for(root: Path, folder: Path, config: PreprocessConfig = CONFIG) -> list[bool]:
    return [committed_record(folder, task, config) is not None for task in plan_shards(root, config).tasks]


def test_only_whole_shards_of_the_same_task_count(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_all(root, folder)
    assert committed_for(root, folder) == [True, True]
    larger = PreprocessConfig(image_size=40, sequences_per_shard=2, minimum_frames=8)
    assert committed_for(root, folder, larger) == [False, False]
    shard = folder / "shard-000001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:-512])
    assert committed_for(root, folder) == [True, False]
    shard.write_bytes(data)
    record_path(folder, 0).unlink()
    assert committed_for(root, folder) == [False, True]
    with pytest.raises(RuntimeError, match=r"shard-000000.tar was committed and is gone"):
        require_record(folder, plan_shards(root, CONFIG).tasks[0], CONFIG)
    write_annotations(root, [make_capture("hydrant", "c_3", seed=99)])  # other cameras
    assert committed_for(root, folder) == [False, False]


def test_sweep_removes_all_that_is_not_committed(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_all(root, folder)
    keep = {"shard-000001.tar", "shard-000001.tar.rows.parquet", "other.txt"}
    for name in (".shard-000000-abc.tmp", ".shard-000001.tar.rows.parquet.x.tmp", ".dataset.json.x.tmp", "other.txt"):
        (folder / name).write_bytes(b"half")
    sweep(folder, keep={1})
    assert {path.name for path in folder.iterdir()} == keep


def spoil_sequences(root: Path) -> list[Capture]:
    """One capture per reason that rejects a sequence."""
    names = ("a.b", "cloudless", "double", "short", "lost_cloud", "no_camera", "missing", "straight", "fine")
    captures = {name: make_capture(name=name, seed=len(name)) for name in names}
    captures["cloudless"].sequence["point_cloud"] = None
    captures["double"].frames[1]["frame_number"] = 0
    del captures["short"].frames[7:]
    for entry in captures["no_camera"].frames[:5]:
        entry["viewpoint"]["R"][1][1] = float("nan")
    for entry in captures["straight"].frames:
        entry["viewpoint"]["R"] = np.eye(3).tolist()
        entry["viewpoint"]["T"] = [entry["frame_number"], 0, 0]
    write_annotations(root, list(captures.values()))
    for capture in captures.values():
        write_files(root, capture)
    (root / "apple/lost_cloud/pointcloud.ply").unlink()
    for path in sorted((root / "apple/missing/images").iterdir())[3:]:
        path.unlink()
    return list(captures.values())


def test_every_rejected_sequence_has_its_reason(tmp_path: Path) -> None:
    spoil_sequences(tmp_path)
    plan, records = write_all(tmp_path, tmp_path / "out")
    found = {
        item.sequence: item.reason for item in (*plan.rejected, *(r for record in records for r in record.rejected))
    }
    assert found == {
        "a.b": "name has other characters than letters, digits, - and _ (or over 80)",
        "cloudless": "no point cloud",
        "double": "a frame number occurs twice",
        "short": "fewer than 8 usable frames",
        "lost_cloud": "point cloud file missing",
        "no_camera": "fewer than 8 usable frames, mostly: camera not finite",
        "missing": "fewer than 8 usable frames, mostly: image file missing",
        "straight": "camera centres lie on a line",
    }
    assert sum(record.num_sequences for record in records) == 1
    empty = [record.name for record in records if record.num_sequences == 0]
    assert len(empty) == 1
    assert not any((tmp_path / "out" / name).exists() for name in empty)
    assert committed_for(tmp_path, tmp_path / "out") == [True, True]


def test_viewpoint_quality_can_be_asked_for(tmp_path: Path) -> None:
    captures = [make_capture(name=name) for name in ("good", "bad", "unknown")]
    for capture, quality in zip(captures, (0.5, -2.0, None), strict=True):
        capture.sequence["viewpoint_quality_score"] = quality
    write_annotations(tmp_path, captures)
    assert plan_shards(tmp_path, CONFIG).rejected == ()
    strict = PreprocessConfig(image_size=32, minimum_frames=8, minimum_viewpoint_quality=0.0)
    rejected = plan_shards(tmp_path, strict).rejected
    assert [item.sequence for item in rejected] == ["bad", "unknown"]
    assert {item.reason for item in rejected} == {"viewpoint quality below 0 or unknown"}


def test_bad_frames_are_dropped_and_maskless_ones_kept(tmp_path: Path) -> None:
    capture = make_capture(num_frames=20)
    frames: list[dict[str, Any]] = capture.frames
    frames[0]["viewpoint"]["focal_length"] = [-1.0, 1.0]
    frames[1]["viewpoint"]["R"] = (2 * np.array(frames[1]["viewpoint"]["R"])).tolist()
    frames[2]["viewpoint"] = None
    frames[3]["image"] = None
    frames[4]["image"]["size"] = [50, 64]
    frames[5]["viewpoint"]["T"] = [1e5, 0, 0]
    frames[6]["mask"] = None
    write_annotations(tmp_path, [capture])
    write_files(tmp_path, capture)
    (tmp_path / frames[7]["mask"]["path"]).unlink()
    image = tmp_path / frames[8]["image"]["path"]
    image.write_bytes(image.read_bytes()[:300])
    _, (record,) = write_all(tmp_path, tmp_path / "out")
    assert {number: reason for _, _, number, reason in record.defects} == {
        0: "focal length not positive",
        1: "camera rotation is none",
        2: "no camera in the annotation",
        3: "no image in the annotation",
        4: "image size differs from the annotation's",
        5: "camera far from all others",
        7: "mask file missing (frame kept)",
        8: "image undecodable or truncated",
    }
    rows = pq.read_table(record_path(tmp_path / "out", 0)).to_pylist()
    assert [row["frame_number"] for row in rows] == [6, 7, *range(9, 20)]
    assert [row["mask_length"] > 0 for row in rows] == [False, False, *[True] * 11]
    for row in rows:
        # The object's centre, the world's origin, is in the middle of each stored picture, with mask or without.
        # The mask's middle is not quite the centre's projection, and crops are held inside the picture: 2 of 32 pixels.
        pose, matrix = np.reshape(row["world_to_camera"], (4, 4)), np.reshape(row["intrinsics"], (3, 3))
        pixel = matrix @ pose[:3, 3]
        np.testing.assert_allclose(pixel[:2] / pixel[2], [16, 16], atol=2)


def test_no_usable_sequence_is_a_table_of_reasons(tmp_path: Path) -> None:
    spoil_sequences(tmp_path)
    rejected = plan_shards(tmp_path, CONFIG).rejected
    with pytest.raises(UserError) as caught:
        require_sequences(tmp_path, 0, (*rejected, *rejected[:1]))
    first, header, *lines = str(caught.value).splitlines()
    assert "none of 6 sequences is usable; mend the captures" in first
    assert header.split() == ["sequences", "reason"]
    assert lines[0].split(maxsplit=1)[0] == "2"
    assert len(lines) == 5
    assert any("no point cloud (as apple/cloudless)" in line for line in lines)
    require_sequences(tmp_path, 1, rejected)


def test_split_follows_the_set_lists_or_the_name() -> None:
    fractions = (0.5, 0.2, 0.3)
    sequences = [Sequence("apple", f"s{number}", (), None, None) for number in range(2000)]
    assert {choose_split(item, frozenset({"val"}), fractions) for item in sequences} == {"val"}
    chosen = [choose_split(item, frozenset({"train", "test"}), fractions) for item in sequences]
    assert chosen == [choose_split(item, frozenset(), fractions) for item in sequences]
    # 2000 draws: a standard deviation of 1.1 % at most, so 5 % is beyond chance.
    for split, fraction in zip(("train", "val", "test"), fractions, strict=True):
        assert chosen.count(split) / 2000 == pytest.approx(fraction, abs=0.05)
    assert {choose_split(item, frozenset(), (0, 0, 1)) for item in sequences} == {"test"}


def test_set_lists_decide_whole_objects_only(tmp_path: Path) -> None:
    write_annotations(
        tmp_path,
        [make_capture(name=name) for name in ("listed", "mixed")],
        {"a": {"test": [["listed", 0, ""]], "train": [["mixed", 0, ""]]}, "b": {"test": [["mixed", 1, ""]]}},
    )
    config = PreprocessConfig(minimum_frames=8, split_fractions=(0, 1, 0))
    ((listed, mixed),) = (task.sequences for task in plan_shards(tmp_path, config).tasks)
    assert (listed.split, mixed.split) == ("test", "val")


def test_manifest_counts(root: Path, tmp_path: Path) -> None:
    (root / "apple" / "captions.json").write_text(json.dumps({"a_1": ["a red apple", "an apple"]}))
    folder = tmp_path / "out"
    plan, records = write_all(root, folder)
    manifest = commit_folder(folder, records, plan.rejected, CONFIG.image_size)
    assert read_manifest(folder) == manifest
    assert (manifest["num_sequences"], manifest["num_frames"], manifest["image_size"]) == (3, 36, 32)
    assert manifest["categories"] == {"apple": 2, "hydrant": 1}
    assert manifest["captions"] == ["a photo of a hydrant", "a photo of an apple", "a red apple", "an apple"]
    assert sum(split["num_frames"] for split in manifest["splits"].values()) == 36
    assert [shard["num_sequences"] for shard in manifest["shards"]] == [2, 1]
    assert not list(folder.glob("*.rows.parquet"))


def test_manifest_says_what_made_it(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    plan, records = write_all(root, folder)
    made_by = {"config": plain(CONFIG), "git_commit": None}
    commit_folder(folder, records, plan.rejected, CONFIG.image_size, made_by=made_by)
    manifest = read_manifest(folder)
    assert (manifest["config"]["sequences_per_shard"], manifest["git_commit"]) == (2, None)
    assert manifest_digest(manifest) == json.loads((folder / "dataset.json").read_text())["sha256"]


@pytest.mark.parametrize(
    "wrong",
    [{"image_size": 0}, {"sequences_per_shard": 0}, {"minimum_frames": 0}, {"split_fractions": (0.5, 0.2, 0.2)}],
)
def test_config_checks_its_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"preprocess: {next(iter(wrong))}"):
        PreprocessConfig(**wrong)


def test_npz_members_do_not_depend_on_the_clock(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all(root, tmp_path / "a")
    monkeypatch.setattr("time.time", lambda: 2_000_000_000.0)
    monkeypatch.setattr("time.localtime", lambda *_: (2033, 5, 18, 3, 33, 20, 2, 138, 0))
    write_all(root, tmp_path / "b")
    name = "shard-000000.tar"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "a" / name).read_bytes())) as tar:
        assert {(member.mtime, member.uname, member.uid) for member in tar} == {(0, "", 0)}
