"""MLflow's records in an SQLite file: made whole however many processes begin at once, looked at before they are used,
and brought along when their folder was copied or moved.
"""

from __future__ import annotations

import glob
import os
import shlex
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import infra.tracking.settings  # noqa: F401

# isort: split
import mlflow
import mlflow.store.db.utils  # its import makes all tables known to Base
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from mlflow import MlflowClient
from mlflow.store.db.base_sql_model import Base

from infra.addresses import sqlite_address
from infra.errors import UserError
from infra.log import get_logger
from infra.storage.files import require_space
from infra.storage.locks import take_lock

ARTIFACTS_NAME = "mlartifacts"  # folder beside the database

_NEW_BYTES = 1_000_000
_BUSY_SECONDS = 20.0  # MLflow waits as long for another process's transaction
_OTHER_STORE = "name an MLflow server with --tracking-uri, put the root on another file system"  # one with locks
_LOCKED_ERRORS, _LOCK_FAILURES = ("SQLITE_BUSY", "SQLITE_LOCKED"), ("SQLITE_IOERR_LOCK", "SQLITE_IOERR_UNLOCK")
_DAMAGE_ERRORS = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
_REVISION_TABLE, _UPGRADE_PREFIX = "alembic_version", "_alembic_tmp_"
_ADDRESS_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def artifacts_address(path: Path) -> str:
    """Address of the folder for the artifacts of the database `path`."""
    return (path.parent / ARTIFACTS_NAME).as_uri()


def is_new(path: Path) -> bool:
    """Whether nothing was written into the database yet. Creates nothing.

    Raises:
        UserError: there is something else in its place.
    """
    if not path.exists():
        return True
    with _reading(path) as connection:
        return not _tables(connection)


def require_usable(path: Path) -> None:
    """Look at the database without MLflow, which tries for 100 s before it says that it cannot. Creates nothing.

    Raises:
        UserError: it cannot be made or written, or is damaged, half made, locked, or another MLflow's.
    """
    has_nothing = is_new(path)
    if path.exists():
        _require_writable(path)
    if has_nothing:
        require_space(path.parent, _NEW_BYTES)
        return
    with _reading(path) as connection:
        _require_length(path, connection)
        _require_schema(path, connection)


def prepare(path: Path) -> None:
    """Make the database if nothing is in it, and have it name its own folder for artifacts if it was copied or moved.
    Other processes that come here meanwhile wait.

    Raises:
        UserError: it cannot be made or read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        if is_new(path):
            _make(path)
        else:
            require_usable(path)
        _bring_along(path)


def _make(path: Path) -> None:
    """In a file of another name first: of one that was stopped on the way nothing is in its place. The name is new each
    time, because MLflow keeps in mind that it made a database.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.new*"):
        leftover.unlink()
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    MlflowClient(tracking_uri=sqlite_address(partial)).search_experiments(max_results=1)
    partial.replace(path)


def _bring_along(path: Path) -> None:
    """MLflow notes absolute addresses. Those in the folder that was beside the database change with it."""
    new, folder = artifacts_address(path), path.parent / ARTIFACTS_NAME
    with _reading(path) as connection, connection:
        found = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (old,) in found:
            if old is None or old == new or not old.startswith("file://") or not old.endswith(f"/{ARTIFACTS_NAME}"):
                continue
            if _is_same(_local(old), folder):  # by a symbolic link, say
                continue
            for table, column in _ADDRESS_COLUMNS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
                )
            moved = "%s was copied or moved: artifacts now go to %s, not %s"
            get_logger("mlflow").info(moved, path, folder, _local(old))
            if _local(old).exists() and not folder.exists():
                get_logger("mlflow").warning("%s was not copied with it: copy that folder to %s", _local(old), folder)


def _require_writable(path: Path) -> None:
    """The file, and its folder, in which SQLite writes down what a killed process has to undo."""
    remedy = "change its owner or its mode, or name another --tracking-uri"
    if not os.access(path, os.W_OK):
        raise UserError(f"{path}: no permission to write in this database; {remedy}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{path.parent}: no permission to write in this folder, as SQLite has to; {remedy}")


def _require_length(path: Path, connection: sqlite3.Connection) -> None:
    """SQLite itself does not notice that a part of the last page is missing."""
    (page_bytes,), (num_pages,) = (connection.execute(f"PRAGMA page_{what}").fetchone() for what in ("size", "count"))
    if (missing := page_bytes * num_pages - path.stat().st_size) > 0:
        raise _damaged(path, f"its last {missing} bytes are missing")


def _require_schema(path: Path, connection: sqlite3.Connection) -> None:
    """Look whether the tables are those of this MLflow."""
    tables, expected = _tables(connection), set(Base.metadata.tables)
    if not tables & expected:
        raise UserError(
            f"{path} is a database of another program; name another file with --tracking-uri, or another --root"
        )
    script = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    revision = _revision(connection) if _REVISION_TABLE in tables else None
    is_half_upgraded = any(name.startswith(_UPGRADE_PREFIX) for name in tables)
    is_newest = revision in script.get_heads()
    if is_newest and expected <= tables and not is_half_upgraded:
        return
    if all(_is_empty(connection, name) for name in ("experiments", "runs") if name in tables):
        raise UserError(
            f"{path} is half made: what made it was stopped, or two programs did so at once; nothing is recorded in "
            f"it: put it aside ({_aside(path)}) and run the same command again"
        )
    if is_newest or is_half_upgraded or revision is None:
        missing = ", ".join(sorted(expected - tables)) or "the end of an upgrade"
        raise UserError(f"{path} is damaged: it lacks {missing}; {_restore(path)}")
    if not _knows(script, revision):
        raise UserError(
            f"{path} was made by a newer MLflow than {mlflow.__version__}, which is here; use that one, or name another"
            " database with --tracking-uri"
        )
    upgrade = f"mlflow db upgrade {shlex.quote(sqlite_address(path))}"
    raise UserError(
        f"{path} was made by an older MLflow than {mlflow.__version__}, which is here; copy it, then run {upgrade}"
    )


def _revision(connection: sqlite3.Connection) -> str | None:
    row = connection.execute(f"SELECT version_num FROM {_REVISION_TABLE}").fetchone()
    return None if row is None else str(row[0])


def _is_empty(connection: sqlite3.Connection, table: str) -> bool:
    return connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() is None


def _knows(script: ScriptDirectory, revision: str) -> bool:
    try:
        return script.get_revision(revision) is not None
    except CommandError:
        return False


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to the file that is there, also for changes: what a killed process left half written is undone by
    the next one to open the file.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, MLflow's database is a file; remove it, or name another --tracking-uri")
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=_BUSY_SECONDS)) as connection:
            yield connection
    except sqlite3.DatabaseError as error:
        raise _as_user_error(path, error) from error


def _as_user_error(path: Path, error: sqlite3.DatabaseError) -> UserError:
    name = getattr(error, "sqlite_errorname", "")
    if name in _DAMAGE_ERRORS:
        return _damaged(path, str(error))
    if name in _LOCKED_ERRORS:
        return UserError(f"{path} is held by another program for {_BUSY_SECONDS:.0f} s; end it and run this again")
    if name in _LOCK_FAILURES:
        return UserError(f"{path} is on a file system without locks, which SQLite needs; {_OTHER_STORE}")
    return UserError(f"{path} cannot be read ({error}); see who may read and write the file and its folder")


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is no whole SQLite database ({reason}); {_restore(path)}")


def _restore(path: Path) -> str:
    return f"restore it from a copy, or put it aside ({_aside(path)}): what was recorded in it is lost then"


def _aside(path: Path) -> str:
    return shlex.join(["mv", str(path), f"{path}.broken"])


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the database's lock file. The kernel drops the lock when the process ends, however it ends."""
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        take_lock(lock, wait=True, remedy=_OTHER_STORE)
        yield


def _local(address: str) -> Path:
    return Path(url2pathname(urlsplit(address).path))


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)
