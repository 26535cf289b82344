"""A few kills of preprocessing. Many more: `python -m tests.kill.run 100`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill.outcome import table
from tests.kill.run import kill_repeatedly

pytestmark = pytest.mark.timeout(900)  # every driver starts a Ray of its own, on a busy machine that takes long


def test_killed_runs_end_with_the_bytes_of_an_undisturbed_one(tmp_path: Path) -> None:
    outcome = kill_repeatedly(tmp_path, 3, num_sequences=60, seed=58)
    assert outcome.faults == [], table(outcome)
    assert sorted(kill.kind for kill in outcome.kills) == ["driver", "raylet", "writer"]
