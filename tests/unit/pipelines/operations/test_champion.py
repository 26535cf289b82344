"""What makes a version champion: the decision as a table, and what of a champion has to be there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from infra.errors import UserError
from infra.tracking.registry import RegisteredVersion
from pipelines.operations.champion import (
    BASE_TAG,
    CHECKPOINT_TAG,
    RIVAL_TAG,
    ChampionChangedError,
    Comparison,
    decide,
    find_version,
    judge,
    open_champion,
    recorded_decision,
    rival_of,
)
from pipelines.spine.artifacts import RECORD_NAME
from pipelines.spine.runtime import RuntimeConfig


def version(number: int, checkpoint: str = "old", **tags: str) -> RegisteredVersion:
    return RegisteredVersion(name="viewdiff", version=number, tags={CHECKPOINT_TAG: checkpoint, **tags})


FIRST = Comparison(20.0)
NAN = float("nan")


@pytest.mark.parametrize(
    ("champion", "comparison", "expected"),
    [
        # the new one is version 5
        (None, FIRST, ("champion", "there was no champion")),
        (None, Comparison(20.0, "old", 25.0), ("champion", "there was no champion")),  # its alias was taken away
        (None, Comparison(NAN), ("challenger", "its score is not a number")),
        (version(3), Comparison(20.0, "old", 19.0), ("champion", "20.00 dB, the champion before 19.00 dB")),
        (version(3), Comparison(20.0, "old", 20.0), ("challenger", "20.00 dB, the champion before 20.00 dB")),
        (version(3), Comparison(20.0, "old", 21.0), ("challenger", "20.00 dB, the champion before 21.00 dB")),
        (version(3), Comparison(20.0, "old", NAN), ("challenger", "the champion's score in this comparison is")),
        (version(3), Comparison(NAN, "old", 19.0), ("challenger", "its score is not a number")),
        (version(3), FIRST, None),  # became champion since
        (version(3), Comparison(20.0, "another", 19.0), None),
        (version(6), Comparison(20.0, "old", 19.0), ("challenger", "version 6, which is newer, is the champion")),
        (version(6), FIRST, ("challenger", "version 6, which is newer, is the champion")),
        # interrupted when it had the alias
        (version(5, "new"), FIRST, ("champion", "there was no champion")),
        (version(5, "new"), Comparison(20.0, "old", 19.0), ("champion", "20.00 dB, the champion before 19.00 dB")),
    ],
)
def test_who_becomes_champion(
    champion: RegisteredVersion | None, comparison: Comparison, expected: tuple[str, str] | None
) -> None:
    decision = judge(5, champion, comparison)
    if expected is None:
        assert decision is None
    else:
        assert decision is not None
        assert decision.alias == expected[0]
        assert decision.reason.startswith(expected[1])


class CollidingRegistry:
    """Where another process makes its version champion in the moment in which version 5 is to become the first one."""

    def __init__(self, other: int, *, is_noticed: bool) -> None:
        self.other, self.is_noticed = other, is_noticed
        self.named: dict[str, int] = {}
        self.tags: dict[str, str] = {}

    def aliases(self) -> dict[str, int]:
        return self.named

    def champion(self) -> RegisteredVersion | None:
        return version(self.named["champion"]) if "champion" in self.named else None

    def set_alias(self, alias: str, number: int) -> bool:
        is_first = alias == "champion" and not self.named
        self.named[alias] = self.other if is_first else number
        return not (is_first and self.is_noticed)

    def set_tag(self, number: int, key: str, value: str) -> None:
        self.tags[key] = value


@pytest.mark.parametrize("is_noticed", [True, False])
def test_a_collision_is_judged_again(is_noticed: bool) -> None:
    registry = CollidingRegistry(6, is_noticed=is_noticed)
    decision = decide(registry, version(5), FIRST, rival="")  # type: ignore[arg-type]
    assert decision.reason == "version 6, which is newer, is the champion"
    assert registry.named == {"champion": 6, "challenger": 5}
    assert json.loads(registry.tags["viewdiff.decision"])["alias"] == "challenger"


def test_a_model_that_lost_the_alias_to_an_older_one_is_compared_with_that() -> None:
    registry = CollidingRegistry(4, is_noticed=False)
    with pytest.raises(
        ChampionChangedError, match="version 4 became champion meanwhile, and version 5 was not compared"
    ):
        decide(registry, version(5), FIRST, rival="")  # type: ignore[arg-type]
    assert "viewdiff.decision" not in registry.tags


def test_a_decision_is_what_was_recorded_last() -> None:
    assert recorded_decision(version(1, **{RIVAL_TAG: ""})) is None
    decision = recorded_decision(version(1, **{"viewdiff.decision": '{"alias": "champion", "reason": "better"}'}))
    assert decision is not None
    assert (decision.alias, decision.reason) == ("champion", "better")


def test_versions_are_found_by_checkpoint_and_rivals_by_number() -> None:
    versions = [version(1, "a"), version(2, "b", **{RIVAL_TAG: "1"}), version(3, "c", **{RIVAL_TAG: "9"})]
    assert find_version(versions, "b") is versions[1]
    assert find_version(versions, "d") is None
    assert rival_of(versions[1], versions) is versions[0]
    assert rival_of(versions[0], versions) is None
    assert rival_of(versions[2], versions) is None  # it was deleted


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The results of a champion's training and base stage."""
    for stage, kind, parts in (
        ("train", "Checkpoint", ("model",)),
        ("base", "BaseFolder", ("unet", "vae", "text_encoder")),
    ):
        folder = tmp_path / stage / "c"
        for part in parts:
            (folder / part).mkdir(parents=True)
            (folder / part / "config.json").write_text("{}")
            save_file({"weight": np.zeros(2, np.float32)}, folder / part / "model.safetensors")
        record = {"kind": kind, "fingerprint": "c", "facts": {}, "created": "2026-01-01", "inputs": {}}
        (folder / RECORD_NAME).write_text(json.dumps(record))
    return tmp_path


def test_a_champion_is_opened(root: Path) -> None:
    checkpoint, base = open_champion(version(1, "c", **{BASE_TAG: "c"}), RuntimeConfig(root=str(root)))
    assert (checkpoint.folder, base.folder) == (root / "train" / "c", root / "base" / "c")


@pytest.mark.parametrize("path", ["train/c/model/model.safetensors", "base/c/unet/config.json", "base/c/vae"])
def test_what_a_champion_lacks_is_named(root: Path, path: str) -> None:
    lost = root / path
    lost.rename(root / "lost")
    folder = lost if lost.suffix == "" else lost.parent
    with pytest.raises(UserError, match=rf"{folder}: the network's config.json or its .safetensors file is missing"):
        open_champion(version(1, "c", **{BASE_TAG: "c"}), RuntimeConfig(root=str(root)))


def test_damaged_weights_of_a_champion_are_named(root: Path) -> None:
    path = root / "train/c/model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{path}: cannot be read .*; restore that file"):
        open_champion(version(1, "c", **{BASE_TAG: "c"}), RuntimeConfig(root=str(root)))


@pytest.mark.parametrize(
    ("champion", "message"),
    [
        (version(1, "elsewhere"), r"viewdiff version 1: its train result elsewhere is not below"),
        (version(1, "c"), r"viewdiff version 1: it was not registered by this program \(it has no tag viewdiff.b"),
    ],
)
def test_a_champion_that_is_not_here_is_refused(root: Path, champion: RegisteredVersion, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_champion(champion, RuntimeConfig(root=str(root)))
