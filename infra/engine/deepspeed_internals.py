"""What this project takes from inside DeepSpeed: a start without what is not used, the gradient's norm read together
with a step's other numbers, and AdamW's running averages, whole, whatever the ranks share out among them.

tests/unit/project/test_borrowed.py names each thing that a new version of DeepSpeed no longer has.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra.engine.config import EngineConfig

MOMENTS = ("exp_avg", "exp_avg_sq")  # running averages of the gradient and of its square


def import_deepspeed(device: torch.device) -> ModuleType:
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


def take_norm_with(engine: Any, optimizer: Any, config: EngineConfig, read: Callable[[Tensor], float]) -> None:
    """Let DeepSpeed get the gradient's norm from `read`, which takes it on the device. DeepSpeed must know whether the
    norm is finite and so waits for the device once a step; `read` can fetch other numbers in the same wait.

    `engine` and `optimizer` are what `deepspeed.initialize` returned.
    """
    if config.zero_stage > 0:
        norm_on_device = optimizer.scaled_global_norm
        optimizer.scaled_global_norm = lambda: torch.tensor(read(norm_on_device()))
        return

    def clip() -> None:
        parameters = list(engine.module.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        # A gradient that is not finite is dropped, as ZeRO does: weights and AdamW's averages stay as they are.
        if math.isfinite(read(norm)):
            nn.utils.clip_grads_with_norm_(parameters, config.gradient_clip, norm)
        else:
            for parameter in parameters:
                parameter.grad = None

    engine.clip_fp32_gradients = clip


class OptimizerState:
    """The state of one engine's optimizer.

    ZeRO 1 and 2 keep a piece per rank of each group's parameters laid end to end; without ZeRO every rank has the
    whole state, parameter by parameter.
    """

    def __init__(self, module: nn.Module, optimizer: Any, utils: Any) -> None:
        """`optimizer` is what `deepspeed.initialize` returned, `utils` is `deepspeed.utils`."""
        self._module, self._optimizer, self._utils = module, optimizer, utils
        self._sharded = hasattr(optimizer, "bit16_groups")

    def whole(self) -> dict[str, Tensor]:
        """`<parameter>.<moment>` on the CPU: on rank 0, nothing on others. Every rank must call it, after a step."""
        if self._sharded:
            self._link()
        state: dict[str, Tensor] = {}
        for name, parameter in self._trained():
            for moment in MOMENTS:
                value = self._get(parameter, moment)
                if dist.get_rank() == 0:
                    state[f"{name}.{moment}"] = value.cpu()
        return state

    def load(self, state: Mapping[str, Tensor], *, num_steps: int) -> None:
        """Take over `whole()` as it was after `num_steps` steps, saved by any number of ranks."""
        self._make(num_steps)
        for name, parameter in self._trained():
            for moment in MOMENTS:
                self._set(parameter, moment, state[f"{name}.{moment}"].to(parameter.device))

    def steps_done(self, group: Mapping[str, Any]) -> int:
        """What the optimizer itself counts for a parameter group."""
        return int(self._states()[group["params"][0]]["step"].item())

    def _states(self) -> Any:
        return self._optimizer.optimizer.state if self._sharded else self._optimizer.state

    def _make(self, num_steps: int) -> None:
        """Empty state, which otherwise the first step makes."""
        states = self._states()
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                states[parameter] = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
                states[parameter]["step"] = torch.tensor(float(num_steps), device=parameter.device)  # fused: there
        if self._sharded:
            self._link()

    def _link(self) -> None:
        """Tell every parameter where in the flat state its own part lies.

        DeepSpeed does so during its first step, but then only for the first of several parameter groups.
        """
        for parameters, group in zip(self._optimizer.bit16_groups, self._optimizer.param_groups, strict=True):
            (flat,) = group["params"]  # this rank's piece of the group's parameters, laid end to end
            self._utils.lazy_init_hp_params_optimizer_state(parameters, flat, self._states())

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        held = {id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]}
        for name, parameter in self._module.named_parameters():
            if hasattr(parameter, "_hp_mapping") if self._sharded else id(parameter) in held:
                yield name, parameter

    def _get(self, parameter: nn.Parameter, moment: str) -> Tensor:
        if self._sharded:
            return self._utils.safe_get_full_optimizer_state(parameter, moment)  # sums over ranks
        return self._states()[parameter][moment].clone()

    def _set(self, parameter: nn.Parameter, moment: str, value: Tensor) -> None:
        if self._sharded:
            self._utils.safe_set_full_optimizer_state(parameter, value, moment)
        else:
            self._states()[parameter][moment].copy_(value)
