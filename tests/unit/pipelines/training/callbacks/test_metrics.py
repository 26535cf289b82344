"""What workers say of a step."""

from __future__ import annotations

import json
import time

from infra.tracking.run import MOMENT
from pipelines.training.callbacks.metrics import Work, write_line
from pipelines.training.callbacks.slow_ranks import WatchRanks
from pipelines.training.loop import StepInfo


def info(step: int, *rank_seconds: float) -> StepInfo:
    return StepInfo(
        step=step,
        loss=0.5,
        scalars={"view_loss": 0.4},
        gradient_norm=2.0,
        learning_rates={"unet": 0.1},
        seconds=2.0,
        phase_seconds={"data": 0.5},
        rank_seconds=rank_seconds,
    )


def test_what_depends_on_the_machine_is_named_so() -> None:
    line = json.loads(write_line(info(3, 1.0, 1.0, 3.0), Work(num_views=40, flops=6e12, ideal_seconds=0.5)))
    assert {name: value for name, value in line.items() if not name.startswith("time/")} == {
        "step": 3,
        "loss": 0.5,
        "view_loss": 0.4,
        "gradient_norm": 2.0,
        "learning_rate_unet": 0.1,
    }
    assert abs(line[MOMENT] - time.time()) < 60
    assert line["time/seconds"] == 2.0
    assert line["time/views_per_second"] == 20.0
    assert line["time/teraflops_per_second"] == 3.0
    assert line["time/utilisation"] == 0.25
    assert line["time/data_seconds"] == 0.5
    assert line["time/slowest_rank_ratio"] == 3.0
    assert 0.01 < line["time/memory_gb"] < 1000


def test_a_rank_that_all_wait_for_is_named_once() -> None:
    said: list[str] = []
    watch = WatchRanks(["a", "b", "c"], said.append)
    for step in range(1, 101):
        slow = 2.0 if step > 30 else 1.0
        watch(info(step, 1.0, slow, 1.05))
    (message,) = said
    assert "rank 1 on b takes" in message
    assert "the others 1.05 s" in message


def test_single_slow_steps_are_nobodys_fault() -> None:
    said: list[str] = []
    watch = WatchRanks(["a", "b"], said.append)
    for step in range(1, 201):
        watch(info(step, 1.0, 6.0 if step % 40 == 0 else 1.0))
    watch(info(201))
    assert said == []
