"""How long a step takes: computing, and then what GPUs send each other. Nothing here is measured.

Both take turns (`overlap_comm` is off in infra/engine/engine.py). docs/scaling.md says what follows, and how far to
trust it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from infra.engine.engine import BUCKET_ELEMENTS
from model.cost.flops import Flops
from pipelines.planning.gpus import Gpu, ideal_seconds
from pipelines.planning.memory import FLOAT32
from pipelines.planning.network import count_parameters
from pipelines.planning.step_work import largest_share, num_passes
from pipelines.settings.commands import SizingConfig
from pipelines.settings.run import RunConfig

GPUS_PER_MACHINE = 8
LATENCY_INSIDE, LATENCY_BETWEEN = 5e-6, 10e-6  # seconds of a hop within a machine, and from one to the next


class StepTime(NamedTuple):
    """Of one optimizer step."""

    computing: float  # seconds
    sending: float  # seconds
    sent_bytes: float  # by each GPU

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.computing + self.sending


class Link(NamedTuple):
    """A hop of a ring through all GPUs."""

    latency: float  # seconds, the mean of all hops
    speed: float  # bytes a second, of the slowest hop


def step_time(config: RunConfig, flops: dict[str, Flops], gpu: Gpu, sizing: SizingConfig) -> StepTime:
    """Of a training whose step has those FLOPs over all GPUs, of which `sizing` says how many there are."""
    train, gpus = config.train, sizing.gpus
    share = largest_share(train, gpus) / train.batch_size  # all wait for the GPU that has it
    computing = ideal_seconds(flops, gpu, train.engine.precision) * share / sizing.utilisation
    gradients = FLOAT32 * float(count_parameters(config)["trained"])
    sums, gathers = collectives(config, gpus)
    link = ring_link(gpu, sizing)
    return StepTime(
        computing=computing,
        sending=(2 * sums + gathers) * _round_seconds(gradients, gpus, link),
        sent_bytes=(2 * sums + gathers) * gradients * (gpus - 1) / gpus,
    )


def collectives(config: RunConfig, gpus: int) -> tuple[int, int]:
    """How often a step sums all gradients over the GPUs, and how often it gathers all weights: DeepSpeed sums once a
    step, with ZeRO 2 after every pass; with ZeRO each GPU then gives the others its piece of the new weights.
    """
    stage = config.train.engine.zero_stage
    return (num_passes(config.train, gpus) if stage == 2 else 1), min(stage, 1)


def ring_link(gpu: Gpu, sizing: SizingConfig) -> Link:
    """Of a ring through all GPUs. One hop in 8 leaves the machine: every adapter there carries a ring of its own with
    its share of the bytes, so that their speeds add up.
    """
    if sizing.gpus <= GPUS_PER_MACHINE:
        return Link(LATENCY_INSIDE, gpu.link)
    latency = ((GPUS_PER_MACHINE - 1) * LATENCY_INSIDE + LATENCY_BETWEEN) / GPUS_PER_MACHINE
    return Link(latency, min(sizing.network_gigabits * 1e9 / 8, gpu.link))


def ring_seconds(num_bytes: float, gpus: int, link: Link, *, rounds: int) -> float:
    """A ring collective of `num_bytes`: 2 rounds for an all-reduce, 1 for a reduce-scatter or an all-gather.

    A round has p - 1 hops of num_bytes / p each: rounds (p - 1) (α + n / (p β)).
    """
    return rounds * (gpus - 1) * (link.latency + num_bytes / (gpus * link.speed))


def _round_seconds(num_bytes: float, gpus: int, link: Link) -> float:
    """One round of a ring for all of these bytes, which collectives are given bucket by bucket."""
    pieces = max(1, math.ceil(num_bytes / (FLOAT32 * BUCKET_ELEMENTS)))
    return pieces * ring_seconds(num_bytes / pieces, gpus, link, rounds=1)
