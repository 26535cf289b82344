"""A file system without locks is told of; a lock that another process holds is waited for, or not."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.storage.cache import CACHE_VARIABLE, local_copy
from infra.storage.locks import alone, take_lock
from infra.storage.s3 import S3Path
from pipelines.spine.artifacts import Shards
from pipelines.spine.runtime import RuntimeConfig
from pipelines.spine.stage import Stage, run_stage


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def without_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    def refuse(*arguments: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    return os.strerror(request.param)


def test_one_at_a_time(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as first, (tmp_path / "lock").open("w") as second:
        take_lock(first, wait=False, remedy="")
        with pytest.raises(BlockingIOError):
            take_lock(second, wait=False, remedy="")
        first.close()
        take_lock(second, wait=True, remedy="")


def test_a_stage_says_so_before_it_starts(without_locks: str, tmp_path: Path) -> None:
    stage = Stage(name="count", run=lambda *arguments: pytest.fail("it ran"), kind=Shards, config={"a": 1})
    with pytest.raises(UserError) as caught:
        run_stage(stage, RuntimeConfig(root=str(tmp_path / "runs")))
    folder = tmp_path / "runs" / "count" / f".partial-{stage.fingerprint}"
    assert str(caught.value).startswith(f"folder {folder}: its file system cannot lock files ({without_locks})")
    assert "choose a --root on another one" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_names_its_variable(without_locks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    with pytest.raises(UserError, match=rf"cannot lock files .*; name a folder on another one in {CACHE_VARIABLE}"):
        local_copy(S3Path.parse("s3://bucket/file"), sha256="0" * 64, size=1)


def test_other_errors_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (tmp_path / "lock").open("w") as file, pytest.raises(OSError, match="broken"):
        take_lock(file, wait=True, remedy="")


def test_what_another_process_does_is_refused_until_it_is_over(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with alone(path, busy="wait", remedy=""):
        with pytest.raises(UserError, match="wait"), alone(path, busy="wait", remedy=""):
            pytest.fail("both had it")
        assert path.exists()
    assert not path.exists()


def test_a_lock_that_was_removed_before_it_was_held_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    monkeypatch.setattr(fcntl, "flock", lambda *arguments: path.unlink())
    with pytest.raises(UserError, match="wait"), alone(path, busy="wait", remedy=""):
        pytest.fail("it held nothing")
