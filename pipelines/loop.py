"""The training loop: next batch, losses of its parts, backward, step, callbacks. Everything else is a callback."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol

import torch

from infra.engine import Engine, sum_over_ranks
from model.diffusion import PartLoss

# A micro-batch of samples -> their share of one part of the step's objective.
LossPart = Callable[[Any], PartLoss]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Which samples a step is made of: positions [step · batch_size, (step + 1) · batch_size), however many ranks."""

    batch_size: int  # samples per step, over all ranks
    micro_batch_size: int  # samples per forward pass of one rank
    rank: int
    num_ranks: int

    def __post_init__(self) -> None:
        if self.batch_size % self.num_ranks:
            # Gradients are summed over ranks after every backward pass, so each rank needs the same number of them.
            raise ValueError(f"batch_size {self.batch_size} cannot be divided among {self.num_ranks} ranks")

    def micro_batches(self, step: int) -> list[range]:
        """This rank's positions of step `step`, counted from 0."""
        share = self.batch_size // self.num_ranks
        first = step * self.batch_size + self.rank * share
        positions = range(first, first + share)
        return [positions[start : start + self.micro_batch_size] for start in range(0, share, self.micro_batch_size)]

    @property
    def num_micro_batches(self) -> int:
        """Of one rank in a step."""
        return -(-self.batch_size // self.num_ranks // self.micro_batch_size)

    def positions(self, steps: range) -> Iterator[range]:
        """This rank's positions of all these steps, a range for each micro-batch."""
        return chain.from_iterable(map(self.micro_batches, steps))


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """What callbacks are told after a step."""

    step: int  # steps done, this one included
    loss: float  # the objective over the global batch
    scalars: Mapping[str, float]  # of the loss's parts, over the global batch
    gradient_norm: float  # before clipping
    learning_rates: Mapping[str, float]  # by parameter group
    seconds: float  # of this step without its callbacks


class Callback(Protocol):
    """Called on every rank after every step."""

    def __call__(self, info: StepInfo) -> None: ...


def train_steps(
    engine: Engine,
    parts: Sequence[LossPart],
    batches: Iterator[Any],
    schedule: Schedule,
    *,
    steps: range,
    callbacks: Sequence[Callback],
) -> None:
    """Do the optimizer steps `steps`, counted from 0, with the samples at `schedule.positions(steps)`: `batches` yields
    a micro-batch for each of these.

    Raises:
        FloatingPointError: loss or gradient are no longer finite; the last checkpoint is from before.
    """
    for step in steps:
        started = time.perf_counter()
        scalars = _accumulate(engine, parts, islice(batches, schedule.num_micro_batches))
        loss = scalars.pop("loss")
        if not math.isfinite(loss):
            raise FloatingPointError(f"step {step + 1}: the loss is {loss} ({scalars}); lower the learning rate")
        info = StepInfo(
            step=step + 1,
            loss=loss,
            scalars=scalars,
            gradient_norm=engine.step(step),
            learning_rates=engine.learning_rates(),
            seconds=time.perf_counter() - started,
        )
        for callback in callbacks:
            callback(info)


def _accumulate(engine: Engine, parts: Sequence[LossPart], micro_batches: Iterable[Any]) -> dict[str, float]:
    """Gradients of a whole step; returns its loss and scalars, summed over micro-batches and ranks."""
    sums: dict[str, torch.Tensor] = {}
    for batch in micro_batches:
        for part in parts:
            loss, scalars = part(batch)
            engine.backward(loss)
            for name, value in {"loss": loss.detach(), **scalars}.items():
                sums[name] = value.double() + sums.get(name, 0.0)
    return dict(zip(sums, sum_over_ranks(torch.stack(list(sums.values()))), strict=True))
