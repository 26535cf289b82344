"""`viewdiff profile`: some steps of one worker of a training, recorded operator by operator in this process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from infra.engine.stopwatch import Stopwatch
from infra.errors import UserError
from infra.storage.files import publish_folder, require_space
from pipelines.chain.running import run_chain
from pipelines.planning.step_work import largest_share, num_passes
from pipelines.settings.commands import ProfileConfig
from pipelines.settings.run import RunConfig, TrainConfig
from pipelines.spine.runtime import RuntimeConfig, check_own_gpu
from pipelines.training.job import TrainJob
from pipelines.training.loop import PHASES, StepInfo, Training, train_steps
from pipelines.training.profile_table import OperatorRow, describe, operator_rows, write_tables
from pipelines.training.worker import loss_parts, rank_schedule, start_rank
from preprocessing.batches.loader import load_batches

SPACE_BYTES = 500_000_000  # a trace has every operator of every step, and is compressed at the end
TRACE_NAME = "trace.json.gz"


def profile_training(config: RunConfig, runtime: RuntimeConfig, settings: ProfileConfig) -> Path:
    """Run the stages up to the latents, then some steps of the training on what they made, of each step the share that
    one of `--num-workers` has; write trace.json.gz, operators.txt and profile.json into the output folder, which is
    returned.

    Raises:
        UserError: the output exists or cannot be written, an option means nothing here, or what the stages raise.
    """
    _refuse_ignored(runtime)
    share = worker_share(config.train, runtime.num_workers)
    output = Path(settings.output).expanduser().absolute()
    if output.exists():
        raise UserError(f"output folder {output}: exists already; remove it or name another with --output")
    require_space(output, SPACE_BYTES)
    if runtime.use_gpu:
        check_own_gpu()
    inputs = run_chain(config, runtime, until="latents")
    partial = output.with_name(f".partial-{output.name}")
    if partial.exists():  # of a run that was killed
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    job = TrainJob(
        config=share,
        shards_dir=inputs["preprocess"].data,
        captions_dir=inputs["captions"].folder,
        latents_dir=inputs["latents"].data,
        base_dir=inputs["base"].folder,
        initial_dir=None,
        folder=partial,
        num_loaders=runtime.num_loaders,
    )
    with _one_rank(use_gpu=runtime.use_gpu) as device:
        rows, phases = profile_job(job, settings, device)
    write_tables(partial, rows, phases, num_steps=settings.profiled_steps)
    publish_folder(partial, output)
    print(_what(config.train, share, runtime.num_workers))
    print(describe(rows, phases, num_steps=settings.profiled_steps))
    print(f"\nprofile  {output / TRACE_NAME} (open it in https://ui.perfetto.dev)")
    return output


def worker_share(train: TrainConfig, num_workers: int) -> TrainConfig:
    """The training of one of so many workers, alone: its share of the batch.

    Raises:
        UserError: the batch has less than a sample for each worker.
    """
    if train.batch_size < num_workers:
        raise UserError(
            f"--num-workers {num_workers}: train.batch_size {train.batch_size} is less than a sample for each; lower "
            "--num-workers or raise --train.batch-size"
        )
    return replace(train, batch_size=largest_share(train, num_workers))


def _refuse_ignored(runtime: RuntimeConfig) -> None:
    """One process trains for some steps and records nothing in MLflow, so say what means nothing to it."""
    defaults = RuntimeConfig()
    for name in ("min_workers", "max_failures", "tracking_uri", "run_name"):
        value = getattr(runtime, name)
        if value != getattr(defaults, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} {value}: `viewdiff profile` has no use for it, drop it")


def _what(train: TrainConfig, share: TrainConfig, num_workers: int) -> str:
    """What the table is of."""
    return (
        f"a step of worker 1 of {num_workers}: {share.batch_size} of {train.batch_size} samples of {train.num_views} "
        f"views, {num_passes(share, 1)} backward passes; nothing is sent, and it updates all weights\n"
    )


def profile_job(
    job: TrainJob, settings: ProfileConfig, device: torch.device
) -> tuple[list[OperatorRow], dict[str, float]]:
    """The operators of the profiled steps, the dearest first, and the seconds of each phase; writes the trace into the
    job's folder. Needs an initialised process group of one rank.
    """
    rank, num_steps = start_rank(job, None), settings.warmup_steps + settings.profiled_steps
    infos: list[StepInfo] = []
    training = Training(
        engine=rank.engine,
        parts=loss_parts(rank),
        schedule=rank_schedule(job),
        callbacks=[infos.append],
        stopwatch=Stopwatch(device),
    )
    positions = training.schedule.positions(range(num_steps))
    batches = load_batches(rank.batches, positions, num_workers=job.num_loaders)
    train_steps(training, batches, steps=range(settings.warmup_steps))
    infos.clear()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, profile_memory=True) as recorded:
        train_steps(training, batches, steps=range(settings.warmup_steps, num_steps))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    recorded.export_chrome_trace(str(job.folder / TRACE_NAME))
    phases = [*(info.phase_seconds for info in infos[1:]), training.stopwatch.next_step()]  # each a step late
    return operator_rows(recorded, device), {name: sum(seconds[name] for seconds in phases) for name in PHASES}


@contextmanager
def _one_rank(*, use_gpu: bool) -> Iterator[torch.device]:
    """A process group of this process alone, and its device."""
    os.environ["LOCAL_RANK"] = "0"
    torch.set_num_threads(1)  # as in a training's worker
    dist.init_process_group("nccl" if use_gpu else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield torch.device("cuda", 0) if use_gpu else torch.device("cpu")
    finally:
        dist.destroy_process_group()
