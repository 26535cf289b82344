"""Processes that work for this one and end with it, however it ends.

By itself a worker lives as long as there is work, and a fork server as long as its children: ended by SIGTERM or
SIGKILL, a process would leave both behind. So it holds one end of a pipe, it alone, and each of its workers reads from
the other: the kernel tells them when that process is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext


def worker_context(*modules: str) -> ForkServerContext:
    """How workers are started: as copies of a process that has only imported `modules`. A copy of this one could not
    use what has threads, such as an object store or CUDA.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context


@contextmanager
def process_pool(num_processes: int, *modules: str) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that have imported `modules`. When the block ends what has not begun is dropped; when this
    process ends, its workers do so in the middle of their work.
    """
    context = worker_context(*modules)
    watched, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=end_with, initargs=(watched,))
    with closing(held):
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def end_with(watched: Connection) -> None:
    """From now on, end this process when the other end of `watched` is closed. Returns at once."""
    threading.Thread(target=_wait_for_end, args=(watched,), daemon=True).start()


def _wait_for_end(watched: Connection) -> None:
    with suppress(EOFError):
        watched.recv_bytes()
    os._exit(0)
