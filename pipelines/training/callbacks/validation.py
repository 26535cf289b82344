"""The loss on objects that are not trained on: at each checkpoint, on the same samples with the same noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist

from infra.engine.collectives import sum_over_ranks
from model.diffusion.objective import PartLoss
from pipelines.training.callbacks.cadence import Cadence
from pipelines.training.callbacks.checkpoints import VALIDATION_LOSS
from preprocessing.batches.batches import LoadedBatch, TrainBatches


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Takes the loss when a checkpoint is due. Every rank must have this, and does its share of the samples."""

    loss: Callable[[LoadedBatch], PartLoss]
    """Of held-out samples, a share of `num_samples`."""
    batches: TrainBatches
    num_samples: int
    micro_batch_size: int
    cadence: Cadence
    device: torch.device

    @torch.no_grad()
    def __call__(self, step: int) -> Mapping[str, float]:
        """The loss after `step` steps, nothing at others."""
        if not self.cadence.is_due(step):
            return {}
        own = range(dist.get_rank(), self.num_samples, dist.get_world_size())
        parts = [own[start : start + self.micro_batch_size] for start in range(0, len(own), self.micro_batch_size)]
        losses = [self.loss(self.batches.load(part)).loss.double() for part in parts]
        total = sum(losses, torch.zeros((), dtype=torch.float64, device=self.device))
        return {VALIDATION_LOSS: sum_over_ranks(total.reshape(1))[0]}
