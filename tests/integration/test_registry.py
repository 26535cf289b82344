"""The registry with a real MLflow, a database and a server: killed after any request, away, and used by two at once.

Every call runs in a process of its own; see tests/support/forked.py.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from pipelines.chain.running import run_chain
from pipelines.operations.champion import CAPTURES_TAG, DECISION_TAG, RIVAL_TAG
from pipelines.planning.network import count_parameters
from pipelines.settings.presets import tiny
from pipelines.spine.runtime import RuntimeConfig
from pipelines.stages.register import FORMER_CHAMPION
from tests.support import forked
from tests.support.light_chain import registry_state, use_light_stages, write_captures
from tests.support.mlflow_server import MlflowServer

NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class Model:
    """One registered model, and trainings for it that no other one has."""

    number: int
    folder: Path
    uri: str

    @property
    def name(self) -> str:
        return f"model {self.number}"

    def run(self, psnr: int, *, until: str = "register", title: str = "a run") -> Callable[[], dict[str, Any]]:
        """Train (once) a model that scores so many dB, and go on to a stage; what that says of itself."""
        config = tiny()
        config = replace(
            config,
            train=replace(config.train, seed=100 * self.number + psnr),
            report=replace(config.report, title=title),
            register=replace(config.register, model_name=self.name),
        )
        runtime = RuntimeConfig(
            root=str(self.folder / "runs"), co3d_root=str(self.folder / "captures"), tracking_uri=self.uri
        )
        return lambda: dict(run_chain(config, runtime, until=until)[until].facts)

    def state(self) -> dict[str, Any]:
        """What the registry holds, but for what is different of every model."""
        return dict(forked.run(lambda: registry_state(self.uri, self.name)))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    write_captures(folder / "captures", {"teddybear": 2})
    count_parameters(tiny())  # kept for all processes
    return folder


@pytest.fixture(params=["database", "server"])
def model(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    use_light_stages(monkeypatch)
    if request.param == "server":
        return Model(next(NUMBERS), folder, request.getfixturevalue("server").uri)
    return Model(next(NUMBERS), folder, f"sqlite:///{folder}/mlflow.db")


@pytest.mark.parametrize("psnrs", [(20,), (20, 21), (20, 19)], ids=["first", "better", "worse"])
def test_killed_after_any_change_it_ends_like_undisturbed(model: Model, psnrs: tuple[int, ...]) -> None:
    *before, last = psnrs

    def prepared(model: Model) -> Model:
        calls = [*(model.run(psnr) for psnr in before), model.run(last, until="report")]
        forked.run(lambda: [call() for call in calls])
        return model

    changes = forked.changes_of(prepared(model).run(last))
    undisturbed = model.state()
    assert changes[-2:] == ["set_registered_model_alias", "set_model_version_tag"]
    for count, name in enumerate(changes, start=1):
        other = prepared(replace(model, number=next(NUMBERS)))
        assert forked.run(other.run(last), forked.die_after(count)) is None
        forked.run(other.run(last))
        assert other.state() == undisturbed, f"killed after change {count}, {name}"


def test_the_undisturbed_end_is_the_right_one(model: Model) -> None:
    facts = [forked.run(model.run(psnr)) for psnr in (20, 19, 21, 15)]
    assert [item["alias"] for item in facts] == ["champion", "challenger", "champion", "challenger"]
    assert [item["champion_psnr"] for item in facts] == [None, 20, 20, 21]
    state = model.state()
    assert state["aliases"] == {"champion": 3, "challenger": 4}
    assert [tags[RIVAL_TAG] for tags in state["versions"]] == ["", "1", "1", "3"]
    assert "21.00 dB, the champion before 20.00 dB" in state["versions"][2][DECISION_TAG]
    assert [tags[CAPTURES_TAG] for tags in state["versions"]] == ['{"teddybear": 2}'] * 4
    one = [["READY", ["config.json", "model.safetensors"], [["held_out_psnr", psnr]], 1] for psnr in (20, 19, 21, 15)]
    assert state["models"] == [[item] for item in one]


def test_what_exists_keeps_its_decision(model: Model) -> None:
    for psnr in (20, 21, 19):
        forked.run(model.run(psnr))
    before = model.state()
    assert forked.run(model.run(20, title="another"))["alias"] == FORMER_CHAMPION
    assert forked.run(model.run(21, title="another"))["alias"] == "champion"
    assert forked.run(model.run(19, title="another"))["alias"] == "challenger"
    assert model.state() == before


def test_what_is_not_in_the_store_any_more_is_registered_again(model: Model) -> None:
    forked.run(model.run(20))
    before, other = model.state(), replace(model, uri=f"sqlite:///{model.folder}/other-{model.number}.db")
    for _ in range(2):
        assert forked.run(other.run(20))["alias"] == "champion"
        assert other.state() == before


def test_the_record_of_a_version_says_what_it_is_now(model: Model) -> None:
    for psnr, alias in ((20, "champion"), (21, "champion"), (20, FORMER_CHAMPION), (21, "champion")):
        assert forked.run(model.run(psnr))["alias"] == alias


def test_what_is_decided_needs_no_other_models_weights(model: Model) -> None:
    for psnr in (20, 21):
        forked.run(model.run(psnr))
    first = forked.run(model.run(20, until="train"))
    (weights,) = (
        path.parent
        for path in model.folder.glob("runs/train/*/artifact.json")
        if first["mlflow_run_id"] in path.read_text()
    )
    (weights / "model" / "model.safetensors").unlink()
    assert forked.run(model.run(21))["alias"] == "champion"


def test_a_model_that_two_commands_register_is_decided_about_once(model: Model) -> None:
    forked.run(model.run(20))
    forked.run(model.run(21, until="report"))
    other_is_done = _once("log_model_artifacts", lambda: forked.run(model.run(21, title="another")))
    facts = forked.run(model.run(21), other_is_done)
    assert (facts["version"], facts["alias"]) == (2, "champion")
    assert model.state()["aliases"] == {"champion": 2}
    assert [DECISION_TAG in tags for tags in model.state()["versions"]] == [True, True, False]


def test_an_older_version_never_replaces_a_newer_champion(model: Model) -> None:
    forked.run(model.run(20))
    better_one_is_registered = _once("create_model_version", lambda: forked.run(model.run(21)))
    facts = forked.run(model.run(25), better_one_is_registered)
    assert (facts["version"], facts["alias"]) == (2, "challenger")
    assert facts["reason"] == "version 3, which is newer, is the champion"
    assert model.state()["aliases"] == {"champion": 3, "challenger": 2}


@pytest.mark.parametrize(("psnr", "alias"), [(25, "champion"), (21, "challenger")])
def test_it_is_compared_with_who_became_champion_meanwhile(model: Model, psnr: int, alias: str) -> None:
    forked.run(model.run(20))
    better_one_is_registered = _once("create_logged_model", lambda: forked.run(model.run(23)))
    facts = forked.run(model.run(psnr), better_one_is_registered)
    assert (facts["version"], facts["alias"], facts["champion_psnr"]) == (3, alias, 23)
    assert model.state()["versions"][2][RIVAL_TAG] == "2"
    assert model.state()["aliases"]["champion"] == (3 if alias == "champion" else 2)


def test_two_first_ones_that_collide(model: Model) -> None:
    for psnr in (20, 21):
        forked.run(model.run(psnr, until="report"))
    runs = [forked.start(model.run(psnr)) for psnr in (20, 21)]
    facts = {item["version"]: item for item in (run.result() for run in runs)}
    state = model.state()
    assert sorted(facts) == [1, 2]
    assert all(DECISION_TAG in tags for tags in state["versions"])
    champion = state["aliases"]["champion"]
    assert facts[champion]["alias"] == "champion"
    if champion == 1:  # else the older one came too late
        assert facts[1]["psnr"] > facts[2]["psnr"]


def test_a_name_that_is_taken_between_two_requests(model: Model) -> None:
    forked.run(model.run(21, until="report"))
    first_is_registered = _once("log_model_artifacts", lambda: forked.run(model.run(20)))
    facts = forked.run(model.run(21), first_is_registered)
    assert (facts["version"], facts["alias"], facts["champion_psnr"]) == (2, "champion", 20)


@pytest.mark.parametrize("last", ["log_model_artifacts", "create_model_version", "set_registered_model_alias"])
def test_an_outage_is_told_in_a_line_and_finished_later(
    last: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_light_stages(monkeypatch)
    with MlflowServer(tmp_path) as server:
        model = Model(next(NUMBERS), folder, server.uri)
        forked.run(model.run(20))
        forked.run(model.run(21, until="report"))
        started = time.monotonic()
        message = forked.run(_refusal(model.run(21)), _once(last, lambda: os.killpg(server.pid, signal.SIGKILL)))
        assert time.monotonic() - started < 60
        server.kill()
        assert message.startswith(f"MLflow at {server.uri} cannot be reached (")
        assert "start that server" in message
        assert "\n" not in message
        server.start()
        assert forked.run(model.run(21))["alias"] == "champion"
        assert model.state()["aliases"] == {"champion": 2}


def _refusal(call: Callable[[], object]) -> Callable[[], str]:
    def refused() -> str:
        with pytest.raises(UserError) as caught:
            call()
        return str(caught.value)

    return refused


def _once(request: str, act: Callable[[], object]) -> forked.AfterRequest:
    """Do something as soon as the first such request is answered."""
    done = False

    def after_request(number: int, name: str) -> None:
        nonlocal done
        if name == request and not done:
            done = True
            act()

    return after_request
