"""The home folder: Ray keeps its token there, PyTorch, Hugging Face and Triton what they compiled or downloaded."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from infra.errors import UserError


def require_home() -> None:
    """Have HOME name a folder that can be written to, for this process and those that it starts: the one that it names,
    else the user's.

    Raises:
        UserError: there is none, as for a container's user without a name.
    """
    given = os.environ.get("HOME") or _of_user()
    if given and Path(given).is_dir() and os.access(given, os.W_OK | os.X_OK):
        os.environ["HOME"] = given
        return
    state = f"HOME={given} is no folder that can be written to" if given else "HOME is not set"
    raise UserError(
        f"{state}: Ray's token and what is compiled or downloaded once are kept there; set HOME to a folder"
    )


def _of_user() -> str | None:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None
