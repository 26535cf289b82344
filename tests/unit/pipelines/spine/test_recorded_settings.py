"""Settings read back from the records of results are the same settings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from infra.provenance.fingerprint import plain
from pipelines.settings.presets import PRESETS, paper, tiny
from pipelines.settings.run import RegisterConfig, RunConfig
from pipelines.spine.artifacts import RECORD_NAME, Checkpoint
from pipelines.spine.recorded_settings import parse, settings_of


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_survive_their_record(preset: str) -> None:
    config = PRESETS[preset]()
    config = replace(config, preprocess=replace(config.preprocess, categories=("apple",), subset="fewview_dev"))
    assert parse(RunConfig, json.loads(json.dumps(plain(config)))) == config


def test_fields_that_are_not_recorded_get_their_defaults() -> None:
    assert parse(RegisterConfig, {}) == RegisterConfig()


def write_record(root: Path, stage: str, name: str, config: object, inputs: dict[str, str], created: str = "1") -> Path:
    folder = root / stage / name
    folder.mkdir(parents=True)
    record = {
        "kind": stage,
        "fingerprint": name,
        "facts": {},
        "created": created,
        "config": plain(config),
        "inputs": {role: {"fingerprint": value} for role, value in inputs.items()},
    }
    (folder / RECORD_NAME).write_text(json.dumps(record))
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A training with the settings of `paper`, evaluated twice."""
    config, inputs = paper(), {"shards": "s", "captions": "c", "latents": "l", "base": "b"}
    for stage, name in (("preprocess", "s"), ("captions", "c"), ("latents", "l"), ("base", "b")):
        write_record(tmp_path, stage, name, getattr(config, stage), {})
    folder = write_record(tmp_path, "train", "t", config.train, inputs)
    write_record(tmp_path, "evaluate", "1", replace(config.evaluate, num_objects=1), {"checkpoint": "t"}, created="1")
    write_record(tmp_path, "evaluate", "2", replace(config.evaluate, num_objects=2), {"checkpoint": "t"}, created="2")
    write_record(tmp_path, "evaluate", "3", replace(config.evaluate, num_objects=3), {"checkpoint": "u"}, created="3")
    return Checkpoint("t", folder)


def test_a_training_tells_the_settings_of_all_that_led_to_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    found, made = settings_of(checkpoint, tmp_path, tiny()), paper()
    for stage in ("preprocess", "captions", "latents", "base", "train"):
        assert getattr(found, stage) == getattr(made, stage)
    assert found.evaluate == replace(made.evaluate, num_objects=2)
    assert (found.retrain, found.register, found.name) == (tiny().retrain, tiny().register, "tiny")


def test_a_lost_record_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "latents" / "l" / RECORD_NAME).unlink()
    with pytest.raises(UserError, match=rf"{tmp_path / 'latents' / 'l'} holds no artifact.json"):
        settings_of(checkpoint, tmp_path, tiny())


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"colour": "red"}, "colour"), ({"num_views": 1}, "num_views is 1"), ({"model": {"rank": 4}}, "projection")],
)
def test_settings_of_another_program_are_refused(
    checkpoint: Checkpoint, tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = checkpoint.folder / RECORD_NAME
    record = json.loads(path.read_text())
    record["config"] |= change
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=reason) as caught:
        settings_of(checkpoint, tmp_path, tiny())
    assert str(caught.value).startswith(f"{path}: its settings are none of this checkout (")


def test_a_record_without_settings_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = checkpoint.folder / RECORD_NAME
    record = json.loads(path.read_text())
    del record["config"]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="its settings are none of this checkout"):
        settings_of(checkpoint, tmp_path, tiny())
