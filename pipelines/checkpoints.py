"""Checkpoints of a training, and the model folder that is always that of the newest one."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist
from diffusers.training_utils import EMAModel
from torch import Tensor

from infra.background import Background
from infra.checkpoint import Snapshot, SnapshotFolder
from infra.engine import Engine
from infra.storage import replace_folder
from model.pretrained import write_network
from model.unet import ViewDiffUNet
from pipelines.loop import StepInfo

MODEL_PART, AVERAGE_PART, OPTIMIZER_PART = "model", "average", "optimizer"  # file names inside a checkpoint
VALIDATION_LOSS = "validation_loss"
_STEP_NAME = "training.json"  # in the model's folder: after how many steps


@dataclass(frozen=True)
class Cadence:
    """Every so many steps, and after the last."""

    every_steps: int
    num_steps: int

    def is_due(self, step: int) -> bool:
        """Whether it is time after `step` steps."""
        return step % self.every_steps == 0 or step == self.num_steps


class WeightAverage:
    """Running average of the weights, which models made from it are better for (Karras et al. 2024, section 3).

    On rank 0, which has all weights after every step. Its decay rises with the steps, as long as these are few.
    """

    def __init__(self, unet: ViewDiffUNet, decay: float, snapshot: Snapshot | None) -> None:
        self._unet = unet
        self._average = EMAModel(unet.parameters(), decay=decay, foreach=True)
        if snapshot is not None:
            saved = snapshot.tensors(AVERAGE_PART)
            self._average.shadow_params = [saved[name].to(p.device) for name, p in unet.named_parameters()]
            self._average.optimization_step = snapshot.step

    def __call__(self, info: StepInfo) -> None:
        self._average.step(self._unet.parameters())

    def weights(self) -> dict[str, Tensor]:
        """The averages by parameter name."""
        names = (name for name, _ in self._unet.named_parameters())
        return dict(zip(names, self._average.shadow_params, strict=True))


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
    background: Background = field(default_factory=lambda: Background("checkpoint"))

    def __call__(self, info: StepInfo) -> None:
        if not (self.cadence.is_due(info.step) or info.checkpoint_wanted):
            return
        state = self.engine.optimizer_state()
        if dist.get_rank() > 0:
            return
        parts = {MODEL_PART: _copied(self.unet.state_dict()), OPTIMIZER_PART: state}
        if self.average is not None:
            parts[AVERAGE_PART] = _copied(self.average.weights())
        facts = {"loss": info.loss} | {k: v for k, v in info.scalars.items() if k == VALIDATION_LOSS}
        self.background.run(lambda: self._write(info, parts, facts))

    def finish(self, step: int) -> None:
        """Wait for what is being written, and see that the model is there, which a killed writer may have left out."""
        if dist.get_rank() > 0:
            return
        self.background.wait()
        if step_of_model(self.model_dir) != step:
            average = {} if self.average is None else self.average.weights()
            self._publish(step, _copied(self.unet.state_dict() | average))

    def _write(self, info: StepInfo, parts: dict[str, dict[str, Tensor]], facts: dict[str, float]) -> None:
        self.snapshots.save(info.step, parts, facts)
        if info.checkpoint_wanted:  # one that was asked for meanwhile is still to come
            self.request_path.unlink(missing_ok=True)
        self._publish(info.step, parts[MODEL_PART] | parts.get(AVERAGE_PART, {}))

    def _publish(self, step: int, weights: dict[str, Tensor]) -> None:
        unfinished = self.model_dir.with_name(f".{self.model_dir.name}")
        write_network(unfinished, self.unet.unet, self.unet.config, weights)
        (unfinished / _STEP_NAME).write_text(json.dumps({"step": step}) + "\n")
        replace_folder(unfinished, self.model_dir)


def step_of_model(model_dir: Path) -> int | None:
    """How many steps a training's model folder is from; None where there is no such folder."""
    path = model_dir / _STEP_NAME
    return json.loads(path.read_bytes())["step"] if path.is_file() else None


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, and not the tensors that training goes on to change."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}
