"""Where a training step spends its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.profiler import record_function


class Stopwatch:
    """Seconds by phase of one step after another, read a step late: on a GPU the device's own clock is asked, and by
    then it has passed, so nothing waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self._start = _device_span if device.type == "cuda" else _host_span
        self._before: list[tuple[str, Callable[[], float]]] = []
        self._now: list[tuple[str, Callable[[], float]]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the body of a `with` as time of phase `name`, which a profiler sees too."""
        with record_function(name):
            end = self._start()
            yield
            self._now.append((name, end()))

    def next_step(self) -> dict[str, float]:
        """Begin another step. Returns the seconds by phase of the step before the one that ends here."""
        seconds: dict[str, float] = {}
        for name, read in self._before:
            seconds[name] = seconds.get(name, 0.0) + read()
        self._before, self._now = self._now, []
        return seconds


def _host_span() -> Callable[[], Callable[[], float]]:
    started = time.perf_counter()

    def end() -> Callable[[], float]:
        seconds = time.perf_counter() - started
        return lambda: seconds

    return end


def _device_span() -> Callable[[], Callable[[], float]]:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()

    def end() -> Callable[[], float]:
        last.record()
        return lambda: first.elapsed_time(last) / 1000

    return end
