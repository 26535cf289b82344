"""How many files a process may have open: as many as the system lets it, and a line where these are too few."""

from __future__ import annotations

import errno
import resource

from infra.errors import UserError

_MOST = 65_536  # what Ray recommends; programs that close all they could have open take long with a million
# Ray, MLflow and PyTorch have some hundreds open. When they run out, Ray's processes end without a word and
# pools of processes wait for ever.
_LEAST = 1024
_REMEDY = "raise the limit (`ulimit -n 65536`, or LimitNOFILE or nofile where your system sets it)"


def raise_file_limit() -> None:
    """Let this process and those that it starts have as many files open as it may allow itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def require_open_files() -> None:
    """Check that a pipeline's processes can open what they need.

    Raises:
        UserError: they cannot.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _LEAST:
        raise UserError(f"a process may have {soft} files open here, {_LEAST} are needed; {_REMEDY}")


def as_limit_error(error: OSError) -> UserError | None:
    """The message for a person when `error` says that no more files can be opened, else None."""
    if error.errno == errno.EMFILE:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return UserError(
            f"this process has all {soft} files open that it may; {_REMEDY} and run the same command again"
        )
    if error.errno == errno.ENFILE:
        return UserError("this machine has as many files open as it can; end other programs and run the command again")
    return None
