"""The reader of a folder of shards."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from infra.errors import UserError
from preprocessing.config import PreprocessConfig
from preprocessing.shards.commit import commit_folder
from preprocessing.shards.planning import plan_shards
from preprocessing.shards.reading import FrameIndex, ShardReader
from preprocessing.shards.schema import write_manifest
from preprocessing.shards.writing import write_shard
from tests.support.captures import make_capture, write_dataset
from tests.support.trap import Trap

CONFIG = PreprocessConfig(image_size=32, sequences_per_shard=2, minimum_frames=8)
# The same sequence name in two categories, as nothing forbids.
NAMES = [("apple", "a"), ("apple", "b"), ("hydrant", "b"), ("zebra", "c")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, folder = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("shards")
    captures = [
        make_capture(category, name, seed=index, num_frames=9 + index) for index, (category, name) in enumerate(NAMES)
    ]
    captures[1].frames[4]["mask"] = None
    write_dataset(root, captures)
    plan = plan_shards(root, CONFIG)
    records = [write_shard(task, root, folder, CONFIG) for task in plan.tasks]
    commit_folder(folder, records, plan.rejected, CONFIG.image_size)
    return folder


def test_sequences_have_their_rows(folder: Path) -> None:
    index = FrameIndex.open(folder)
    sequences = index.sequences()
    assert [(item.category, item.sequence) for item in sequences] == NAMES
    assert [item.rows for item in sequences] == [range(0, 9), range(9, 19), range(19, 30), range(30, 42)]
    assert len(index) == 42
    assert index.frame_numbers[19:30].tolist() == list(range(11))
    assert sequences[3].captions == ("a photo of a zebra",)
    assert sequences[0].scene_bounds.shape == (2, 3)
    assert sequences[0].scene_bounds[1].max() == 1
    by_split = [index.sequences(split) for split in ("train", "val", "test")]
    assert sorted((item.category, item.sequence) for part in by_split for item in part) == NAMES
    with pytest.raises(ValueError, match="split 'dev': choose from train, val, test"):
        index.sequences("dev")


def test_cameras_and_intensity_come_by_row(folder: Path) -> None:
    index = FrameIndex.open(folder)
    cameras = index.cameras([40, 3, 3])
    assert cameras.shape == (3,)
    assert cameras.image_size == (32, 32)
    assert cameras.world_to_camera.dtype == torch.float32
    cameras.check()
    torch.testing.assert_close(cameras[1].world_to_camera, cameras[2].world_to_camera)
    pixels, depth = index.cameras(range(len(index))).project(torch.zeros(1, 3))
    assert (depth > 2).all()  # the object's centre is in front of every camera, outside the unit cube,
    assert (pixels - 16).abs().max() < 4  # and near the middle of its picture
    reader = ShardReader(folder, index)
    for row in (0, 25):
        values = reader.image(row) / 255
        # Statistics are of the pixels before JPEG, which changes them by a grey level or so at quality 95.
        np.testing.assert_allclose(index.intensity([row])[0], [values.mean(), values.var()], atol=5e-3)


def test_pictures_are_slices_of_the_shards(folder: Path) -> None:
    index = FrameIndex.open(folder)
    reader = ShardReader(folder, index)
    pictures = [reader.image(row) for row in range(len(index))]
    assert {(picture.shape, picture.dtype) for picture in pictures} == {((32, 32, 3), np.dtype(np.uint8))}
    assert len({picture.tobytes() for picture in pictures}) == len(index)
    masks = [reader.mask(row) for row in range(len(index))]
    assert [row for row, mask in enumerate(masks) if mask is None] == [13]
    assert all(mask is None or mask[16, 16] == 255 for mask in masks)
    moved = pickle.loads(pickle.dumps(reader))  # with its shards open
    np.testing.assert_array_equal(moved.image(41), pictures[41])


def copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_incomplete_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        FrameIndex.open(tmp_path / "none")
    broken = copy(folder, tmp_path / "broken")
    manifest = json.loads((broken / "dataset.json").read_bytes())
    for change, message in (
        ({"schema_version": 4}, "format version 4, this code reads 3; update"),
        ({"schema_version": 2}, "format version 2, this code reads 3; preprocess again"),
    ):
        (broken / "dataset.json").write_text(json.dumps(manifest | change))
        with pytest.raises(UserError, match=message):
            FrameIndex.open(broken)
    (broken / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        FrameIndex.open(broken)
    (broken / "dataset.json").write_text(json.dumps(manifest | {"num_frames": 1}))
    with pytest.raises(UserError, match=r"damaged \(its digest is another\); restore it"):
        FrameIndex.open(broken)
    (broken / "dataset.json").write_text(json.dumps(manifest))
    whole = (broken / "index.parquet").read_bytes()
    middle = len(whole) // 2
    (broken / "index.parquet").write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(UserError, match=r"index.parquet is damaged"):
        FrameIndex.open(broken)
    (broken / "index.parquet").unlink()
    with pytest.raises(UserError, match=r"index.parquet: 0 bytes, \d+ were written"):
        FrameIndex.open(broken)
    (broken / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"no dataset.json, so preprocessing has not finished"):
        FrameIndex.open(broken)


def test_damaged_pictures_are_named(folder: Path, tmp_path: Path) -> None:
    broken = copy(folder, tmp_path / "broken")
    index = FrameIndex.open(broken)
    offset, length = index.image_spans[0]
    shard = broken / index.shards[index.shard_numbers[0]]
    data = bytearray(shard.read_bytes())
    data[offset : offset + length] = bytes(length)
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"shard-000000.tar: .* damaged"):
        ShardReader(broken, index).image(0)


def test_a_pickle_or_a_command_in_the_place_of_a_shard_is_refused(folder: Path, tmp_path: Path) -> None:
    broken, sprung = copy(folder, tmp_path / "broken"), tmp_path / "sprung"
    shard = broken / "shard-000000.tar"
    payload = pickle.dumps(Trap(sprung)) + bytes(20_000)  # more than the room at the end of a tar
    with tarfile.open(shard, "a") as tar:
        member = tarfile.TarInfo("apple/a.pickle")
        member.size = len(payload)
        tar.addfile(member, io.BytesIO(payload))
    with pytest.raises(UserError, match=r"shard-000000.tar: \d+ bytes, \d+ were written"):
        ShardReader(broken, FrameIndex.open(broken)).image(0)
    manifest = json.loads((broken / "dataset.json").read_bytes())
    del manifest["sha256"]
    manifest["shards"][0]["bytes"] = shard.stat().st_size  # by somebody who knows how: the pickle is never looked at
    write_manifest(broken / "dataset.json", manifest)
    assert ShardReader(broken, FrameIndex.open(broken)).image(0).shape == (32, 32, 3)
    for name in (f"pipe:touch {sprung}", "../other/shard-000000.tar", "s3://bucket/shard-000000.tar"):
        manifest["shards"][0]["name"] = name
        write_manifest(broken / "dataset.json", manifest)
        with pytest.raises(UserError, match="is none that this project writes; do not use this folder"):
            FrameIndex.open(broken)
    assert not sprung.exists()


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_a_single_flipped_bit_is_found(folder: Path, tmp_path: Path, kind: str) -> None:
    """Most of them decode without an error."""
    broken = copy(folder, tmp_path / "broken")
    index = FrameIndex.open(broken)
    offset, length = (index.image_spans if kind == "image" else index.mask_spans)[0]
    shard = broken / index.shards[index.shard_numbers[0]]
    data = bytearray(shard.read_bytes())
    data[offset + 3 * length // 4] ^= 4
    shard.write_bytes(data)
    with pytest.raises(UserError, match=r"frame in row 0 is damaged \(its checksum is another\); restore it"):
        getattr(ShardReader(broken, index), kind)(0)


def test_truncated_shards_are_refused(folder: Path, tmp_path: Path) -> None:
    broken = copy(folder, tmp_path / "broken")
    shard = broken / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-10_240])
    reader = ShardReader(broken, FrameIndex.open(broken))
    reader.image(0)
    with pytest.raises(UserError, match=r"shard-000001.tar: \d+ bytes, \d+ were written"):
        reader.image(41)
