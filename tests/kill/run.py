"""Kill preprocessing at random moments and see what it leaves: `python -m tests.kill.run 100`.

Kills in turn a worker in the middle of a shard, Ray's node process (the raylet) and the driver, several in each run,
and repeats the command until the run is complete. Every complete folder must hold the bytes of an undisturbed run and
nothing else, no committed shard may have been written a second time, and every command must end: with exit code 0, or
after its raylet was killed with a message for a person.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from infra.storage.files import digest_folder
from pipelines.spine.artifacts import CARD_NAME
from preprocessing.shards.schema import DATASET_NAME
from tests.kill.driver import SEQUENCES_PER_SHARD
from tests.kill.folder import STAGES, Folder, State
from tests.kill.outcome import Kill, Outcome, table
from tests.kill.processes import Driver, writes_shard
from tests.kill.schedule import Goal, Pace, next_run, plan_kills
from tests.support.captures import Capture, make_capture, write_dataset

NUM_SEQUENCES = 200
CATEGORIES = ("apple", "ball", "cup", "donut")
LIMIT_SECONDS = 120.0  # for a driver without a raylet to end; Ray itself gives its start 30 s
STALL_SECONDS = 300.0  # without a new shard, Ray's start on a busy machine included
POLL_SECONDS = 0.002


def start_driver(captures: Path, folder: Path, scratch: Path) -> Driver:
    """The command that is killed; its workers are those that have a shard open."""
    is_worker = partial(writes_shard, folder.resolve())
    return Driver("tests.kill.driver", captures, folder, is_worker=is_worker, scratch=scratch)


class Run:
    """One output folder: drivers are started until it is complete, and killed on the way."""

    def __init__(self, captures: Path, folder: Folder, clean: dict[str, str], outcome: Outcome) -> None:
        self._captures, self._folder, self._clean, self._outcome = captures, folder, clean, outcome
        self._kills: list[Kill] = []

    def carry_out(self, goals: list[Goal]) -> list[Goal]:
        """Kill as planned, complete the run, check it. Returns the goals that it was over too early for."""
        left, exit_code = list(goals), -1
        while exit_code != 0 and not self._outcome.faults:
            with tempfile.TemporaryDirectory(prefix="kill-") as scratch:
                driver = start_driver(self._captures, self._folder.path, Path(scratch))
                self._outcome.num_drivers += 1
                try:
                    exit_code = self._drive(driver, left)
                finally:
                    driver.end()
        self._check_complete()
        return left

    def _drive(self, driver: Driver, goals: list[Goal]) -> int:
        """Kill as planned until the driver ends; takes what it does off `goals`. Returns the exit code."""
        victim, found = "", self._look()
        for kill in self._kills:
            kill.resumed = kill.resumed or found
        while goals and victim not in ("driver", "raylet") and self._reach(driver, goals[0], len(found.committed)):
            if self._kill(driver, goals[0].kind):
                victim = goals.pop(0).kind
        limit = LIMIT_SECONDS if victim == "raylet" else STALL_SECONDS
        for _ in self._looks(driver, limit):
            pass
        self._check_end(driver, victim, found)
        return driver.exit_code if driver.exit_code is not None else -1

    def _looks(self, driver: Driver, limit: float = STALL_SECONDS) -> Iterator[State]:
        """The folder's state again and again until the driver ends, or hangs."""
        last_change, num_committed = time.monotonic(), -1
        while driver.exit_code is None:
            state = self._look()
            if len(state.committed) != num_committed:
                last_change, num_committed = time.monotonic(), len(state.committed)
            if time.monotonic() > last_change + limit:
                self._fault("hang", f"nothing happened for {limit:.0f} s", driver)
                return
            yield state
            time.sleep(POLL_SECONDS)
        self._look()

    def _look(self) -> State:
        state = self._folder.look()
        for kill in self._kills:
            if kill.recovery_seconds is None and kill.resumed is not None and state.is_beyond(kill.resumed):
                kill.recovery_seconds = time.monotonic() - kill.moment
        return state

    def _reach(self, driver: Driver, goal: Goal, found: int) -> bool:
        """Wait for the goal's moment, for which this driver, which found so many shards, must have added some; False
        when it ends before.
        """
        least = max(goal.num_committed, found + 1) if goal.num_committed else 0
        for state in self._looks(driver):
            reached = state.stage == STAGES[2] if goal.in_commit else len(state.committed) >= least
            if reached and (goal.kind == "driver" or driver.has_raylet()):
                time.sleep(goal.delay_seconds)
                return True
        return False

    def _kill(self, driver: Driver, kind: str) -> bool:
        """Kill -9 one process of a kind; False when there is none."""
        process = driver.stopped(kind)
        if process is None:
            return False
        before = self._look()
        process.kill()
        self._kills.append(Kill(kind, before, time.monotonic(), before if kind == "writer" else None))
        self._outcome.kills.append(self._kills[-1])
        return True

    def _check_end(self, driver: Driver, victim: str, found: State) -> None:
        """How the driver ended, and that it left no folder that looks complete and is not."""
        allowed = {"": (0,), "writer": (0,), "raylet": (0, 2), "driver": (-9,)}[victim]
        if driver.exit_code == 1 and victim == "raylet" and self._kills[-1].before.committed == found.committed:
            # Ray's C++ ends the process when it cannot connect; where Python does, there is a traceback.
            allowed = () if "Traceback" in driver.said() else (1,)
            self._outcome.num_aborted += len(allowed)
        if driver.exit_code not in (*allowed, None):
            self._fault("end", f"exit code {driver.exit_code} after the kill of: {victim or 'nothing'}", driver)
        looks_complete = (self._folder.path / DATASET_NAME).exists()
        data = {name: digest for name, digest in self._clean.items() if name != CARD_NAME}  # the card is drawn from it
        if looks_complete and not data.items() <= digest_folder(self._folder.path).items():
            self._fault("mismatch", "a folder that looks complete and is not", driver)

    def _check_complete(self) -> None:
        if self._outcome.faults:
            return
        found = digest_folder(self._folder.path)
        if differing := sorted(dict(found.items() ^ self._clean.items())):
            self._fault("mismatch", f"other files than those of an undisturbed run: {', '.join(differing)}")
        if again := self._folder.rewritten():
            self._fault("rewritten", ", ".join(again))

    def _fault(self, kind: str, what: str, driver: Driver | None = None) -> None:
        said = "" if driver is None else "\n" + driver.said()[-4000:]
        self._outcome.faults.append(f"{kind}: {what}{said}")


def kill_repeatedly(folder: Path, num_kills: int, *, num_sequences: int = NUM_SEQUENCES, seed: int = 0) -> Outcome:
    """Carry out `num_kills` kills, a third of each kind, over as many runs as it takes; ends early at a fault.

    Everything is written below `folder`.
    """
    captures, num_shards = folder / "captures", -(-num_sequences // SEQUENCES_PER_SHARD)
    write_dataset(captures, _make_captures(num_sequences))
    outcome, random = Outcome(), np.random.default_rng(seed)
    clean, pace = _undisturbed(captures, Folder(_made(folder / "clean"), num_shards))
    waiting = plan_kills(num_kills, num_shards, pace, random)
    while waiting and not outcome.faults:
        outcome.num_runs += 1
        started = time.monotonic()
        path = _made(folder / f"run-{outcome.num_runs}")
        before = len(outcome.kills)
        missed = Run(captures, Folder(path, num_shards), clean, outcome).carry_out(next_run(waiting, random))
        waiting += [replace(goal, delay_seconds=goal.delay_seconds / 2) for goal in missed]
        shutil.rmtree(path)
        kills = ", ".join(f"{kill.kind} at {len(kill.before.committed)}" for kill in outcome.kills[before:])
        seconds = time.monotonic() - started
        print(f"run {outcome.num_runs}: {kills or 'over before the kill'}; {seconds:.0f} s", flush=True)
        print(f"{len(outcome.kills)} of {num_kills} kills", flush=True)
    return outcome


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def _make_captures(num_sequences: int) -> list[Capture]:
    return [
        make_capture(CATEGORIES[number % len(CATEGORIES)], f"s{number}", seed=number) for number in range(num_sequences)
    ]


def _undisturbed(captures: Path, folder: Folder) -> tuple[dict[str, str], Pace]:
    """Digests of a run that nobody disturbs, and its pace."""
    with tempfile.TemporaryDirectory(prefix="kill-") as scratch:
        started, stages = time.monotonic(), dict[str, float]()
        driver = start_driver(captures, folder.path, Path(scratch))
        try:
            while driver.exit_code is None:
                state = folder.look()
                stages.setdefault("complete" if state.complete else state.stage, time.monotonic())
                time.sleep(POLL_SECONDS)
        finally:
            driver.end()
        assert driver.exit_code == 0, driver.said()
    return digest_folder(folder.path), Pace(stages[STAGES[1]] - started, stages["complete"] - stages[STAGES[2]])


def main() -> None:
    """Print what happens and a table; exit code 1 if anything went wrong."""
    num_kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory() as folder:
        outcome = kill_repeatedly(Path(folder), num_kills)
    print(table(outcome))
    raise SystemExit(1 if outcome.faults else 0)


if __name__ == "__main__":
    main()
