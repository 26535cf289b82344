"""Training checkpoints that are complete or invisible, however the writer ended.

`<root>/step-000100-<attempt>/` holds safetensors files and manifest.json with the SHA-256 of each. A checkpoint is
written below a hidden name and renamed when everything in it has reached the disk. Nothing is ever unpickled, and
nothing is loaded that differs from its manifest.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.errors import UserError
from infra.log import get_logger
from infra.storage.files import atomic_write, digest_file, publish_folder

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_NAME = re.compile(r"step-(\d{6,})-[0-9a-f]{8}")
_PARTIAL_PREFIX = ".partial-"
_OWNER_NAME = "owner"  # a file with the attempt that may write


@dataclass(frozen=True)
class Snapshot:
    """One complete checkpoint."""

    folder: Path
    step: int  # optimizer steps done
    facts: Mapping[str, Any]  # what the writer put beside the tensors

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors saved as `name`, on the CPU."""
        return load_file(self.folder / f"{name}.safetensors")


class SnapshotFolder:
    """The checkpoints of one training: the newest `keep` of them, and the best, which is the one with the smallest
    `best_by` among its facts, if any has it.
    """

    def __init__(self, root: Path, *, keep: int = 2, best_by: str = "validation_loss") -> None:
        self._root, self._keep, self._best_by = root, keep, best_by
        self._attempt = uuid.uuid4().hex[:8]

    def claim(self) -> None:
        """Become the only writer. Whoever outlived the training that it belonged to can publish nothing any more, and
        what killed ones left unfinished is removed.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        atomic_write(self._root / _OWNER_NAME, self._attempt.encode())
        for orphan in self._root.glob(f"{_PARTIAL_PREFIX}*"):
            with suppress(FileNotFoundError):  # published at this very moment
                shutil.rmtree(orphan)

    def save(
        self,
        step: int,
        parts: Mapping[str, Mapping[str, Tensor]],
        facts: Mapping[str, Any],
        *,
        in_use: Path | None = None,
    ) -> Snapshot:
        """Write `parts` (tensors by file name without ending) as the checkpoint after `step` steps; drop old ones, but
        not the one `in_use`, and later ones, which are damaged or of a run that did not end.

        Raises:
            RuntimeError: another process has claimed the folder.
        """
        name = f"step-{step:06d}-{self._attempt}"
        with self.adding(name) as partial:
            for part, tensors in parts.items():
                save_file({key: value.contiguous() for key, value in tensors.items()}, partial / f"{part}.safetensors")
            digests = {path.name: digest_file(path) for path in sorted(partial.iterdir())}
            manifest = {"format_version": FORMAT_VERSION, "step": step, "files": digests, "facts": dict(facts)}
            (partial / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n")
        best = next(iter(self._rated()), None)
        found = [(step_found, folder) for step_found, folder in self._found() if folder != in_use]
        newest = [folder for step_found, folder in found if step_found <= step][: self._keep]
        for step_found, folder in found:
            if step_found > step or folder not in (*newest, best and best.folder):
                shutil.rmtree(folder)
        return Snapshot(self._root / name, step, dict(facts))

    @contextmanager
    def adding(self, name: str) -> Iterator[Path]:
        """An empty folder to write a checkpoint into, which is published as `name` when the block ends well, in the
        place of a damaged one.
        """
        partial = self._root / f"{_PARTIAL_PREFIX}{name}"
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir(parents=True)
        yield partial
        owner = self._root / _OWNER_NAME
        if owner.exists() and owner.read_text() != self._attempt:
            raise RuntimeError(f"{self._root}: another process has taken this training over")
        shutil.rmtree(self._root / name, ignore_errors=True)
        publish_folder(partial, self._root / name)

    def best(self) -> Snapshot | None:
        """The best checkpoint that is not damaged."""
        return _first_whole(snapshot.folder for snapshot in self._rated())

    def newest(self) -> Snapshot | None:
        """The newest checkpoint that is not damaged, which is that its files are what its manifest says.

        Raises:
            UserError: all are damaged, or one cannot be read or is of another version of this program.
        """
        folders = [folder for _, folder in self._found()]
        newest = _first_whole(folders)
        if folders and newest is None:
            raise UserError(
                f"{self._root}: all {len(folders)} checkpoints are damaged; restore one, or remove "
                f"{self._root.parent} (and the copy below --data-root) to train from the first step"
            )
        return newest

    def _rated(self) -> list[Snapshot]:
        """The checkpoints that can be compared, best first, the earlier of two that are equally good; their files are
        not looked at.
        """
        rated = []
        for step, folder in self._found():
            facts = _facts(folder)
            if math.isfinite(facts.get(self._best_by, math.nan)):
                rated.append(Snapshot(folder, step, facts))
        return sorted(rated, key=lambda snapshot: (snapshot.facts[self._best_by], snapshot.step))

    def _found(self) -> list[tuple[int, Path]]:
        """(step, folder) of all published checkpoints, newest first."""
        if not self._root.is_dir():
            return []
        steps = [(step_in(path.name), path) for path in self._root.iterdir()]
        return sorted(((step, path) for step, path in steps if step is not None), reverse=True)


def step_in(name: str) -> int | None:
    """The steps in the name of a checkpoint's folder; None for other names."""
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


def _first_whole(folders: Iterable[Path]) -> Snapshot | None:
    """The first that is not damaged; those before it are named."""
    for folder in folders:
        try:
            manifest = _read(folder)
        except _DamagedError as error:
            get_logger("checkpoint").warning("%s is damaged (%s); falling back to another one", folder, error)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be read ({error.strerror}) but may be whole; mend that and run the same command again"
            ) from error
        else:
            return Snapshot(folder, manifest["step"], manifest["facts"])
    return None


def _facts(folder: Path) -> dict[str, Any]:
    """Those of a checkpoint; none of one whose manifest is damaged."""
    try:
        return _read_manifest(folder)["facts"]
    except _DamagedError:
        return {}


def _read(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are as it says. Raises as `_read_manifest`."""
    manifest = _read_manifest(folder)
    for name, digest in manifest["files"].items():
        if not (folder / name).is_file() or digest_file(folder / name) != digest:
            raise _DamagedError(f"{name} is missing or changed")
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Raises _DamagedError, UserError for one of another version, and OSError when neither can be told."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
        if (version := manifest["format_version"]) != FORMAT_VERSION:
            raise UserError(
                f"{folder} has format version {version}, this program reads {FORMAT_VERSION}; go on with the program "
                "that wrote it"
            )
        found = {"step": manifest["step"], "files": dict(manifest["files"]), "facts": dict(manifest["facts"])}
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{MANIFEST_NAME}: {error}") from error
    if found["step"] != step_in(folder.name):
        raise _DamagedError(f"{MANIFEST_NAME} says step {found['step']}")
    return found


class _DamagedError(Exception):
    """What is wrong with a checkpoint."""
