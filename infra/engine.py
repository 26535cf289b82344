"""Optimisation over all ranks: DeepSpeed behind forward, backward and step. The only file that imports deepspeed.

A training step is any number of `backward` calls, the same number on every rank, then one `step`. The sum of all
losses given to `backward` on all ranks is the objective, however many ranks and calls there are: nothing here counts
micro-batches.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra.config import EngineConfig

RENDERER_GROUP = "renderer"  # has a learning rate of its own and no weight decay
_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's running averages of the gradient and of its square
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
        deepspeed = _import_deepspeed(device)
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
        self.config, self.num_steps, self.device = config, num_steps, device
        self._num_ranks = dist.get_world_size()
        self._utils = deepspeed.utils
        optimizer = torch.optim.AdamW(_parameter_groups(groups, config), lr=config.learning_rate)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=module.to(device), optimizer=optimizer, config=_deepspeed_config(config), dist_init_required=False
        )
        self._use_step(0)

    @property
    def model(self) -> nn.Module:
        """The module, to be called: runs in the configured precision and prepares the backward pass."""
        return self._engine

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, a scalar: this rank's share of the objective."""
        # DeepSpeed averages gradients over ranks; the objective is a sum.
        self._engine.backward(loss * self._num_ranks, scale_wrt_gas=False)

    def step(self, step: int) -> float:
        """Update the weights as step number `step`, counted from 0. Returns the gradient's norm before clipping.

        Raises:
            FloatingPointError: the gradient is not finite; the weights are as before.
        """
        self._use_step(step)
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            raise FloatingPointError(f"step {step + 1}: the gradient is not finite; lower the learning rate")
        return norm

    def learning_rates(self) -> dict[str, float]:
        """Learning rate of the latest step by parameter group."""
        return {group["name"]: group["lr"] for group in self._optimizer.param_groups}

    def optimizer_state(self) -> dict[str, Tensor]:
        """AdamW's running averages, whole and on the CPU, as `<parameter>.<moment>`: on rank 0, nothing on others.

        Every rank must call it, after at least one step.
        """
        self._link_state()
        state: dict[str, Tensor] = {}
        for name, parameter in self._trained():
            for moment in _MOMENTS:
                whole = self._utils.safe_get_full_optimizer_state(parameter, moment)  # sums over ranks
                if dist.get_rank() == 0:
                    state[f"{name}.{moment}"] = whole.cpu()
        return state

    def load_optimizer_state(self, state: Mapping[str, Tensor], *, num_steps: int) -> None:
        """Continue from `optimizer_state()` as it was after `num_steps` steps, saved by any number of ranks."""
        flat_states = self._optimizer.optimizer.state
        for group in self._optimizer.param_groups:
            (flat,) = group["params"]
            flat_states[flat] = {moment: torch.zeros_like(flat) for moment in _MOMENTS}
            flat_states[flat]["step"] = torch.tensor(float(num_steps))
        self._link_state()
        for name, parameter in self._trained():
            for moment in _MOMENTS:
                whole = state[f"{name}.{moment}"].to(parameter.device)
                self._utils.safe_set_full_optimizer_state(parameter, whole, moment)
        self._use_step(num_steps)
        self._check_groups(num_steps)

    def _link_state(self) -> None:
        """Tell every parameter where in the flat state its own part lies.

        DeepSpeed does so during its first step, but then only for the first of several parameter groups.
        """
        for parameters, group in zip(self._optimizer.bit16_groups, self._optimizer.param_groups, strict=True):
            (flat,) = group["params"]  # this rank's piece of the group's parameters, laid end to end
            self._utils.lazy_init_hp_params_optimizer_state(parameters, flat, self._optimizer.optimizer.state)

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self._engine.module.named_parameters() if hasattr(p, "_hp_mapping"))

    def _use_step(self, step: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.config, group["name"], step, num_steps=self.num_steps)

    def _check_groups(self, num_steps: int) -> None:
        """A setting that lands on the wrong group trains on without a sign, so look after every load."""
        for group in self._optimizer.param_groups:
            name = group["name"]
            found = (
                group["lr"],
                group["weight_decay"],
                self._optimizer.optimizer.state[group["params"][0]]["step"].item(),
            )
            rate = learning_rate(self.config, name, num_steps, num_steps=self.num_steps)
            expected = rate, weight_decay(self.config, name), num_steps
            assert found == expected, (name, found, expected)


def learning_rate(config: EngineConfig, group: str, step: int, *, num_steps: int) -> float:
    """Learning rate of a parameter group at step `step`, counted from 0, of `num_steps`."""
    full = config.renderer_learning_rate if group == RENDERER_GROUP else config.learning_rate
    if step < config.warmup_steps:
        return full * (step + 1) / config.warmup_steps
    done = min(1.0, (step - config.warmup_steps) / max(1, num_steps - 1 - config.warmup_steps))
    return full * (config.final_rate_share + (1 - config.final_rate_share) * 0.5 * (1 + math.cos(math.pi * done)))


def weight_decay(config: EngineConfig, group: str) -> float:
    """Weight decay of a parameter group."""
    return 0.0 if group == RENDERER_GROUP else config.weight_decay


def sum_over_ranks(values: Tensor) -> list[float]:
    """Elementwise sum over ranks of [N] values. Every rank must call it and gets the result."""
    total = values.clone()
    dist.all_reduce(total)
    return total.tolist()


def from_first_rank(value: Any) -> Any:
    """Rank 0's `value`, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


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
    }


def _import_deepspeed(device: torch.device) -> ModuleType:
    """DeepSpeed, without the parts of its start-up that this project has no use for."""
    os.environ["DS_ACCELERATOR"] = device.type  # spares its search, and its warning that there is no GPU
    with _without_mlflow():
        import deepspeed
        import deepspeed.ops
    # The table of operators that could be compiled here, otherwise filled by trying compilers. Left empty, DeepSpeed
    # does not spend half a minute at first use on compiling a shared-memory all-reduce: gloo's and nccl's are used.
    vars(deepspeed.ops)["__compatible_ops__"] = {}
    return deepspeed


@contextmanager
def _without_mlflow() -> Iterator[None]:
    """DeepSpeed's autotuner imports mlflow where it is installed: half of the time in every worker.

    A module that is None counts as not installed.
    """
    hide = "mlflow" not in sys.modules
    if hide:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if hide:
            del sys.modules["mlflow"]
