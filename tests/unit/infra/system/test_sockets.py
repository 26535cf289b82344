"""A TMPDIR that is too long for sockets is worked around, and said."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.system import sockets
from infra.system.sockets import shorten_tmpdir, use_short_folder_for_ray

SOCKET = "ray/session_2026-11-30_10-44-10_123456_4194304/sockets/plasma_store"  # the largest process id of Linux


def binds(folder: Path) -> bool:
    """Whether Ray's socket can be made below `folder`."""
    path = folder / SOCKET
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    except OSError:
        return False
    return True


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.setenv(name, "")  # so that it is put back also where it was not set
        monkeypatch.delenv(name)
    return Path("/tmp")  # a test's own folder would be long already


@pytest.mark.parametrize("length", range(30, 60, 4))
def test_every_folder_that_is_kept_is_short_enough(
    length: int, base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = base / f"viewdiff-{os.getpid()}".ljust(length - len(str(base)) - 1, "x")
    assert len(str(folder)) == length
    monkeypatch.setenv("TMPDIR", str(folder))
    use_short_folder_for_ray()
    kept = "RAY_TMPDIR" not in os.environ
    assert kept or os.environ["RAY_TMPDIR"] == str(base)
    assert kept == (length < 38)
    if kept:
        try:
            assert binds(folder)
        finally:
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            folder.rmdir()


def test_what_is_done_is_said(base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    use_short_folder_for_ray()
    monkeypatch.setenv("TMPDIR", str(base))
    use_short_folder_for_ray()
    assert "RAY_TMPDIR" not in os.environ
    assert caplog.messages == []
    long = f"/scratch/{'job' * 20}"
    monkeypatch.setenv("TMPDIR", long)
    use_short_folder_for_ray()
    [said] = caplog.messages
    assert f"TMPDIR={long} is too long for Ray's sockets, which are in {base} now; set RAY_TMPDIR to" in said


def test_nothing_short_is_a_message(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = f"/scratch/{'job' * 20}"
    monkeypatch.setenv("RAY_TMPDIR", long)
    with pytest.raises(UserError, match=rf"^RAY_TMPDIR={long} is too long .*; set RAY_TMPDIR to a folder of at most"):
        use_short_folder_for_ray()
    monkeypatch.delenv("RAY_TMPDIR")
    monkeypatch.setenv("TMPDIR", long)
    monkeypatch.setattr(sockets, "_SHORT", "/nonexistent")
    with pytest.raises(UserError, match=rf"^TMPDIR={long} is too long .* and /nonexistent cannot be written to; set"):
        use_short_folder_for_ray()


@pytest.mark.parametrize("length", [40, 75, 76, 120])
def test_pools_of_processes_work_below_every_folder(
    length: int, base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = base / f"viewdiff-{os.getpid()}".ljust(length - len(str(base)) - 1, "x")
    folder.mkdir()
    try:
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        shorten_tmpdir()
        assert tempfile.gettempdir() == str(folder if length <= 75 else base)
        assert len(caplog.messages) == (length > 75)
        program = "import multiprocessing as m; print(m.get_context('forkserver').Pool(1).map(abs, [-3]))"
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
        assert result.stdout == "[3]\n"
    finally:
        shutil.rmtree(folder)
