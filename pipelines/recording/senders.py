"""What of a training goes to MLflow besides its metrics: preview pictures and the record of its checkpoints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from infra.checkpoints.snapshots import MANIFEST_NAME
from infra.tracking.run import ModelMetrics, Run
from infra.tracking.tags import CHECKPOINT, FILES_KEPT, FILES_REMOVED, FILES_TAG, FOLDER_PARAM

PREVIEW_SERIES = "preview"

_PREVIEW_NAME = re.compile(r"step-(\d+)\.png")


class Sender(Protocol):
    """Sends one kind of thing, each once."""

    def send(self) -> None:
        """Send what is there now."""

    def doubt(self) -> None:
        """A request failed, and may have been carried out: ask MLflow again what it has."""


class PreviewSender:
    """The preview pictures, as a series of the run."""

    def __init__(self, folder: Path, run: Run) -> None:
        self._folder, self._run = folder, run
        self._sent: set[int] | None = None

    def send(self) -> None:
        """As `Sender.send`."""
        if self._sent is None:
            self._sent = self._run.picture_steps(PREVIEW_SERIES)
        paths = self._folder.iterdir() if self._folder.is_dir() else ()
        found = ((match, path) for path in paths if (match := _PREVIEW_NAME.fullmatch(path.name)))
        for step, path in sorted((int(match[1]), path) for match, path in found):
            if step not in self._sent:
                self._run.log_picture(np.asarray(Image.open(path)), PREVIEW_SERIES, step=step)
                self._sent.add(step)

    def doubt(self) -> None:
        """As `Sender.doubt`."""
        self._sent = None


class CheckpointSender:
    """The checkpoints, as logged models of the run that hold only a manifest: gigabytes stay where they are.

    Only the newest are kept on the disk; the record of the others says that their files are removed.
    """

    def __init__(self, folder: Path, run: Run, attempt: Run) -> None:
        self._folder, self._run, self._attempt = folder, run, attempt
        self._kept: dict[str, str] | None = None  # ids of the logged models whose files are there, by name
        self._known: set[str] = set()

    def send(self) -> None:
        """As `Sender.send`; of checkpoints that came and went while MLflow was away there is nothing to say."""
        if self._kept is None:
            models = self._run.models(CHECKPOINT)
            self._known = {model.name for model in models}
            self._kept = {model.name: model.model_id for model in models if model.tags.get(FILES_TAG) == FILES_KEPT}
        for manifest in sorted(self._folder.glob(f"step-*/{MANIFEST_NAME}")):
            if manifest.parent.name not in self._known:
                self._log(manifest)
        self._tag_removed(name for name in self._kept if not (self._folder / name).is_dir())

    def doubt(self) -> None:
        """As `Sender.doubt`."""
        self._kept = None

    def tag_all_removed(self) -> None:
        """Say that no checkpoint is kept any longer."""
        self._tag_removed(self._kept or ())

    def _log(self, manifest: Path) -> None:
        try:
            facts = json.loads(manifest.read_bytes())
        except FileNotFoundError:  # removed since it was listed
            return
        name = manifest.parent.name
        params = {"step": facts["step"], FOLDER_PARAM: str(manifest.parent)}
        params |= {f"sha256.{file}": digest for file, digest in facts["files"].items()}
        metrics = ModelMetrics(self._attempt, facts["step"], facts["facts"])
        model_id = self._run.log_model_record(
            facts, MANIFEST_NAME, name=name, kind=CHECKPOINT, params=params, metrics=metrics
        )
        assert self._kept is not None
        self._known.add(name)
        self._kept[name] = model_id

    def _tag_removed(self, names: Iterable[str]) -> None:
        for name in list(names):
            assert self._kept is not None
            self._run.tag_model(self._kept[name], {FILES_TAG: FILES_REMOVED})
            del self._kept[name]
