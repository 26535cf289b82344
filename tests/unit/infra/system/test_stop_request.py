"""After SIGTERM, or when its terminal is closed, a training ends with a checkpoint of what it did."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from infra.system import stop_request
from infra.system.stop_request import STOP_SIGNALS, StopRequest

either = pytest.mark.parametrize("number", STOP_SIGNALS)


@either
def test_it_waits_for_the_checkpoint(number: signal.Signals, tmp_path: Path) -> None:
    request = tmp_path / "request"
    before = signal.getsignal(number)
    with StopRequest(request) as stop:
        stop.obey()
        os.kill(os.getpid(), number)
        assert request.exists()
        stop.obey()
        request.unlink()
        with pytest.raises(KeyboardInterrupt):
            stop.obey()
    assert signal.getsignal(number) == before


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_request, "SECONDS_TO_SAVE", 0.05)
    with StopRequest(tmp_path / "request") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        with pytest.raises(KeyboardInterrupt):
            stop.obey()


@either
def test_a_second_one_stops_at_once(number: signal.Signals, tmp_path: Path) -> None:
    with StopRequest(tmp_path / "request"):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_what_is_ignored_stays_so(tmp_path: Path) -> None:
    """A training that was started with `nohup` goes on when the terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(tmp_path / "request") as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_asked
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
