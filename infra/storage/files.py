"""Files that are either complete or not there, on this machine's disks or in an object store."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.addresses import shown_address
from infra.errors import UserError
from infra.storage.s3 import SCHEME, S3Path
from infra.system.limits import as_limit_error

StoragePath = Path | S3Path

_CHUNK_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def open_path(address: str) -> StoragePath:
    """The path of a folder's name or of an s3:// address.

    Raises:
        UserError: an address of another kind, or a malformed one.
    """
    if address.startswith(SCHEME):
        return S3Path.parse(address)
    if not address or re.match(r"\w+:/", address):
        raise UserError(f"address {shown_address(address)!r}: name a folder, or s3://bucket/folder")
    return Path(address).expanduser()


def atomic_write(path: StoragePath, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, also after a crash."""
    if isinstance(path, S3Path):
        path.write_bytes(data)
        return
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


def copy_file(source: StoragePath, target: StoragePath) -> None:
    """Copy a file to another place, where it is whole or not at all."""
    if isinstance(target, S3Path) and isinstance(source, Path):
        target.upload(source)
        return
    with publishing(target) as partial:
        if isinstance(source, S3Path):
            source.download(partial)
        else:
            shutil.copyfile(source, partial)


@contextmanager
def publishing(final: StoragePath) -> Iterator[Path]:
    """A local path to write a file to, which becomes `final` when the block ends without an error, whole or not at all.
    Where the block leaves no file nothing is published.
    """
    folder = Path(tempfile.gettempdir()) if isinstance(final, S3Path) else final.parent
    partial = folder / f".{final.stem}-{uuid.uuid4().hex}.tmp"
    try:
        yield partial
        if not partial.exists():
            return
        if isinstance(final, S3Path):
            final.upload(partial)
        else:
            _sync_file(partial)
            partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def publish_folder(partial: Path, final: Path) -> None:
    """Make the finished folder `partial` visible as `final` by one rename, after everything in it has reached the disk.
    Files that a library made readable for their owner alone follow the umask then, like others.

    Both must lie on one file system.

    Raises:
        FileExistsError: when `final` exists; what is published never changes.
    """
    if final.exists():
        raise FileExistsError(f"{final} is already published")
    mode = 0o666 & ~_umask()
    for folder, _, names in os.walk(partial):
        for name in names:
            (Path(folder) / name).chmod(mode)
            _sync_file(Path(folder) / name)
        _sync_folder(Path(folder))
    partial.rename(final)
    _sync_folder(final.parent)


def replace_folder(new: Path, final: Path) -> None:
    """As `publish_folder`, in place of an older `final`. A reader finds either whole, or for an instant none."""
    old = final.with_name(f".{final.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    publish_folder(new, final)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def folder_for(folder: Path) -> Iterator[None]:
    """`folder` is there in the block. It and the folders above it that this made are removed if they are empty then."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):  # not empty
                path.rmdir()


def num_bytes(path: StoragePath) -> int:
    """Size of a file; 0 where there is none."""
    if not path.is_file():
        return 0
    return path.num_bytes() if isinstance(path, S3Path) else path.stat().st_size


def digest_file(path: StoragePath) -> str:
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


def require_space(folder: StoragePath, num_bytes: int) -> None:
    """Check that `num_bytes` can be written below `folder`, which need not exist yet. Creates nothing. Object stores
    have no end.

    Raises:
        UserError: `folder` or a parent of it is a file, may not be written to, or its disk has too little space left.
    """
    if isinstance(folder, S3Path):
        return
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


def as_user_error(error: OSError, folder: StoragePath) -> UserError | None:
    """The message for a person when `error` says that `folder` cannot take more, or that no more files can be opened;
    else None.
    """
    if error.errno in _FULL:
        return UserError(
            f"output folder {folder}: the disk is full; make space and run the same command again, it resumes"
        )
    if error.errno in _FORBIDDEN and Path(str(error.filename)).is_relative_to(str(folder)):
        return UserError(
            f"output folder {folder}: no permission to write {error.filename}; "
            "change its owner or choose another folder"
        )
    return as_limit_error(error)


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
