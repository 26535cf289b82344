"""When retraining is worth it, what it starts from, and that asking changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from infra.mlflow_registry import RegisteredVersion
from infra.storage import digest_folder
from pipelines import registry, retrain
from pipelines.artifacts import Artifact, BaseFolder, Checkpoint, EvaluationReport, ModelVersion, RawDataset, Report
from pipelines.config import RegisterConfig, RunConfig
from pipelines.presets import tiny
from pipelines.registry import CAPTURES_TAG, CHECKPOINT_TAG, DATASET_TAG, RIVAL_TAG
from pipelines.retrain import decide
from pipelines.runtime import RuntimeConfig
from preprocessing.config import SyntheticConfig
from preprocessing.synthetic import write_dataset


def version(number: int, **tags: str) -> RegisteredVersion:
    return RegisteredVersion(name="viewdiff", version=number, run_id="r", source="s", tags=tags, aliases=())


def test_a_new_category_is_a_reason() -> None:
    decision = decide({"teddybear": 20, "apple": 3}, {"teddybear": 20}, None)
    assert decision.train
    assert decision.new_categories == ("apple",)
    assert decision.reasons == ("category 'apple' is new: 3 sequences",)


@pytest.mark.parametrize(
    ("captures", "trained_already", "reason"),
    [
        ({"teddybear": 20}, None, "all of these captures were trained on"),
        ({"teddybear": 25}, None, "25 sequences, 20 were trained on"),
        ({"teddybear": 20, "apple": 3}, "viewdiff version 2", "version 2 was trained on exactly these captures"),
    ],
)
def test_nothing_to_do_says_why(captures: dict[str, int], trained_already: str | None, reason: str) -> None:
    decision = decide(captures, {"teddybear": 20}, trained_already)
    assert not decision.train
    assert reason in " ".join(decision.reasons)


class FakeTracking:
    """The registry's answers; registers into the same list."""

    registered: list[RegisteredVersion]
    champion_version: RegisteredVersion | None

    def __init__(self, uri: str, name: str) -> None:
        self.uri = uri

    def versions(self) -> list[RegisteredVersion]:
        return self.registered

    def champion(self) -> RegisteredVersion | None:
        return self.champion_version


@pytest.fixture
def tracking(monkeypatch: pytest.MonkeyPatch) -> type[FakeTracking]:
    FakeTracking.registered, FakeTracking.champion_version = [], None
    monkeypatch.setattr(registry, "Tracking", FakeTracking)
    monkeypatch.setattr(retrain, "Tracking", FakeTracking)
    return FakeTracking


@pytest.fixture
def runtime(tmp_path: Path) -> RuntimeConfig:
    """A root with a data set of two categories and the artifacts of a champion that saw one."""
    root = tmp_path / "runs"
    synth = root / "synth" / ("d" * 16)
    synth.mkdir(parents=True)
    config = SyntheticConfig(
        categories=("teddybear", "apple"), objects_per_category=1, frames_per_sequence=2, image_size=16
    )
    write_dataset(config, synth, num_processes=1)
    for stage, kind, facts in (("train", "Checkpoint", {"mlflow_run_id": "r"}), ("base", "BaseFolder", {})):
        folder = root / stage / ("c" * 16)
        folder.mkdir(parents=True)
        record = {"kind": kind, "fingerprint": "c" * 16, "facts": facts, "created": "2026-01-01", "inputs": {}}
        (folder / "artifact.json").write_text(json.dumps(record))
    return RuntimeConfig(root=str(root), co3d_root=str(synth))


CHAMPION_TAGS = {CAPTURES_TAG: '{"teddybear": 1}', CHECKPOINT_TAG: "c" * 16, "viewdiff.base": "c" * 16, RIVAL_TAG: ""}


def test_dry_run_names_the_category_and_changes_nothing(
    runtime: RuntimeConfig, tracking: type[FakeTracking], capsys: pytest.CaptureFixture[str]
) -> None:
    tracking.champion_version = version(1, **CHAMPION_TAGS)
    before = digest_folder(runtime.root_dir)
    retrain.retrain(tiny(), runtime, dry_run=True)
    printed = capsys.readouterr().out
    assert "category 'apple' is new: 1 sequences" in printed
    assert "steps from the champion's weights, for apple" in printed
    assert digest_folder(runtime.root_dir) == before


def test_it_trains_on_everything_from_the_champion(
    runtime: RuntimeConfig, tracking: type[FakeTracking], monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking.champion_version = version(1, **CHAMPION_TAGS)
    calls: list[tuple[RunConfig, dict[str, Any]]] = []

    def run_chain(config: RunConfig, runtime: RuntimeConfig, **options: Any) -> Mapping[str, Artifact]:
        calls.append((config, options))
        facts = {"model_name": "viewdiff", "version": 2, "alias": "champion", "psnr": 15.0, "champion_psnr": 14.0}
        version = ModelVersion("f" * 16, runtime.root_dir, facts)
        return {"register": version, "report": Report("e" * 16, runtime.root_dir / "report")}

    monkeypatch.setattr(retrain, "run_chain", run_chain)
    retrain.retrain(tiny(), runtime, dry_run=False)
    [(config, options)] = calls
    assert config.train.num_steps == tiny().retrain.num_steps
    assert config.preprocess == tiny().preprocess  # all categories of the root, the old ones too
    assert options["until"] == "register"
    assert isinstance(options["given"]["synth"], RawDataset)
    assert isinstance(options["given"]["base"], BaseFolder)
    initial = options["extra"]["train"]["initial"]
    assert isinstance(initial, Checkpoint)
    assert initial.fingerprint == "c" * 16
    # What it registers makes the second call end at once.
    tracking.registered = [version(2, **{DATASET_TAG: options["given"]["synth"].fingerprint})]
    retrain.retrain(tiny(), runtime, dry_run=False)
    assert len(calls) == 1


def test_what_a_challenger_was_tried_for_is_not_tried_again(
    runtime: RuntimeConfig, tracking: type[FakeTracking], capsys: pytest.CaptureFixture[str]
) -> None:
    tracking.champion_version = version(2, **CHAMPION_TAGS)
    challenger = version(3, **{CAPTURES_TAG: '{"teddybear": 1, "apple": 4}'})
    tracking.registered = [tracking.champion_version, challenger]
    retrain.retrain(tiny(), runtime, dry_run=True)
    printed = capsys.readouterr().out
    assert "category 'apple' has 1 sequences, 4 were trained on" in printed
    assert "nothing to do" in printed
    tracking.registered = [version(1, **{CAPTURES_TAG: '{"apple": 1}'}), tracking.champion_version]
    retrain.retrain(tiny(), runtime, dry_run=True)
    assert "category 'apple' is new" in capsys.readouterr().out  # the champion came after who had seen it


def test_without_a_champion_it_says_what_to_run(runtime: RuntimeConfig, tracking: type[FakeTracking]) -> None:
    with pytest.raises(UserError, match=r"no champion of model 'viewdiff' .*run `viewdiff run` first"):
        retrain.retrain(tiny(), runtime, dry_run=True)


def test_the_newest_synthetic_captures_are_looked_at(tmp_path: Path) -> None:
    for name, created in (("old", "2026-01-01T00:00:00"), ("new", "2026-01-02T00:00:00")):
        (tmp_path / "synth" / name).mkdir(parents=True)
        record = {"kind": "RawDataset", "fingerprint": name, "inputs": {}, "facts": {}, "created": created}
        (tmp_path / "synth" / name / "artifact.json").write_text(json.dumps(record))
    assert retrain.newest_synthetic(tmp_path).name == "new"
    with pytest.raises(UserError, match="no captures below"):
        retrain.newest_synthetic(tmp_path / "synth")


def test_the_rival_of_a_registered_model_stays_the_same(runtime: RuntimeConfig, tracking: type[FakeTracking]) -> None:
    first = version(1, **{CHECKPOINT_TAG: "one", RIVAL_TAG: ""})
    second = version(2, **{CHECKPOINT_TAG: "two", RIVAL_TAG: "1"})
    tracking.registered, tracking.champion_version = [first, second], second
    config = RegisterConfig()
    assert registry.find_rival(config, runtime, "one") is None
    assert registry.find_rival(config, runtime, "two") is first
    assert registry.find_rival(config, runtime, "three") is second


@pytest.mark.parametrize(
    ("champion_psnr", "alias"), [(None, "champion"), (19.0, "champion"), (20.0, "challenger"), (21.0, "challenger")]
)
def test_only_a_better_model_becomes_champion(
    runtime: RuntimeConfig,
    tracking: type[FakeTracking],
    monkeypatch: pytest.MonkeyPatch,
    champion_psnr: float | None,
    alias: str,
) -> None:
    aliases: list[tuple[str, str, int]] = []
    logged: dict[str, Any] = {}

    class FakeRun:
        id = "r"

        def log_model(self, folder: Path, *, name: str) -> str:
            return "model"

        def log_scores(self, scores: dict[str, float], *, model_id: str) -> None:
            logged.update(scores)

    def register(self: FakeTracking, name: str, *, tags: dict[str, str], **_: str) -> RegisteredVersion:
        logged.update(tags)
        return version(2, **tags)

    monkeypatch.setattr(FakeTracking, "resume", lambda self, run_id: FakeRun(), raising=False)
    monkeypatch.setattr(FakeTracking, "register", register, raising=False)
    monkeypatch.setattr(FakeTracking, "set_alias", lambda self, *alias: aliases.append(alias), raising=False)

    def evaluation(name: str, psnr: float) -> EvaluationReport:
        folder = runtime.root_dir / name
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"psnr": psnr}))
        return EvaluationReport(name, folder)

    inputs: dict[str, Any] = {
        "raw": RawDataset("d" * 16, Path(str(runtime.co3d_root))),
        "base": BaseFolder("b" * 16, runtime.root_dir),
        "checkpoint": Checkpoint("e" * 16, runtime.root_dir, {"mlflow_run_id": "r"}),
        "evaluation": evaluation("new", 20.0),
        "report": Report("p" * 16, runtime.root_dir),
    }
    if champion_psnr is not None:
        inputs["champion_evaluation"] = evaluation("old", champion_psnr)
    facts = registry.register(RegisterConfig(), inputs, runtime.root_dir, runtime)
    assert aliases == [("viewdiff", alias, 2)]
    assert (facts["version"], facts["alias"], facts["champion_psnr"]) == (2, alias, champion_psnr)
    assert json.loads(logged[CAPTURES_TAG]) == {"apple": 1, "teddybear": 1}
    assert (logged[DATASET_TAG], logged["held_out_psnr"]) == ("d" * 16, 20.0)
