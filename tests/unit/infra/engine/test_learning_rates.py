"""infra/engine/engine.py: the schedule of the learning rates."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infra.engine.config import EngineConfig
from infra.engine.learning_rates import learning_rate
from infra.errors import UserError

CONFIG = EngineConfig(learning_rate=1.0, renderer_learning_rate=10.0, warmup_steps=4, final_rate_share=0.2)


def rates(config: EngineConfig, group: str = "unet", *, num_steps: int = 15) -> list[float]:
    return [learning_rate(config, group, step, num_steps=num_steps) for step in range(num_steps)]


def test_rises_linearly_then_falls_along_half_a_cosine() -> None:
    found = rates(CONFIG)
    assert found[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert found[4:] == sorted(found[4:], reverse=True)
    assert found[9] == pytest.approx(0.6)  # half way between 1 and the final share
    assert found[-1] == pytest.approx(0.2)
    assert rates(CONFIG, "renderer") == pytest.approx([10 * rate for rate in found])


def test_by_default_the_rate_stays() -> None:
    assert rates(EngineConfig(learning_rate=0.5)) == [0.5] * 15


@pytest.mark.parametrize("num_steps", [1, 4, 5])
def test_short_trainings_have_finite_rates(num_steps: int) -> None:
    assert all(0 < rate <= 1 for rate in rates(CONFIG, num_steps=num_steps))


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="final_rate_share"):
        replace(CONFIG, final_rate_share=share)
