"""Stage train in Ray Train workers: killed altogether, run again, a worker killed; losses equal a quiet run's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from infra.errors import UserError
from infra.provenance.fingerprint import identity
from infra.tracking.experiment import Tracking, flatten
from pipelines.spine.artifacts import Artifact
from pipelines.spine.runtime import RuntimeConfig
from pipelines.stages.train import train
from pipelines.training.callbacks.checkpoints import step_of_model
from pipelines.training.job import TrainJob
from pipelines.training.worker import train_in_worker
from tests.distributed.launch import TIMEOUT_SECONDS, run_distributed
from tests.kill.processes import trains
from tests.support.paths import CHECKOUT
from tests.support.training_inputs import train_config, write_inputs

pytestmark = pytest.mark.timeout(3 * TIMEOUT_SECONDS)

INPUTS = ("shards", "captions", "latents", "base")
CONFIG = train_config(num_steps=40, checkpoint_every_steps=5, preview_every_steps=20)
_ATTEMPT = """
import sys
from pathlib import Path
from tests.integration.test_train import attempt
attempt(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    write_inputs(folder / "inputs")
    (folder / "work").mkdir()
    return folder


def inputs(root: Path) -> dict[str, Artifact]:
    return {name: Artifact(fingerprint=name, folder=root / "inputs" / name) for name in INPUTS}


def attempt(root: Path) -> dict[str, Any]:
    return train(CONFIG, inputs(root), root / "work", RuntimeConfig(root=str(root), num_workers=2))


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not reach {count} lines")
        time.sleep(0.005)


def kill_the_whole_group(root: Path) -> None:
    """Start the stage in a process group of its own, and kill that when training is under way."""
    process = subprocess.Popen([sys.executable, "-c", _ATTEMPT, str(root)], cwd=CHECKOUT, start_new_session=True)
    children = []
    try:
        wait_for_lines(root / "work" / "metrics.jsonl", 7)
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # Ray's own processes are in other groups; they end by themselves when their driver is gone.
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


def kill_one_worker(root: Path) -> None:
    """Kill one rank of the training that this process runs, when it is under way again."""
    wait_for_lines(root / "work" / "metrics.jsonl", 22)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):  # of this test alone
            if trains(process):
                process.kill()
                return
        time.sleep(0.05)
    raise TimeoutError("no Ray Train worker was started")


def test_kills_leave_no_trace(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    kill_the_whole_group(root)
    killer = threading.Thread(target=kill_one_worker, args=(root,))
    killer.start()
    facts = attempt(root)
    killer.join()

    peaceful = root / "peaceful"
    peaceful.mkdir()
    folders = {f"{name}_dir": artifact.folder for name, artifact in inputs(root).items()}
    run_distributed(
        train_in_worker, 2, TrainJob(config=CONFIG, **folders, initial_dir=None, folder=peaceful, num_loaders=0)
    )  # the same ranks without Ray
    assert records(root / "work") == records(peaceful)

    assert facts["steps"] == 40
    assert facts["final_loss"] == records(peaceful)[-1]["loss"]
    losses = {record["step"]: record["validation_loss"] for record in records(peaceful) if "validation_loss" in record}
    best_step = min(losses, key=lambda step: losses[step])
    left = {"facts.json", "metrics.jsonl", "model", "previews", "settings.json"}
    assert {path.name for path in (root / "work").iterdir()} == left | ({"best"} if best_step < 40 else set())
    assert best_step == 40 or step_of_model(root / "work" / "best") == best_step
    assert attempt(root) == facts  # nothing is trained again
    assert_recorded_once(root, facts)


def assert_recorded_once(root: Path, facts: dict[str, Any]) -> None:
    """MLflow has one run, with each step's loss once, and below it the attempt that was killed and the other."""
    tracking = Tracking(RuntimeConfig(root=str(root)).tracking)
    client = tracking.resume(facts["mlflow_run_id"]).client
    experiment = client.get_experiment_by_name(tracking.experiment)
    assert experiment is not None
    children = tracking.children(facts["mlflow_run_id"], tags={"viewdiff.stage": "attempt"})
    found = client.search_runs([experiment.experiment_id])
    (run,) = [run for run in found if run.info.run_id not in {child.id for child in children}]
    attempts = [client.get_run(child.id) for child in reversed(children)]
    assert [attempt.info.status for attempt in attempts] == ["KILLED", "FINISHED"]
    assert [attempt.data.params["start_step"] for attempt in attempts] == ["0", "5"]
    assert int(attempts[0].data.params["end_step"]) >= 7
    assert attempts[1].data.params["end_step"] == "40"
    assert (run.info.run_id, run.info.status) == (facts["mlflow_run_id"], "FINISHED")
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["shards-shards"]
    history = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in history) == list(range(1, 41))
    losses = {record["step"]: record["loss"] for record in records(root / "work")}
    assert {point.step: point.value for point in history} == losses


def test_too_little_space_is_refused_before_anything_starts(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(UserError, match=r"0.00 GB free on its disk, 0.0\d GB needed; make space"):
        train(CONFIG, inputs(root), tmp_path, RuntimeConfig(root=str(tmp_path)))


def test_other_settings_than_those_it_was_begun_with_are_refused(root: Path, tmp_path: Path) -> None:
    begun = flatten(identity(CONFIG)) | {"engine.learning_rate": 0.5}
    (tmp_path / "settings.json").write_text(json.dumps(begun))
    with pytest.raises(UserError, match=r"other settings: engine.learning_rate 0.5 instead of 0.001; a training"):
        train(CONFIG, inputs(root), tmp_path, RuntimeConfig(root=str(tmp_path)))


def test_too_many_views_are_refused_before_anything_starts(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_views is 6"):
        train(train_config(num_views=6), inputs(root), tmp_path, RuntimeConfig(root=str(tmp_path)))
