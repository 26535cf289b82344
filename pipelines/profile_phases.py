"""How long a training step's phases take: waiting for data, forward, backward, optimizer."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch.profiler import record_function

from infra.engine import Engine
from pipelines.loop import LossPart

P = ParamSpec("P")
T = TypeVar("T")
PHASES = ("data", "forward", "backward", "optimizer")


class Phases:
    """Seconds by phase. A phase ends when the device has done its work, so that each pays for its own."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """The body of a `with` is of this phase; the trace shows it under that name."""
        with record_function(phase):
            started = time.perf_counter()
            yield
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.seconds[phase] += time.perf_counter() - started

    def of_batches(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches."""
        while True:
            with self.measure("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def of_engine(self, engine: Engine) -> Engine:
        """The same engine, whose backward passes and steps are measured from now on."""
        for name, phase in (("backward", "backward"), ("step", "optimizer")):
            setattr(engine, name, self._measured(phase, getattr(engine, name)))
        return engine

    def of_parts(self, parts: Sequence[LossPart]) -> list[LossPart]:
        """The same parts of the objective; drawing their noise is of the forward pass."""
        return [self._measured("forward", part) for part in parts]

    def _measured(self, phase: str, function: Callable[P, T]) -> Callable[P, T]:
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.measure(phase):
                return function(*args, **kwargs)

        return call
