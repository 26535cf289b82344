"""What happens between training steps, in the workers: metrics.jsonl, slow ranks, the object of the previews."""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from infra.errors import UserError
from infra.storage import atomic_write
from model.base import BaseModel
from model.sampling import ViewRequest
from model.views import Scene
from pipelines.checkpoints import Cadence
from pipelines.loop import StepInfo
from preprocessing.batches import TrainBatches

_STEPS_TO_JUDGE, _SLOW = 20, 1.5  # steps, and times as long as the median rank


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


class WatchRanks:
    """Says which rank holds the others up, once for each. Only for rank 0.

    Time that a rank spends for itself, without waiting for others, is averaged over about `_STEPS_TO_JUDGE` steps.
    """

    def __init__(self, hosts: Sequence[str], tell: Callable[[str], None]) -> None:
        """`hosts`: each rank's machine."""
        self._hosts, self._tell = hosts, tell
        self._seconds, self._num_steps, self._told = [0.0] * len(hosts), 0, set[int]()

    def __call__(self, info: StepInfo) -> None:
        if len(info.rank_seconds) != len(self._hosts) or min(info.rank_seconds) <= 0:
            return
        self._num_steps += 1
        share = 1 / min(self._num_steps, _STEPS_TO_JUDGE)
        pairs = zip(self._seconds, info.rank_seconds, strict=True)
        self._seconds = [old + share * (new - old) for old, new in pairs]
        usual = statistics.median_low(self._seconds)
        for rank, seconds in enumerate(self._seconds):
            if self._num_steps >= _STEPS_TO_JUDGE and seconds > _SLOW * usual and rank not in self._told:
                self._told.add(rank)
                self._tell(
                    f"step {info.step}: rank {rank} on {self._hosts[rank]} takes {seconds:.3g} s for its own part of a "
                    f"step, the others {usual:.3g} s; all wait for it"
                )


def preview_request(batches: TrainBatches, num_views: int, encoder: BaseModel | None) -> ViewRequest:
    """The first held-out object (of training where none is held out) from evenly spaced views, the first one known.
    `encoder` as `TrainBatches.views`.
    """
    index, latents = batches.index, batches.latents
    sequence = (index.sequences("val") or index.sequences("test") or index.sequences("train"))[0]
    rows = [sequence.rows[number * len(sequence.rows) // num_views] for number in range(num_views)]
    return ViewRequest(
        scene=Scene.neutral(index.cameras(rows)[None], torch.from_numpy(sequence.scene_bounds)[None]),
        text=latents.text([latents.caption_number(sequence.captions[0])]).float(),
        empty_text=latents.text([0])[0].float(),
        known_latents=batches.mean_latents(rows, encoder)[None],
        known=torch.arange(num_views)[None] == 0,
        seeds=(0,),
    )
