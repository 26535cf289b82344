"""infra/distributed.py: what a person is told of workers' failures."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

import pytest
import ray.train.torch

from infra.distributed import _user_error, run_workers
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
        (FloatingPointError("step 3: the loss is nan; lower the learning rate"), "train: step 3: the loss is nan"),
        (OSError(errno.ENOSPC, "No space left on device"), "output folder /runs/train: the disk is full"),
    ],
)
def test_it_is_a_message(cause: Exception, message: str) -> None:
    error = _user_error(FailedError(cause), Path("/runs/train/workers"))
    assert error is not None
    assert str(error).startswith(message)


@pytest.mark.parametrize("error", [FailedError(RuntimeError("a defect")), RuntimeError("no workers at all")])
def test_defects_keep_their_traceback(error: Exception) -> None:
    assert _user_error(error, Path("/runs/train/workers")) is None


def test_an_interrupt_is_one_and_the_next_one_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class InterruptedTrainer:
        """As Ray Train's: installs a handler for Ctrl-C, leaves it there, and ends the process when it is called."""

        def __init__(self, *args: object, **settings: object) -> None:
            pass

        def fit(self) -> None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            raise SystemExit(0)

    monkeypatch.setattr(ray.train.torch, "TorchTrainer", InterruptedTrainer)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_workers(print, None, num_workers=1, storage_dir=tmp_path, name="test", use_gpu=False)
    assert signal.getsignal(signal.SIGINT) == before
