"""What asks a process to end, before it is killed: SIGTERM, as before a machine is taken away, and SIGHUP, as when the
terminal is closed. What a training did since its last checkpoint is saved first.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from infra.log import get_logger

SECONDS_TO_SAVE = 120.0  # for a step and a checkpoint
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def stop_signals_call(handler: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call `handler` with each stop signal that comes during the body of a `with`. Signals that are ignored, as `nohup`
    has it of SIGHUP, stay so. Outside the main thread, which alone may set handlers, nothing is changed.
    """

    def handle(number: int, *frame: object) -> None:
        _leave_closed_terminal()
        handler(signal.Signals(number))

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    taken = {number: old for number, old in before.items() if old is not None and old != signal.SIG_IGN}
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, old in taken.items():
            signal.signal(number, old)


class StopRequest:
    """Takes SIGTERM and SIGHUP for the body of a `with`, and asks for a checkpoint then by creating the file
    `checkpoint_request`, which goes away when that is saved. A second one stops at once.
    """

    def __init__(self, checkpoint_request: Path) -> None:
        self._checkpoint_request = checkpoint_request
        self._deadline: float | None = None
        self._taken: AbstractContextManager[None]

    def __enter__(self) -> StopRequest:
        self._taken = stop_signals_call(self._note)
        self._taken.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._taken.__exit__(None, None, None)

    @property
    def is_asked(self) -> bool:
        """Whether a signal came."""
        return self._deadline is not None

    def obey(self) -> None:
        """To be called now and then: raises KeyboardInterrupt when the checkpoint is there, or takes too long."""
        if self._deadline is None:
            return
        if not self._checkpoint_request.exists() or time.monotonic() > self._deadline:
            raise KeyboardInterrupt

    def _note(self, number: signal.Signals) -> None:
        if self._deadline is not None:
            raise KeyboardInterrupt
        get_logger("train").warning("%s: saving a checkpoint, then ending", number.name)
        self._checkpoint_request.touch()
        self._deadline = time.monotonic() + SECONDS_TO_SAVE


def _leave_closed_terminal() -> None:
    """Where the terminal is gone that standard output or error went to, print to nobody: writing would fail."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
