"""Inputs of a training of milliseconds per step: an index of a few random sequences, their latents, a base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.engine.config import EngineConfig
from infra.storage.files import digest_file
from model.base.stable_diffusion import BaseModel, save_base
from model.base.stand_in import build_tiny_base
from model.config import ProjectionConfig, TinyBaseConfig, ViewDiffConfig
from pipelines.settings.run import TrainConfig
from pipelines.spine.artifacts import CARD_NAME, Artifact, BaseFolder, Captions, Latents, Shards
from preprocessing.captions.files import read_sequence_captions, write_sequence_captions
from preprocessing.config import LatentsConfig
from preprocessing.latents.writing import LatentsWriter, commit_latents, plan_units, remove_records
from preprocessing.shards.reading import FrameIndex
from preprocessing.shards.schema import DATASET_NAME, INDEX_NAME, INDEX_SCHEMA, SCHEMA_VERSION, write_manifest
from tests.support.factories import look_at_cameras

IMAGE_SIZE, NUM_FRAMES = 32, 5
SPLITS = ("train", "train", "val")  # of the sequences


# Of the captions stage: others than those in the index, so that it is noticed who takes the wrong ones.
def captions_of(splits: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {f"apple/sequence_{number}": ("a red apple", f"apple {number}") for number in range(len(splits))}


CAPTIONS = captions_of(SPLITS)
BASE = TinyBaseConfig(
    vae_channels=(8, 8, 8),
    unet_channels=(16, 32),
    head_channels=16,
    text_channels=32,
    text_length=8,
)


def train_config(**settings: Any) -> TrainConfig:
    """Three views, both parts of the objective, a projection layer of 4³ voxels; `settings` override."""
    projection = ProjectionConfig(blocks=(("mid_block", 4),), num_samples=4, compress="pointwise")
    defaults: dict[str, Any] = {
        "model": ViewDiffConfig(rank=2, projection=projection),
        "engine": EngineConfig(learning_rate=1e-3, renderer_learning_rate=2e-3, gradient_clip=1.0, warmup_steps=2),
        "num_steps": 6,
        "batch_size": 4,
        "micro_batch_size": 1,
        "num_views": 3,
        "checkpoint_every_steps": 2,
        "preview_every_steps": 3,
    }
    return TrainConfig(**(defaults | settings))


def write_inputs(
    root: Path,
    latents: LatentsConfig | None = None,
    splits: tuple[str, ...] = SPLITS,
    base_image_size: int = IMAGE_SIZE,
) -> dict[str, Artifact]:
    """The stage's inputs below `root`. There are no shards: training reads latents."""
    folders = {name: root / name for name in ("shards", "captions", "latents", "base")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    table = index_table(splits)
    pq.write_table(table, folders["shards"] / INDEX_NAME)
    index_path = folders["shards"] / INDEX_NAME
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "shards": [],
        "index_sha256": digest_file(index_path),
        "index_bytes": index_path.stat().st_size,
    }
    write_manifest(folders["shards"] / DATASET_NAME, manifest)
    (folders["shards"] / CARD_NAME).write_text("<p>a card</p>")
    write_sequence_captions(folders["captions"], captions_of(splits))
    base = build_tiny_base(BASE, image_size=base_image_size, words=["red", "apple"], seed=0).frozen()
    save_base(base, folders["base"])
    settings = latents or LatentsConfig(batch_size=8, num_prior_images=3, prior_num_steps=2)
    kinds = {"shards": Shards, "captions": Captions, "latents": Latents, "base": BaseFolder}
    inputs = {name: kinds[name](fingerprint=name, folder=folder) for name, folder in folders.items()}
    fill_latents(open_index(inputs), RandomImages(), base, folders["latents"], settings)
    return inputs


def open_index(inputs: dict[str, Artifact]) -> FrameIndex:
    """The shards' index with the captions stage's captions."""
    return FrameIndex.open(inputs["shards"].folder).with_captions(read_sequence_captions(inputs["captions"].folder))


def fill_latents(index: FrameIndex, reader: Any, base: BaseModel, folder: Path, config: LatentsConfig) -> None:
    """What the stage does, in this process."""
    writer = LatentsWriter(base, index, reader, folder, config)
    for unit in plan_units(index, config):
        writer.write(unit)
    commit_latents(folder, index, config, vae=base.vae.config)
    remove_records(folder)


def index_table(splits: tuple[str, ...] = SPLITS) -> pa.Table:
    """index.parquet of a sequence of `NUM_FRAMES` frames for each of `splits`."""
    rows: list[dict[str, Any]] = []
    for number, split in enumerate(splits):
        cameras = look_at_cameras(NUM_FRAMES, seed=number, image_size=(IMAGE_SIZE, IMAGE_SIZE))
        for frame in range(NUM_FRAMES):
            rows.append(
                {
                    "category": "apple",
                    "sequence": f"sequence_{number}",
                    "frame_number": frame,
                    "split": split,
                    "shard": "shard-000000.tar",
                    **dict.fromkeys(("image_offset", "image_length", "image_crc32"), 0),
                    **dict.fromkeys(("mask_offset", "mask_length", "mask_crc32"), 0),
                    "world_to_camera": cameras.world_to_camera[frame].flatten().tolist(),
                    "intrinsics": cameras.intrinsics[frame].flatten().tolist(),
                    "height": IMAGE_SIZE,
                    "width": IMAGE_SIZE,
                    "intensity_mean": 0.5 + 0.01 * frame,
                    "intensity_variance": 0.1,
                    "caption": [f"stored with the shards {number}"],
                    "scene_bounds": [-1.0, -0.9, -0.8, 1.0, 0.9, 0.8],
                }
            )
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


class RandomImages:
    """Stands for a reader of shards."""

    def image(self, row: int) -> np.ndarray:
        """[H, W, 3] uint8, a function of the row."""
        return np.random.default_rng(row).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
