"""The loop visits every position once, adds shares up and tells callbacks."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from infra.engine.stopwatch import Stopwatch
from model.diffusion.objective import PartLoss
from pipelines.training.loop import DivergedError, LossPart, StepInfo, Training, train_steps
from preprocessing.batches.shares import Schedule

pytestmark = pytest.mark.usefixtures("one_rank_group")


class Recorder:
    """Stands for the engine."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[object] = []

    def backward(self, loss: Tensor) -> None:
        self.calls.append(round(loss.item(), 4))

    def step(self, step: int, sums: Tensor) -> tuple[float, list[float]]:
        self.calls.append(f"step {step}")
        return 2.0, sums.tolist()

    def learning_rates(self) -> dict[str, float]:
        return {"unet": 0.1}


def parts(value: float = 1.0) -> list[LossPart]:
    """Two parts of a batch of four samples whose losses are their positions."""

    def views(positions: range) -> PartLoss:
        share = torch.tensor(sum(positions) * value / 4)
        return PartLoss(share, {"view_loss": share})

    def prior(positions: range) -> PartLoss:
        share = torch.tensor(sum(positions) * value / 4)
        return PartLoss(0.1 * share, {"prior_loss": share})

    return [views, prior]


def training(engine: Recorder, **settings: Any) -> Training:
    schedule = Schedule(batch_size=4, micro_batch_size=settings.pop("micro_batch_size", 2), rank=0, num_ranks=1)
    stopwatch = Stopwatch(engine.device)
    return Training(engine=engine, schedule=schedule, stopwatch=stopwatch, **({"parts": parts()} | settings))  # type: ignore[arg-type]


def run(told: Training, steps: range) -> None:
    train_steps(told, told.schedule.positions(steps), steps=steps)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5, 6, 12])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 100])
def test_ranks_and_micro_batches_cover_a_step_in_order(num_ranks: int, micro_batch_size: int) -> None:
    ranks = [
        Schedule(batch_size=12, micro_batch_size=micro_batch_size, rank=rank, num_ranks=num_ranks)
        for rank in range(num_ranks)
    ]
    shares = [schedule.micro_batches(3) for schedule in ranks]
    assert [position for share in shares for batch in share for position in batch] == list(range(36, 48))
    assert all(batch for share in shares for batch in share)
    assert max(len(batch) for share in shares for batch in share) <= micro_batch_size
    passes = [list(schedule.positions(range(3, 4))) for schedule in ranks]
    assert {len(each) for each in passes} == {ranks[0].num_micro_batches}  # no rank waits for another for ever
    for schedule, each, share in zip(ranks, passes, shares, strict=True):
        assert each[: schedule.num_counted] == share
        assert set(each[schedule.num_counted :]) <= {share[-1]}


def test_a_batch_with_less_than_a_sample_for_each_rank_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 4 is less than a sample for each of 5 ranks"):
        Schedule(batch_size=4, micro_batch_size=1, rank=0, num_ranks=5)


def test_a_step_is_all_parts_of_all_micro_batches() -> None:
    engine, infos = Recorder(), list[StepInfo]()
    run(training(engine, callbacks=[infos.append]), range(1, 3))
    assert engine.calls == [2.25, 0.225, 3.25, 0.325, "step 1", 4.25, 0.425, 5.25, 0.525, "step 2"]
    assert [info.step for info in infos] == [2, 3]
    assert infos[0].scalars == {"view_loss": 5.5, "prior_loss": 5.5}
    assert infos[0].loss == pytest.approx(6.05)
    assert (infos[0].gradient_norm, infos[0].learning_rates) == (2.0, {"unet": 0.1})


def test_a_repeated_micro_batch_counts_for_nothing() -> None:
    engine, infos = Recorder(), list[StepInfo]()
    schedule = Schedule(batch_size=4, micro_batch_size=1, rank=2, num_ranks=3)  # ranks 1 and 2 have one sample each
    told = dataclasses.replace(training(engine, callbacks=[infos.append]), schedule=schedule)
    run(told, range(1))
    assert engine.calls == [0.75, 0.075, 0.0, 0.0, "step 0"]
    assert infos[0].loss == pytest.approx(0.825)


def test_parts_of_means_are_divided_over_the_whole_step() -> None:
    def part(positions: range) -> PartLoss:
        first, count = torch.tensor(float(sum(positions))), torch.tensor(float(len(positions)))
        nothing = torch.zeros(())
        return PartLoss(first, {"mean/sum": first, "mean/count": count, "none/sum": nothing, "none/count": nothing})

    infos = list[StepInfo]()
    run(training(Recorder(), parts=[part], callbacks=[infos.append]), range(1))
    assert infos[0].scalars == {"mean": 1.5}


def test_time_is_told_by_phase_and_rank_a_step_late() -> None:
    infos = list[StepInfo]()
    run(training(Recorder(), callbacks=[infos.append]), range(3))
    assert infos[0].phase_seconds == {}
    assert list(infos[1].phase_seconds) == ["data", "forward", "backward", "optimizer"]
    assert sum(infos[2].phase_seconds.values()) <= infos[1].seconds
    assert infos[2].rank_seconds == (infos[1].phase_seconds["data"] + infos[1].phase_seconds["forward"],)


def test_a_wanted_checkpoint_is_told_to_all() -> None:
    infos = list[StepInfo]()
    answers = iter([False, True])
    run(training(Recorder(), callbacks=[infos.append], wants_checkpoint=lambda: next(answers)), range(2))
    assert [info.checkpoint_wanted for info in infos] == [False, True]


@pytest.mark.parametrize(
    ("value", "problem"),
    [(math.nan, "the loss is nan"), (math.inf, "the loss is inf"), (9.0, r"the loss is 14.85, more than 10 \(view_")],
)
def test_a_loss_out_of_range_ends_the_training(value: float, problem: str) -> None:
    infos = list[StepInfo]()
    told = training(Recorder(), parts=parts(value), callbacks=[infos.append], largest_loss=10.0)
    with pytest.raises(DivergedError, match=f"step 1: {problem}") as caught:
        run(told, range(1))
    assert caught.value.step == 0
    again = pickle.loads(pickle.dumps(caught.value))  # as it leaves a worker
    assert (str(again), again.step) == (str(caught.value), 0)
    assert infos == []
