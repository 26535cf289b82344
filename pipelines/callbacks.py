"""What happens between training steps, in the workers: metrics.jsonl, checkpoints, the object of the previews."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from infra.checkpoint import SnapshotFolder
from infra.engine import Engine
from infra.storage import atomic_write
from model.base import BaseModel
from model.sampling import ViewRequest
from model.unet import ViewDiffUNet
from model.views import Scene
from pipelines.loop import StepInfo
from preprocessing.batches import TrainBatches

MODEL_PART, OPTIMIZER_PART = "model", "optimizer"  # file names inside a checkpoint


def write_line(info: StepInfo) -> str:
    """A step as one line of metrics.jsonl."""
    rates = {f"learning_rate_{name}": rate for name, rate in info.learning_rates.items()}
    numbers = {"loss": info.loss, **info.scalars, "gradient_norm": info.gradient_norm, **rates}
    return json.dumps({"step": info.step, **numbers, "seconds": round(info.seconds, 4)}) + "\n"


def drop_lines_after(path: Path, done: int) -> None:
    """Keep the lines of steps 1 to `done` of a metrics.jsonl; later ones are of a run that was killed.

    The file is replaced, so that a process that outlived its run writes into nothing.
    """
    lines = path.read_bytes().splitlines(keepends=True)[:done] if path.exists() else []
    if len(lines) < done or any(json.loads(line)["step"] != number for number, line in enumerate(lines, start=1)):
        raise RuntimeError(f"{path} does not hold steps 1 to {done}, which the checkpoint is after; delete its folder")
    atomic_write(path, b"".join(lines))


@dataclass(frozen=True)
class Cadence:
    """Every so many steps, and after the last."""

    every_steps: int
    num_steps: int

    def is_due(self, step: int) -> bool:
        """Whether it is time after `step` steps."""
        return step % self.every_steps == 0 or step == self.num_steps


class MetricsFile:
    """One line per step, each step once. Only for rank 0."""

    def __init__(self, path: Path, *, done: int, checkpoints: Cadence) -> None:
        drop_lines_after(path, done)
        self._file = path.open("a")
        self._checkpoints = checkpoints

    def __call__(self, info: StepInfo) -> None:
        self._file.write(write_line(info))
        self._file.flush()
        if self._checkpoints.is_due(info.step):  # a checkpoint must never outlive the lines before it
            os.fsync(self._file.fileno())


@dataclass(frozen=True)
class SaveSnapshots:
    """A checkpoint whenever one is due. Every rank must have this; rank 0 writes."""

    engine: Engine
    unet: ViewDiffUNet
    snapshots: SnapshotFolder | None  # on rank 0
    cadence: Cadence

    def __call__(self, info: StepInfo) -> None:
        if not self.cadence.is_due(info.step):
            return
        state = self.engine.optimizer_state()
        if self.snapshots is not None:
            parts = {MODEL_PART: self.unet.state_dict(), OPTIMIZER_PART: state}
            self.snapshots.save(info.step, parts, {"loss": info.loss})


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
