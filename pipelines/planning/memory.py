"""Memory of one training worker, part by part, told before anything is started.

Weights, gradients and AdamW's state follow from the number of parameters and DeepSpeed's way of keeping them (ZeRO,
Rajbhandari et al. 2020, section 5; all in float32); activations come from model/cost/memory.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from infra.engine.engine import BUCKET_ELEMENTS
from model.cost.memory import PassMemory, pass_memory
from pipelines.planning.network import STABLE_DIFFUSION_2_CODERS, base_unet_config, count_parameters
from pipelines.planning.step_work import largest_share, num_passes, view_workload
from pipelines.settings.run import RunConfig

GB = 1e9
FLOAT32 = 4  # bytes
# What a tile of voxels or a part of the rays takes while it is computed (model/kernels).
VOLUME_WORKSPACE = 64_000_000
# What AdamW's update holds for each of a worker's parameters: the gradients that it was given, and their copy.
UPDATE_FLOATS = 2
Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of one worker, the first one."""

    backward: dict[str, float]
    """By part, at the fullest moment of a backward pass."""
    step: float
    """While gradients are summed over the workers and the weights are updated."""

    @property
    def peak(self) -> float:
        """What must fit."""
        return max(sum(self.backward.values()), self.step)

    def table(self) -> dict[str, float]:
        """For a person: the parts, and the peak."""
        return self.backward | {"later, while the weights are updated": self.step, "peak": self.peak}


def training_memory(config: RunConfig, *, num_workers: int, device: Device = "cuda") -> TrainingMemory:
    """Of a training with the config's batch, micro-batch and ZeRO stage on that many workers."""
    train, counts = config.train, count_parameters(config)
    gradients = FLOAT32 * float(counts["trained"])
    stage = train.engine.zero_stage
    piece = gradients if stage == 0 else gradients / num_workers
    held = {
        "weights": FLOAT32 * float(counts["total"]),
        "optimizer: moments and its own weights": (2 if stage == 0 else 3)
        * piece,  # without ZeRO the weights are its own
        "average of the weights": FLOAT32 * float(counts["total"]) if train.average_decay else 0.0,
        "coders, for previews": 0.0 if config.base.source is None else FLOAT32 * float(STABLE_DIFFUSION_2_CODERS),
    }
    at_once = min(train.micro_batch_size, largest_share(train, num_workers))
    memory, is_one_pass = passes_memory(config, at_once), num_passes(train, num_workers) == 1
    bucket = FLOAT32 * float(BUCKET_ELEMENTS)
    if stage == 2:
        earlier, summing = piece, 0.0
        peak = _pass_with_pieces(memory, gradients, piece, bucket=bucket, device=device)
    else:
        # Whole gradients add up in their place, and are summed over the workers when the last pass is done.
        earlier, summing = gradients, gradients + (piece if stage else 0.0) + min(bucket, gradients)
        peak = memory.peak_with_gradients if is_one_pass else memory.peak
    backward = held | {
        "gradients of earlier passes": 0.0 if is_one_pass else earlier,
        "weights in bfloat16": float(memory.weight_copies),
        "activations": float(memory.kept - memory.weight_copies),
        "backward pass: gradients, temporaries": peak - memory.kept,
        "volumes' workspace": float(VOLUME_WORKSPACE) if config.train.model.projection.blocks else 0.0,
    }
    step = sum(held.values()) + max(summing, UPDATE_FLOATS * piece)
    return TrainingMemory(backward={name: value for name, value in backward.items() if value}, step=step)


def _pass_with_pieces(memory: PassMemory, gradients: float, piece: float, *, bucket: float, device: Device) -> float:
    """The most in a pass of ZeRO 2, which sums gradients over the workers when they fill a bucket, and copies this
    worker's piece of the sum.
    """
    if device == "cpu" and gradients <= bucket:  # memory that is never written to counts nowhere
        return max(memory.peak_with_gradients, gradients + piece)
    return memory.peak + bucket + piece


def passes_memory(config: RunConfig, num_samples: int, *, checkpointing: bool | None = None) -> PassMemory:
    """Of one forward and backward pass of posed views, with the config's gradient checkpointing or another."""
    model = config.train.model
    model = model if checkpointing is None else replace(model, gradient_checkpointing=checkpointing)
    # Of the settings only those that matter, so that it is computed once for all that share them.
    train = replace(config.train, model=model, num_steps=1, micro_batch_size=1, batch_size=1)
    return _pass_memory(RunConfig(name="", preprocess=config.preprocess, base=config.base, train=train), num_samples)


@lru_cache(maxsize=64)
def _pass_memory(config: RunConfig, num_samples: int) -> PassMemory:
    return pass_memory(
        base_unet_config(config.base),
        config.train.model,
        view_workload(config, num_samples),
        bfloat16=config.train.engine.precision == "bf16",
        adapter=config.train.trained == "adapter",
    )
