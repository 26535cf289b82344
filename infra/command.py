"""How a command of the command line ends: with a line for a person and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

import psutil

from infra.addresses import shown
from infra.errors import UserError


def run_command(program: str, call: Callable[[], object]) -> None:
    """Carry a command out and end this process.

    Exit codes: 0 done, 2 bad input or environment, 130 interrupted, 1 nobody reads what is printed; else a defect.
    """
    sys.excepthook = _show_defect
    if code := exit_code(program, call):
        _end(code)


def exit_code(program: str, call: Callable[[], object]) -> int:
    """Carry a command out, and say on standard error why it ended early."""
    try:
        call()
    except UserError as error:
        print(f"{program}: error: {shown(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter's last flush fails too
        return 1
    return 0


def _show_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python does, without passwords in addresses."""
    sys.stderr.write(shown("".join(traceback.format_exception(kind, error, trace))))


def _end(code: int) -> None:
    """End this process. Where it has a Ray, at once and with all child processes: until Python has come to its own end
    Ray's threads would find that Ray is shut down or dead, and end the process with an exit code of theirs.
    """
    if "ray" not in sys.modules:
        raise SystemExit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(code)
