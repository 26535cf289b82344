"""Files are whole or absent, and a folder that cannot be written is refused before work starts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.storage import files
from infra.storage.files import (
    as_user_error,
    atomic_write,
    digest_file,
    digest_folder,
    folder_for,
    publish_folder,
    require_space,
)


def test_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    atomic_write(path, b"a long first text")
    atomic_write(path, b"short")
    assert path.read_bytes() == b"short"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    atomic_write(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["record.json"]


def test_publish_moves_everything_and_never_replaces(tmp_path: Path) -> None:
    partial, final = tmp_path / ".partial", tmp_path / "final"
    (partial / "inner").mkdir(parents=True)
    (partial / "inner" / "a.bin").write_bytes(b"a")
    digests = digest_folder(partial)
    publish_folder(partial, final)
    assert digest_folder(final) == digests == {"inner/a.bin": digest_file(final / "inner" / "a.bin")}
    assert not partial.exists()
    partial.mkdir()
    with pytest.raises(FileExistsError):
        publish_folder(partial, final)


def test_a_folder_that_nothing_was_written_to_is_gone_again(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(KeyError), folder_for(tmp_path / "there/new/one"):
        raise KeyError
    with folder_for(tmp_path / "there/other/one"):
        (tmp_path / "there/other/file").touch()
    assert [path.name for path in (tmp_path / "there").rglob("*")] == ["other", "file"]


def test_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert digest_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_require_space_creates_nothing(tmp_path: Path) -> None:
    require_space(tmp_path / "new" / "folder", 1)
    assert list(tmp_path.iterdir()) == []


def test_require_space_names_folder_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1000000000\.00 GB needed; make space") as caught:
        require_space(tmp_path, 10**18)
    assert str(tmp_path) in str(caught.value)


def test_require_space_refuses_a_file_as_parent(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="is a file"):
        require_space(tmp_path / "file" / "runs", 1)


def test_require_space_refuses_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)  # root may write anywhere, so chmod shows nothing
    with pytest.raises(UserError, match="no permission to write"):
        require_space(tmp_path / "runs", 1)


def test_system_errors_for_a_person(tmp_path: Path) -> None:
    full = as_user_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), tmp_path)
    assert full is not None
    assert "disk is full" in str(full)
    inside = as_user_error(PermissionError(errno.EACCES, "denied", str(tmp_path / "a")), tmp_path)
    assert inside is not None
    assert "no permission" in str(inside)
    assert as_user_error(PermissionError(errno.EACCES, "denied", "/elsewhere/a"), tmp_path) is None
    assert as_user_error(FileNotFoundError(errno.ENOENT, "missing", str(tmp_path / "a")), tmp_path) is None
