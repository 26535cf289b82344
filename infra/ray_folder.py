"""Where Ray's processes on this machine keep sockets and logs: below TMPDIR, unless that is too long for a socket."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from infra.errors import UserError
from infra.log import get_logger

_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes of a path, AF_UNIX's limit
# What Ray puts behind the folder: a process id has 7 digits at most.
_LONGEST_NAME = "/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store.1"
_SHORT = "/tmp"  # what Ray itself takes where TMPDIR is not set
_RAY_VARIABLE = "RAY_TMPDIR"


def use_short_folder() -> None:
    """Have a Ray that starts here use /tmp in the place of a TMPDIR that is too long, and say so.

    Raises:
        UserError: RAY_TMPDIR is too long, or /tmp cannot be used.
    """
    given = os.environ.get(_RAY_VARIABLE)
    if given is not None:
        if not _fits(given):
            raise UserError(f"{_RAY_VARIABLE}={given} is too long for the sockets that Ray makes in it; {_remedy()}")
        return
    folder = os.environ.get("TMPDIR", "")
    if _fits(folder):
        return
    if not os.access(_SHORT, os.W_OK | os.X_OK):
        raise UserError(
            f"TMPDIR={folder} is too long for the sockets that Ray makes in it, and {_SHORT} cannot be written to; "
            f"{_remedy()}"
        )
    os.environ[_RAY_VARIABLE] = _SHORT
    get_logger("ray").warning(
        "TMPDIR=%s is too long for Ray's sockets, so Ray's files are in %s/ray; %s", folder, _SHORT, _remedy()
    )


def _fits(folder: str) -> bool:
    return len(os.fsencode(Path(folder).absolute())) + len(_LONGEST_NAME) <= _LONGEST_SOCKET


def _remedy() -> str:
    return (
        f"set {_RAY_VARIABLE} to a folder of at most {_LONGEST_SOCKET - len(_LONGEST_NAME)} letters to choose another"
    )
