"""What of a training reaches MLflow when that is away for a while, or the training ends in another way."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient

from infra.errors import UserError
from infra.tracking.experiment import Tracking
from infra.tracking.outage import reason_of_outage
from infra.tracking.run import Run
from infra.tracking.tags import FILES_TAG
from pipelines.recording import driver, recorder
from pipelines.recording.attempts import Attempt
from pipelines.recording.lines import LineReader
from tests.support.recorded_training import NUM_STEPS, FakeTraining, assert_all_is_there, attempts_of, begin_attempt


class Line:
    """Between clients and the store; cut, every request fails."""

    cut = False


class CutClient:
    """A client whose requests fail while the line is cut."""

    def __init__(self, client: MlflowClient, line: Line) -> None:
        self._client, self._line = client, line

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._client, name)
        if callable(value) and self._line.cut:
            raise requests.ConnectionError("connection refused")
        return value


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Line:
    """Cut it to be without MLflow. Everything else goes faster than for people."""
    line, direct = Line(), Tracking._client
    monkeypatch.setattr(Tracking, "_client", lambda self: CutClient(direct(self), line))
    for module, name, value in ((recorder, "POLL", 0.05), (recorder, "RETRY", 0.1), (driver, "POLL", 0.05)):
        monkeypatch.setattr(module, f"{name}_SECONDS", value)
    monkeypatch.setattr(driver, "_QUIET_SECONDS", 0.1)
    return line


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    return Tracking(f"sqlite:///{tmp_path_factory.mktemp('root')}/mlflow.db")


def wait_for_step(run: Run, step: int) -> None:
    deadline = time.monotonic() + 60
    while run.last_step("loss") < step:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_that_comes_back_after_the_end_is_waited_for(
    tracking: Tracking, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = FakeTraining(tmp_path / "after-the-end")
    run, following = begin_attempt(tracking, training)
    said = []

    def say(logger: object, message: str, *arguments: object) -> None:
        said.append(message)
        line.cut = False  # somebody reads it, and starts the server

    with following:
        training.go_to(100)
        wait_for_step(run, 100)
        line.cut = True
        training.go_to(NUM_STEPS)
        monkeypatch.setattr("logging.Logger.info", say)
    assert_all_is_there(run)
    assert said == ["the training is done; waiting until MLflow has its record, %s at most", recorder.BACK]
    assert attempts_of(tracking, run) == {"attempt 1": ("FINISHED", str(NUM_STEPS))}


def test_one_that_stays_away_gets_the_rest_from_the_same_command(
    tracking: Tracking, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = FakeTraining(tmp_path / "stays-away")
    run, following = begin_attempt(tracking, training)
    monkeypatch.setattr(driver, "PATIENCE_SECONDS", 0.5)
    following.__enter__()
    training.go_to(100)
    wait_for_step(run, 100)
    line.cut = True
    training.go_to(NUM_STEPS)
    with pytest.raises(UserError, match=r"not take its record within 0 s \(connection refused\).*same command again"):
        following.__exit__(None, None, None)
    line.cut = False
    monkeypatch.setattr(driver, "PATIENCE_SECONDS", 60.0)
    assert run.last_step("loss") == 100
    _, following = begin_attempt(tracking, training)
    with following:
        pass
    assert_all_is_there(run)
    finished = ("FINISHED", str(NUM_STEPS))
    assert attempts_of(tracking, run) == {"attempt 1": finished, "attempt 2": finished}


def test_a_failure_is_not_held_up_and_told_by_the_next_attempt(tracking: Tracking, line: Line, tmp_path: Path) -> None:
    training = FakeTraining(tmp_path / "fails")
    run, following = begin_attempt(tracking, training)
    following.__enter__()
    training.go_to(100)
    wait_for_step(run, 100)
    line.cut = True
    training.go_to(120)
    started = time.monotonic()
    error = FloatingPointError("step 121: the loss is nan\nmore of it")
    following.__exit__(type(error), error, None)
    assert time.monotonic() - started < driver.HURRY_SECONDS / 2
    line.cut = False
    begin_attempt(tracking, training)  # killed at once
    training.go_to(130)
    _, last = begin_attempt(tracking, training)
    with last:
        training.go_to(NUM_STEPS)
    assert_all_is_there(run)
    assert attempts_of(tracking, run) == {
        "attempt 1": ("FAILED", "120"),
        "attempt 2": ("KILLED", "130"),
        "attempt 3": ("FINISHED", str(NUM_STEPS)),
    }
    children = [run.client.get_run(child.id) for child in tracking.children(run.id, tags={})]
    assert {child.data.tags.get("viewdiff.error") for child in children} == {None, "step 121: the loss is nan"}


def test_a_failure_ends_parent_and_child(tracking: Tracking, line: Line, tmp_path: Path) -> None:
    for status, error in (("FAILED", RuntimeError("a defect")), ("KILLED", KeyboardInterrupt())):
        training = FakeTraining(tmp_path / status)
        run, following = begin_attempt(tracking, training)
        following.__enter__()
        training.go_to(10)
        following.__exit__(type(error), error, None)
        assert run.client.get_run(run.id).info.status == status
        assert attempts_of(tracking, run) == {"attempt 1": (status, "10")}
        assert run.last_step("loss") == 10


def test_a_store_that_refuses_is_named(tracking: Tracking, line: Line, tmp_path: Path) -> None:
    training = FakeTraining(tmp_path / "refused")
    run, following = begin_attempt(tracking, training)
    run.client.delete_run(run.id)
    following.__enter__()
    training.go_to(10)
    with pytest.raises(UserError, match=r"refuses its record \(.*must be in the 'active' state.*same command again"):
        following.__exit__(None, None, None)


def loses_its_record(tracking: Tracking, training: FakeTraining, lose: Callable[[Run], None]) -> None:
    """A training during which `lose` is called with its run."""
    run, following = begin_attempt(tracking, training)
    with following:
        training.go_to(100)
        wait_for_step(run, 100)
        lose(run)
        training.go_to(NUM_STEPS)


def assert_is_recorded_again(tracking: Tracking, training: FakeTraining) -> None:
    """By the same command, in a run that has everything."""
    tracking.check()
    run, following = begin_attempt(tracking, training)
    with following:
        pass
    assert_all_is_there(run)


def test_a_run_that_was_deleted_meanwhile_is_recorded_in_another(
    tracking: Tracking, line: Line, tmp_path: Path
) -> None:
    training = FakeTraining(tmp_path / "deleted")
    refused = r"MLflow at .* refuses its record .*state is deleted.*run the same command again"
    with pytest.raises(UserError, match=refused):
        loses_its_record(tracking, training, lambda run: run.client.delete_run(run.id))
    assert_is_recorded_again(tracking, training)


def test_a_database_that_was_removed_meanwhile_is_made_again(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "PATIENCE_SECONDS", 0.5)
    tracking, training = Tracking(f"sqlite:///{tmp_path}/mlflow.db"), FakeTraining(tmp_path / "training")
    with pytest.raises(UserError, match=r"did not take its record within .*no such table.*nothing is lost"):
        loses_its_record(tracking, training, lambda run: (tmp_path / "mlflow.db").unlink())
    assert_is_recorded_again(tracking, training)


def test_removed_checkpoints_say_so(tracking: Tracking, line: Line, tmp_path: Path) -> None:
    training = FakeTraining(tmp_path / "removed")
    run, following = begin_attempt(tracking, training)

    def states() -> list[str]:
        return [model.tags[FILES_TAG] for model in run.models("checkpoint")]

    def wait_for(expected: list[str]) -> None:
        deadline = time.monotonic() + 60
        while states() != expected:
            assert time.monotonic() < deadline, states()
            time.sleep(0.05)

    with following:
        folders = [training.save_checkpoint(step) for step in (1, 2)]
        wait_for(["on disk", "on disk"])
        shutil.rmtree(folders[0])
        wait_for(["removed", "on disk"])
    assert states() == ["removed", "removed"]


def test_a_full_disk_takes_the_machines_load_and_nothing_else(
    tracking: Tracking, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("logging.Logger.warning", lambda logger, message, *values: said.append(message % values))
    monkeypatch.setattr("pipelines.recording.attempts._SAMPLE_SECONDS", 0.05)
    training = FakeTraining(tmp_path / "full")
    run, following = begin_attempt(tracking, training)
    (child,) = tracking.children(run.id, tags={"viewdiff.stage": "attempt"})
    (training.folder / "attempts" / f"{child.id}.jsonl").symlink_to("/dev/full")
    with following:
        training.go_to(NUM_STEPS, pause=0.001)
    assert said == ["the machine's load is recorded no further: [Errno 28] No space left on device"]
    assert_all_is_there(run)
    assert attempts_of(tracking, run) == {"attempt 1": ("FINISHED", str(NUM_STEPS))}


def test_progress_goes_on_after_a_failed_look(
    tracking: Tracking, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError(errno.ESTALE, "Stale file handle")] * 2
    said: list[str] = []
    monkeypatch.setattr("logging.Logger.warning", lambda logger, message, *values: said.append(message % values))
    training = FakeTraining(tmp_path / "stale")
    run, following = begin_attempt(tracking, training)
    read = following._reader.read

    def fail_twice() -> list[dict[str, Any]]:
        if failures:
            raise failures.pop()
        return read()

    monkeypatch.setattr(following._reader, "read", fail_twice)
    with following:
        training.go_to(NUM_STEPS, pause=0.001)
    assert said == ["progress cannot be shown: [Errno 116] Stale file handle"]
    assert_all_is_there(run)
    assert attempts_of(tracking, run) == {"attempt 1": ("FINISHED", str(NUM_STEPS))}


def test_a_full_disk_of_the_store_is_waited_for() -> None:
    assert reason_of_outage(OSError(errno.ENOSPC, "No space left on device")) == "[Errno 28] No space left on device"
    assert reason_of_outage(FileNotFoundError(errno.ENOENT, "no such picture")) is None


def test_an_attempt_says_which_gpus_ray_found(
    tracking: Tracking, line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is connected, also if MLflow was away at that moment."""
    found: list[dict[str, int] | None] = [None, {"H100": 16, "A100": 8}, {"H100": 16, "A100": 8}]
    monkeypatch.setattr("infra.cluster.connection.cluster_gpus", lambda: found.pop(0))
    run, _ = begin_attempt(tracking, FakeTraining(tmp_path / "gpus"))
    (child,) = tracking.children(run.id, tags={"viewdiff.stage": "attempt"})
    attempt = Attempt(child, tmp_path)
    attempt.send()
    assert "viewdiff.gpus" not in child.client.get_run(child.id).data.tags
    line.cut = True
    with pytest.raises(requests.ConnectionError):
        attempt.send()
    line.cut = False
    attempt.send()
    assert child.client.get_run(child.id).data.tags["viewdiff.gpus"] == "8 A100, 16 H100"
    attempt.send()  # asks no more


def test_a_replaced_file_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = LineReader(path)
    assert reader.read() == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [line["step"] for line in reader.read()] == [1, 2]
    with path.open("a") as file:
        file.write('ep": 3}\n')
    assert [line["step"] for line in reader.read()] == [3]
    (tmp_path / "new").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 4}\n')
    (tmp_path / "new").replace(path)
    assert [line["step"] for line in reader.read()] == [1, 2, 3, 4]


def test_many_steps_go_in_one_request(tracking: Tracking) -> None:
    run = tracking.start("train", tags={})
    lines = [{"step": step, "time/unix": 100.0 + step, "loss": 1.0, "rate": 2.0} for step in range(1, 700)]
    assert run.log_lines(lines) == 500  # of two numbers, at most 1000 in a request
    (first, *_) = run.client.get_metric_history(run.id, "loss")
    assert (first.step, first.timestamp) == (1, 101_000)
    assert set(run.client.get_run(run.id).data.metrics) == {"loss", "rate"}
