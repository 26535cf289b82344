"""An MLflow server that is killed while a training goes on: nothing of the record is lost, nothing is there twice."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from infra.tracking.experiment import Tracking
from pipelines.recording import recorder
from tests.support.mlflow_server import MlflowServer
from tests.support.recorded_training import NUM_STEPS, FakeTraining, assert_all_is_there, attempts_of, begin_attempt


def test_a_server_that_was_killed_and_comes_back_gets_everything_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(recorder, "RETRY_SECONDS", 0.5)
    with MlflowServer(tmp_path) as server:
        tracking, training = Tracking(server.uri), FakeTraining(tmp_path / "training")
        run, watch = begin_attempt(tracking, training)
        with watch:
            training.go_to(120, pause=0.01)
            server.kill()
            started = time.monotonic()
            training.go_to(240)
            assert time.monotonic() - started < 20  # milliseconds: it does not wait for the server
            server.start()
            training.go_to(NUM_STEPS)
        assert_all_is_there(run)
        assert attempts_of(tracking, run) == {"attempt 1": ("FINISHED", str(NUM_STEPS))}
        (child,) = tracking.children(run.id, tags={})
        assert child.last_step("system/cpu_utilization_percentage") >= 0
