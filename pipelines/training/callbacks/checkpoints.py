"""Checkpoints of a training, and the model folder that is always that of the newest one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import torch.distributed as dist
from torch import Tensor

from infra.checkpoints.background import Background
from infra.checkpoints.copies import CheckpointCopies
from infra.checkpoints.snapshots import Snapshot, SnapshotFolder
from infra.engine.engine import Engine
from infra.errors import UserError
from infra.storage.files import replace_folder
from model.pretrained import write_network
from model.unet import ViewDiffUNet
from pipelines.training.callbacks.average import AVERAGE_PART, WeightAverage
from pipelines.training.callbacks.cadence import Cadence
from pipelines.training.loop import StepInfo

MODEL_PART, OPTIMIZER_PART = "model", "optimizer"  # file names inside a checkpoint
VALIDATION_LOSS = "validation_loss"
_STEP_NAME = "training.json"  # in the model's folder: after how many steps


class Copier:
    """Copies checkpoints while training goes on, the newest each time that the one before has arrived: a place that is
    slow or away holds up nothing and costs at most that the copy is older.
    """

    def __init__(self, copies: CheckpointCopies, metrics_path: Path, tell: Callable[[str], None]) -> None:
        self._copies, self._metrics_path, self._tell = copies, metrics_path, tell
        self._background = Background("checkpoint-copies")
        self._taken: Snapshot | None = None

    @property
    def in_use(self) -> Path | None:
        """The checkpoint that is being copied, which must stay."""
        return self._taken.folder if self._taken is not None and self._background.is_busy else None

    def offer(self, snapshot: Snapshot) -> None:
        """Copy it, unless another one is being copied."""
        if not self._background.is_busy:
            self._taken = snapshot
            self._background.run(lambda: self._copy(snapshot))

    def finish(self, snapshot: Snapshot) -> None:
        """Wait until the training's last checkpoint is copied."""
        self._background.wait()
        self._copy(snapshot)

    def _copy(self, snapshot: Snapshot) -> None:
        try:
            if self._copies.newest_step() < snapshot.step:
                self._copies.put(snapshot.folder, self._metrics_path)
        except (UserError, OSError) as error:
            self._tell(f"the checkpoint after step {snapshot.step} has no copy at {self._copies.root}: {error}")


@dataclass(frozen=True, kw_only=True)
class SaveCheckpoints:
    """A checkpoint whenever one is due or wanted. Every rank must have this; rank 0 writes, while training goes on."""

    engine: Engine
    unet: ViewDiffUNet
    cadence: Cadence
    average: WeightAverage | None
    snapshots: SnapshotFolder
    model_dir: Path
    request_path: Path
    copier: Copier | None = None
    background: Background = field(default_factory=lambda: Background("checkpoint"))
    answering: Event = field(default_factory=Event)  # whether one that was asked for is being written

    def is_wanted(self) -> bool:
        """Whether somebody asked for one that is not being written yet."""
        return self.request_path.exists() and not self.answering.is_set()

    def __call__(self, info: StepInfo) -> None:
        self.background.check()
        if not (self.cadence.is_due(info.step) or info.checkpoint_wanted):
            return
        state = self.engine.optimizer_state()
        if dist.get_rank() > 0:
            return
        parts = {MODEL_PART: _copied(self.unet.state_dict()), OPTIMIZER_PART: state}
        if self.average is not None:
            parts[AVERAGE_PART] = _copied(self.average.weights())
        if info.checkpoint_wanted:
            self.answering.set()
        facts = {"loss": info.loss} | {k: v for k, v in info.scalars.items() if k == VALIDATION_LOSS}
        self.background.run(lambda: self._write(info, parts, facts))

    def complete(self, step: int) -> None:
        """See that the model is that of the newest checkpoint, which the network is at now, after `step` steps: a
        killed writer may have left it out.
        """
        if dist.get_rank() == 0 and step_of_model(self.model_dir) != step:
            average = {} if self.average is None else self.average.weights()
            write_model(self.unet, _copied(self.unet.state_dict() | average), step, self.model_dir)

    def finish(self, step: int) -> None:
        """Wait for what is being written after the last step."""
        if dist.get_rank() > 0:
            return
        self.background.wait()
        self.complete(step)
        newest = self.snapshots.newest() if self.copier is not None else None
        if self.copier is not None and newest is not None:
            self.copier.finish(newest)

    def _write(self, info: StepInfo, parts: dict[str, dict[str, Tensor]], facts: dict[str, float]) -> None:
        in_use = None if self.copier is None else self.copier.in_use
        snapshot = self.snapshots.save(info.step, parts, facts, in_use=in_use)
        if self.copier is not None:
            self.copier.offer(snapshot)
        write_model(self.unet, parts[MODEL_PART] | parts.get(AVERAGE_PART, {}), info.step, self.model_dir)
        if info.checkpoint_wanted:  # last, because whoever asked may end this process then
            self.request_path.unlink(missing_ok=True)
            self.answering.clear()


def write_model(unet: ViewDiffUNet, weights: dict[str, Tensor], step: int, folder: Path) -> None:
    """Write a network with these weights, of after `step` steps, in the place of what is in `folder`."""
    unfinished = folder.with_name(f".{folder.name}")
    write_network(unfinished, unet.unet, unet.config, weights)
    (unfinished / _STEP_NAME).write_text(json.dumps({"step": step}) + "\n")
    replace_folder(unfinished, folder)


def step_of_model(model_dir: Path) -> int | None:
    """How many steps a training's model folder is from; None where there is no such folder."""
    path = model_dir / _STEP_NAME
    return json.loads(path.read_bytes())["step"] if path.is_file() else None


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, and not the tensors that training goes on to change."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
