"""What stages produce: a folder with a record in it. One class per kind, so no stage can be given the wrong one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from infra.errors import UserError
from infra.provenance.fingerprint import fingerprint
from infra.storage.files import StoragePath, digest_file, digest_folder, open_path

if TYPE_CHECKING:
    from preprocessing.shards.reading import FrameIndex

RECORD_NAME = "artifact.json"
DATA_FACT = "data"  # the fact that says where an artifact's files are when not in its folder
CARD_NAME = "card.html"  # beside the shards
_MODEL_CONFIG = "config.json"  # as model/pretrained.py writes it, which takes seconds to import
_ANNOTATION_PATTERNS = (
    "category_to_subset_name_list.json",
    "*/frame_annotations.jgz",
    "*/sequence_annotations.jgz",
    "*/set_lists/set_lists_*.json",
)


@dataclass(frozen=True)
class Artifact:
    """A finished stage's result: its identity, its folder, and the facts (counts, ids) that its stage reported."""

    fingerprint: str
    folder: Path
    facts: Mapping[str, Any] = field(default_factory=dict)
    complete_name: ClassVar[str | None] = None
    """The file that is written last, of kinds that are large and read file by file, and may be in an object store."""
    is_elsewhere: ClassVar[bool] = False
    """Whether what the stage makes lies in a service, and the folder only tells of it: the stage runs every time."""

    @property
    def data(self) -> StoragePath:
        """Where its files are: in its folder, or in the object store that it was written to or read from."""
        address = self.facts.get(DATA_FACT)
        return self.folder if address is None else open_path(address)


@dataclass(frozen=True)
class RawDataset(Artifact):
    """Captures in CO3Dv2 layout; `data` is the root."""


@dataclass(frozen=True)
class Shards(Artifact):
    """Preprocessed sequences: webdataset shards, index.parquet, dataset.json, card.html."""

    complete_name = "dataset.json"

    def index(self, captions: Captions) -> FrameIndex:
        """Their frames, each sequence with these captions.

        Raises:
            UserError: one of the two is missing or damaged.
        """
        from preprocessing.captions.files import open_index  # Arrow takes a second to import

        return open_index(self.data, captions.folder)


@dataclass(frozen=True)
class Captions(Artifact):
    """What the sequences of one `Shards` are said to show."""


@dataclass(frozen=True)
class BaseFolder(Artifact):
    """A 2D text-to-image model in diffusers' folder layout."""


@dataclass(frozen=True)
class Latents(Artifact):
    """Cached VAE moments, caption embeddings and prior samples of one `Shards` and `Captions` under one base model."""

    complete_name = "latents.json"


@dataclass(frozen=True)
class GivenModel(Artifact):
    """A multi-view model that no stage of this root made."""

    @property
    def model_dir(self) -> Path:
        """As `Checkpoint.model_dir`."""
        return self.folder


@dataclass(frozen=True)
class PretrainedModel(Artifact):
    """A model that others trained and that a stage reads, see pipelines/spine/sources.py."""


@dataclass(frozen=True)
class Checkpoint(Artifact):
    """A trained multi-view model."""

    @property
    def model_dir(self) -> Path:
        """Folder for `ViewDiffUNet.from_pretrained`."""
        return self.folder / "model"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per optimizer step."""
        return self.folder / "metrics.jsonl"


@dataclass(frozen=True)
class EvaluationReport(Artifact):
    """Scores and pictures of held-out objects."""

    @property
    def objects_path(self) -> Path:
        """One row per evaluated object."""
        return self.folder / "objects.parquet"

    @property
    def summary_path(self) -> Path:
        """Means over the objects."""
        return self.folder / "summary.json"

    @property
    def pictures_dir(self) -> Path:
        """One .npz per object."""
        return self.folder / "pictures"


@dataclass(frozen=True)
class Report(Artifact):
    """The page to look at."""

    @property
    def html_path(self) -> Path:
        """Self-contained HTML."""
        return self.folder / "report.html"


@dataclass(frozen=True)
class ModelVersion(Artifact):
    """A version in MLflow's model registry; facts hold its name, version and alias."""

    is_elsewhere = True

    @property
    def became_champion(self) -> bool:
        """Whether it was better than all before it."""
        return self.facts["alias"] == "champion"


KIND = TypeVar("KIND", bound=Artifact)


def load_artifact(folder: Path, kind: type[KIND]) -> KIND:
    """Open a published artifact.

    Raises:
        UserError: `folder` holds no artifact, or one of another kind.
    """
    record = read_record(folder)
    if record["kind"] != kind.__name__:
        raise UserError(
            f"{folder} holds a {record['kind']}, not a {kind.__name__}; name the folder of a {kind.__name__}"
        )
    return kind(fingerprint=record["fingerprint"], folder=folder, facts=record["facts"])


def newest(root: Path, stage: str, fits: Callable[[Path], bool] = lambda folder: True) -> Path | None:
    """Folder of the stage's result below `root` that was finished last, among those that fit; None without any."""
    folders = [path.parent for path in (root / stage).glob(f"[!.]*/{RECORD_NAME}") if fits(path.parent)]
    return max(folders, key=lambda folder: str(read_record(folder)["created"]), default=None)


def read_record(folder: Path) -> dict[str, Any]:
    """The record beside an artifact: kind, config, inputs, versions, facts.

    Raises:
        UserError: there is none, or it is not readable.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        raise UserError(f"{folder} holds no {RECORD_NAME}: it is not a finished artifact; name the folder of one")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); delete the folder and run its stage again") from error
    missing = [key for key in ("kind", "fingerprint", "inputs", "created", "facts") if key not in record]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}; delete the folder and run its stage again")
    return record


def external_model(folder: Path) -> GivenModel:
    """A model that was trained elsewhere, or is that of a training that did not end. Its identity is its content.

    Raises:
        UserError: there is no model in `folder`.
    """
    if not (folder / _MODEL_CONFIG).is_file():
        raise UserError(
            f"--initial {folder}: no {_MODEL_CONFIG} in it; name the folder of a trained model, such as model/ of a "
            "training"
        )
    return GivenModel(fingerprint=fingerprint({"model": digest_folder(folder)}), folder=folder.absolute())


def external_dataset(root: StoragePath) -> RawDataset:
    """Captures that no stage wrote.

    Their identity is the content of the annotation and set-list files, wherever these lie; images are not read.

    Raises:
        UserError: `root` is not a CO3Dv2 dataset.
    """
    if not root.is_dir():
        raise UserError(
            f"data set {root}: no such folder; name the folder that holds category_to_subset_name_list.json"
        )
    paths: list[StoragePath] = [path for pattern in _ANNOTATION_PATTERNS for path in root.glob(pattern)]
    files = {str(path).removeprefix(f"{root}/"): path for path in paths}
    if not any(name.endswith("/frame_annotations.jgz") for name in files):
        raise UserError(
            f"data set {root}: not in CO3Dv2 layout, it has no <category>/frame_annotations.jgz; "
            "name the folder that holds category_to_subset_name_list.json"
        )
    digests = {name: digest_file(path) for name, path in sorted(files.items())}
    identity = fingerprint({"dataset": digests})
    if isinstance(root, Path):
        return RawDataset(fingerprint=identity, folder=root.absolute())
    return RawDataset(fingerprint=identity, folder=Path(), facts={DATA_FACT: str(root)})
