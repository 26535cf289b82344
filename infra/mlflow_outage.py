"""When an MLflow store does not answer: which errors say so, and how long its client tries before it raises one."""

from __future__ import annotations

import errno
import os
import sqlite3
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import infra.mlflow_settings  # noqa: F401

# isort: split
import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

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


def first_reason(error: BaseException) -> str:
    """One line of what set off a chain of exceptions: each library on the way wraps it into its own, longer words."""
    cause = error.__cause__ or error.__context__
    if cause is not None and not isinstance(cause, KeyError):  # which says nothing but the key
        return first_reason(cause)
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return textwrap.shorten(line, _LONGEST_REASON, placeholder=" …")


@contextmanager
def short_requests(*, seconds: int, retries: int) -> Iterator[None]:
    """While the body runs, the client gives a request up soon; by default it tries for four minutes before it says
    that a server is away. The settings are the process's: to be entered while no other thread makes requests.
    """
    values = {"MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries)}
    with _environment(values):
        yield


def _is_temporary(error: Exception) -> bool:
    status = None
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
    elif isinstance(error, requests.HTTPError) and error.response is not None:
        status = error.response.status_code
    return status is None or status >= 500 or status in _LATER


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
