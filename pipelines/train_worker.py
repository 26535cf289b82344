"""One rank of a training: from the newest checkpoint, or the base model, to the last step.

Apart from pipelines/train.py, because what workers import is time that every start and restart costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import DDPMScheduler, UNet2DConditionModel

from infra.checkpoint import Snapshot, SnapshotFolder
from infra.engine import Engine, from_first_rank
from infra.storage import StoragePath, publish_folder
from model.adapter import freeze_base, write_adapter
from model.base import BaseModel, load_base
from model.diffusion import Objective, PartLoss, prior_loss, view_loss
from model.sampling import ViewRequest
from model.unet import ViewDiffUNet
from pipelines.callbacks import (
    MODEL_PART,
    OPTIMIZER_PART,
    Cadence,
    DrawPreviews,
    MetricsFile,
    SaveSnapshots,
    preview_request,
)
from pipelines.config import TrainConfig
from pipelines.loop import Callback, LossPart, Schedule, train_steps
from preprocessing.batches import LoadedBatch, TrainBatches
from preprocessing.captions import read_sequence_captions
from preprocessing.dataset import FrameIndex, ShardReader
from preprocessing.latents import LatentCache
from preprocessing.loader import load_batches


@dataclass(frozen=True)
class TrainJob:
    """What every worker is told."""

    config: TrainConfig
    shards_dir: StoragePath
    captions_dir: Path
    latents_dir: StoragePath
    base_dir: Path
    initial_dir: Path | None  # model to start from instead of the base model's U-Net
    folder: Path
    num_loaders: int  # processes that read batches ahead

    @property
    def metrics_path(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def model_dir(self) -> Path:
        return self.folder / "model"

    @property
    def adapter_dir(self) -> Path:
        return self.folder / "adapter"

    @property
    def previews_dir(self) -> Path:
        return self.folder / "previews"

    def open_index(self) -> FrameIndex:
        """The shards' frames, with the captions to train on."""
        return FrameIndex.open(self.shards_dir).with_captions(read_sequence_captions(self.captions_dir))

    def snapshots(self) -> SnapshotFolder:
        return SnapshotFolder(self.folder / "checkpoints")


def train_in_worker(job: TrainJob) -> None:
    """Train to the last step, saving as it goes, and write the model. Needs an initialised process group."""
    first = dist.get_rank() == 0
    if first:
        job.snapshots().sweep()
    snapshot = from_first_rank(job.snapshots().newest() if first else None)
    done = 0 if snapshot is None else snapshot.step
    unet = build_unet(job, snapshot)
    engine = Engine(unet, unet.parameter_groups(), job.config.engine, num_steps=job.config.num_steps, device=_device())
    if snapshot is not None:
        engine.load_optimizer_state(snapshot.tensors(OPTIMIZER_PART), num_steps=done)
    batches, steps = open_batches(job), range(done, job.config.num_steps)
    encoder = None if batches.latents.num_crops else load_base(job.base_dir).coders_to(engine.device).frozen()
    preview = preview_request(batches, job.config.num_views, encoder)
    schedule = Schedule(
        batch_size=job.config.batch_size,
        micro_batch_size=job.config.micro_batch_size,
        rank=dist.get_rank(),
        num_ranks=dist.get_world_size(),
    )
    train_steps(
        engine,
        loss_parts(job, engine, batches, encoder),
        load_batches(batches, schedule.positions(steps), num_workers=job.num_loaders),
        schedule,
        steps=steps,
        callbacks=_callbacks(job, engine, unet, done=done, preview=preview),
    )
    if first:
        _save(unet, job)


def open_batches(job: TrainJob) -> TrainBatches:
    """The samples of a training. Raises UserError when shards, latents and config do not fit."""
    index, latents = job.open_index(), LatentCache(job.latents_dir)
    reader = ShardReader(job.shards_dir, index)
    return TrainBatches(index, reader, latents, seed=job.config.seed, num_views=job.config.num_views)


def _save(unet: ViewDiffUNet, job: TrainJob) -> None:
    """The trained network, and in the adapter's case the adapter first: the model marks the training's end."""
    if job.config.trained == "adapter" and not job.adapter_dir.exists():
        unfinished = job.folder / ".adapter"
        write_adapter(unfinished, unet, base=str(job.initial_dir or job.base_dir))
        publish_folder(unfinished, job.adapter_dir)
    if not job.model_dir.exists():
        unfinished = job.folder / ".model"
        unet.save_pretrained(unfinished)
        publish_folder(unfinished, job.model_dir)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def build_unet(job: TrainJob, snapshot: Snapshot | None) -> ViewDiffUNet:
    """The network at the snapshot, else the initial model, else the base model's U-Net with fresh layers."""
    if job.initial_dir is not None:
        unet = ViewDiffUNet.from_pretrained(job.initial_dir)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.config.seed)
            base = UNet2DConditionModel.from_pretrained(job.base_dir, subfolder="unet", use_safetensors=True)
            unet = ViewDiffUNet(base, job.config.model)
    if snapshot is not None:
        unet.load_state_dict(snapshot.tensors(MODEL_PART))
    if job.config.trained == "adapter":
        freeze_base(unet)
    return unet.train()


def loss_parts(job: TrainJob, engine: Engine, batches: TrainBatches, encoder: BaseModel | None) -> list[LossPart]:
    """The terms of the objective: posed views, and prior preservation unless it weighs nothing."""
    config, device = job.config, engine.device
    objective = Objective(
        scheduler=DDPMScheduler.from_pretrained(job.base_dir, subfolder="scheduler"),
        empty_text=batches.latents.text([0])[0].float().to(device),
        config=config.diffusion,
        seed=config.seed,
        global_batch_size=config.batch_size,
    )

    def views(batch: LoadedBatch) -> PartLoss:
        return view_loss(engine.model, batches.views(batch, device, encoder), objective)

    def prior(batch: LoadedBatch) -> PartLoss:
        return prior_loss(engine.model, batches.prior(batch, device), objective)

    return [views, prior] if config.diffusion.prior_weight > 0 else [views]


def _callbacks(job: TrainJob, engine: Engine, unet: ViewDiffUNet, *, done: int, preview: ViewRequest) -> list[Callback]:
    config, first = job.config, dist.get_rank() == 0
    cadence = Cadence(config.checkpoint_every_steps, config.num_steps)
    save = SaveSnapshots(engine, unet, job.snapshots() if first else None, cadence)
    if not first:
        return [save]
    return [
        MetricsFile(job.metrics_path, done=done, checkpoints=cadence),
        save,
        DrawPreviews(
            unet,
            preview.to(engine.device),
            base_dir=job.base_dir,
            folder=job.previews_dir,
            every_steps=config.preview_every_steps,
        ),
    ]
