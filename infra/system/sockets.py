"""Programs make sockets below TMPDIR, whose paths may not be long; a TMPDIR such as SLURM's may already be too long."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from infra.errors import UserError
from infra.log import get_logger

_LONGEST_SOCKET = 103 if sys.platform == "darwin" else 107  # bytes of a path, AF_UNIX's limit
_PYTHONS_NAME = "/pymp-12345678/listener-12345678"  # what Python's pools of processes put behind the folder
# What Ray does: a process id has 7 digits at most.
_RAYS_NAME = "/ray/session_2026-01-31_23-59-59_123456_1234567/sockets/plasma_store.1"
_SHORT = "/tmp"  # what Ray itself takes where TMPDIR is not set


def shorten_tmpdir() -> None:
    """Use /tmp in the place of a TMPDIR that is too long for Python itself, here and in processes that are started.

    Raises:
        UserError: /tmp cannot be used.
    """
    if _use_short("TMPDIR", "TMPDIR", "sockets of Python's processes", _PYTHONS_NAME):
        tempfile.tempdir = None  # it is looked up again


def use_short_folder_for_ray() -> None:
    """Have a Ray that starts here use /tmp in the place of a TMPDIR that is too long for it.

    Raises:
        UserError: RAY_TMPDIR is too long, or /tmp cannot be used.
    """
    given = os.environ.get("RAY_TMPDIR", "")
    if not given:
        _use_short("TMPDIR", "RAY_TMPDIR", "Ray's sockets", _RAYS_NAME)
    elif not _fits(given, _RAYS_NAME):
        raise UserError(f"RAY_TMPDIR={given} is too long for Ray's sockets; {_remedy('RAY_TMPDIR', _RAYS_NAME)}")


def _use_short(variable: str, changed: str, user: str, name: str) -> bool:
    """Put /tmp into the variable `changed` where the folder in `variable` is too long, and say so; whether it was."""
    folder = os.environ.get(variable, "")
    if not folder or _fits(folder, name):
        return False
    what = f"{variable}={folder} is too long for {user}"
    if not os.access(_SHORT, os.W_OK | os.X_OK):
        raise UserError(f"{what}, and {_SHORT} cannot be written to; {_remedy(changed, name)}")
    os.environ[changed] = _SHORT
    get_logger("files").warning("%s, which are in %s now; %s", what, _SHORT, _remedy(changed, name))
    return True


def _fits(folder: str, name: str) -> bool:
    return len(os.fsencode(Path(folder).absolute())) + len(name) <= _LONGEST_SOCKET


def _remedy(variable: str, name: str) -> str:
    return f"set {variable} to a folder of at most {_LONGEST_SOCKET - len(name)} letters to choose another"
