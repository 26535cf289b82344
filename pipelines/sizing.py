"""What a training would take on given GPUs, said before any is rented: how its batch and state are divided so that they
fit, memory part by part, the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from infra.errors import UserError
from model.cost.flops import Flops
from pipelines.config import RunConfig
from pipelines.gpus import Gpu, choose_gpu, ideal_seconds
from pipelines.memory import FLOAT32, GB, TrainingMemory, training_memory
from pipelines.network_size import count_parameters, meta_network
from pipelines.requests import SizingConfig
from pipelines.step_cost import latent_size, num_passes, step_flops, text_length

ZERO_STAGES = (1, 2)  # 0 takes more memory than 1 for the same messages
# More samples at once make no GPU faster, and each has several views.
MOST_SAMPLES = 8
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """A training, divided among GPUs."""

    config: RunConfig
    """With the chosen micro-batch and ZeRO stage."""
    gpus: int
    gpu: Gpu
    """The kind whose speed is taken."""
    memory: TrainingMemory
    fits: bool
    flops: dict[str, Flops]
    """Of a step over all GPUs, by part of the network."""
    step_seconds: float
    """Useful FLOPs at the assumed utilisation."""

    @property
    def passes(self) -> int:
        """Backward passes of a GPU in a step."""
        return num_passes(self.config.train, self.gpus)

    @property
    def sent_bytes(self) -> float:
        """What each GPU sends in a step: DeepSpeed sums gradients over all of them, with ZeRO 2 after every pass, and
        then each gives the others its piece of the new weights.
        """
        sums = self.passes if self.config.train.engine.zero_stage >= 2 else 1
        gradients = FLOAT32 * float(count_parameters(self.config)["trained"])
        return (2 * sums + 1) * gradients * (self.gpus - 1) / self.gpus

    @property
    def days(self) -> float:
        """Of the whole training, as long as computing is all that takes time."""
        return self.step_seconds * self.config.train.num_steps / SECONDS_PER_DAY


def size_training(config: RunConfig, sizing: SizingConfig) -> Sizing:
    """The smallest ZeRO stage that fits, with it the largest micro-batch that does; what needs least memory if none.

    Raises:
        UserError: the batch has less than a sample for each GPU, or there is no such kind of GPU.
    """
    batch_size = config.train.batch_size
    if batch_size < sizing.gpus:
        raise UserError(
            f"--gpus {sizing.gpus}: batch_size {batch_size} is less than a sample for each; change --gpus or "
            "--train.batch-size"
        )
    largest_share = -(-batch_size // sizing.gpus) / batch_size  # all wait for the GPU that has it
    gpu = choose_gpu(sizing.gpu_memory, sizing.gpu)
    divided, memory = _divide(config, sizing)
    flops = step_flops(
        config.train, meta_network(config), latent_size=latent_size(config), text_length=text_length(config)
    )
    return Sizing(
        config=divided,
        gpus=sizing.gpus,
        gpu=gpu,
        memory=memory,
        fits=memory.peak <= sizing.gpu_memory * GB,
        flops=flops,
        step_seconds=ideal_seconds(flops, gpu, config.train.engine.precision) * largest_share / sizing.utilisation,
    )


def remedies(sizing: Sizing, gpu_memory: float) -> Iterator[str]:
    """What would make a training fit that does not, on GPUs of that many GB: one change each."""
    config, train, limit = sizing.config, sizing.config.train, gpu_memory * GB
    changes = {
        "--train.model.gradient-checkpointing": replace(train, model=replace(train.model, gradient_checkpointing=True)),
        "--train.engine.precision bf16": replace(train, engine=replace(train.engine, precision="bf16")),
        "--train.trained adapter": replace(train, trained="adapter"),
    }
    for option, changed in changes.items():
        if changed != train:
            _, memory = _choose_stage(replace(config, train=changed), sizing.gpus, limit)
            if memory.peak <= limit:
                yield f"{option}: {memory.peak / GB:.1f} GB"
    for gpus in range(sizing.gpus + 1, train.batch_size + 1):
        if train.batch_size % gpus == 0:
            _, memory = _choose_stage(config, gpus, limit)
            if memory.peak <= limit:
                yield f"--gpus {gpus}: {memory.peak / GB:.1f} GB each"
                break
    yield f"GPUs of {sizing.memory.peak / GB:.1f} GB"


def _divide(config: RunConfig, sizing: SizingConfig) -> tuple[RunConfig, TrainingMemory]:
    """The config with ZeRO stage and micro-batch, and its memory."""
    limit, share = sizing.gpu_memory * GB, -(-config.train.batch_size // sizing.gpus)
    chosen, memory = _choose_stage(config, sizing.gpus, limit)
    if memory.peak > limit:
        return chosen, memory
    for size in _full_sizes(share):
        larger = _with(config, chosen.train.engine.zero_stage, size)
        of_larger = training_memory(larger, num_workers=sizing.gpus)
        if of_larger.peak <= limit:
            return larger, of_larger
    return chosen, memory


def _full_sizes(share: int) -> list[int]:
    """Micro-batches of a GPU's share of the batch, the largest first: no smaller one would do with as few passes."""
    sizes = range(2, min(share, MOST_SAMPLES) + 1)
    return sorted({-(-share // -(-share // size)) for size in sizes}, reverse=True)


def _choose_stage(config: RunConfig, gpus: int, limit: float) -> tuple[RunConfig, TrainingMemory]:
    """One sample at a time: the smallest ZeRO stage that fits, else the one that needs least."""
    plans = [_with(config, stage, 1) for stage in ZERO_STAGES]
    needs = [(plan, training_memory(plan, num_workers=gpus)) for plan in plans]
    fitting = [need for need in needs if need[1].peak <= limit]
    return fitting[0] if fitting else min(needs, key=lambda need: need[1].peak)


def _with(config: RunConfig, stage: int, micro_batch_size: int) -> RunConfig:
    engine = replace(config.train.engine, zero_stage=stage)
    return replace(config, train=replace(config.train, engine=engine, micro_batch_size=micro_batch_size))
