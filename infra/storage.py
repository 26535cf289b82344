"""Files that are either complete or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from infra.errors import UserError

_CHUNK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def atomic_write(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, also after a crash."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
        partial = Path(file.name)
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            # The temporary file is private to its owner; a published one follows the umask like any other.
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def publish_folder(partial: Path, final: Path) -> None:
    """Make the finished folder `partial` visible as `final` by one rename, after everything in it has reached the disk.

    Both must lie on one file system.

    Raises:
        FileExistsError: when `final` exists; what is published never changes.
    """
    if final.exists():
        raise FileExistsError(f"{final} is already published")
    for folder, _, names in os.walk(partial):
        for name in names:
            _sync_file(Path(folder) / name)
        _sync_folder(Path(folder))
    partial.rename(final)
    _sync_folder(final.parent)


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def digest_folder(folder: Path) -> dict[str, str]:
    """SHA-256 per file below `folder`, by relative path with forward slashes, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in files}


def require_space(folder: Path, num_bytes: int) -> None:
    """Check that `num_bytes` can be written below `folder`, which need not exist yet. Creates nothing.

    Raises:
        UserError: `folder` or a parent of it is a file, may not be written to, or its disk has too little space left.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"output folder {folder}: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"output folder {folder}: no permission to write in {existing}; change its owner or choose another folder"
        )
    free = shutil.disk_usage(existing).free
    if free < num_bytes:
        raise UserError(
            f"output folder {folder}: {free / 1e9:.2f} GB free on its disk, {num_bytes / 1e9:.2f} GB needed; "
            "make space or choose another folder"
        )


def as_user_error(error: OSError, folder: Path) -> UserError | None:
    """The message for a person when `error` says that `folder` cannot take more, else None."""
    if error.errno in _FULL:
        return UserError(
            f"output folder {folder}: the disk is full; make space and run the same command again, it resumes"
        )
    if error.errno in _FORBIDDEN and Path(str(error.filename)).is_relative_to(folder):
        return UserError(
            f"output folder {folder}: no permission to write {error.filename}; "
            "change its owner or choose another folder"
        )
    return None


def _umask() -> int:
    current = os.umask(0)  # the only way to read it
    os.umask(current)
    return current


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
