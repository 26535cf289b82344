"""What a training would take on given GPUs, said before any is rented: how its batch and state are divided so that they
fit, memory part by part, the time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from infra.errors import UserError
from model.cost.flops import Flops
from pipelines.planning.gpus import Gpu, choose_gpu
from pipelines.planning.memory import GB, TrainingMemory, training_memory
from pipelines.planning.network import meta_network
from pipelines.planning.step_time import StepTime, step_time
from pipelines.planning.step_work import largest_share, latent_size, num_passes, step_flops, text_length
from pipelines.settings.commands import SizingConfig
from pipelines.settings.run import RunConfig

# More samples at once make no GPU faster, and each has several views.
MOST_SAMPLES = 8
SECONDS_PER_DAY = 86_400
MICRO_BATCH_SIZE, ZERO_STAGE = "--train.micro-batch-size", "--train.engine.zero-stage"
DIVISION = (MICRO_BATCH_SIZE, ZERO_STAGE)  # the options that a plan chooses, unless they are given


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """A training, divided among GPUs."""

    config: RunConfig
    """With the chosen micro-batch and ZeRO stage."""
    kept: Collection[str]
    """Those of `DIVISION` that were not chosen, but given."""
    gpus: int
    gpu: Gpu
    """The kind whose speed is taken."""
    memory: TrainingMemory
    fits: bool
    flops: dict[str, Flops]
    """Of a step over all GPUs, by part of the network."""
    step: StepTime
    """Useful FLOPs at the assumed utilisation, and what is sent at the links' speed."""

    @property
    def passes(self) -> int:
        """Backward passes of a GPU in a step."""
        return num_passes(self.config.train, self.gpus)

    def days(self, step_seconds: float) -> float:
        """Of the whole training, if this is what a step takes."""
        return step_seconds * self.config.train.num_steps / SECONDS_PER_DAY


def size_training(config: RunConfig, sizing: SizingConfig, *, kept: Collection[str] = ()) -> Sizing:
    """The smallest ZeRO stage that fits, with it the largest micro-batch that does; what needs least memory if none.
    Of `DIVISION` those in `kept` stay as the config has them.

    Raises:
        UserError: the batch has less than a sample for each GPU, or there is no such kind of GPU.
    """
    if config.train.batch_size < sizing.gpus:
        raise UserError(
            f"--gpus {sizing.gpus}: batch_size {config.train.batch_size} is less than a sample for each; change --gpus "
            "or --train.batch-size"
        )
    gpu = choose_gpu(sizing.gpu_memory, sizing.gpu)
    divided, memory = _divide(config, sizing, kept)
    flops = step_flops(
        config.train, meta_network(config), latent_size=latent_size(config), text_length=text_length(config)
    )
    return Sizing(
        config=divided,
        kept=kept,
        gpus=sizing.gpus,
        gpu=gpu,
        memory=memory,
        fits=memory.peak <= sizing.gpu_memory * GB,
        flops=flops,
        step=step_time(divided, flops, gpu, sizing),
    )


def remedies(sizing: Sizing, gpu_memory: float) -> Iterator[str]:
    """What would make a training fit that does not, on GPUs of that many GB: one change each."""
    config, train, limit, kept = sizing.config, sizing.config.train, gpu_memory * GB, sizing.kept
    for option in DIVISION:
        if option in kept:
            chosen, memory = _choose_stage(config, sizing.gpus, limit, set(kept) - {option})
            if memory.peak <= limit:
                value = _value(chosen, option)
                yield f"{option} {value}: {memory.peak / GB:.1f} GB"
    changes = {
        "--train.model.gradient-checkpointing": replace(train, model=replace(train.model, gradient_checkpointing=True)),
        "--train.engine.precision bf16": replace(train, engine=replace(train.engine, precision="bf16")),
        "--train.trained adapter": replace(train, trained="adapter"),
    }
    for option, changed in changes.items():
        if changed != train:
            _, memory = _choose_stage(replace(config, train=changed), sizing.gpus, limit, kept)
            if memory.peak <= limit:
                yield f"{option}: {memory.peak / GB:.1f} GB"
    for gpus in range(sizing.gpus + 1, train.batch_size + 1):
        if train.batch_size % gpus == 0:
            _, memory = _choose_stage(config, gpus, limit, kept)
            if memory.peak <= limit:
                yield f"--gpus {gpus}: {memory.peak / GB:.1f} GB each"
                break
    yield f"GPUs of {sizing.memory.peak / GB:.1f} GB"


def _divide(config: RunConfig, sizing: SizingConfig, kept: Collection[str]) -> tuple[RunConfig, TrainingMemory]:
    """The config with ZeRO stage and micro-batch, and its memory."""
    limit = sizing.gpu_memory * GB
    chosen, memory = _choose_stage(config, sizing.gpus, limit, kept)
    if memory.peak > limit or MICRO_BATCH_SIZE in kept:
        return chosen, memory

    def larger(size: int) -> tuple[RunConfig, TrainingMemory]:
        of_size = _with(config, chosen.train.engine.zero_stage, size)
        return of_size, training_memory(of_size, num_workers=sizing.gpus)

    def fits(size: int) -> bool:
        return larger(size)[1].peak <= limit

    sizes = _full_sizes(largest_share(config.train, sizing.gpus))
    # Counting a pass takes seconds: the largest mostly fits, else memory falls with the sizes.
    place = 0 if sizes and fits(sizes[0]) else bisect_left(sizes, True, key=fits)
    return larger(sizes[place]) if place < len(sizes) else (chosen, memory)


def _full_sizes(share: int) -> list[int]:
    """Micro-batches of a GPU's share of the batch, the largest first: no smaller one would do with as few passes."""
    sizes = range(2, min(share, MOST_SAMPLES) + 1)
    return sorted({-(-share // -(-share // size)) for size in sizes}, reverse=True)


def _choose_stage(
    config: RunConfig, gpus: int, limit: float, kept: Collection[str]
) -> tuple[RunConfig, TrainingMemory]:
    """One sample at a time: the smallest ZeRO stage that fits, else the one that needs least."""
    size = config.train.micro_batch_size if MICRO_BATCH_SIZE in kept else 1
    stages = (config.train.engine.zero_stage,) if ZERO_STAGE in kept else _stages(gpus)
    plans = [_with(config, stage, size) for stage in stages]
    needs = [(plan, training_memory(plan, num_workers=gpus)) for plan in plans]
    fitting = [need for need in needs if need[1].peak <= limit]
    return fitting[0] if fitting else min(needs, key=lambda need: need[1].peak)


def _stages(gpus: int) -> tuple[int, ...]:
    """ZeRO stages worth trying. On several GPUs 0 sends as much as 1 and takes more memory; on one GPU, where there is
    nothing to share out, it takes least, because 1 and 2 copy the weights.
    """
    return (0,) if gpus == 1 else (1, 2)


def _with(config: RunConfig, stage: int, micro_batch_size: int) -> RunConfig:
    engine = replace(config.train.engine, zero_stage=stage)
    return replace(config, train=replace(config.train, engine=engine, micro_batch_size=micro_batch_size))


def _value(config: RunConfig, option: str) -> int:
    train = config.train
    return train.micro_batch_size if option == MICRO_BATCH_SIZE else train.engine.zero_stage
