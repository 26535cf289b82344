"""Memory of one training worker, part by part, told before anything is started.

Weights, gradients and AdamW's state follow from the number of parameters and DeepSpeed's way of keeping them (ZeRO,
Rajbhandari et al. 2020, section 5; all in float32); activations come from model/cost/memory.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from infra.engine import BUCKET_ELEMENTS
from model.cost.memory import PassMemory, pass_memory
from pipelines.config import RunConfig
from pipelines.network_size import STABLE_DIFFUSION_2_CODERS, base_unet_config, count_parameters
from pipelines.step_cost import num_passes, view_workload

GB = 1e9
FLOAT32 = 4  # bytes
# What a tile of voxels or a part of the rays takes while it is computed (model/kernels).
VOLUME_WORKSPACE = 64_000_000
# What the optimizer's step holds of its piece of the parameters: its gradient, and the denominator of AdamW's update;
# on a CPU that is computed in two tensors.
STEP_FLOATS = {"cuda": 2, "cpu": 3}


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of one worker, the first one."""

    backward: dict[str, float]
    """By part, at the fullest moment of the backward pass."""
    step: float
    """While the optimizer updates the weights."""

    @property
    def peak(self) -> float:
        """What must fit."""
        return max(sum(self.backward.values()), self.step)

    def table(self) -> dict[str, float]:
        """For a person: the parts, and the peak."""
        return self.backward | {"while the weights are updated": self.step, "peak": self.peak}


def training_memory(
    config: RunConfig, *, num_workers: int, device: Literal["cpu", "cuda"] = "cuda"
) -> TrainingMemory:
    """Of a training with the config's batch, micro-batch and ZeRO stage on that many workers."""
    train, counts = config.train, count_parameters(config)
    trained, stage = FLOAT32 * float(counts["trained"]), train.engine.zero_stage
    piece = trained / num_workers
    passes, memory = num_passes(train, num_workers), passes_memory(config, train.micro_batch_size)
    # A pass's gradients are whole until they are summed over the workers: at once for ZeRO 2, at its end for ZeRO 1.
    if stage >= 2:
        of_pass = memory.peak - memory.kept + piece
    else:
        of_pass = max(memory.peak_with_gradients, trained + piece) - memory.kept
    held = {
        "weights": FLOAT32 * float(counts["total"]),
        "optimizer: moments and its own weights": 3 * piece,
        "average of the weights": trained if getattr(train, "ema_decay", 0.0) > 0 else 0.0,
        "coders, for previews": 0.0 if config.base.source is None else FLOAT32 * float(STABLE_DIFFUSION_2_CODERS),
    }
    backward = held | {
        "gradients of earlier passes": piece if passes > 1 else 0.0,
        "weights in bfloat16": float(memory.weight_copies),
        "activations": float(memory.kept - memory.weight_copies),
        "backward pass: gradients, temporaries": of_pass,
        "volumes' workspace": float(VOLUME_WORKSPACE),
        "bucket of the gradients' sum": FLOAT32 * float(min(BUCKET_ELEMENTS, counts["trained"])),
    }
    step = sum(held.values()) + STEP_FLOATS[device] * piece
    return TrainingMemory(backward={name: value for name, value in backward.items() if value}, step=step)


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
