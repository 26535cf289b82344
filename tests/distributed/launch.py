"""Run a function in several processes that form one gloo group."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

TIMEOUT_SECONDS = 600  # importing torch and DeepSpeed takes minutes on a machine that is busy with other things


def run_distributed(run: Callable[..., Any], num_ranks: int, *args: Any) -> list[Any]:
    """`run(*args)` on every rank; returns the ranks' results. `run` must be defined at the top of a module.

    Raises:
        RuntimeError: a rank failed (its traceback is on standard error) or took too long.
    """
    with _started(run, num_ranks, args) as (ranks, folder):
        deadline = time.monotonic() + TIMEOUT_SECONDS
        for process in ranks:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in ranks]
        if any(code != 0 for code in codes):
            raise RuntimeError(f"exit codes by rank: {codes}")
        return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(num_ranks)]


def kill_distributed(run: Callable[..., Any], num_ranks: int, *args: Any, when: Callable[[], bool]) -> None:
    """Start `run(*args)` on every rank and kill them all as soon as `when()` holds.

    Raises:
        RuntimeError: they ended before, or it took too long.
    """
    with _started(run, num_ranks, args) as (ranks, _):
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not when():
            if time.monotonic() > deadline or not all(process.is_alive() for process in ranks):
                raise RuntimeError(f"nothing to kill, exit codes by rank: {[rank.exitcode for rank in ranks]}")
            time.sleep(0.002)


@contextmanager
def _started(
    run: Callable[..., Any], num_ranks: int, args: tuple[Any, ...]
) -> Iterator[tuple[list[multiprocessing.Process], Path]]:
    """Processes for the body of a `with`, killed at its end if they still run, and the folder of their results."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.distributed.preload"])
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank_main, args=(run, rank, num_ranks, folder, args)) for rank in range(num_ranks)
        ]
        try:
            for process in ranks:
                process.start()
            yield ranks, Path(folder)
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _rank_main(run: Callable[..., Any], rank: int, num_ranks: int, folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)
    torch.save(run(*args), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
    # Not through Python's own end: gloo's threads may still hold tensors then, which aborts the process now and then.
    sys.stdout.flush()
    os._exit(0)
