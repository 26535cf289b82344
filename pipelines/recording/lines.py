"""JSON Lines files that grow while they are read, and their way into a run's metrics."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from infra.tracking.run import Run

_CHUNK_BYTES = 1 << 20  # so that what waits in memory is little, however long nothing could be sent


class LineReader:
    """Whole lines that were appended to a file since the last look; from the start again when it was replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None  # kept open: the inode of one that is gone may be its successor's

    def read(self) -> list[dict[str, Any]]:
        """The next lines, about a megabyte of them at most; none when there are no others yet."""
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            return []
        if self._file is None or _inode(self._file) != inode:
            self.close()
            self._file = self._path.open("rb")
        start = self._file.tell()
        text = self._file.read(_CHUNK_BYTES)
        whole = text[: text.rfind(b"\n") + 1]
        self._file.seek(start + len(whole))
        return [json.loads(line) for line in whole.splitlines()]

    def close(self) -> None:
        """Let the file go; a later read starts from its beginning."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _inode(file: BinaryIO) -> int | None:
    """Of an open file; None of one that is gone, as happens on network file systems to one that was replaced."""
    try:
        return os.fstat(file.fileno()).st_ino
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return None


class LineSender:
    """Sends every line's numbers to a run, each step once, many steps in a request.

    The file itself is the queue: what was sent is known from the run's last step of the metric `marker`, which every
    line must hold. So nothing is lost or sent twice, however often this process or the server end.
    """

    def __init__(self, path: Path, run: Run, *, marker: str) -> None:
        self._reader, self._run, self._marker = LineReader(path), run, marker
        self._waiting: list[dict[str, Any]] = []
        self._certain = False
        self.last_sent = -1
        """Step up to which the run has everything, as far as is known."""

    def send(self) -> None:
        """Send what is there now. After an exception `doubt` must be called before the next attempt."""
        if not self._certain:
            self.last_sent = self._run.last_step(self._marker)
            self._certain = True
        while True:
            self._waiting = [line for line in self._waiting if line["step"] > self.last_sent]
            if not self._waiting and not (read := self._reader.read()):
                return
            self._waiting = self._waiting or [line for line in read if line["step"] > self.last_sent]
            if self._waiting:
                count = self._run.log_lines(self._waiting)
                self.last_sent = self._waiting[count - 1]["step"]

    def doubt(self) -> None:
        """Ask again what the run has: a request that failed may have been carried out."""
        self._certain = False
