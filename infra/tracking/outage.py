"""When an MLflow store does not answer: which errors say so, and how long its client tries before it raises one."""

from __future__ import annotations

import errno
import os
import sqlite3
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import infra.tracking.settings  # noqa: F401

# isort: split
import requests
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from infra.addresses import shown, shown_address
from infra.errors import UserError

# What may be raised while a store is away.
UNREACHABLE = (
    MlflowException,
    SQLAlchemyError,
    sqlite3.Error,
    requests.RequestException,
    ConnectionError,
    TimeoutError,
)

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)  # of a store on a disk, or of what is to be sent
_FORBIDDEN, _REFUSED = (401, 403), 400  # HTTP
_DATABASE_SERVERS = ("postgresql", "mysql")
_CONNECT_SECONDS = 10
_LATER = (408, 429)  # HTTP: took too long, too many requests
_LONGEST_REASON = 120


def reason_of_outage(error: Exception) -> str | None:
    """Why the store cannot take anything at present, in one line; None when it answered and refused, or for a defect.

    MLflow tells these apart by the status of HTTP that goes with its own error code, also without a server.
    """
    if isinstance(error, OSError) and error.errno in _DISK:
        return first_reason(error)
    if not isinstance(error, UNREACHABLE) or not _is_temporary(error):
        return None
    return first_reason(error)


def explained(error: Exception, uri: str) -> UserError:
    """Why the store at `uri` cannot be used, with the remedy for that cause."""
    reason, causes = first_reason(error), list(_causes(error))
    missing = next((cause for cause in causes if isinstance(cause, ModuleNotFoundError)), None)
    said = f"cannot be reached ({reason})"
    remedy = "start that server or name another with --tracking-uri (without it a local database is used)"
    if missing is not None:
        said, remedy = f"needs the Python package {missing.name}", "install it beside this program"
    elif _status(error) in _FORBIDDEN:
        said = f"refuses this user (HTTP {_status(error)})"
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    elif any(isinstance(cause, requests.exceptions.SSLError) for cause in causes):
        remedy = "correct http:// or https:// in --tracking-uri, or that server's certificate"
    elif _status(error) == _REFUSED or isinstance(error, ValueError | NoSuchModuleError):
        said, remedy = f"cannot be used ({reason})", "name a server (http://…) or a database (postgresql://…)"
    elif type(error) is MlflowException and len(causes) == 1:  # an MLflow server says what is wrong in its own words
        said, remedy = f"does not answer as MLflow does ({reason})", "correct the address in --tracking-uri"
    return UserError(f"MLflow at {shown_address(uri)} {said}; {remedy}")


def require_answer(uri: str) -> None:
    """See that a database server answers, where `uri` names one: MLflow itself tries for 100 s.

    Raises:
        SQLAlchemyError, ImportError: it does not, or there is no driver for it.
    """
    if uri.startswith(_DATABASE_SERVERS):
        engine = create_engine(uri, poolclass=NullPool, connect_args={"connect_timeout": _CONNECT_SECONDS})
        engine.connect().close()


def first_reason(error: BaseException) -> str:
    """One line of what set off a chain of exceptions, without passwords: each library on the way wraps it into its own,
    longer words.
    """
    *_, first = _causes(error)
    line = (str(first).strip() or type(first).__name__).splitlines()[0]
    return textwrap.shorten(shown(line), _LONGEST_REASON, placeholder=" …")


@contextmanager
def short_requests(*, seconds: int, retries: int) -> Iterator[None]:
    """While the body runs, the client gives a request up soon; by default it tries for four minutes before it says
    that a server is away. The settings are the process's: to be entered while no other thread makes requests.
    """
    values = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries)}
    with _environment(values):
        yield


def _is_temporary(error: Exception) -> bool:
    status = _status(error)
    return status is None or status >= 500 or status in _LATER


def _status(error: Exception) -> int | None:
    """The status of HTTP that goes with an error, if any."""
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return int(error.response.status_code)
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what set it off, back to the first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
        if isinstance(cause, KeyError):  # which says nothing but the key
            return


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
