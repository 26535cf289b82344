"""Locks that the kernel drops when a process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from infra.errors import UserError

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def take_lock(file: IO[Any], *, wait: bool, remedy: str) -> None:
    """Hold `file` alone until it is closed. `remedy` says how to use another folder.

    Raises:
        BlockingIOError: another process holds it, and `wait` is false.
        UserError: the file system has no locks, as some network file systems mounted without them.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        raise UserError(
            f"folder {Path(file.name).parent}: its file system cannot lock files ({error.strerror}), which keeps two "
            f"processes from writing the same files; {remedy}, or mount it with locks (NFS without `nolock`, Lustre "
            "with `flock`)"
        ) from error


@contextmanager
def alone(path: Path, *, busy: str, remedy: str) -> Iterator[None]:
    """Hold the lock file `path`, which is there as long as this takes.

    Raises:
        UserError: another process holds it (`busy`), or the file system has no locks.
    """
    with path.open("w") as file:
        try:
            take_lock(file, wait=False, remedy=remedy)
        except BlockingIOError:
            raise UserError(busy) from None
        # A process that ended in this moment has removed the file, and a third one may have made another.
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise UserError(busy)
        try:
            yield
        finally:
            path.unlink()
