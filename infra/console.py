"""How a command of the command line ends: with a line for a person and an exit code."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TextIO

import psutil

from infra.addresses import shown
from infra.errors import UserError
from infra.system.limits import as_limit_error, raise_file_limit
from infra.system.stop_request import stop_signals_call


def run_command(program: str, call: Callable[[], object]) -> None:
    """Carry a command out and end this process. SIGTERM and a closed terminal end it as Ctrl-C does.

    Exit codes: 0 done, 2 bad input or environment, 130 interrupted, 1 nobody reads what is printed; else a defect.
    """
    raise_file_limit()
    sys.excepthook = _show_defect
    sys.stdout, sys.stderr = _told_apart(sys.stdout, "output"), _told_apart(sys.stderr, "error")
    with stop_signals_call(_interrupt):
        code = exit_code(program, call)
    if code:
        _end(code)


def exit_code(program: str, call: Callable[[], object]) -> int:
    """Carry a command out, and say on standard error why it ended early."""
    try:
        call()
        if sys.stdout is not None:  # as in a process that was started with it closed
            sys.stdout.flush()
    except UserError as error:
        return _ended(2, f"{program}: error: {shown(str(error))}")
    except KeyboardInterrupt:
        return _ended(130, f"{program}: interrupted; run the same command again to go on")
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        return _ended(1)
    except OSError as error:
        if (message := as_limit_error(error)) is None:
            raise
        return _ended(2, f"{program}: error: {message}")
    return 0


def _show_defect(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python does, without passwords in addresses."""
    sys.stderr.write(shown("".join(traceback.format_exception(kind, error, trace))))


def _interrupt(number: signal.Signals) -> None:
    raise KeyboardInterrupt(number.name)


def _ended(code: int, line: str | None = None) -> int:
    """`code`, after saying why to whoever can still be told. What cannot be written is dropped, or the interpreter
    would try once more at its end and fail.
    """
    if line is not None:
        with suppress(OSError, UserError):
            print(line, file=sys.stderr, flush=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, UserError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


class _Written(io.TextIOWrapper):
    """A standard stream of which it is said by name that it cannot be written to: its error is like that of an output
    folder on a full disk. What is below counts in C what was written, so that an interruption writes nothing twice.
    """

    title = "output"

    def write(self, text: str) -> int:
        with self._named():
            return super().write(text)

    def flush(self) -> None:
        with self._named():
            super().flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise UserError(
                f"standard {self.title} cannot be written to ({error.strerror}); send it to another file or device, "
                "or make space where it leads, and run the same command again"
            ) from error


def _told_apart(stream: TextIO, title: str) -> TextIO:
    """The same standard stream through `_Written`; None stays what it is in a process that was started without."""
    if stream is None:
        return stream
    written = _Written(
        io.BufferedWriter(io.FileIO(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.isatty() or title == "error",
    )
    written.title = title
    return written


def _end(code: int) -> None:
    """End this process. Where it has a Ray, at once and with all child processes: until Python has come to its own end
    Ray's threads would find that Ray is shut down or dead, and end the process with an exit code of theirs.
    """
    if "ray" not in sys.modules:
        raise SystemExit(code)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    os._exit(code)
