"""Workers end with the process that they work for, and with the work that it wants."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from infra.system.processes import process_pool
from pipelines.commands.inspect_captures import inspect
from pipelines.settings.commands import InspectConfig
from preprocessing.synthetic.config import SyntheticConfig
from preprocessing.synthetic.dataset import write_dataset
from tests.support.captures import make_capture, write_annotations

SECONDS_TO_END = 10.0  # of workers on a busy machine; on an idle one they take milliseconds


def write_forever(folder: Path) -> None:
    number = 0
    while True:
        number += 1
        (folder / f"{os.getpid()}-{number}").touch()
        time.sleep(0.01)


def use_pool(folder: Path) -> None:
    """Work that never ends by itself."""
    with process_pool(2, __name__) as pool:
        list(pool.map(write_forever, [folder] * 8))


def synthesize(folder: Path) -> None:
    """`viewdiff synth` in the middle of its work."""
    config = SyntheticConfig(categories=("apple",), objects_per_category=200, frames_per_sequence=4, image_size=64)
    write_dataset(config, folder, num_processes=2)


def look(folder: Path) -> None:
    """`viewdiff inspect` of categories that block for ever, as those on a file server that has gone away."""
    for category in ("apple", "hydrant", "toaster"):
        write_annotations(folder, [make_capture(category)])
        (folder / category / "sequence_annotations.jgz").unlink()
        os.mkfifo(folder / category / "sequence_annotations.jgz")
    os.cpu_count = lambda: 2
    inspect(folder, InspectConfig())


@pytest.fixture(params=[signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def end(request: pytest.FixtureRequest) -> signal.Signals:
    return request.param


@pytest.mark.parametrize("work", [use_pool, synthesize, look])
def test_nothing_outlives_a_process_that_is_killed(
    work: Callable[[Path], None], end: signal.Signals, tmp_path: Path
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=work, args=(tmp_path,))
    process.start()
    assert process.pid is not None
    family = wait_for_workers(psutil.Process(process.pid), tmp_path)
    os.kill(process.pid, end)
    process.join()
    assert process.exitcode == -end  # not of itself before
    _, alive = psutil.wait_procs(family, timeout=SECONDS_TO_END)
    for left in alive:
        left.kill()
    assert not alive
    before = sorted(tmp_path.rglob("*"))
    time.sleep(0.5)
    assert sorted(tmp_path.rglob("*")) == before


def wait_for_workers(process: psutil.Process, folder: Path) -> list[psutil.Process]:
    """Everything that was started by the process, once two workers are busy: a fork server's children."""
    for _ in range(1200):
        family = process.children(recursive=True)
        workers = [child for child in family if child.ppid() != process.pid]
        if len(workers) >= 2 and any(folder.iterdir()):
            return family
        time.sleep(0.05)
    raise AssertionError("no workers")


def test_what_has_not_begun_is_dropped(tmp_path: Path) -> None:
    started = time.monotonic()
    with process_pool(1, __name__) as pool:
        for _ in range(100):
            pool.submit(time.sleep, 0.5)
    assert time.monotonic() - started < 30
