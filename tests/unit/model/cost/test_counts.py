"""The network's cost in operators and bytes, which a change may lower but not raise unnoticed."""

from __future__ import annotations

import pytest
import torch

from benchmarks.counting import count_operators, saved_bytes
from pipelines.settings.presets import PRESETS


@pytest.mark.parametrize("training", [True, False])
def test_operators_of_one_forward_pass(training: bool) -> None:
    """Running without values also shows that nothing waits for the device: a value that is read would be an error."""
    assert count_operators(PRESETS["released"]().train.model, training=training).total() <= 1500


@pytest.mark.parametrize(("preset", "limit"), [("released", 1.7e9), ("pyramid", 2.5e9)])
def test_bytes_kept_for_the_backward_pass(preset: str, limit: float) -> None:
    assert saved_bytes(PRESETS[preset]().train.model, dtype=torch.bfloat16) <= limit
