"""A step waits for its device once: when losses and gradient norm are read."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from infra.engine.config import EngineConfig
from infra.engine.engine import Engine
from tests.distributed.launch import TIMEOUT_SECONDS, run_distributed
from tests.distributed.test_engine import CONFIG, STAGES, mean_error, new_engine

pytestmark = pytest.mark.timeout(2 * TIMEOUT_SECONDS)


class Reads(TorchDispatchMode):
    """Notes the tensors whose values Python reads."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = (torch.ops.aten._local_scalar_dense, torch.ops.aten.is_nonzero, torch.ops.aten.nonzero)
        if func.overloadpacket in read:
            self.tensors.append(args[0])
        return func(*args, **(kwargs or {}))


def reads_of_a_step(stage: int) -> dict[str, int]:
    """How often a step asks for its sums, and for other values than those that it has already got."""
    # DeepSpeed looks three times whether the norm is finite: that is on the CPU by then.
    looks = patch("deepspeed.runtime.zero.stage_1_and_2.is_invalid_grad_norm", lambda norm: norm.device.type != "cpu")
    with looks, patch.object(Engine, "_read_with", autospec=True, side_effect=Engine._read_with) as sums:
        _, engine = new_engine(EngineConfig(**{**vars(CONFIG), "zero_stage": stage}))
        engine.backward(mean_error(engine.model, range(4), views=True))
        with Reads() as reads:
            norm, totals = engine.step(0, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert totals == [1.0, 2.0]
    assert norm > 0
    return {"sums": sums.call_count, "others": len(reads.tensors)}


def waits_of_steps(stage: int) -> int:
    """How often DeepSpeed itself waits for the device in four steps of two passes."""
    _, engine = new_engine(EngineConfig(**{**vars(CONFIG), "zero_stage": stage}))
    import deepspeed

    accelerator = deepspeed.accelerator.get_accelerator()
    with patch.object(type(accelerator), "synchronize", autospec=True) as synchronize:
        for step in range(4):
            for _ in range(2):
                engine.backward(mean_error(engine.model, range(4), views=True))
            engine.step(step, torch.zeros(1, dtype=torch.float64))
    return synchronize.call_count


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_waits_to_measure_time(stage: int) -> None:
    assert run_distributed(waits_of_steps, 1, stage) == [0]


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_reads_its_sums_once_and_nothing_else(stage: int) -> None:
    assert run_distributed(reads_of_a_step, 1, stage) == [{"sums": 1, "others": 0}]
