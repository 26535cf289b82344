"""What happens between training steps, in the workers: the lines of metrics.jsonl."""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from infra.errors import UserError
from infra.storage.files import atomic_write
from pipelines.training.callbacks.cadence import Cadence
from pipelines.training.loop import StepInfo


@dataclass(frozen=True)
class Work:
    """What a step is made of, by which its speed is told."""

    num_views: int  # over all ranks, prior images not counted
    flops: float  # over all ranks, without what is computed a second time
    ideal_seconds: float | None = None  # that they take these GPUs at their best, if the kind is known


def write_line(info: StepInfo, work: Work) -> str:
    """A step as one line of metrics.jsonl. What differs from run to run starts with "time/"."""
    rates = {f"learning_rate_{name}": rate for name, rate in info.learning_rates.items()}
    numbers = {"loss": info.loss, **info.scalars, "gradient_norm": info.gradient_norm, **rates}
    times = {f"time/{name}": round(value, 6) for name, value in _times(info, work).items()}
    return json.dumps({"step": info.step, **numbers, **times}) + "\n"


def _times(info: StepInfo, work: Work) -> dict[str, float]:
    times = {"unix": time.time(), "seconds": info.seconds, "views_per_second": work.num_views / info.seconds}
    times["teraflops_per_second"] = work.flops / info.seconds / 1e12
    if work.ideal_seconds is not None:
        times["utilisation"] = work.ideal_seconds / info.seconds
    times |= {f"{phase}_seconds": seconds for phase, seconds in info.phase_seconds.items()}
    if max(info.rank_seconds, default=0.0) > 0:
        times["slowest_rank_ratio"] = max(info.rank_seconds) / statistics.median_low(info.rank_seconds)
    return times | {"memory_gb": peak_memory() / 1e9}


def peak_memory() -> int:
    """Bytes that this process has used at most: of its GPU, if it has one."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def drop_lines_after(path: Path, done: int) -> None:
    """Keep the lines of steps 1 to `done` of a metrics.jsonl; later ones are of a run that was killed.

    The file is replaced, so that a process that outlived its run writes into nothing.
    """
    lines = path.read_bytes().splitlines(keepends=True)[:done] if path.exists() else []
    if len(lines) < done or any(json.loads(line)["step"] != number for number, line in enumerate(lines, start=1)):
        raise UserError(
            f"{path} lacks lines of steps 1 to {done}, which the newest checkpoint is after; restore it, or remove "
            f"that checkpoint from {path.parent / 'checkpoints'}, and run the same command again"
        )
    atomic_write(path, b"".join(lines))


class MetricsFile:
    """One line per step, each step once. Only for rank 0."""

    def __init__(self, path: Path, *, done: int, checkpoints: Cadence, work: Work) -> None:
        drop_lines_after(path, done)
        self._file = path.open("a")
        self._checkpoints, self._work = checkpoints, work

    def __call__(self, info: StepInfo) -> None:
        self._file.write(write_line(info, self._work))
        self._file.flush()
        if info.checkpoint_wanted or self._checkpoints.is_due(info.step):
            # A checkpoint must never outlive the lines before it.
            os.fsync(self._file.fileno())
