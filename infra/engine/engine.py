"""Optimisation over all ranks: DeepSpeed behind forward, backward and step. What it takes
from inside DeepSpeed is in deepspeed_internals.py.

A training step is any number of `backward` calls, the same number on every rank, then one `step`. The sum of all
losses given to `backward` on all ranks is the objective, however many ranks and calls there are: nothing here counts
micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra.engine.config import EngineConfig
from infra.engine.deepspeed_internals import OptimizerState, import_deepspeed, take_norm_with
from infra.engine.learning_rates import learning_rate, weight_decay

BUCKET_ELEMENTS = 50_000_000  # gradients are summed over ranks in pieces of 200 MB


class Engine:
    """A module, its AdamW and the process group, which must exist already (`torch.distributed`)."""

    def __init__(
        self,
        module: nn.Module,
        groups: Mapping[str, Sequence[nn.Parameter]],
        config: EngineConfig,
        *,
        num_steps: int,
        device: torch.device,
    ) -> None:
        """`groups`: parameter lists by name; the one named "renderer" gets its own learning rate.

        `num_steps` is the length of the whole training, for the schedule of the learning rates.
        """
        deepspeed = import_deepspeed(device)
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
        self.config, self.num_steps, self.device = config, num_steps, device
        # By default cuDNN rounds what convolutions of float32 multiply to 10 bits: fine beside bfloat16's 7, else not.
        torch.backends.cudnn.allow_tf32 = config.precision == "bf16"
        self._num_ranks = dist.get_world_size()
        optimizer = torch.optim.AdamW(_parameter_groups(groups, config), lr=config.learning_rate, fused=True)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module.to(device), optimizer=optimizer, config=_deepspeed_config(config), dist_init_required=False
        )
        self._state = OptimizerState(self._engine.module, self._optimizer, deepspeed.utils)
        self._sums, self._read = torch.zeros(0), [0.0]
        take_norm_with(self._engine, self._optimizer, config, self._read_with)
        if config.compile:
            self._engine.compile()
        self._use_step(0)

    @property
    def model(self) -> nn.Module:
        """The module, to be called: runs in the configured precision and prepares the backward pass."""
        return self._engine

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, a scalar: this rank's share of the objective."""
        # DeepSpeed averages gradients over ranks; the objective is a sum.
        self._engine.backward(loss * self._num_ranks, scale_wrt_gas=False)

    def step(self, step: int, sums: Tensor) -> tuple[float, list[float]]:
        """Update the weights as step number `step`, counted from 0.

        Returns the gradient's norm before clipping, and the sums over ranks of `sums`, [N] float64 on the device: both
        are read in one go, the only time in a step that this process waits for its device. If the norm is not finite
        the weights are as before.
        """
        dist.all_reduce(sums)
        self._sums = sums
        self._use_step(step)
        self._engine.step()
        norm = self._read[-1]
        return (norm if norm >= 0 else math.inf), self._read[:-1]  # DeepSpeed's word for a norm that is not finite: -1

    def learning_rates(self) -> dict[str, float]:
        """Learning rate of the latest step by parameter group."""
        return {group["name"]: group["lr"] for group in self._optimizer.param_groups}

    def optimizer_state(self) -> dict[str, Tensor]:
        """AdamW's running averages, see `OptimizerState.whole`. Every rank must call it, after at least one step."""
        return self._state.whole()

    def load_optimizer_state(self, state: Mapping[str, Tensor], *, num_steps: int) -> None:
        """Continue from `optimizer_state()` as it was after `num_steps` steps, saved by any number of ranks."""
        self._state.load(state, num_steps=num_steps)
        self._use_step(num_steps)
        self._check_groups(num_steps)

    def _read_with(self, norm: Tensor) -> float:
        self._read = torch.cat([self._sums, norm.double().reshape(1)]).tolist()
        return self._read[-1]

    def _use_step(self, step: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.config, group["name"], step, num_steps=self.num_steps)

    def _check_groups(self, num_steps: int) -> None:
        """A setting that lands on the wrong group trains on without a sign, so look after every load."""
        for group in self._optimizer.param_groups:
            name = group["name"]
            found = group["lr"], group["weight_decay"], self._state.steps_done(group)
            rate = learning_rate(self.config, name, num_steps, num_steps=self.num_steps)
            expected = rate, weight_decay(self.config, name), num_steps
            assert found == expected, (name, found, expected)


def _parameter_groups(groups: Mapping[str, Sequence[nn.Parameter]], config: EngineConfig) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "params": list(parameters),
            "lr": config.learning_rate,  # set anew before every step
            "weight_decay": weight_decay(config, name),
        }
        for name, parameters in groups.items()
        if parameters  # DeepSpeed drops empty groups, and then the groups' order no longer tells which is which
    ]


def _deepspeed_config(config: EngineConfig) -> dict[str, Any]:
    return {
        # Required but without meaning here: with unmanaged accumulation every engine.step() ends a step, however many
        # backward passes it had.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.gradient_clip,
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # No "safe" modules: those would have their gradients summed over ranks in bfloat16.
        "torch_autocast": {
            "enabled": config.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "timers": {"throughput": {"enabled": False}},  # it waits for the device before every pass
    }
