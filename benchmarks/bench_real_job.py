"""Preset `released` at Stable Diffusion 2.1's true size, from the base model to a generated object, on a CPU:
`python -m benchmarks.bench_real_job FOLDER`.

The weights are random, of exactly the published shapes: time and memory do not depend on their values. Every stage is
the command that a person would type; the training is killed after its first step and goes on. FOLDER (40 GB) may be
removed afterwards. Only the adapter is trained: all weights with AdamW's state and their gradients take more than the
24 GB of a machine that this is meant for.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.record import REPOSITORY, table, write
from pipelines.cli.arguments import parse_run
from pipelines.planning.memory import FLOAT32, GB, training_memory
from pipelines.planning.network import count_parameters
from tests.kill.processes import trains
from tests.support.narrow_models import TRUE_SIZE, save_model
from tests.support.small_runs import SMALL_DATA, words

FEW = {
    **SMALL_DATA,
    "train.trained": "adapter",
    "train.num-steps": "2",
    "train.batch-size": "1",
    "train.engine.precision": "float32",  # CPUs without bfloat16 of their own take ten times as long for it
}
GENERATE = {"text": "toy", "num-views": "3", "sampling.num-steps": "2"}
SAMPLE_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One command."""

    name: str
    seconds: float
    peak_bytes: int
    """Memory of the process that took most, without files that are only mapped."""
    trainer_bytes: int
    """The same of the training worker alone; 0 where there was none."""


def main() -> None:
    """Run, print, write docs/benchmarks/<date>-real-job.{json,md}."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1]).absolute()
    root, base = folder / "root", folder / "base-model"
    if root.exists():
        raise SystemExit(f"{root} is left of another run, whose results would be measured as reused; remove it")
    if not (base / "model_index.json").is_file():
        save_model(base, TRUE_SIZE)
    options = {"preset": "released", "root": str(root), "base.source": str(base)} | FEW
    train, folders = _command("train", options), {"root": str(root), "output": str(root / "generated")}
    results = [
        _measure("captures, shards, captions", _command("captions", options)),
        _measure("base", _command("base", options)),
        _measure("latents", _command("latents", options)),
        _measure("train: first step, then killed", train, until=lambda: _has_checkpoint(root)),
        _measure("train: resumed, second step", train),
        _measure("generate: 3 views, 2 denoising steps", _command("generate", folders | GENERATE)),
    ]
    config = parse_run("train", train[4:], description="").config
    planned = training_memory(config, num_workers=1, device="cpu").peak
    _write(results, planned, FLOAT32 * count_parameters(config)["total"])
    shutil.rmtree(root)


def _write(results: list[Measured], planned: float, copied: int) -> None:
    trainers = [result.trainer_bytes / GB for result in results if result.trainer_bytes]
    rows = [[r.name, f"{r.seconds:.0f}", f"{r.peak_bytes / GB:.1f}"] for r in results]
    text = (
        "`released` on Stable Diffusion 2.1 base's exact shapes with random weights, only the adapter trained, one "
        "sample of 5 views at 256 × 256 a step with a prior image, 32³ voxels in 6 places, float32; prior images are "
        "drawn at 512 × 512.\n\n"
        + table(["command", "seconds", "memory of its largest process, GB"], rows)
        + f"\nThe training worker took {trainers[0]:.1f} GB in its first step and {trainers[-1]:.1f} GB when it was "
        f"resumed, libraries included. `viewdiff plan` says {planned / GB:.1f} GB for a step. The copy of the weights "
        f"that a checkpoint is written from, {copied / GB:.1f} GB, comes on top while that is written; with a GPU it "
        "lies in the machine's memory."
    )
    facts = {"results": [asdict(result) for result in results], "planned_bytes": planned, "copied_bytes": copied}
    write(
        "real-job", title="Stable Diffusion's size, from base to generated object, on a CPU", text=text, results=facts
    )


def _command(name: str, options: Mapping[str, str]) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", name, *words(options)]


def _has_checkpoint(root: Path) -> bool:
    return any(root.glob("train/.partial-*/checkpoints/step-*"))


def _measure(name: str, command: list[str], *, until: Callable[[], bool] | None = None) -> Measured:
    """Run a command to its end, or kill it and all below it when `until` holds."""
    started, peak, trainer, killed = time.monotonic(), 0, 0, False
    print(f"\n{name}", flush=True)
    threads = str(os.cpu_count())  # Ray would give a worker as many as it has reserved cores for: one
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": threads}
    process = subprocess.Popen(command, cwd=REPOSITORY, env=env)
    while process.poll() is None:
        family = _family(process.pid)
        held = {member: _own_bytes(member) for member in family}
        peak = max([peak, *held.values()])
        trainer = max([trainer, *(held[member] for member in family if trains(member))])
        if until is not None and until():
            killed = True
            _kill(family)
            process.wait()
        time.sleep(SAMPLE_SECONDS)
    if killed != (until is not None) or (not killed and process.returncode):
        raise SystemExit(f"{name}: ended with {process.returncode}")
    return Measured(name=name, seconds=time.monotonic() - started, peak_bytes=peak, trainer_bytes=trainer)


def _kill(family: list[psutil.Process]) -> None:
    for member in family:
        with suppress(psutil.NoSuchProcess):  # ended in this moment
            member.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=60)


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _own_bytes(process: psutil.Process) -> int:
    """Memory of a process without mapped files; 0 when it just ended."""
    try:
        memory: Any = process.memory_info()
    except psutil.NoSuchProcess:
        return 0
    return int(memory.rss - memory.shared)


if __name__ == "__main__":
    main()
