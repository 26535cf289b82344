"""Runs, logged models and the registry in a local database; everything may be repeated without a double."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow.data
import numpy as np
import pytest
from mlflow.exceptions import MlflowException

from infra.addresses import sqlite_address
from infra.errors import UserError
from infra.tracking.experiment import Tracking, flatten
from infra.tracking.outage import reason_of_outage
from infra.tracking.tags import FINGERPRINT_TAG, FOLDER_TAG


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    tracking = Tracking(f"sqlite:///{tmp_path_factory.mktemp('root')}/mlflow.db")
    tracking.check()
    assert not Path(tracking.uri.removeprefix("sqlite:///")).exists()  # asking creates nothing
    return tracking


def test_a_run_is_found_again_by_its_fingerprint(tracking: Tracking) -> None:
    run = tracking.start("train", tags={FINGERPRINT_TAG: "a"})
    run.log_params(flatten({"model": {"rank": 4, "blocks": [["mid", 8]]}, "seed": 0}))
    run.log_metrics({"loss": 2.0}, step=3)
    run.finish()
    again = tracking.start("train", tags={FINGERPRINT_TAG: "a"})
    again.log_params({"model.rank": 4})
    assert again.id == run.id
    assert (again.last_step("loss"), again.last_step("accuracy")) == (3, -1)
    data = again.client.get_run(run.id).data
    assert data.params == {"model.rank": "4", "model.blocks": '[["mid", 8]]', "seed": "0"}
    assert data.metrics == {"loss": 2.0}
    assert tracking.start("train", tags={FINGERPRINT_TAG: "b"}, parent_run_id=run.id).id != run.id


def test_the_same_work_in_another_folder_is_another_run(tracking: Tracking) -> None:
    tags = {FINGERPRINT_TAG: "same", FOLDER_TAG: "/runs/anna's/train/same"}
    run = tracking.start("train", tags=tags)
    assert tracking.start("train", tags=tags).id == run.id
    assert tracking.start("train", tags=tags | {FOLDER_TAG: "/runs/ben's/train/same"}).id != run.id


def test_teams_that_share_a_server_keep_their_runs_apart(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tracking.start("train", tags={FINGERPRINT_TAG: "shared"})
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "chairs")
    other = Tracking(tracking.uri)
    assert other.start("train", tags={FINGERPRINT_TAG: "shared"}).id != run.id
    assert tracking.start("train", tags={FINGERPRINT_TAG: "shared"}).id == run.id


def test_a_store_of_an_unknown_kind_is_refused_in_whole_words() -> None:
    with pytest.raises(
        UserError, match=r"MLflow at nosuch://x cannot be used .*unsupported URI 'nosuch://x'"
    ) as refusal:
        Tracking("nosuch://x").check()
    assert re.search(r"(\w\W*| …)\); name a server", str(refusal.value))


@pytest.mark.parametrize(
    "uri", ["/", "runs/mlflow.db", "127.0.0.1:5000", "sqlite://", "sqlite:///:memory:", "sqlite:/x"]
)
def test_what_is_no_address_is_refused_with_its_form(uri: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--tracking-uri {uri!r}: write a server's address as http://")):
        Tracking(uri)


def test_a_password_is_not_named_where_the_address_is_none() -> None:
    with pytest.raises(UserError, match="--tracking-uri: write") as refusal:
        Tracking("anna:pl4nted@127.0.0.1:5000")
    assert "pl4nted" not in str(refusal.value)


@pytest.mark.parametrize("name", ["  ", "two\nlines"])
def test_an_experiment_has_a_name_of_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", name)
    with pytest.raises(UserError, match=r"MLFLOW_EXPERIMENT_NAME .*one line"):
        Tracking("http://127.0.0.1:9")


def test_tables_and_pictures_lie_beside_the_database(tracking: Tracking, tmp_path: Path) -> None:
    run = tracking.start("evaluate", tags={FINGERPRINT_TAG: "c"})
    for _ in range(2):  # a second time replaces
        run.log_table({"object": ["a", "b"], "psnr": [1.0, 2.0]}, "objects")
    run.log_picture(np.zeros((8, 8, 3), np.uint8), "orbit")
    names = sorted(item.path for item in run.client.list_artifacts(run.id))
    assert names == ["objects.json", "pictures"]
    table = json.loads(Path(run.client.download_artifacts(run.id, "objects.json", str(tmp_path))).read_text())
    assert table == {"columns": ["object", "psnr"], "data": [["a", 1.0], ["b", 2.0]]}
    database = Path(tracking.uri.removeprefix("sqlite:///"))
    assert (database.parent / "mlartifacts" / run.id / "artifacts" / "pictures" / "orbit.png").is_file()


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("http://anna:pl4nted@127.0.0.1:9", r"http://127.0.0.1:9 cannot be reached .*; start that server"),
        ("http://nohost.invalid", r"cannot be reached .*; start that server"),
        (
            "postgresql+nodriver://anna:pl4nted@127.0.0.1/db",
            r"postgresql\+nodriver://127.0.0.1/db cannot be used .*nodriver",
        ),
        ("mssql+pyodbc://anna:pl4nted@127.0.0.1/db", r"needs the Python package pyodbc; install it"),
    ],
)
def test_a_store_that_is_away_is_named_with_a_remedy(uri: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Tracking(uri).check()
    assert "\n" not in str(caught.value)
    assert "pl4nted" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, "who?", r"refuses this user \(HTTP 401\); set MLFLOW_TRACKING_USERNAME"),
        (403, "no", r"refuses this user \(HTTP 403\)"),
        (404, "<html>", r"does not answer as MLflow does .*; correct the address"),
        (200, "<html>log in</html>", r"does not answer as MLflow does .*; correct the address"),
        (503, "soon", r"cannot be reached .*503.*; start that server"),
    ],
)
def test_a_server_that_answers_otherwise_is_told_apart(status: int, body: str, said: str) -> None:
    with answering_always(status, body) as port, pytest.raises(UserError, match=said):
        Tracking(f"http://127.0.0.1:{port}").check()


def test_an_address_with_the_wrong_scheme_is_told_apart() -> None:
    with answering_always(200, "") as port, pytest.raises(UserError, match="correct http:// or https://"):
        Tracking(f"https://127.0.0.1:{port}").check()


@contextmanager
def answering_always(status: int, body: str) -> Iterator[int]:
    """A web server that is no MLflow; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_deleted_experiment_is_named_before_any_work(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", 'it\'s "deleted" 100% #1?')
    doomed = Tracking(tracking.uri)
    run = doomed.start("train", tags={FINGERPRINT_TAG: "f"})
    experiment = run.client.get_run(run.id).info.experiment_id
    run.client.delete_experiment(experiment)
    for call in (doomed.check, lambda: doomed.start("train", tags={})):
        with pytest.raises(
            UserError, match=f"was deleted in MLflow .*mlflow experiments restore --experiment-id {experiment}"
        ):
            call()
    run.client.restore_experiment(experiment)
    doomed.check()


def test_a_deleted_run_is_named(tracking: Tracking) -> None:
    run = tracking.start("train", tags={FINGERPRINT_TAG: "to be deleted"})
    run.client.delete_run(run.id)
    with pytest.raises(UserError, match=f"was deleted in MLflow .*mlflow runs restore --run-id {run.id}"):
        tracking.resume(run.id)
    again = tracking.start("train", tags={FINGERPRINT_TAG: "to be deleted"})  # a training begins another
    assert again.id != run.id


def test_a_database_that_was_removed_is_not_written_into_unseen(tmp_path: Path) -> None:
    tracking = Tracking(sqlite_address(tmp_path / "mlflow.db"))
    first = tracking.start("train", tags={FINGERPRINT_TAG: "a"})
    first.log_metrics({"loss": 1.0})
    (tmp_path / "mlflow.db").unlink()
    with pytest.raises(MlflowException) as error:
        first.log_metrics({"loss": 2.0}, step=1)
    assert reason_of_outage(error.value) is not None  # a training keeps its record and goes on
    tracking.check()
    second = tracking.start("train", tags={FINGERPRINT_TAG: "a"})
    assert second.id != first.id
    second.log_metrics({"loss": 1.0})
    assert second.last_step("loss") == 0


def test_scores_are_logged_once(tracking: Tracking) -> None:
    run = tracking.start("evaluate", tags={FINGERPRINT_TAG: "scores"})
    run.log_scores({"psnr": 15.0})
    run.log_scores({"psnr": 15.0, "ssim": 0.2})
    for name, value in (("psnr", 15.0), ("ssim", 0.2)):
        assert [point.value for point in run.client.get_metric_history(run.id, name)] == [value]


def test_a_run_of_another_store_is_named(tracking: Tracking) -> None:
    run = tracking.start("train", tags={FINGERPRINT_TAG: "here"})
    assert tracking.resume(run.id).id == run.id
    with pytest.raises(UserError, match=r"has no run 0123.*--tracking-uri"):
        tracking.resume("0123456789abcdef0123456789abcdef")


def test_a_database_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(UserError, match="/dev/null is a file"):
        Tracking("sqlite:////dev/null/runs/mlflow.db").check()


def test_a_data_set_is_one_input_however_often_it_is_logged(tracking: Tracking) -> None:
    run = tracking.start("train", tags={FINGERPRINT_TAG: "inputs"})
    for _ in range(2):  # the second time by a stage that was killed and goes on
        again = tracking.start("train", tags={FINGERPRINT_TAG: "inputs"})
        again.log_dataset(
            name="shards-1",
            digest="0123456789" * 6,
            source=Path("/data/1"),
            profile={"num_frames": 3},
            context="training",
        )
    other = tracking.start("evaluate", tags={FINGERPRINT_TAG: "inputs of another"})
    other.log_dataset(
        name="shards-1",
        digest="0123456789" * 6,
        source=Path("/data/1"),
        profile={"num_frames": 3},
        context="evaluation",
    )
    for logged, context in ((run, "training"), (other, "evaluation")):
        (used,) = run.client.get_run(logged.id).inputs.dataset_inputs
        assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": context}
        assert (used.dataset.name, used.dataset.digest) == ("shards-1", "012345678901234567890123456789012345")
        assert json.loads(used.dataset.profile) == {"num_frames": 3}
        assert mlflow.data.get_source(used).uri == "/data/1"
