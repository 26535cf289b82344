"""SIGTERM, which comes before a machine is taken away: what a training did since its last checkpoint is saved first."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

from infra.log import get_logger

SECONDS_TO_SAVE = 120.0  # for a step and a checkpoint


class StopRequest:
    """Takes SIGTERM for the body of a `with`, and asks for a checkpoint then by creating the file `checkpoint_request`,
    which goes away when that is saved. A second SIGTERM stops at once.
    """

    def __init__(self, checkpoint_request: Path) -> None:
        self._checkpoint_request = checkpoint_request
        self._deadline: float | None = None

    def __enter__(self) -> StopRequest:
        self._is_main = threading.current_thread() is threading.main_thread()  # no other may set handlers
        if self._is_main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_main:
            signal.signal(signal.SIGTERM, self._before)

    @property
    def is_asked(self) -> bool:
        """Whether SIGTERM came."""
        return self._deadline is not None

    def obey(self) -> None:
        """To be called now and then: raises KeyboardInterrupt when the checkpoint is there, or takes too long."""
        if self._deadline is None:
            return
        if not self._checkpoint_request.exists() or time.monotonic() > self._deadline:
            raise KeyboardInterrupt

    def _note(self, *signal: object) -> None:
        if self._deadline is not None:
            raise KeyboardInterrupt
        get_logger("train").warning("SIGTERM: saving a checkpoint, then ending")
        self._checkpoint_request.touch()
        self._deadline = time.monotonic() + SECONDS_TO_SAVE
