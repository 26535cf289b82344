"""infra/distributed.py: what a person is told of workers' failures."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from infra.distributed import _user_error
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
