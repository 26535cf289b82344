"""Addresses and names of records: how a path is put into an address, and how one is shown to people.

A path that is pasted into an address as it is ends at its first `?` or `#`, and its `%` are taken for something else.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from infra.errors import UserError

_SQLITE = re.compile(r"sqlite(?:\+\w+)?://(?P<path>/[^?]*)?(?:\?.*)?", re.DOTALL)
_NO_FILES = ("", ":memory:")  # an SQLite database that ends with its process

# Before a host with a colon everything up to the last @ is the user's: a password may hold characters that should have
# been quoted, also a /. Without a colon in front of it an @ behind a / is the path's.
_USER = re.compile(r"(?P<scheme>\b[A-Za-z][\w+.-]*://)(?:[^\s/@:]*:\S*@|[^\s/:]*@)")
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*://)(?:[^/@:]*:.*@|[^/:]*@)?(?P<place>[^?]*)(?:\?.*)?", re.DOTALL)
_QUERY = re.compile(r"(?P<address>\b[A-Za-z][\w+.-]*://[^\s?]*)\?\S*?(?=[\"'`)\].,;:]*(?:\s|$))")
_LONGEST_NAME = 250  # characters, what an MLflow on PostgreSQL takes for a run's
_OTHER_CHARACTERS = re.compile(r"[^\w ,.()-]")


def sqlite_address(path: Path) -> str:
    """SQLAlchemy's address of the database file `path`.

    A plain path stays readable. One that must be quoted names the driver too, because MLflow takes what follows
    `sqlite:///` for a path, unquotes nothing, and makes its folder.
    """
    plain = str(path.absolute())
    quoted = plain.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{plain}" if quoted == plain else f"sqlite+pysqlite:///{quoted}"


def sqlite_path(address: str) -> Path | None:
    """The database file that an address of SQLAlchemy's names; None where it names no SQLite file."""
    match = _SQLITE.fullmatch(address)
    path = unquote(match["path"] or "")[1:] if match else ""
    return None if path in _NO_FILES or path.startswith("file:") else Path(path).absolute()


def shown_address(address: str) -> str:
    """An address as it may be printed and recorded: without the part before the host, which is a user's name and
    password, and without the query, which may be a token. What remains is an address still.
    """
    match = _ADDRESS.fullmatch(address)
    return address if match is None else match["scheme"] + match["place"]


def shown(text: str) -> str:
    """A text that may hold addresses, with each as `shown_address` says. Where an address ends is not known here: a
    blank ends it, also in a password.
    """
    return _QUERY.sub(r"\g<address>", _USER.sub(r"\g<scheme>", text))


def artifact_name(name: str) -> str:
    """A name as a part of the path of an artifact, the same on every store; different names stay different.

    MLflow's client puts such paths into addresses unquoted, and its server refuses `#`, also a quoted one. So other
    characters than letters, digits, spaces and `-_.,()` are written as `=` and the two hexadecimal digits of each of
    their bytes in UTF-8.
    """
    escaped = _OTHER_CHARACTERS.sub(lambda match: _escaped(match[0]), name)
    return escaped.replace(".", "=2E") if escaped in ("", ".", "..") else escaped


def _escaped(text: str) -> str:
    return "".join(f"={byte:02X}" for byte in text.encode(errors="surrogatepass"))


def require_name(option: str, name: str) -> None:
    """Check a name that people give to what is recorded, before MLflow or a terminal trips over it.

    Raises:
        UserError: it is blank, too long, or holds what cannot be printed.
    """
    if not name.strip() or len(name) > _LONGEST_NAME or not name.isprintable():
        raise UserError(f"{option} {name[:_LONGEST_NAME]!r}: a name is one line of 1 to {_LONGEST_NAME} characters")
