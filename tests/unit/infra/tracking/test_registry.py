"""Versions, tags and aliases of registered models in a local database."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy.orm import Session

from infra.tracking import registry as mlflow_registry
from infra.tracking.experiment import Tracking
from infra.tracking.registry import Registry
from infra.tracking.run import Run
from infra.tracking.tags import FINGERPRINT_TAG


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    registry = Registry(uri, "none")
    assert (registry.versions(), registry.aliases(), registry.champion()) == ([], {}, None)
    assert not (folder / "mlflow.db").exists()  # asking creates nothing
    return uri


def log_model(uri: str, folder: Path, name: str) -> tuple[Run, str]:
    """A logged model of a run that is there."""
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "weights").write_bytes(b"weights")
    run = Tracking(uri).start("train", tags={FINGERPRINT_TAG: name})
    return run, run.log_model(folder / "model", name=name)


def test_versions_have_tags_and_aliases(uri: str, tmp_path: Path) -> None:
    registry = Registry(uri, "a model")
    run, model_id = log_model(uri, tmp_path, "a model")
    assert registry.aliases() == {}
    first = registry.add(model_id=model_id, run_id=run.id, tags={"score": "1"})
    second = registry.add(model_id=model_id, run_id=run.id, tags={"score": "2"})
    assert ((first.version, first.tags), (second.version, second.tags)) == ((1, {"score": "1"}), (2, {"score": "2"}))
    assert registry.champion() is None
    registry.set_alias("champion", 1)
    assert registry.champion() == first
    registry.set_alias("champion", 2)
    registry.set_alias("challenger", 1)
    assert registry.aliases() == {"champion": 2, "challenger": 1}
    registry.set_tag(2, "decision", "yes")
    assert registry.champion() == registry.versions()[1]
    assert registry.versions()[1].tags == {"score": "2", "decision": "yes"}
    source = MlflowClient(uri, uri).get_model_version("a model", "1").source
    assert (Path(source.removeprefix("file://")) / "weights").read_bytes() == b"weights"


def test_an_alias_that_another_process_makes_at_the_same_moment(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(uri, "taken")
    run, model_id = log_model(uri, tmp_path, "taken")
    for _ in range(2):
        registry.add(model_id=model_id, run_id=run.id, tags={})
    with monkeypatch.context() as patch:
        # What the store's session does instead of merging when it has not seen the other process's row.
        patch.setattr(Session, "merge", lambda session, row: session.add(row))
        assert registry.set_alias("champion", 1)
        assert not registry.set_alias("champion", 2)
    assert registry.aliases() == {"champion": 1}
    assert registry.set_alias("champion", 2)
    assert registry.aliases() == {"champion": 2}


def test_all_versions_are_found_however_many(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_registry, "_PAGE", 2)
    run, model_id = log_model(uri, tmp_path, "many")
    for _ in range(5):
        Registry(uri, "many").add(model_id=model_id, run_id=run.id, tags={})
    assert [version.version for version in Registry(uri, "many").versions()] == [1, 2, 3, 4, 5]


def test_a_logged_model_that_was_begun_is_completed(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifacts", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            log_model(uri, tmp_path, "begun")
    run, model_id = log_model(uri, tmp_path, "begun")
    assert log_model(uri, tmp_path, "begun") == (run, model_id)
    client = MlflowClient(uri, uri)
    experiment = client.get_run(run.id).info.experiment_id
    (model,) = client.search_logged_models([experiment], "name = 'begun'")
    assert (model.model_id, str(model.status)) == (model_id, "READY")
    assert [item.path for item in client.list_logged_model_artifacts(model_id)] == ["weights"]
