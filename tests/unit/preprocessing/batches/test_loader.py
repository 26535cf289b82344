"""Processes that read batches ahead: the same batches, and none of them outlives whom it reads for."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import psutil
import pytest

from preprocessing.batches.loader import load_batches
from tests.unit.preprocessing.batches.test_batches import assert_equal, batches, write


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("loader"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_keep_the_order_and_start_anywhere(root: Path, num_workers: int) -> None:
    made = batches(root)
    positions = [range(start, start + 2) for start in range(100, 112, 2)]
    loaded = list(load_batches(made, positions, num_workers=num_workers))
    assert [batch.positions for batch in loaded] == [tuple(each) for each in positions]
    for batch, each in zip(loaded, positions, strict=True):
        assert_equal(batch, made.load(each))


def read_ahead(root: Path, ready: Event) -> None:
    """A rank in the middle of its training."""
    loaded = load_batches(batches(root), (range(start, start + 2) for start in range(1000)), num_workers=2)
    next(loaded)
    ready.set()
    time.sleep(600)


def test_loaders_end_with_the_process_that_they_read_for(root: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=read_ahead, args=(root, ready))
    process.start()
    assert ready.wait(120)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 3  # a fork server and two loaders
    process.kill()
    process.join()
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive
