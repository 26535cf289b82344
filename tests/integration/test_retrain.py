"""`viewdiff retrain` with a real registry in a database: what it goes on from, what stops it, killed after any change.

Stages are light ones, see tests/support/light_chain.py; every command runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.console import exit_code
from infra.storage.files import digest_folder
from infra.tracking.registry import Registry
from pipelines.cli import main
from pipelines.operations.champion import CAPTURES_TAG, REFUSED_TAG
from pipelines.planning.network import count_parameters
from pipelines.settings.presets import tiny
from tests.support import forked
from tests.support.light_chain import UNREADABLE, registry_state, use_light_stages, write_captures

NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class World:
    """A root, its captures, and a registered model of its own in a store that is shared."""

    folder: Path
    uri: str
    name: str

    @property
    def root(self) -> Path:
        return self.folder / "runs"

    @property
    def captures(self) -> Path:
        return self.folder / "captures"

    def command(self, line: str) -> tuple[int, str]:
        """Carry out a command line in this process: its exit code, and what it prints."""
        line += f" --root {self.root} --tracking-uri {self.uri} --register.model-name {self.name}"
        line += "" if "--co3d-root" in line else f" --co3d-root {self.captures}"
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = exit_code("viewdiff", lambda: main.dispatch(line.split()))
        return code, printed.getvalue()

    def run(self, line: str, after_request: forked.AfterRequest = lambda number, name: None) -> Any:
        """As `command`, in a process of its own."""
        return forked.run(lambda: self.command(line), after_request)

    def state(self) -> dict[str, Any]:
        return dict(forked.run(lambda: registry_state(self.uri, self.name)))

    def captures_of(self, version: int, tag: str = CAPTURES_TAG) -> dict[str, int]:
        """What is recorded of a version."""
        return dict(json.loads(self.state()["versions"][version - 1][tag]))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    count_parameters(tiny())  # kept for all processes
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def world(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """With a champion of 20 dB that was trained on teddybears."""
    use_light_stages(monkeypatch)
    return _with_champion(tmp_path, store)


def _with_champion(folder: Path, store: str) -> World:
    world = World(folder, store, f"model-{next(NUMBERS)}")
    write_captures(world.captures, {"teddybear": 2})
    code, printed = world.run("register --train.seed 20")
    assert code == 0, printed
    return world


def test_it_trains_further_for_a_new_category_once(world: World) -> None:
    code, printed = world.run("retrain")
    assert (code, "nothing to do" in printed) == (0, True)
    write_captures(world.captures, {"apple": 3})
    before, known = digest_folder(world.root), world.state()
    code, printed = world.run("retrain --dry-run")
    assert code == 0
    assert "category 'apple' is new: 3 sequences" in printed
    assert "200 steps from the champion's weights, for apple" in printed
    assert digest_folder(world.root) == before
    assert world.state() == known
    code, printed = world.run("retrain")
    assert code == 0
    assert "version 2 is the champion: 21.00 dB, the champion before 20.00 dB on the same objects" in printed
    assert world.captures_of(2) == {"apple": 3, "teddybear": 2}
    known = world.state()
    code, printed = world.run("retrain")
    assert (code, "nothing to do" in printed) == (0, True)
    assert world.state() == known


def test_it_takes_the_champions_settings_and_what_is_typed(store: str, tmp_path: Path, world: World) -> None:
    other = World(tmp_path / "other", store, f"model-{next(NUMBERS)}")
    write_captures(other.captures, {"teddybear": 2})
    settings = "--train.num-views 3 --preprocess.image-size 32 --evaluate.num-views 3 --train.batch-size 4"
    assert other.run(f"register {settings}")[0] == 0
    write_captures(other.captures, {"apple": 1})
    assert other.run("retrain --train.batch-size 6 --retrain.num-steps 7")[0] == 0
    newest = {
        stage: max(
            (json.loads(path.read_text()) for path in other.root.glob(f"{stage}/*/artifact.json")),
            key=lambda record: str(record["created"]),
        )["config"]
        for stage in ("train", "preprocess", "evaluate")
    }
    assert {key: newest["train"][key] for key in ("num_views", "batch_size", "num_steps")} == {
        "num_views": 3, "batch_size": 6, "num_steps": 7
    }  # fmt: skip
    assert (newest["preprocess"]["image_size"], newest["evaluate"]["num_views"]) == (32, 3)


def test_what_did_not_make_a_better_model_is_not_tried_again(world: World) -> None:
    write_captures(world.captures, {"apple": 1})
    code, printed = world.run("retrain --retrain.num-steps 1")
    assert (code, "version 2 is the challenger: 19.00 dB" in printed) == (0, True)
    write_captures(world.captures, {"apple": 4})
    code, printed = world.run("retrain")
    assert "category 'apple' has 4 sequences, there were 1 in the training" in printed
    assert "nothing to do" in printed


def test_what_is_copied_in_meanwhile_does_not_count_as_trained(store: str, tmp_path: Path, world: World) -> None:
    other = World(tmp_path / "other", store, f"model-{next(NUMBERS)}")
    write_captures(other.captures, {"teddybear": 2})

    def copy(number: int, name: str) -> None:
        if name == "create_run":  # the training begins
            write_captures(other.captures, {"apple": 3})

    assert other.run("register", copy)[0] == 0
    assert other.captures_of(1) == {"teddybear": 2}
    code, printed = other.run("retrain --dry-run")
    assert (code, "category 'apple' is new: 3 sequences" in printed) == (0, True)


def test_a_category_that_is_refused_whole_is_neither_trained_nor_hidden(world: World) -> None:
    write_captures(world.captures, {"pear": 2})
    (world.captures / "pear" / UNREADABLE).touch()
    for _ in range(2):
        known = world.state()
        code, printed = world.run("retrain")
        assert code == 0
        assert "category 'pear' is new, but none of its 2 sequences is usable" in printed
        assert "nothing to do" in printed
        assert world.state() == known
    write_captures(world.captures, {"apple": 1})
    assert "version 2 is the champion" in world.run("retrain")[1]
    assert world.captures_of(2) == {"apple": 1, "teddybear": 2}
    assert world.captures_of(2, REFUSED_TAG) == {"pear": 2}
    assert "category 'pear' is new, but none of its 2 sequences is usable" in world.run("retrain")[1]


def test_a_champion_is_not_made_to_forget_without_being_told(world: World, tmp_path: Path) -> None:
    known, apples = world.state(), tmp_path / "apples"
    write_captures(apples, {"apple": 3})
    for option in ("--dry-run", ""):
        code, printed = world.run(f"retrain --co3d-root {apples} {option}")
        assert code == 2
        assert f"version 1 was trained on teddybear, of which {apples} has no usable sequence" in printed
        assert "give them up with --retrain.given-up-categories teddybear" in printed
    assert world.state() == known
    code, printed = world.run(f"retrain --co3d-root {apples} --retrain.given-up-categories teddybear")
    assert (code, "version 2 is the champion" in printed) == (0, True)


def test_pictures_that_are_not_mounted_stop_it_too(world: World) -> None:
    known = world.state()
    write_captures(world.captures, {"apple": 3})
    (world.captures / "teddybear" / UNREADABLE).touch()
    code, printed = world.run("retrain")
    assert (code, "version 1 was trained on teddybear, of which" in printed) == (2, True)
    assert world.state() == known


def test_nor_is_a_model_that_became_champion_meanwhile(world: World) -> None:
    """A version without a category of that one would win on the objects of its own categories alone."""
    hydrants = world.folder / "hydrants"
    write_captures(hydrants, {"teddybear": 2, "hydrant": 2})
    assert world.run(f"register --train.seed 19 --co3d-root {hydrants}")[0] == 0
    write_captures(world.captures, {"apple": 3})

    def promote(number: int, name: str) -> None:
        if name == "create_run":  # the training begins
            forked.run(lambda: Registry(world.uri, world.name).set_alias("champion", 2))

    code, printed = world.run("retrain", promote)
    assert (code, "version 2 was trained on hydrant, of which" in printed) == (2, True), printed
    assert world.state()["aliases"] == {"champion": 2, "challenger": 2}
    assert len(world.state()["versions"]) == 2


def test_categories_that_the_champion_was_told_to_take(store: str, tmp_path: Path, world: World) -> None:
    other = World(tmp_path / "other", store, f"model-{next(NUMBERS)}")
    write_captures(other.captures, {"teddybear": 2, "hydrant": 2})
    assert other.run("register --preprocess.categories teddybear")[0] == 0
    code, printed = other.run("retrain")
    assert "category 'hydrant' is not among --preprocess.categories, so it is left out" in printed
    assert (code, "nothing to do" in printed) == (0, True)
    assert other.run("retrain --preprocess.categories teddybear hydrant")[0] == 0
    assert other.captures_of(2) == {"hydrant": 2, "teddybear": 2}
    shutil.rmtree(other.captures / "teddybear")
    shutil.rmtree(other.captures / "hydrant")
    write_captures(other.captures, {"apple": 1})
    code, printed = other.run("retrain --retrain.given-up-categories teddybear hydrant")
    assert (code, "has none of the categories teddybear, hydrant; name others" in printed) == (2, True)


@pytest.mark.parametrize("lost", ["train/*/model/model.safetensors", "base/*/unet", "latents/*/artifact.json"])
def test_what_it_would_miss_later_is_told_before_anything_is_done(world: World, lost: str) -> None:
    write_captures(world.captures, {"apple": 3})
    (path,) = world.root.glob(lost)
    path.rename(world.folder / "lost")
    before = digest_folder(world.root)
    for option in ("--dry-run", ""):
        code, printed = world.run(f"retrain {option}")
        assert code == 2
        assert str(path if path.suffix == "" else path.parent) in printed
        assert printed.splitlines()[-1].startswith("viewdiff: error: ")
    assert digest_folder(world.root) == before


def test_killed_after_any_change_the_next_run_finishes_it(store: str, tmp_path: Path, world: World) -> None:
    write_captures(world.captures, {"apple": 3})
    changes = forked.changes_of(lambda: world.command("retrain"))
    undisturbed = world.state()
    assert undisturbed["aliases"] == {"champion": 2}
    assert changes[-2:] == ["set_registered_model_alias", "set_model_version_tag"]
    for count, name in enumerate(changes, start=1):
        other = _with_champion(tmp_path / str(count), store)
        write_captures(other.captures, {"apple": 3})
        assert other.run("retrain", forked.die_after(count)) is None
        code, printed = other.run("retrain")
        assert code == 0, printed
        assert other.state() == undisturbed, f"killed after change {count}, {name}"
        assert count == len(changes) or "version 2 is the champion" in printed
