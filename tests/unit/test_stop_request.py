"""After SIGTERM a training ends with a checkpoint of what it did."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from infra import stop_request
from infra.stop_request import StopRequest


def test_it_waits_for_the_checkpoint(tmp_path: Path) -> None:
    request = tmp_path / "request"
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest(request) as stop:
        stop.obey()
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.exists()
        stop.obey()
        request.unlink()
        with pytest.raises(KeyboardInterrupt):
            stop.obey()
    assert signal.getsignal(signal.SIGTERM) == before


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_request, "SECONDS_TO_SAVE", 0.05)
    with StopRequest(tmp_path / "request") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        with pytest.raises(KeyboardInterrupt):
            stop.obey()


def test_a_second_one_stops_at_once(tmp_path: Path) -> None:
    with StopRequest(tmp_path / "request"):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
