"""The training loop: next batch, losses of its parts, backward, step, callbacks. Everything else is a callback."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from infra.engine.engine import Engine
from infra.engine.stopwatch import Stopwatch
from model.diffusion.objective import PartLoss
from preprocessing.batches.shares import Schedule

# A micro-batch of samples -> their share of one part of the step's objective.
LossPart = Callable[[Any], PartLoss]
PHASES = ("data", "forward", "backward", "optimizer")
_OWN_PHASES = ("data", "forward")  # in which a rank does not wait for others
_LOSS, _WANTED = "loss", "checkpoint wanted"


class DivergedError(FloatingPointError):
    """Loss or gradient are no numbers any more, or far too large."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step  # counted from 0

    def __reduce__(self) -> tuple[type, tuple[str, int]]:
        return DivergedError, (str(self), self.step)  # without this it cannot leave its process


@dataclass(frozen=True, kw_only=True)
class StepInfo:
    """What callbacks are told after a step."""

    step: int  # steps done, this one included
    loss: float  # the objective over the global batch
    scalars: Mapping[str, float]  # of the loss's parts, over the global batch
    gradient_norm: float  # before clipping
    learning_rates: Mapping[str, float]  # by parameter group
    seconds: float  # of this step without validation and callbacks
    phase_seconds: Mapping[str, float] = field(default_factory=dict)  # of the step before, on this rank
    rank_seconds: tuple[float, ...] = ()  # of each rank alone, without waiting for others, two steps before
    checkpoint_wanted: bool = False  # somebody asked for one now


class Callback(Protocol):
    """Called on every rank after every step."""

    def __call__(self, info: StepInfo, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Training:
    """What all steps of a training have in common."""

    engine: Engine
    parts: Sequence[LossPart]
    schedule: Schedule
    largest_loss: float = math.inf
    callbacks: Sequence[Callback] = ()
    stopwatch: Stopwatch
    validate: Callable[[int], Mapping[str, float]] = lambda step: {}
    """Further numbers after a step (steps done, this one included); called on every rank."""
    wants_checkpoint: Callable[[], bool] = lambda: False
    """Asked on every rank; one that says yes is enough."""


def train_steps(training: Training, batches: Iterator[Any], *, steps: range) -> None:
    """Do the optimizer steps `steps`, counted from 0, with the samples at `schedule.positions(steps)`: `batches` yields
    a micro-batch for each of these.

    Raises:
        DivergedError: on every rank; the last checkpoint is from before.
    """
    engine, stopwatch = training.engine, training.stopwatch
    phases: dict[str, float] = {}
    for step in steps:
        started = time.perf_counter()
        sums = _accumulate(training, islice(batches, training.schedule.num_micro_batches))
        sums |= _of_ranks(training, phases)
        with stopwatch.phase("optimizer"):
            norm, totals = engine.step(step, torch.stack(list(sums.values())))
        scalars = dict(zip(sums, totals, strict=True))
        phases, seconds = stopwatch.next_step(), time.perf_counter() - started
        info = StepInfo(
            step=step + 1,
            loss=scalars.pop(_LOSS),
            checkpoint_wanted=scalars.pop(_WANTED) > 0,
            rank_seconds=tuple(scalars.pop(_rank(rank)) for rank in range(training.schedule.num_ranks)),
            scalars=_means(scalars) | dict(training.validate(step + 1)),
            gradient_norm=norm,
            learning_rates=engine.learning_rates(),
            seconds=seconds,
            phase_seconds=phases,
        )
        _require_finite(info, training.largest_loss)
        for callback in training.callbacks:
            callback(info)


def _accumulate(training: Training, micro_batches: Iterable[Any]) -> dict[str, Tensor]:
    """Gradients of a whole step; returns this rank's sums of losses and scalars over its micro-batches, float64."""
    engine, stopwatch, sums = training.engine, training.stopwatch, dict[str, Tensor]()
    batches = iter(micro_batches)
    for number in range(training.schedule.num_micro_batches):
        with stopwatch.phase("data"):
            batch = next(batches)
        weight = 1.0 if number < training.schedule.num_counted else 0.0
        for part in training.parts:
            with stopwatch.phase("forward"):
                loss = part(batch)
            with stopwatch.phase("backward"):
                engine.backward(loss.loss * weight)
            for name, value in {_LOSS: loss.loss.detach(), **loss.scalars}.items():
                sums[name] = weight * value.double() + sums.get(name, 0.0)
    return sums


def _of_ranks(training: Training, phases: Mapping[str, float]) -> dict[str, Tensor]:
    """What ranks tell each other, in the same sum as the losses: each one's time in its own place."""
    schedule, own = training.schedule, sum(phases.get(name, 0.0) for name in _OWN_PHASES)
    values = {_rank(rank): own if rank == schedule.rank else 0.0 for rank in range(schedule.num_ranks)}
    values[_WANTED] = float(training.wants_checkpoint())
    numbers = torch.tensor(list(values.values()), dtype=torch.float64).to(training.engine.device, non_blocking=True)
    return dict(zip(values, numbers, strict=True))


def _rank(rank: int) -> str:
    return f"seconds of rank {rank}"


def _means(scalars: Mapping[str, float]) -> dict[str, float]:
    """Divide each sum `x/sum` by its `x/count`, and leave out what nothing was counted of."""
    means = {name: value for name, value in scalars.items() if "/" not in name}
    for name in (name.removesuffix("/count") for name in scalars if name.endswith("/count")):
        if scalars[f"{name}/count"] > 0:
            means[name] = scalars[f"{name}/sum"] / scalars[f"{name}/count"]
    return means


def _require_finite(info: StepInfo, largest_loss: float) -> None:
    if not math.isfinite(info.loss):
        problem = f"the loss is {info.loss}"
    elif not math.isfinite(info.gradient_norm):
        problem = "the gradient is not finite"
    elif info.loss > largest_loss:
        problem = f"the loss is {info.loss:.4g}, more than {largest_loss:g}"
    else:
        return
    parts = ", ".join(f"{name} {value:.4g}" for name, value in info.scalars.items())
    raise DivergedError(f"step {info.step}: {problem} ({parts})", info.step - 1)
