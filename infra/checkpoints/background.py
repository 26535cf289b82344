"""Work that nobody waits for, as long as there is time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """Runs one call after another in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._pending: Future[object] | None = None

    def run(self, call: Callable[[], object]) -> None:
        """Start `call`, after the one before has ended. Raises what that one raised."""
        self.wait()
        self._pending = self._executor.submit(call)

    @property
    def is_busy(self) -> bool:
        """Whether a call is running."""
        return self._pending is not None and not self._pending.done()

    def check(self) -> None:
        """Raise what the last call raised, once, if it has ended."""
        if not self.is_busy:
            self.wait()

    def wait(self) -> None:
        """Until nothing is running. Raises what the last call raised, once."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
