"""infra/cluster/workers.py: what a person is told of workers' failures."""

from __future__ import annotations

import _thread
import errno
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import ray.train.torch
import torch
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

import infra.cluster.connection
from infra.cluster import ray_train_internals
from infra.cluster.workers import Workers, _lost_worker, _run_in_worker, _user_error, run_workers
from infra.errors import UserError


class FailedError(Exception):
    """As Ray Train's error: failures by rank, each around what the worker raised."""

    def __init__(self, cause: Exception) -> None:
        wrapped = RuntimeError("traceback")
        wrapped._base_exc = cause  # type: ignore[attr-defined]
        self.worker_failures = {0: wrapped}


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (UserError("name another"), "name another"),
        (OSError(errno.ENOSPC, "No space left on device"), "output folder /runs/train: the disk is full"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
            "train: worker 0 ran out of its GPU's memory (CUDA out of memory. Tried to allocate 2 GiB.); lower",
        ),
    ],
)
def test_it_is_a_message(cause: Exception, message: str) -> None:
    error = _user_error(FailedError(cause), Path("/runs/train/workers"))
    assert error is not None
    assert str(error).startswith(message)


@pytest.mark.parametrize("error", [FailedError(RuntimeError("a defect")), RuntimeError("no workers at all")])
def test_defects_keep_their_traceback(error: Exception) -> None:
    assert _user_error(error, Path("/runs/train/workers")) is None


def test_workers_that_died_are_told_in_a_line() -> None:
    error = FailedError(RuntimeError("Connection closed by peer"))
    died = WorkerHealthCheckFailedError("health check", RuntimeError("The actor died\nmore"))
    error.worker_failures[1] = died
    message = str(_lost_worker(error, max_failures=3))
    assert re.fullmatch(
        r"train: worker 1 was lost, .* more than --max-failures 3 times \(The actor died\); run the .*", message
    )
    assert _lost_worker(FailedError(RuntimeError("a defect")), max_failures=3) is None


WORKERS = Workers(most=2, least=1, use_gpu=False, max_failures=1)


class FakeTrainer:
    """As Ray Train's, with a given end of each attempt."""

    ends: ClassVar[list[Callable[[], None]]] = []
    told: ClassVar[dict[str, Any]] = {}

    def __init__(self, *args: object, **settings: Any) -> None:
        self.settings = settings
        FakeTrainer.told = settings["train_loop_config"]

    def fit(self) -> None:
        assert self.settings["scaling_config"].num_workers == (1, 2)
        self.ends.pop(0)()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call `run_workers` without a cluster; `ends` say how each attempt ends."""
    monkeypatch.setattr(ray_train_internals, "Trainer", FakeTrainer)
    monkeypatch.setattr(infra.cluster.connection, "_watched_addresses", lambda node: {})

    def run(*ends: Callable[[], None]) -> None:
        FakeTrainer.ends = list(ends)
        run_workers(
            diverge,
            "job",
            WORKERS,
            storage_dir=tmp_path / "workers",
            checkpoint_request=tmp_path / "request",
            notices=tmp_path / "workers" / "notices.log",
        )
        assert not FakeTrainer.ends

    return run


def diverge(job: str) -> None:
    raise FloatingPointError(f"{job}: the loss is nan")


def test_a_diverged_training_is_not_repeated(run: Callable[..., None]) -> None:
    with pytest.raises(UserError, match=r"^train: job: the loss is nan$"):
        run(lambda: _run_in_worker(FakeTrainer.told))


def lose_controller() -> None:
    raise ray.exceptions.ActorDiedError


def test_a_lost_controller_is_replaced(run: Callable[..., None]) -> None:
    run(lose_controller, lambda: None)


def test_a_controller_that_is_lost_too_often_is_told(run: Callable[..., None]) -> None:
    with pytest.raises(UserError, match=r"controller ended 2 times .*run the same command again"):
        run(lose_controller, lose_controller)


def test_an_interrupt_ends_the_workers(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))

    def interrupted() -> None:
        _thread.interrupt_main()
        threading.Event().wait()  # as Ray Train, which knows nothing of it

    with pytest.raises(KeyboardInterrupt):
        run(interrupted)
    assert ended
