"""Sends what a training leaves on the disk to MLflow while it goes on, from a thread of its own.

What is on the disk is the queue. So the training never waits for MLflow; when that is away everything stays where it
is and is sent when it is back, by this command or by the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from infra.addresses import shown_address
from infra.log import get_logger
from infra.tracking.outage import reason_of_outage
from pipelines.recording.senders import Sender

POLL_SECONDS, RETRY_SECONDS = 1.0, 5.0
BACK = "MLflow is back and has everything up to now"


class Recorder:
    """The thread: lets every sender send, again and again, until it is told to end and all is sent."""

    def __init__(self, senders: list[Sender], *, uri: str) -> None:
        self._senders, self._uri = senders, shown_address(uri)
        self._close: Callable[[], None] = lambda: None
        self._ended, self._abandoned, self.done = threading.Event(), threading.Event(), threading.Event()
        self.away: str | None = None
        """Why MLflow does not answer; None while it does."""
        self.failure: Exception | None = None
        """What ended the recording before its time: MLflow refused, or a defect."""
        self._thread = threading.Thread(target=self._follow, name="recorder", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def end(self, close: Callable[[], None]) -> None:
        """Nothing is added any more: send the rest, then call `close` (again, if MLflow is away at that moment) and set
        `done`.
        """
        self._close = close
        self._ended.set()

    def abandon(self) -> None:
        """Leave the rest to the next attempt."""
        self._abandoned.set()

    def _follow(self) -> None:
        try:
            while not self._abandoned.is_set():
                ended = self._ended.is_set()  # what was written before this is seen by the pass that follows
                if self._pass(ended) and ended:
                    return
                (self._abandoned if ended else self._ended).wait(RETRY_SECONDS if self.away else POLL_SECONDS)
        except Exception as error:  # noqa: BLE001 it is raised where the end is waited for
            self.failure = error
            get_logger("train").error("recording stopped (%s); training goes on, run the command again after it", error)
        finally:
            self.done.set()

    def _pass(self, ended: bool) -> bool:
        """Send what there is. False when MLflow is away."""
        try:
            for sender in self._senders:
                sender.send()
            if ended:
                self._close()
        except Exception as error:
            reason = reason_of_outage(error)
            if reason is None:
                raise
            for sender in self._senders:
                sender.doubt()
            if self.away is None:
                get_logger("train").warning(
                    "MLflow at %s does not answer (%s); its record is kept here and sent when it is back",
                    self._uri,
                    reason,
                )
            self.away = reason
            return False
        if self.away is not None:
            get_logger("train").info(BACK)
            self.away = None
        return True
