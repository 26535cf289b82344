"""What every worker of a training is told, and what follows from it for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infra.checkpoints.copies import CheckpointCopies
from infra.checkpoints.snapshots import SnapshotFolder
from infra.storage.files import StoragePath
from pipelines.settings.run import TrainConfig
from pipelines.training.callbacks.checkpoints import step_of_model
from preprocessing.batches.batches import TrainBatches
from preprocessing.captions.files import open_index
from preprocessing.latents.reading import LatentCache
from preprocessing.shards.reading import FrameIndex, ShardReader

TRAIN_SPLIT, VALIDATION_SPLIT = "train", "val"


@dataclass(frozen=True)
class TrainJob:
    """A training, and where its files are."""

    config: TrainConfig
    shards_dir: StoragePath
    captions_dir: Path
    latents_dir: StoragePath
    base_dir: Path
    initial_dir: Path | None  # model to start from instead of the base model's U-Net
    folder: Path
    num_loaders: int  # processes that read batches ahead
    copies_dir: StoragePath | None = None  # where a copy of the newest checkpoint is kept

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def workers_dir(self) -> Path:
        """What Ray Train writes."""
        return self.folder / "workers"

    @property
    def notices_path(self) -> Path:
        """Lines for a person, from workers and from what watches them."""
        return self.workers_dir / "notices.log"

    @property
    def request_path(self) -> Path:
        """To force a checkpoint, create this file; it is removed when the checkpoint is written."""
        return self.folder / "checkpoint-requested"

    @property
    def model_dir(self) -> Path:
        return self.folder / "model"

    @property
    def best_dir(self) -> Path:
        return self.folder / "best"

    @property
    def adapter_dir(self) -> Path:
        return self.folder / "adapter"

    @property
    def previews_dir(self) -> Path:
        return self.folder / "previews"

    @property
    def checkpoints_dir(self) -> Path:
        return self.folder / "checkpoints"

    def is_over(self) -> bool:
        """Whether everything is there that workers leave."""
        has_adapter = self.config.trained != "adapter" or self.adapter_dir.exists()
        return step_of_model(self.model_dir) == self.config.num_steps and has_adapter

    def open_index(self) -> FrameIndex:
        """The shards' frames, with the captions to train on."""
        return open_index(self.shards_dir, self.captions_dir)

    def snapshots(self) -> SnapshotFolder:
        return SnapshotFolder(self.checkpoints_dir, keep=self.config.kept_checkpoints)

    def copies(self) -> CheckpointCopies | None:
        return None if self.copies_dir is None else CheckpointCopies(self.copies_dir)


def open_batches(job: TrainJob, split: str = TRAIN_SPLIT) -> TrainBatches:
    """The samples of a training. Raises UserError when shards, latents and config do not fit."""
    index, latents = job.open_index(), LatentCache(job.latents_dir)
    reader = ShardReader(job.shards_dir, index)
    return TrainBatches(index, reader, latents, seed=job.config.seed, num_views=job.config.num_views, split=split)
