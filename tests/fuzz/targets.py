"""What is given damaged files: everything that reads captures, and everything that reads shards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infra.errors import UserError
from model.base.stand_in import build_tiny_base
from preprocessing.batches.batches import TrainBatches
from preprocessing.captures.captions import read_captions
from preprocessing.captures.capture import RejectionError
from preprocessing.captures.set_lists import read_eval_batches
from preprocessing.config import LatentsConfig, PreprocessConfig
from preprocessing.importing.photos.pictures import PictureError
from preprocessing.latents.reading import LatentCache
from preprocessing.sequences.images import DefectError, read_image, read_mask
from preprocessing.sequences.normalization import load_points
from preprocessing.shards.commit import commit_folder
from preprocessing.shards.planning import plan_shards
from preprocessing.shards.reading import FrameIndex, ShardReader
from preprocessing.shards.writing import write_shard
from tests.fuzz import mutations
from tests.fuzz.import_targets import import_targets
from tests.fuzz.photo_targets import photo_targets
from tests.fuzz.target import Target
from tests.support.captures import SIZE, make_capture, write_dataset
from tests.support.training_inputs import BASE, IMAGE_SIZE, fill_latents

CONFIG = PreprocessConfig(image_size=32, minimum_frames=4, sequences_per_shard=2)
SEQUENCE = "apple/seq_1"


def make_targets(folder: Path) -> list[Target]:
    """Small captures and shards made of them below `folder`, and all that reads them."""
    raw, shards = folder / "raw", folder / "shards"
    write_dataset(raw, [make_capture(name=name, num_frames=6) for name in ("seq_1", "seq_2")])
    (raw / "apple/set_lists/set_lists_x.json").write_text('{"train": [["seq_1", 0, "p"]], "test": [["seq_2", 0, "p"]]}')
    (raw / "apple/eval_batches").mkdir()
    eval_batches = raw / "apple/eval_batches/eval_batches_x.json"
    eval_batches.write_text('[[["seq_1", 0, "p"], ["seq_1", 3, "p"]], [["seq_2", 1, "p"], ["seq_2", 2, "p"]]]')
    (raw / "apple/captions.json").write_text('{"seq_1": ["an apple"], "seq_2": "one more"}')
    shards.mkdir()
    plan = plan_shards(raw, CONFIG)
    records = [write_shard(task, raw, shards, CONFIG) for task in plan.tasks]
    commit_folder(shards, records, plan.rejected, CONFIG.image_size)
    truth = _contents(shards)
    latents = folder / "latents"
    latents.mkdir()
    _write_latents(shards, latents)
    samples = _samples(shards, latents)
    json = (*mutations.BYTES, mutations.wrong_json)
    jgz, ply = (*json, mutations.gzip_bomb), (*mutations.BYTES, mutations.ply_bomb)
    image, mask = (raw / SEQUENCE / f"{name}/frame000002.{end}" for name, end in (("images", "jpg"), ("masks", "png")))
    cloud = raw / SEQUENCE / "pointcloud.ply"

    def plans() -> None:
        _check_plan(raw)

    def rewritten() -> None:
        _check_rewritten(raw, folder / "again")

    def shards_equal() -> None:
        _check_shards(shards, truth)

    def latents_equal() -> None:
        _check_latents(shards, latents, samples)

    return [
        Target("frame annotations", raw / "apple/frame_annotations.jgz", jgz, plans, must_refuse=False),
        Target("sequence annotations", raw / "apple/sequence_annotations.jgz", jgz, plans, must_refuse=False),
        Target("set list", raw / "apple/set_lists/set_lists_x.json", json, plans, must_refuse=False),
        Target("evaluation batches", eval_batches, json, lambda: _check_eval_batches(raw), must_refuse=False),
        Target("captions", raw / "apple/captions.json", json, lambda: _check_captions(raw), must_refuse=False),
        Target("JPEG", image, mutations.BYTES, lambda: _check_picture(read_image(image, SIZE), (*SIZE, 3)), False),
        Target("mask PNG", mask, mutations.BYTES, lambda: _check_picture(read_mask(mask, SIZE), SIZE), False),
        Target("point cloud PLY", cloud, ply, lambda: _check_points(load_points(cloud)), False),
        Target("a whole sequence", cloud, ply, rewritten, must_refuse=False),
        # Not all of a tar is read: its headers and padding may change, but no picture may.
        Target("shard tar", shards / "shard-000000.tar", mutations.BYTES, shards_equal, must_refuse=False),
        Target("index Parquet", shards / "index.parquet", mutations.BYTES, shards_equal, must_refuse=True),
        Target("dataset.json", shards / "dataset.json", json, shards_equal, must_refuse=False),
        Target("latents' moments", latents / "moments-000000.npy", mutations.BYTES, latents_equal, must_refuse=True),
        Target("latents' crops", latents / "crops.npy", mutations.BYTES, latents_equal, must_refuse=True),
        Target("latents' captions", latents / "captions.json", json, latents_equal, must_refuse=True),
        Target("latents.json", latents / "latents.json", json, latents_equal, must_refuse=False),
        *import_targets(folder / "foreign"),
        *photo_targets(folder / "photos"),
    ]


REFUSALS = (UserError, DefectError, RejectionError, PictureError)  # what says a reason


def _check_plan(raw: Path) -> None:
    plan = plan_shards(raw, CONFIG)
    planned = [item.sequence for task in plan.tasks for item in task.sequences]
    for sequence in planned:
        paths = [sequence.point_cloud_path, *(frame.image_path for frame in sequence.frames)]
        assert all(path is None or not (Path(path).is_absolute() or ".." in Path(path).parts) for path in paths)


def _check_eval_batches(raw: Path) -> None:
    for batches in read_eval_batches(raw, "apple").values():
        for batch in batches:
            assert len(batch.frame_numbers) >= 2
            assert all(type(number) is int for number in batch.frame_numbers)


def _check_captions(raw: Path) -> None:
    captions = read_captions(raw, "apple")
    assert all(isinstance(text, str) and text.strip() for texts in captions.values() for text in texts)


def _check_picture(picture: np.ndarray, shape: tuple[int, ...]) -> None:
    assert picture.shape == shape
    assert picture.dtype == np.uint8


def _check_points(points: np.ndarray) -> None:
    assert points.ndim == 2
    assert points.shape[1] == 3
    assert np.isfinite(points).all()


def _check_rewritten(raw: Path, folder: Path) -> None:
    """What is made of the captures is well-formed, whatever they hold."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    plan = plan_shards(raw, CONFIG)
    for task in plan.tasks:
        record = write_shard(task, raw, folder, CONFIG)
        assert record.num_sequences + len(record.rejected) == len(task.sequences)


def _contents(shards: Path) -> tuple[dict[str, Any], list[np.ndarray]]:
    """dataset.json, and all pictures and masks."""
    index = FrameIndex.open(shards)
    reader = ShardReader(shards, index)
    masks = (reader.mask(row) for row in range(len(index)))
    pictures = [reader.image(row) for row in range(len(index))] + [mask for mask in masks if mask is not None]
    return index.manifest, pictures


def _check_shards(shards: Path, truth: tuple[dict[str, Any], list[np.ndarray]]) -> None:
    """What is read is what was written."""
    manifest, pictures = _contents(shards)
    assert manifest == truth[0]
    assert len(pictures) == len(truth[1])
    assert all(np.array_equal(a, b) for a, b in zip(pictures, truth[1], strict=True))


def _write_latents(shards: Path, folder: Path) -> None:
    index = FrameIndex.open(shards)
    base = build_tiny_base(BASE, image_size=IMAGE_SIZE, words=["apple"], seed=0).frozen()
    config = LatentsConfig(num_prior_images=2, prior_num_steps=1)
    fill_latents(index, ShardReader(shards, index), base, folder, config)


def _samples(shards: Path, folder: Path) -> list[Tensor]:
    """What a training reads of all files, once these have been verified."""
    index, latents = FrameIndex.open(shards), LatentCache(folder)
    latents.verify()
    batch = TrainBatches(index, ShardReader(shards, index), latents, seed=0, num_views=3).load(range(4))
    return [batch.frames, batch.text, batch.prior, batch.scene.cameras.intrinsics, batch.scene.intensity]


def _check_latents(shards: Path, folder: Path, truth: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(_samples(shards, folder), truth, strict=True))
