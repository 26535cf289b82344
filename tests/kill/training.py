"""Kill a training at random moments and see what it leaves: `python -m tests.kill.training 20`.

Kills in turn a rank, Ray's node process (the raylet) and the driver, some in each run, and repeats the command until
the run is complete. Every run must end with the weights of an undisturbed one, with each step recorded once.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.storage.files import digest_file
from tests.kill.processes import Driver, trains
from tests.kill.train_driver import NUM_STEPS
from tests.support.training_inputs import write_inputs

KINDS = ("worker", "raylet", "driver")
MOST_KILLS_PER_RUN = 3
STALL_SECONDS = 300.0
POLL_SECONDS = 0.005


@dataclass
class Kill:
    """What was killed, after how many steps, and what it cost."""

    kind: str
    step: int
    moment: float
    redone_steps: int = 0
    recovery_seconds: float | None = None  # until a step is done that had not been done before


class TrainingRun:
    """One training that is killed at the steps in `goals`, (step, kind) in order, and run again until it is over."""

    def __init__(self, inputs: Path, folder: Path, goals: list[tuple[int, str]]) -> None:
        self._inputs, self._folder, self._goals = inputs, folder, list(goals)
        self.kills: list[Kill] = []

    def carry_out(self) -> None:
        """Raises RuntimeError when nothing happens for long, or a command ends in another way than it should."""
        while True:
            with tempfile.TemporaryDirectory(prefix="kill-") as scratch:
                command = "tests.kill.train_driver", self._inputs, self._folder / "work"
                driver = Driver(*command, is_worker=trains, scratch=Path(scratch))
                try:
                    self._drive(driver)
                finally:
                    driver.end()
                killed = self.kills[-1].kind if self.kills else ""
                if driver.exit_code == 0:
                    return
                if (killed, driver.exit_code) not in (("driver", -9), ("raylet", 2)):
                    raise RuntimeError(f"exit code {driver.exit_code} after the kill of {killed}\n{driver.said()}")

    def _drive(self, driver: Driver) -> None:
        """Until the driver ends."""
        changed, last = time.monotonic(), -1
        while driver.exit_code is None:
            step = self._look()
            if step != last:
                changed, last = time.monotonic(), step
            if time.monotonic() > changed + STALL_SECONDS:
                raise RuntimeError(f"no step for {STALL_SECONDS:.0f} s\n{driver.said()}")
            if self._goals and step >= self._goals[0][0]:
                process = driver.stopped(self._goals[0][1])
                if process is not None:
                    self.kills.append(Kill(self._goals.pop(0)[1], self._look(), time.monotonic()))
                    process.kill()
            time.sleep(POLL_SECONDS)
        self._look()

    def _look(self) -> int:
        """Steps done; notes what became of the kills."""
        path = self._folder / "work" / "metrics.jsonl"
        step = path.read_bytes().count(b"\n") if path.exists() else 0
        for kill in self.kills:
            if kill.recovery_seconds is None:
                kill.redone_steps = max(kill.redone_steps, kill.step - step)
                if step > kill.step or step == NUM_STEPS:
                    kill.recovery_seconds = time.monotonic() - kill.moment
        return step


def outcome(folder: Path) -> str:
    """What must be the same, however a training went."""
    lines = [json.loads(line) for line in (folder / "work" / "metrics.jsonl").read_text().splitlines()]
    losses = [{name: value for name, value in line.items() if not name.startswith("time/")} for line in lines]
    assert [line["step"] for line in losses] == list(range(1, NUM_STEPS + 1))
    return f"{digest_file(folder / 'work' / 'model' / 'model.safetensors')} {losses}"


def plan(num_kills: int, random: np.random.Generator) -> list[list[tuple[int, str]]]:
    """For each run when to kill what."""
    kinds = [KINDS[number % len(KINDS)] for number in range(num_kills)]
    runs = []
    while kinds:
        count = int(random.integers(1, MOST_KILLS_PER_RUN + 1))
        steps = sorted(int(step) for step in random.integers(0, NUM_STEPS, len(kinds[:count])))
        runs.append(list(zip(steps, kinds[:count], strict=True)))
        kinds = kinds[count:]
    return runs


def kill_repeatedly(folder: Path, num_kills: int) -> list[Kill]:
    """Carry out `num_kills` kills, a third of each kind. Raises AssertionError when a run ends in another way than an
    undisturbed one.
    """
    write_inputs(folder / "inputs")
    kills: list[Kill] = []
    expected = ""
    for number, goals in enumerate([[], *plan(num_kills, np.random.default_rng(0))]):
        here, started = folder / f"run-{number}", time.monotonic()
        (here / "work").mkdir(parents=True)
        run = TrainingRun(folder / "inputs", here, goals)
        run.carry_out()
        found = outcome(here)
        expected = expected or found
        assert found == expected, f"run {number} after {goals}"
        kills += run.kills
        said = ", ".join(f"{kill.kind} at step {kill.step}" for kill in run.kills) or "undisturbed"
        print(f"run {number}: {said}; {time.monotonic() - started:.0f} s; {found[:12]}", flush=True)
        shutil.rmtree(here)
    return kills


def main() -> None:
    """Print what happens and a table."""
    num_kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as folder:
        kills = kill_repeatedly(Path(folder), num_kills)
    print("killed  kills  seconds to go on, mean  max  steps redone, mean  max")
    for kind in (*KINDS, "all"):
        chosen = [kill for kill in kills if kind in (kill.kind, "all")]
        seconds = [kill.recovery_seconds or 0.0 for kill in chosen]
        redone = [kill.redone_steps for kill in chosen]
        print(
            f"{kind:>6}  {len(chosen):>5}  {np.mean(seconds):>22.1f}  {max(seconds):.1f}  "
            f"{np.mean(redone):>18.1f}  {max(redone)}"
        )


if __name__ == "__main__":
    main()
