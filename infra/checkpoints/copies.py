"""A second place for a training's newest checkpoint, on another disk or in an object store, should the first be lost.

`<root>/step-000100-<attempt>/` holds what the checkpoint's own folder does (snapshots.py) and a file that lies beside
it. A copy counts when its manifest is there, which is written last and removed first.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from infra.checkpoints.snapshots import MANIFEST_NAME, SnapshotFolder, step_in
from infra.storage.files import StoragePath, copy_file


class CheckpointCopies:
    """The copies of one training's checkpoints. All methods raise what the place does: UserError or OSError."""

    def __init__(self, root: StoragePath) -> None:
        self.root = root

    def put(self, checkpoint: Path, beside: Path) -> None:
        """Copy a checkpoint's folder and the file `beside` it; then remove copies of earlier ones."""
        target = self.root / checkpoint.name
        target.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in checkpoint.iterdir() if path.name != MANIFEST_NAME)
        for source in (*(checkpoint / name for name in names), beside, checkpoint / MANIFEST_NAME):
            copy_file(source, target / source.name)
        for folder in self._folders():
            # A writer that outlived its training must not remove what its successor has put here.
            if folder.name != checkpoint.name and _step(folder) <= _step(target):
                _remove(folder)

    def newest_step(self) -> int:
        """Steps that the newest copy is after; 0 where there is none."""
        folder = self._newest()
        return 0 if folder is None else _step(folder)

    def fetch(self, snapshots: SnapshotFolder, beside: Path) -> None:
        """Bring the newest copy, of which there must be one, back among `snapshots`, and the file beside it."""
        folder = self._newest()
        assert folder is not None
        with snapshots.adding(folder.name) as target:
            for source in folder.iterdir():
                copy_file(source, beside if source.name == beside.name else target / source.name)

    def _newest(self) -> StoragePath | None:
        """The folder of the newest copy that is complete."""
        whole = [folder for folder in self._folders() if (folder / MANIFEST_NAME).is_file()]
        return max(whole, key=lambda folder: (_step(folder), folder.name), default=None)

    def _folders(self) -> list[StoragePath]:
        """Of all copies, complete or not."""
        folders: Iterable[StoragePath] = self.root.iterdir() if self.root.exists() else ()
        return [folder for folder in folders if step_in(folder.name) is not None]


def _step(folder: StoragePath) -> int:
    step = step_in(folder.name)
    assert step is not None, folder
    return step


def _remove(folder: StoragePath) -> None:
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    if isinstance(folder, Path):
        shutil.rmtree(folder)
    else:
        folder.remove_folder()
