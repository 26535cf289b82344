"""Open files: as many as may be, and a line where these are too few."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from infra.storage.files import as_user_error
from infra.system.limits import as_limit_error
from tests.support.paths import CHECKOUT


def run_limited(program: str, *, soft: int, hard: int) -> subprocess.CompletedProcess[str]:
    """A Python program in a process with these limits."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=120, preexec_fn=limit
    )


@pytest.mark.parametrize(("hard", "expected"), [(512, 512), (4096, 4096)])
def test_the_limit_is_raised_as_far_as_allowed(hard: int, expected: int) -> None:
    program = (
        "import resource; from infra.system.limits import raise_file_limit; raise_file_limit(); raise_file_limit(); "
    )
    result = run_limited(program + "print(resource.getrlimit(resource.RLIMIT_NOFILE))", soft=64, hard=hard)
    assert result.stdout == f"({expected}, {hard})\n", result.stderr


def test_too_few_are_told_of_before_the_work() -> None:
    program = "from infra.system.limits import require_open_files; require_open_files()"
    assert run_limited(program, soft=1024, hard=1024).returncode == 0
    result = run_limited(program, soft=1000, hard=1024)
    assert result.stderr.splitlines()[-1].startswith(
        "infra.errors.UserError: a process may have 1000 files open here, 1024 are needed; raise the limit (`ulimit"
    )


def test_a_command_that_runs_out_of_them_says_so() -> None:
    program = (
        "from infra.console import run_command\n"
        "def work():\n"
        "    files = []\n"
        "    while True: files.append(open('/dev/null'))\n"
        "run_command('viewdiff', work)"
    )
    result = run_limited(program, soft=32, hard=64)
    assert result.returncode == 2
    assert result.stderr.startswith("viewdiff: error: this process has all 64 files open that it may; raise the limit")
    assert result.stderr.count("\n") == 1


def test_only_these_errors_are_taken_for_it(tmp_path: Path) -> None:
    for code in (errno.EMFILE, errno.ENFILE):
        error = OSError(code, os.strerror(code))
        assert "files open" in str(as_limit_error(error))
        assert "files open" in str(as_user_error(error, tmp_path))
    assert as_limit_error(OSError(errno.EIO, "")) is None
