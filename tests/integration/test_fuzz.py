"""Damaged files of every kind: a reason or a well-formed result. Many more: `python -m tests.fuzz.run 10000`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.run import fuzz

pytestmark = pytest.mark.timeout(600)


def test_damaged_files_are_refused_with_a_reason(tmp_path: Path) -> None:
    found, wrong = fuzz(tmp_path, 840, seed=1)
    assert wrong == []
    assert len(found) == 28
    for name, outcomes in found.items():
        assert outcomes.total() == 30
        # The damage is real. A whole sequence that is refused is a row in a table.
        assert outcomes["refused"] >= 6 or name == "a whole sequence", name


def test_what_must_not_happen_is_seen(tmp_path: Path) -> None:
    """The watch itself: a reader that runs a program, one that hangs on to nothing, one that says nothing."""
    from tests.fuzz import run
    from tests.fuzz.targets import Target

    path = tmp_path / "file"
    path.write_bytes(b"x")

    def outcome(read: object, *, must_refuse: bool = False) -> str:
        return run._outcome(Target("t", path, (), read, must_refuse), changed=True)[0]  # type: ignore[arg-type]

    def executes() -> None:
        import subprocess

        subprocess.run(["true"], check=True)

    def unpickles() -> None:
        import pickle

        pickle.loads(b"cbuiltins\nlen\n.")

    def crashes() -> None:
        raise MemoryError

    assert outcome(executes) == "executed"
    assert outcome(unpickles) == "executed"
    assert outcome(crashes) == "crashed"
    assert outcome(lambda: None, must_refuse=True) == "silent"
    assert outcome(lambda: None) == "accepted"
