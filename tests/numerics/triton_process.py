"""Processes in which Triton interprets or compiles: it decides which when it is imported."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import pytest

# Shared memory of a multiprocessor that programs can use, by compute capability.
SHARED_MEMORY = {80: 164 * 1024, 90: 228 * 1024}


@contextmanager
def triton_process(**environment: str) -> Iterator[ProcessPoolExecutor]:
    """One worker that was started with these variables in its environment."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            pool.submit(os.getpid).result()  # it starts now
        yield pool
