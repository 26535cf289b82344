"""One rank of a training: from the newest checkpoint, or the base model, to the last step.

Apart from pipelines/stages/train.py, because what workers import is time that every start and restart costs.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from diffusers import DDPMScheduler, UNet2DConditionModel

from infra.checkpoints.snapshots import Snapshot
from infra.engine.collectives import from_every_rank, from_first_rank
from infra.engine.engine import Engine
from infra.engine.stopwatch import Stopwatch
from infra.storage.files import publish_folder
from model.adapter import freeze_base, write_adapter
from model.base.stable_diffusion import BaseModel, load_base, prediction_type
from model.cost.flops import total
from model.diffusion.objective import Objective, PartLoss, prior_loss, view_loss
from model.unet import ViewDiffUNet
from pipelines.planning.gpus import ideal_seconds, recognise_gpu
from pipelines.planning.step_work import step_flops
from pipelines.training.callbacks.average import WeightAverage
from pipelines.training.callbacks.cadence import Cadence
from pipelines.training.callbacks.checkpoints import MODEL_PART, OPTIMIZER_PART, Copier, SaveCheckpoints
from pipelines.training.callbacks.metrics import MetricsFile, Work
from pipelines.training.callbacks.previews import DrawPreviews, preview_request
from pipelines.training.callbacks.slow_ranks import WatchRanks
from pipelines.training.callbacks.validation import Validation
from pipelines.training.job import VALIDATION_SPLIT, TrainJob, open_batches
from pipelines.training.loop import Callback, DivergedError, LossPart, Training, train_steps
from preprocessing.batches.batches import LoadedBatch, TrainBatches
from preprocessing.batches.loader import load_batches
from preprocessing.batches.shares import Schedule


@dataclass(frozen=True, kw_only=True)
class Rank:
    """What one process of a training holds."""

    job: TrainJob
    unet: ViewDiffUNet
    engine: Engine
    batches: TrainBatches
    encoder: BaseModel | None  # where pictures are encoded on the way
    done: int  # steps that the checkpoint it started from has

    @property
    def is_first(self) -> bool:
        return dist.get_rank() == 0

    @property
    def cadence(self) -> Cadence:
        return Cadence(self.job.config.checkpoint_every_steps, self.job.config.num_steps)


def train_in_worker(job: TrainJob) -> None:
    """Train to the last step, saving as it goes, and leave the model. Needs an initialised process group.

    Raises:
        DivergedError: on every rank, saying what the step's samples were.
    """
    snapshots = job.snapshots()
    if dist.get_rank() == 0:
        snapshots.claim()
    snapshot = from_first_rank(snapshots.newest() if dist.get_rank() == 0 else None)
    rank = start_rank(job, snapshot)
    average = _average(rank, snapshot)
    save = SaveCheckpoints(
        engine=rank.engine,
        unet=rank.unet,
        cadence=rank.cadence,
        average=average,
        snapshots=snapshots,
        model_dir=job.model_dir,
        request_path=job.request_path,
        copier=_copier(job) if rank.is_first else None,
    )
    if snapshot is not None:
        save.complete(snapshot.step)
    schedule = rank_schedule(job)
    training = Training(
        engine=rank.engine,
        parts=loss_parts(rank),
        schedule=schedule,
        stopwatch=Stopwatch(rank.engine.device),
        largest_loss=job.config.largest_loss,
        callbacks=_callbacks(rank, average, save),
        validate=_validation(rank),
        wants_checkpoint=save.is_wanted if rank.is_first else lambda: False,
    )
    steps = range(rank.done, job.config.num_steps)
    batches = load_batches(rank.batches, schedule.positions(steps), num_workers=job.num_loaders)
    try:
        train_steps(training, batches, steps=steps)
    except DivergedError as error:
        save.background.wait()
        circumstances = from_first_rank(_circumstances(rank, error.step) if rank.is_first else "")
        raise DivergedError(f"{error}; {circumstances}", error.step) from None
    save.finish(job.config.num_steps)
    if rank.is_first:
        _save_adapter(rank)


def start_rank(job: TrainJob, snapshot: Snapshot | None) -> Rank:
    """Network, engine and data as they are after the snapshot's steps."""
    done = 0 if snapshot is None else snapshot.step
    batches = open_batches(job)
    unet = _build_unet(job, snapshot, latent_size=batches.latents.latent_shape[-1])
    engine = Engine(unet, unet.parameter_groups(), job.config.engine, num_steps=job.config.num_steps, device=_device())
    if snapshot is not None:
        engine.load_optimizer_state(snapshot.tensors(OPTIMIZER_PART), num_steps=done)
    encoder = None if batches.latents.num_crops else load_base(job.base_dir).coders_to(engine.device).frozen()
    return Rank(job=job, unet=unet, engine=engine, batches=batches, encoder=encoder, done=done)


def rank_schedule(job: TrainJob) -> Schedule:
    """This rank's share of every step."""
    return Schedule(
        batch_size=job.config.batch_size,
        micro_batch_size=job.config.micro_batch_size,
        rank=dist.get_rank(),
        num_ranks=dist.get_world_size(),
    )


def loss_parts(rank: Rank) -> list[LossPart]:
    """The terms of the objective: posed views, and prior preservation unless it weighs nothing."""
    objective = _objective(rank, rank.job.config.batch_size)

    def prior(batch: LoadedBatch) -> PartLoss:
        return prior_loss(rank.engine.model, rank.batches.prior(batch, rank.engine.device), objective)

    views = partial(_view_loss, rank, rank.batches, objective)
    return [views, prior] if rank.job.config.diffusion.prior_weight > 0 else [views]


def _view_loss(rank: Rank, batches: TrainBatches, objective: Objective, batch: LoadedBatch) -> PartLoss:
    return view_loss(rank.engine.model, batches.views(batch, rank.engine.device, rank.encoder), objective)


def _objective(rank: Rank, num_samples: int) -> Objective:
    config = rank.job.config
    return Objective(
        scheduler=DDPMScheduler.from_pretrained(rank.job.base_dir, subfolder="scheduler"),
        empty_text=rank.batches.latents.text([0])[0].float().to(rank.engine.device),
        config=config.diffusion,
        seed=config.seed,
        global_batch_size=num_samples,
    )


def _validation(rank: Rank) -> Callable[[int], Any]:
    """The loss on held-out sequences, if there are any."""
    num_samples = rank.job.config.validation_samples
    if not num_samples or not rank.batches.index.sequences(VALIDATION_SPLIT):
        return lambda step: {}
    batches = open_batches(rank.job, VALIDATION_SPLIT)
    return Validation(
        loss=partial(_view_loss, rank, batches, _objective(rank, num_samples)),
        batches=batches,
        num_samples=num_samples,
        micro_batch_size=rank.job.config.micro_batch_size,
        cadence=rank.cadence,
        device=rank.engine.device,
    )


def _average(rank: Rank, snapshot: Snapshot | None) -> WeightAverage | None:
    decay = rank.job.config.average_decay
    return WeightAverage(rank.unet, decay, snapshot) if decay and rank.is_first else None


def _copier(job: TrainJob) -> Copier | None:
    copies = job.copies()
    return None if copies is None else Copier(copies, job.metrics_path, partial(_tell, job))


def _callbacks(rank: Rank, average: WeightAverage | None, save: SaveCheckpoints) -> list[Callback]:
    job, config = rank.job, rank.job.config
    hosts = from_every_rank(socket.gethostname())
    preview = preview_request(rank.batches, config.num_views, rank.encoder)
    if not rank.is_first:
        return [save]
    previews = DrawPreviews(
        rank.unet,
        preview.to(rank.engine.device),
        base_dir=job.base_dir,
        folder=job.previews_dir,
        every_steps=config.preview_every_steps,
    )
    metrics = MetricsFile(job.metrics_path, done=rank.done, checkpoints=rank.cadence, work=_work(rank))
    return [*([average] if average else []), metrics, save, previews, WatchRanks(hosts, partial(_tell, job))]


def _work(rank: Rank) -> Work:
    """What a step is made of."""
    config, latents, device = rank.job.config, rank.batches.latents, rank.engine.device
    _, height, width = latents.latent_shape
    flops = step_flops(config, rank.unet, latent_size=(height, width), text_length=latents.text([0]).shape[1])
    gpu = recognise_gpu(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    alone = None if gpu is None else ideal_seconds(flops, gpu, config.engine.precision)
    return Work(
        num_views=config.batch_size * config.num_views,
        flops=total(flops).useful,
        ideal_seconds=None if alone is None else alone / dist.get_world_size(),
    )


def _tell(job: TrainJob, message: str) -> None:
    job.workers_dir.mkdir(exist_ok=True)
    with job.notices_path.open("a") as file:
        file.write(message + "\n")


def _circumstances(rank: Rank, step: int) -> str:
    """Where to look when a step has gone wrong, and what can be done."""
    job, size = rank.job, rank.job.config.batch_size
    names = rank.batches.names(range(step * size, (step + 1) * size))
    newest = job.snapshots().newest()
    if newest is None:
        last, remedy = "there is no checkpoint yet", "lower --train.engine.learning-rate"
    else:
        last = f"the last good checkpoint is {newest.folder}"
        remedy = f"go on from its weights with --initial {job.model_dir} and a lower --train.engine.learning-rate"
    return (
        f"its samples are of {', '.join(names)}; {last}; look at these captures, or {remedy} (a larger "
        "--train.largest-loss goes on with the same training)"
    )


def _save_adapter(rank: Rank) -> None:
    job = rank.job
    if job.config.trained == "adapter" and not job.adapter_dir.exists():
        unfinished = job.folder / ".adapter"
        trained = ViewDiffUNet.from_pretrained(job.model_dir)  # which may be the average
        write_adapter(unfinished, trained, base=str(job.initial_dir or job.base_dir))
        publish_folder(unfinished, job.adapter_dir)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def _build_unet(job: TrainJob, snapshot: Snapshot | None, *, latent_size: int) -> ViewDiffUNet:
    """The network at the snapshot, else the initial model, else the base model's U-Net with fresh layers.

    Its config says the size of the latents that it is trained on, from which `generate` knows the size of its pictures:
    the base model's own may be another, as 512 pixels where the training's are 256. It also says what is predicted,
    noise or velocity: base models of both kinds have the same layers.
    """
    if job.initial_dir is not None:
        unet = ViewDiffUNet.from_pretrained(job.initial_dir)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.config.seed)
            base = UNet2DConditionModel.from_pretrained(job.base_dir, subfolder="unet", use_safetensors=True)
            unet = ViewDiffUNet(base, job.config.model)
    unet.unet.register_to_config(sample_size=latent_size, prediction_type=prediction_type(job.base_dir))
    if snapshot is not None:
        unet.load_state_dict(snapshot.tensors(MODEL_PART))
    if job.config.trained == "adapter":
        freeze_base(unet)
    return unet.train()
