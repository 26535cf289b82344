"""Give every reader damaged files and see what it says: `python -m tests.fuzz.run 10000`.

Each input must be accepted with well-formed results, or refused with a reason. Anything else counts: another exception
(a crash), more than `SECONDS` (a hang), an accepted file that is committed and was changed (silent), a started program
or an unpickled object (executed).
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.targets import REFUSALS, Target, make_targets

SECONDS = 30
# Python's own audit events of things that no damaged file may cause.
FORBIDDEN_EVENTS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect"}
OUTCOMES = ("accepted", "refused", "crashed", "hung", "silent", "executed")

_watching = False
_events: list[str] = []


def fuzz(folder: Path, count: int, *, seed: int = 0) -> tuple[dict[str, Counter[str]], list[str]]:
    """`count` damaged files in turn over all targets: outcomes by target, and what was wrong with the bad ones."""
    targets, found = make_targets(folder), dict[str, Counter[str]]()
    wrong: list[str] = []
    for number in range(count):
        target, random = targets[number % len(targets)], np.random.default_rng([seed, number])
        mutation = target.mutations[int(random.integers(len(target.mutations)))]
        whole = target.path.read_bytes()
        damaged = mutation(whole, random)
        target.path.write_bytes(damaged)
        try:
            outcome, detail = _outcome(target, changed=damaged != whole)
        finally:
            target.path.write_bytes(whole)
        found.setdefault(target.name, Counter())[outcome] += 1
        if outcome not in ("accepted", "refused"):
            wrong.append(f"input {number}: {target.name}, {mutation.__name__}: {outcome}: {detail}")
    return found, wrong


def _outcome(target: Target, *, changed: bool) -> tuple[str, str]:
    with _watched():
        try:
            target.read()
            outcome, detail = ("silent" if target.must_refuse and changed else "accepted"), ""
        except REFUSALS as reason:
            outcome, detail = ("refused" if str(reason) else "crashed"), str(reason)
        except TimeoutError as error:
            outcome, detail = "hung", str(error)
        except AssertionError as error:
            outcome, detail = "silent", f"accepted something malformed: {error}"
        except Exception as error:  # noqa: BLE001 every other one is what is looked for
            outcome, detail = "crashed", f"{type(error).__name__}: {error}"
    return ("executed", ", ".join(_events)) if _events else (outcome, detail)


@contextmanager
def _watched() -> Iterator[None]:
    global _watching
    _events.clear()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    _watching = True
    try:
        yield
    finally:
        _watching = False
        signal.alarm(0)


def _too_long(signum: int, frame: Any) -> None:
    raise TimeoutError(f"more than {SECONDS} s")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in FORBIDDEN_EVENTS:
        _events.append(event)


sys.addaudithook(_audit)


def main() -> None:
    """Print a table; exit code 1 if anything went wrong."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        found, wrong = fuzz(Path(folder), count)
    print(f"{'file':<24}" + "".join(f"{outcome:>10}" for outcome in OUTCOMES))
    for name, outcomes in [*found.items(), ("all", sum(found.values(), Counter()))]:
        print(f"{name:<24}" + "".join(f"{outcomes[outcome]:>10,}" for outcome in OUTCOMES))
    print("\n".join(wrong[:50]))
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
