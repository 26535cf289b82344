"""AdamW's running averages, whole, out of and into DeepSpeed's optimizer, whatever it shares out among the ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")  # running averages of the gradient and of its square


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
