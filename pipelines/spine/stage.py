"""The spine: a stage is data, `run_stage` runs it once.

Each stage's result lives in `<root>/<stage>/<fingerprint>/`. While it is being made it lives in
`<root>/<stage>/.partial-<fingerprint>/`, the same folder when the command is run again, so that a stage that was killed
resumes from what it left there. With `--data-root` shards and latents are written there from the start (a file of their
own, written last, says that they are complete), and only the record of where they are lives below the root.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from infra.errors import UserError
from infra.log import format_seconds
from infra.provenance.code_version import git_commit, package_versions
from infra.provenance.fingerprint import fingerprint, identity, plain
from infra.storage.files import StoragePath, as_user_error, atomic_write, publish_folder, replace_folder, require_space
from infra.storage.locks import take_lock
from pipelines.spine.artifacts import DATA_FACT, RECORD_NAME, Artifact, load_artifact
from pipelines.spine.runtime import RuntimeConfig

StageFunction = Callable[[Any, Mapping[str, Any], Any, RuntimeConfig], Mapping[str, Any]]

_LOCK_NAME = ".lock"
_PARTIAL_PREFIX = ".partial-"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One piece of work: what it is made from, not how or where it runs.

    A row of the table of stages (pipelines/chain/table.py) has neither settings nor inputs yet; `dataclasses.replace`
    gives it both. A function may be written as "module:name", and is imported when it is called: most of them pull in
    Ray, DeepSpeed or MLflow.
    """

    name: str
    """Name of the command, of the folder, and of its settings among those of a run."""
    kind: type[Artifact]
    """What comes out."""
    run: StageFunction | str
    """`run(config, inputs, folder, runtime)` writes into `folder`, resuming from what is there, and returns facts."""
    takes: tuple[tuple[str, str], ...] = ()
    """Its inputs in a chain: (role, name of the stage that makes it)."""
    config: object = None
    """A frozen dataclass."""
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    """Results of other stages, by role."""
    version: int = 1
    """Raised when the same config would now give another result."""
    space_bytes: int = 10_000_000
    """Free disk space to insist on before starting."""
    on_gpu: bool = False
    """Whether each of its workers takes a GPU with --use-gpu."""
    tracks: bool = False
    """Whether it writes to MLflow, which must then answer before the chain begins."""
    replaces_inputs: str | None = None
    """Role of an input that, where it is given, is all that the stage is made from."""
    check_before: str | None = None
    """`check(chain, stage)`, called before the chain's first stage."""
    check_result: str | None = None
    """`check(chain, result)`, called when the stage has run or was reused."""
    run_in_chain: str | None = None
    """`run(chain, stage)`, in a chain called instead of `run_stage`; returns the result."""

    @property
    def fingerprint(self) -> str:
        """Identity: name, version, inputs' fingerprints, and the config without what only says how the work is done.
        Not the root, the host or the number of workers.
        """
        inputs = {role: artifact.fingerprint for role, artifact in self.inputs.items()}
        config = identity(self.config, "config")
        return fingerprint({"stage": self.name, "version": self.version, "config": config, "inputs": inputs})


def published_dir(stage: Stage, runtime: RuntimeConfig) -> Path:
    """Folder of the finished result."""
    return runtime.root_dir / stage.name / stage.fingerprint


def partial_dir(stage: Stage, runtime: RuntimeConfig) -> Path:
    """Folder of the unfinished result."""
    return runtime.root_dir / stage.name / f"{_PARTIAL_PREFIX}{stage.fingerprint}"


def final_dir(folder: Path) -> Path:
    """Where the result will be that a stage is making in `folder`."""
    return folder.with_name(folder.name.removeprefix(_PARTIAL_PREFIX))


def data_dir(stage: Stage, runtime: RuntimeConfig) -> StoragePath:
    """Folder that the stage writes into: the unfinished result's, or that of large results where `--data-root` says."""
    if runtime.data_root is None or stage.kind.complete_name is None:
        return partial_dir(stage, runtime)
    return runtime.data_dir / stage.name / stage.fingerprint


def is_finished(stage: Stage, runtime: RuntimeConfig) -> bool:
    """Whether running the stage would only open what is there."""
    return not stage.kind.is_elsewhere and (published_dir(stage, runtime) / RECORD_NAME).is_file()


def run_stage(stage: Stage, runtime: RuntimeConfig) -> Artifact:
    """The stage's result: opened if it is complete, else made (or resumed), recorded and published. A stage
    whose result lies elsewhere runs, and is recorded, every time.

    Raises:
        UserError: the output cannot be written, another process is at the same stage, or the stage's own input is bad.
    """
    final, partial = published_dir(stage, runtime), partial_dir(stage, runtime)
    if is_finished(stage, runtime):
        return _reuse(stage, final)
    require_space(partial, stage.space_bytes)
    with _writing_below(runtime.root_dir), _locked_folder(partial, stage.name):
        if is_finished(stage, runtime):  # by the process that held the lock until now
            shutil.rmtree(partial, ignore_errors=True)
            return _reuse(stage, final)
        work = data_dir(stage, runtime)
        work.mkdir(parents=True, exist_ok=True)
        resumed = _holds_work(partial) or (work != partial and any(True for _ in work.iterdir()))
        print(f"{stage.name}  {'resumes' if resumed else 'starts'} · {stage.fingerprint}", flush=True)
        started = time.monotonic()
        run = resolve_name(stage.run) if isinstance(stage.run, str) else stage.run
        facts = dict(run(stage.config, stage.inputs, work, runtime))
        if work != partial:
            facts[DATA_FACT] = str(work)
        seconds = time.monotonic() - started
        record = _record(stage, facts) | {"seconds": round(seconds, 3), "resumed": resumed}
        atomic_write(partial / RECORD_NAME, (json.dumps(record, indent=2) + "\n").encode())
        publish = replace_folder if stage.kind.is_elsewhere else publish_folder
        publish(partial, final)
        (final / _LOCK_NAME).unlink()
    print(f"{stage.name}  done in {format_seconds(seconds)} · {final}", flush=True)
    return load_artifact(final, stage.kind)


def _reuse(stage: Stage, final: Path) -> Artifact:
    artifact = load_artifact(final, stage.kind)
    name = stage.kind.complete_name
    if name is not None and artifact.data != final and not (artifact.data / name).is_file():
        raise UserError(
            f"stage {stage.name}: {artifact.data} has no {name} any more; restore it, or delete {final} and run the "
            "same command again"
        )
    print(f"{stage.name}  reused · {final}", flush=True)
    return artifact


@contextmanager
def _writing_below(root: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into a message for a person."""
    try:
        yield
    except OSError as error:
        message = as_user_error(error, root)
        if message is None:
            raise
        raise message from error


@contextmanager
def _locked_folder(folder: Path, name: str) -> Iterator[None]:
    """Create `folder` and hold it alone. The kernel drops the lock when the process ends, however it ends."""
    new = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK_NAME).open("a+") as lock:
        try:
            take_lock(lock, wait=False, remedy="choose a --root on another one")
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise UserError(
                f"stage {name}: process {holder} is running it in {folder}; wait for it to end, then run this again"
            ) from error
        except UserError:
            if not _holds_work(folder):
                _remove_new_folders(folder, new)
            raise
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            yield
        except UserError:
            if not _holds_work(folder):
                _remove_new_folders(folder, new)
            raise


def _remove_new_folders(folder: Path, new: list[Path]) -> None:
    """A command that could not start leaves no trace: remove the empty work folder and the parents made for it."""
    shutil.rmtree(folder)
    for parent in new[1:]:
        if any(parent.iterdir()):
            return
        parent.rmdir()


def _holds_work(folder: Path) -> bool:
    return any(path.is_file() and path.name != _LOCK_NAME for path in folder.rglob("*"))


def _record(stage: Stage, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "kind": stage.kind.__name__,
        "stage": stage.name,
        "version": stage.version,
        "fingerprint": stage.fingerprint,
        "config": plain(stage.config),
        "inputs": {
            role: {"kind": type(item).__name__, "fingerprint": item.fingerprint} for role, item in stage.inputs.items()
        },
        "git_commit": git_commit(),
        "versions": package_versions(),
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "facts": plain(dict(facts)),
    }
