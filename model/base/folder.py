"""A Stable Diffusion as a folder of the diffusers library: where it lies, and which of its files hold the weights.

Reads names, JSON and the headers of safetensors files, never a weight; model/base/checks.py judges what they say.
"""

from __future__ import annotations

import errno
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

INDEX_NAME = "model_index.json"
VARIANTS = (None, "fp16", "bf16")  # in the order of choice; None are the plain names

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_HUB_ERRORS = (OSError, ValueError, HTTPError)
_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
_LFS_POINTER = b"version https://git-lfs"
_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_SINGLE_FILES = (".safetensors", *_PICKLED)
_CONVERT = (
    "and only safetensors files are read, since others may hold code; where that may run, diffusers' "
    "StableDiffusionPipeline.from_pretrained(SOURCE).save_pretrained(FOLDER) writes a folder that has them"
)


class PartFiles(NamedTuple):
    """How a part's weight files are called."""

    stem: str
    index_first: bool  # whether its library prefers shards where there is a single file too


PARTS = {
    "unet": PartFiles("diffusion_pytorch_model", index_first=True),
    "vae": PartFiles("diffusion_pytorch_model", index_first=True),
    "text_encoder": PartFiles("model", index_first=False),
}


class StoredTensor(NamedTuple):
    """What a safetensors file says of a tensor."""

    dtype: str  # as safetensors calls it: "F16"
    shape: tuple[int, ...]


class Weights(NamedTuple):
    """The files that hold a part's weights."""

    variant: str | None
    files: tuple[Path, ...]


@dataclass(frozen=True)
class DiffusersFolder:
    """A folder on this machine, and the name that a person gave for it."""

    path: Path
    name: str
    from_hub: bool = False  # whether the path is the cache's copy

    def unfit(self, text: str) -> ValueError:
        """The error that says why the model cannot be used: `text` goes on after the model's name."""
        return ValueError(f"base model {self.name}{text}")

    def read_json(self, file: str) -> dict[str, Any]:
        """The JSON object in a file of the folder.

        Raises ValueError when there is none.
        """
        path = self.path / file
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise self.unfit(f": {file} is missing; give a whole diffusers folder") from None
        except (OSError, ValueError, RecursionError) as error:
            raise self.unfit(f": cannot read {file} ({first_line(error)}); download it again") from error
        if not isinstance(value, dict):
            raise self.unfit(f": {file} holds no JSON object; download it again")
        return value

    def weights(self, part: str) -> Weights:
        """The files that hold the weights of `part`: the plain ones, or a variant's where those are absent.

        Raises ValueError when there are none in safetensors form, or a shard is missing.
        """
        folder = self.path / part
        for variant, file in weight_candidates(part):
            if (self.path / file).is_file():
                names = self.shard_names(file) if file.endswith(".json") else [Path(file).name]
                missing = [name for name in names if not (folder / name).is_file()]
                if missing:
                    raise self.unfit(f": {part}/{missing[0]} is missing, which {file} names; download it again")
                return Weights(variant, tuple(folder / name for name in names))
        found = sorted(path.name for path in folder.glob("*"))
        pickled = [name for name in found if name.endswith(_PICKLED)]
        if pickled:
            raise self.unfit(f": its {part} has its weights in {', '.join(pickled)} alone, {_CONVERT}")
        missing_file = f"{PARTS[part].stem}.safetensors"
        raise self.unfit(f": {part}/{missing_file} is missing, there is {', '.join(found)}; download it again")

    def shard_names(self, index: str) -> list[str]:
        """The names of the files that an index names, all beside it.

        Raises ValueError when it names none, or others.
        """
        files = self.read_json(index).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise self.unfit(f": {index} names no files; download it again")
        for name in files.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise self.unfit(f": {index} names {name!r}, which is no file beside it; download it again")
        return sorted(set(files.values()))

    def headers(self, part: str) -> dict[str, StoredTensor]:
        """The tensors that the files of `part` hold, by the names that they have there.

        Raises ValueError when a file is missing, cut short or of another form.
        """
        found: dict[str, StoredTensor] = {}
        for file in self.weights(part).files:
            try:
                with safe_open(file, framework="pt") as tensors:
                    for key in tensors.keys():  # noqa: SIM118 it is no mapping
                        stored = tensors.get_slice(key)
                        found[key] = StoredTensor(stored.get_dtype(), tuple(stored.get_shape()))
            except (OSError, SafetensorError) as error:
                with file.open("rb") as opened:
                    is_pointer = opened.read(len(_LFS_POINTER)) == _LFS_POINTER
                reason = "it is a pointer of Git LFS, not the file" if is_pointer else first_line(error)
                remedy = "fetch the files with git lfs pull" if is_pointer else "download it again"
                raise self.unfit(f": cannot read {part}/{file.name} ({reason}); {remedy}") from error
        return found


def weight_candidates(part: str) -> list[tuple[str | None, str]]:
    """(variant, file below the model's folder) of the places where a part's weights may be, in the order of choice."""
    stem, index_first = PARTS[part]
    candidates = []
    for variant in VARIANTS:
        suffix = f".{variant}" if variant else ""
        names = [f"{stem}{suffix}.safetensors", f"{stem}.safetensors.index{suffix}.json"]
        candidates += [(variant, f"{part}/{name}") for name in (reversed(names) if index_first else names)]
    return candidates


def open_folder(source: str | Path, revision: str | None = None) -> DiffusersFolder:
    """The folder of a base model: `source` itself, or the cache's copy of that id on the hub, with all but the weights
    (see `fetch_weights`).

    Raises ValueError when it is neither, or the hub does not give it.
    """
    folder, name = find_folder(source), str(source)
    if folder is not None:
        return folder
    patterns = [INDEX_NAME, "scheduler/*.json", "tokenizer/*", *(f"{part}/*.json" for part in PARTS)]
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except _HUB_ERRORS as error:
        raise _refused_by_hub(name, error) from error
    return DiffusersFolder(path, name, from_hub=True)


def find_folder(source: str | Path) -> DiffusersFolder | None:
    """The folder that `source` names; None for what may be an id on the hub.

    Raises ValueError when it is a file, or no such folder exists and it cannot be an id.
    """
    path, name = Path(source).expanduser(), str(source)
    if path.is_dir():
        return DiffusersFolder(path, name)
    if path.is_file() and path.suffix in _SINGLE_FILES:
        raise ValueError(
            f"base model {name} is a single file; give a diffusers folder: StableDiffusionPipeline.from_single_file"
            "(FILE).save_pretrained(FOLDER) of the diffusers library makes one"
        )
    if not _HUB_ID.fullmatch(name):
        raise ValueError(f"base model {name}: there is no such folder; give a diffusers folder or an id on the hub")
    return None


def fetch_weights(folder: DiffusersFolder) -> None:
    """Download the weights of a model on the hub into the cache, where it lacks them.

    Raises ValueError when the hub has none in safetensors form, or does not give them.
    """
    if not folder.from_hub:
        return
    for part in PARTS:
        try:
            file = _fetch_first(folder, part)
            if file is None:
                raise folder.unfit(f": the hub has no safetensors weights of its {part}, {_CONVERT}")
            for name in folder.shard_names(file) if file.endswith(".json") else ():
                _fetch(folder, f"{part}/{name}")  # where the hub lacks it, `weights` says so
        except LocalEntryNotFoundError as error:
            raise _refused_by_hub(folder.name, error) from error


def _fetch_first(folder: DiffusersFolder, part: str) -> str | None:
    """Download the first of the candidates that the hub has; None where it has none.

    Raises LocalEntryNotFoundError rather than take a variant when it cannot be known whether the hub has the one before
    it: another machine would compute with other weights. In offline mode the cache is all there is.
    """
    unreachable: tuple[str | None, LocalEntryNotFoundError] | None = None
    for variant, file in weight_candidates(part):
        if unreachable is not None and unreachable[0] != variant and not constants.HF_HUB_OFFLINE:
            break
        try:
            if _fetch(folder, file):
                return file
        except LocalEntryNotFoundError as error:
            unreachable = variant, error
    if unreachable is not None:
        raise unreachable[1]
    return None


def _fetch(folder: DiffusersFolder, file: str) -> bool:
    """Download a file into the cache, where it lacks it; returns whether the hub has it.

    Raises LocalEntryNotFoundError when it is not in the cache and the hub does not answer, ValueError for other causes.
    """
    try:
        hf_hub_download(folder.name, file, revision=folder.path.name)
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return False
    except _HUB_ERRORS as error:
        raise _refused_by_hub(folder.name, error) from error
    return True


def _refused_by_hub(name: str, error: Exception) -> ValueError:
    cause, remedy = _cause(error)
    return ValueError(f"base model {name}: {cause} ({first_line(error)}); {remedy}")


def _cause(error: Exception) -> tuple[str, str]:
    """Why a model on the hub cannot be had, and what to do."""
    if isinstance(error, GatedRepoError):
        return "its authors ask who uses it", "accept its licence on its page on the hub, and log in (hf auth login)"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such folder, and no such model on the hub", (
            "check its name and, for a model that is not public, your token (hf auth login)"
        )
    if isinstance(error, RevisionNotFoundError):
        return "the hub does not have its revision", "check the revision"
    if isinstance(error, LocalEntryNotFoundError) and constants.HF_HUB_OFFLINE:
        return "it is not whole in the hub's cache on this machine", (
            "check its name, or unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, so that the hub is asked"
        )
    if isinstance(error, OSError) and error.errno in _DISK_ERRNOS:
        return f"the hub's cache {constants.HF_HUB_CACHE} cannot be written", (
            "make space there, or set HF_HOME to another folder"
        )
    return "the hub does not give it", (
        "check its name and the network; HF_HUB_OFFLINE=1 takes what is in the cache on this machine"
    )


def first_line(error: Exception) -> str:
    """What a library's error says, as far as it fits a line."""
    return (str(error).strip() or repr(error)).splitlines()[0]
