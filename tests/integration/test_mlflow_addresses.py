"""Names and addresses with a real MLflow server: nothing is lost behind a `#`, and no password is printed or kept."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infra.addresses import artifact_name
from infra.tracking.experiment import Tracking
from infra.tracking.tags import FINGERPRINT_TAG
from tests.support.mlflow_server import MlflowServer
from tests.support.paths import CHECKOUT

USER, PASSWORD = "anna", "pl4nted"
NAMES = (
    "sequence#3 from 5",
    "sequence#4 from 5",
    "a?b",
    "50%",
    "%23",
    "a&b=c;d",
    "..",
    "C:\\x",
    "Bär 熊",
    "🧸",
    "two\nlines",
    "'\"<b>",
    ".hidden",
    "x" * 200,
)

# All that names the store: a report, a comparison, a training whose server goes away, a refusal, a defect.
PROGRAM = """
import os
import signal
import sys
from pathlib import Path

from infra.console import exit_code, run_command
from infra.tracking.outage import short_requests
from infra.tracking.experiment import Tracking
from pipelines.cli import main
from pipelines.recording import driver
from pipelines.settings.run import ReportConfig
from pipelines.stages.report import write_report
from pipelines.spine.runtime import RuntimeConfig
from tests.support.evaluated_run import write_evaluated_run
from tests.support.recorded_training import FakeTraining, begin_attempt

uri, root, server_process = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
tracking = Tracking(uri)
run = tracking.start("train", tags={"viewdiff.fingerprint": "1", "viewdiff.stage": "train"})
other = tracking.start("train", tags={"viewdiff.fingerprint": "3", "viewdiff.stage": "train"})
for recorded in (run, other):
    recorded.log_metrics({"loss": 1.0}, step=1)
evaluation = tracking.start("evaluate", tags={"viewdiff.fingerprint": "2"}, parent_run_id=run.id)
inputs = write_evaluated_run(root, {"train": run.id, "evaluate": evaluation.id})
runtime = RuntimeConfig(root=str(root), tracking_uri=uri)
(root / "report").mkdir()
write_report(ReportConfig(), inputs, root / "report", runtime)
compare = ["compare", run.id, other.id, "--root", str(root), "--tracking-uri", uri, "--output", str(root / "compared")]
assert exit_code("viewdiff", lambda: main.dispatch(compare)) == 0

driver.PATIENCE_SECONDS = 2.0
training = FakeTraining(root / "training")
_, watched = begin_attempt(tracking, training)

def train():
    with watched:
        training.go_to(100, pause=0.01)
        os.killpg(server_process, signal.SIGKILL)
        training.go_to(300, pause=0.02)

assert exit_code("viewdiff", train) == 2
assert exit_code("viewdiff", tracking.check) == 2
assert exit_code("viewdiff", lambda: main.dispatch(compare)) == 2
with short_requests(seconds=1, retries=0):  # a defect: its traceback holds the address
    run_command("viewdiff", tracking._client().search_experiments)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("server")) as server:
        yield server


def test_pictures_of_any_name_stay_apart_on_a_server(server: MlflowServer, tmp_path: Path) -> None:
    run = Tracking(server.uri).start("evaluate", tags={FINGERPRINT_TAG: "names"})
    for shade, name in enumerate(NAMES):
        run.log_picture(np.full((2, 2, 3), shade, np.uint8), name)
    found = {item.path for item in run.client.list_artifacts(run.id, "pictures")}
    assert found == {f"pictures/{artifact_name(name)}.png" for name in NAMES}
    for shade, name in enumerate(NAMES):
        path = run.client.download_artifacts(run.id, f"pictures/{artifact_name(name)}.png", str(tmp_path))
        assert np.asarray(Image.open(path)).max() == shade


@pytest.mark.parametrize("name", ['it\'s "ours" 100% #1?&a=b;/x', "Bären 熊", "a" * 250, " spaces "])
def test_experiments_and_runs_of_any_name_are_found_again(
    name: str, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    tracking = Tracking(server.uri)
    run = tracking.start(name, tags={FINGERPRINT_TAG: "odd"})
    again = Tracking(server.uri)
    again.check()
    assert again.start(name, tags={FINGERPRINT_TAG: "odd"}).id == run.id
    assert run.client.get_run(run.id).info.run_name == name
    assert (run.client.get_experiment_by_name(name) or run).name == name  # type: ignore[union-attr]


def test_no_output_of_a_run_holds_the_password_of_the_store(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (tmp_path / "server").mkdir()
    with MlflowServer(tmp_path / "server") as server:
        uri = server.uri.replace("http://", f"http://{USER}:{PASSWORD}@")
        command = [sys.executable, "-c", PROGRAM, uri, str(root), str(server.pid)]
        ended = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=500)
    (tmp_path / "stdout").write_text(ended.stdout)
    (tmp_path / "stderr").write_text(ended.stderr)
    shown = server.uri
    for said in (
        f"MLflow at {shown} does not answer",
        f"viewdiff: error: the training is done, but MLflow at {shown} did not take its record",
        f"viewdiff: error: MLflow at {shown} cannot be reached",
        "Traceback (most recent call last)",
        "API request to http://",
    ):
        assert said in ended.stderr
    report = (root / "report" / "report.html").read_text()
    assert f"MLflow at {shown}." in report
    assert f'href="{shown}/#/experiments/' in report
    assert shown in (root / "compared" / "comparison.html").read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [str(path) for path in files if PASSWORD.encode() in path.read_bytes()] == []
