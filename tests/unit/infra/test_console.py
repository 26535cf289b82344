"""How a command ends: what it says, its exit code, and what it leaves."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.console import exit_code
from infra.errors import UserError
from infra.system.stop_request import STOP_SIGNALS
from tests.support.paths import CHECKOUT

# Stands for a Ray whose raylet is dead: it ends the process with a code of its own when Python comes to its end.
PROGRAM = """
import atexit, os, subprocess, sys, types
from infra.console import run_command
from infra.errors import UserError

def fail():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    print(child.pid)
    raise UserError("the raylet was killed")

if "ray" in sys.argv:
    sys.modules["ray"] = types.ModuleType("ray")
    atexit.register(os._exit, 1)
run_command("viewdiff", fail)
"""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("no such folder"), 2, "viewdiff: error: no such folder\n"),
        (KeyboardInterrupt(), 130, "viewdiff: interrupted; run the same command again to go on\n"),
    ],
)
def test_what_is_said(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    assert exit_code("viewdiff", fail) == code
    assert capsys.readouterr().err == said


PRINTING = """
import sys
from infra.console import run_command

def work():
    for number in range(int(sys.argv[1])):
        print("line", number)
    print("progress", file=sys.stderr)

run_command("viewdiff", work)
"""


def printing(num_lines: int, **streams: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PRINTING, str(num_lines)]
    return subprocess.run(command, cwd=CHECKOUT, text=True, check=False, timeout=60, **streams)


@pytest.mark.parametrize("num_lines", [1, 100_000])  # written at the end, and in between
def test_a_full_output_is_not_an_output_folder(num_lines: int) -> None:
    with Path("/dev/full").open("w") as full:
        result = printing(num_lines, stdout=full, stderr=subprocess.PIPE)
        assert result.returncode == 2
        *before, said = result.stderr.splitlines()
        assert before == (["progress"] if num_lines == 1 else [])
        assert said.startswith("viewdiff: error: standard output cannot be written to (No space left on device); send")
        assert printing(1, stdout=subprocess.PIPE, stderr=full).returncode == 2
        assert printing(1, stdout=full, stderr=full).returncode == 2


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = printing(100_000, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, "")


def test_closed_streams_are_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(PRINTING)} 1"
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        result = subprocess.run(f"{command} {closed}", shell=True, cwd=CHECKOUT, check=False, timeout=60)
        assert result.returncode == 0, closed


def test_what_is_printed_arrives_as_it_is() -> None:
    result = printing(3, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (result.returncode, result.stdout, result.stderr) == (0, "line 0\nline 1\nline 2\n", "progress\n")


def test_a_defect_keeps_its_traceback() -> None:
    assert exit_code("viewdiff", lambda: None) == 0
    with pytest.raises(ZeroDivisionError):
        exit_code("viewdiff", lambda: 1 / 0)


def test_a_dead_ray_has_no_say() -> None:
    command = [sys.executable, "-c", PROGRAM]
    result = subprocess.run([*command, "ray"], cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stderr) == (2, "viewdiff: error: the raylet was killed\n")
    with suppress(psutil.NoSuchProcess):
        child = psutil.Process(int(result.stdout))  # what was printed has arrived
        child.wait(60)  # and nothing is left


# Says when it can be stopped, and cleans up for a while, in which it prints.
STOPPED = """
import sys, time
from infra.console import run_command

def work():
    try:
        print("working", flush=True)
        time.sleep(600)
    finally:
        print("cleaning up", flush=True)
        open(sys.argv[1], "w").close()

run_command("viewdiff", work)
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_stop_signals_end_it_as_ctrl_c_does(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "clean")]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(number)
        said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == ("cleaning up\n", "viewdiff: interrupted; run the same command again to go on\n")
    assert (tmp_path / "clean").exists()


def test_a_closed_terminal_lets_it_clean_up(tmp_path: Path) -> None:
    """Though what it prints meanwhile cannot be written any more."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(CHECKOUT)
        os.execv(sys.executable, [sys.executable, "-c", STOPPED, str(tmp_path / "clean")])
    assert os.read(terminal, 100).startswith(b"working")
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert (tmp_path / "clean").exists()
