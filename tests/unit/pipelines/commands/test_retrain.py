"""Which captures `viewdiff retrain` looks at; what it does is in tests/integration/test_retrain.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.errors import UserError
from pipelines.commands.retrain import find_start, newest_synthetic
from pipelines.settings.run import RegisterConfig
from pipelines.spine.runtime import RuntimeConfig


def test_the_newest_synthetic_captures_are_looked_at(tmp_path: Path) -> None:
    for name, created in (("old", "2026-01-01T00:00:00"), ("new", "2026-01-02T00:00:00")):
        (tmp_path / "synth" / name).mkdir(parents=True)
        record = {"kind": "RawDataset", "fingerprint": name, "inputs": {}, "facts": {}, "created": created}
        (tmp_path / "synth" / name / "artifact.json").write_text(json.dumps(record))
    assert newest_synthetic(tmp_path).name == "new"
    with pytest.raises(UserError, match="no captures below"):
        newest_synthetic(tmp_path / "synth")


def test_without_a_champion_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no champion of model 'viewdiff' .*run `viewdiff run` first"):
        find_start(RegisterConfig(), RuntimeConfig(root=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []
