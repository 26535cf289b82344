"""The loop visits every position once, adds shares up and tells callbacks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from model.diffusion import PartLoss
from pipelines.loop import LossPart, Schedule, StepInfo, train_steps


class Recorder:
    """Stands for the engine."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.calls: list[object] = []

    def backward(self, loss: Tensor) -> None:
        self.calls.append(round(loss.item(), 4))

    def step(self, step: int) -> float:
        self.calls.append(f"step {step}")
        return 2.0

    def learning_rates(self) -> dict[str, float]:
        return {"unet": 0.1}


@pytest.fixture(scope="module", autouse=True)
def _one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store: Path = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def parts(value: float = 1.0) -> list[LossPart]:
    """Two parts of a batch of four samples whose losses are their positions."""

    def views(positions: range) -> PartLoss:
        share = torch.tensor(sum(positions) * value / 4)
        return PartLoss(share, {"view_loss": share})

    def prior(positions: range) -> PartLoss:
        share = torch.tensor(sum(positions) * value / 4)
        return PartLoss(0.1 * share, {"prior_loss": share})

    return [views, prior]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 6])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 4, 100])
def test_ranks_and_micro_batches_cover_a_step_in_order(num_ranks: int, micro_batch_size: int) -> None:
    ranks = [
        Schedule(batch_size=12, micro_batch_size=micro_batch_size, rank=rank, num_ranks=num_ranks)
        for rank in range(num_ranks)
    ]
    shares = [schedule.micro_batches(3) for schedule in ranks]
    assert [position for share in shares for batch in share for position in batch] == list(range(36, 48))
    assert {len(share) for share in shares} == {ranks[0].num_micro_batches}
    assert [list(schedule.positions(range(3, 4))) for schedule in ranks] == shares
    assert max(len(batch) for share in shares for batch in share) <= micro_batch_size


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_size 4 cannot be divided among 3"):
        Schedule(batch_size=4, micro_batch_size=1, rank=0, num_ranks=3)


def test_a_step_is_all_parts_of_all_micro_batches() -> None:
    engine, infos = Recorder(), list[StepInfo]()
    schedule = Schedule(batch_size=4, micro_batch_size=2, rank=0, num_ranks=1)
    steps = range(1, 3)
    train_steps(engine, parts(), schedule.positions(steps), schedule, steps=steps, callbacks=[infos.append])  # type: ignore[arg-type]
    assert engine.calls == [2.25, 0.225, 3.25, 0.325, "step 1", 4.25, 0.425, 5.25, 0.525, "step 2"]
    assert [info.step for info in infos] == [2, 3]
    assert infos[0].scalars == {"view_loss": 5.5, "prior_loss": 5.5}
    assert infos[0].loss == pytest.approx(6.05)
    assert (infos[0].gradient_norm, infos[0].learning_rates) == (2.0, {"unet": 0.1})


def test_a_loss_that_is_no_number_ends_the_training_before_it_reaches_the_weights() -> None:
    engine = Recorder()
    schedule = Schedule(batch_size=4, micro_batch_size=4, rank=0, num_ranks=1)
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan"):
        train_steps(engine, parts(math.nan), iter([range(4)]), schedule, steps=range(1), callbacks=[])  # type: ignore[arg-type]
    assert "step 0" not in engine.calls
