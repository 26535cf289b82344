"""Processes for the tests of Triton kernels."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.numerics.triton_process import triton_process


@pytest.fixture(scope="module")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """Where kernels are interpreted."""
    with triton_process(TRITON_INTERPRET="1") as pool:
        yield pool


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    """Where kernels are compiled, with nothing in Triton's cache."""
    with triton_process(TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path_factory.mktemp("triton"))) as pool:
        yield pool
