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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from infra.log import get_logger
from infra.storage import atomic_write, digest_file, publish_folder

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
        best = self.best()
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
        """The best checkpoint, the earlier of two that are equally good; its files are not looked at."""
        rated = []
        for step, folder in self._found():
            facts = _read_manifest(folder).get("facts", {})
            if math.isfinite(facts.get(self._best_by, math.nan)):
                rated.append(Snapshot(folder, step, facts))
        return min(rated, key=lambda snapshot: (snapshot.facts[self._best_by], snapshot.step), default=None)

    def newest(self) -> Snapshot | None:
        """The newest checkpoint whose files are what its manifest says; damaged ones are named and passed over."""
        for step, folder in self._found():
            problem, manifest = _read(folder, step)
            if problem is None:
                return Snapshot(folder, step, manifest["facts"])
            get_logger("checkpoint").warning("%s is damaged (%s); falling back to the one before", folder, problem)
        return None

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


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Its contents; nothing of one that cannot be read."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _read(folder: Path, step: int) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a checkpoint, or None, and its manifest."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text())
        version, files, named_step = manifest["format_version"], manifest["files"], manifest["step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST_NAME}: {error}", {}
    if version != FORMAT_VERSION:
        return f"format version {version}, this program reads {FORMAT_VERSION}", {}
    if named_step != step:
        return f"{MANIFEST_NAME} says step {named_step}", {}
    for name, digest in files.items():
        if not (folder / name).is_file() or digest_file(folder / name) != digest:
            return f"{name} is missing or changed", {}
    return None, manifest
