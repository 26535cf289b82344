"""Runs, logged models and the registry in a local database; everything may be repeated without a double."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlflow.data
import numpy as np
import pytest

from infra.errors import UserError
from infra.tracking import FINGERPRINT_TAG, FOLDER_TAG, Tracking, flatten


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


@pytest.mark.parametrize(
    ("uri", "reason"), [("nosuch://x", "unsupported URI 'nosuch://x'"), ("/", "")], ids=["scheme", "folder"]
)
def test_what_is_no_store_is_refused_in_whole_words(uri: str, reason: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"MLflow at {uri} cannot be reached (")) as refusal:
        Tracking(uri).check()
    assert reason in str(refusal.value)
    assert re.search(r"(\w\W*| …)\); start that server", str(refusal.value))


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


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://x", "sqlite:///{}"])
def test_an_unreachable_store_is_named_with_a_remedy(uri: str, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database at all, only some text that is long enough to be looked at")
    uri = uri.format(tmp_path / "mlflow.db")
    with pytest.raises(UserError, match=r"cannot be reached .*--tracking-uri") as caught:
        Tracking(uri).check()
    assert uri in str(caught.value)
    assert "\n" not in str(caught.value)


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
