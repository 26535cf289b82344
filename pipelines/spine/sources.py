"""Models that others trained and that stages read, known by their content: a folder's files, or a commit on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.errors import UserError
from infra.provenance.fingerprint import fingerprint
from infra.storage.files import digest_file
from model.config import BaseConfig
from pipelines.settings.run import RunConfig
from pipelines.spine.artifacts import Artifact, PretrainedModel, newest, read_record
from pipelines.spine.runtime import RuntimeConfig
from preprocessing.config import CaptionsConfig

ROLE = "source"  # of the input of a stage that such a model is
REVISION_FACT = "revision"  # the commit that stands for a hub id: of the model, and of a stage that read it
NOT_KNOWN = "not known yet"  # in the place of a fingerprint: the hub was not asked
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES_AT_ONCE = 4  # a model has a few large ones


@contextmanager
def refusing_base() -> Iterator[None]:
    """What the block finds wrong with a base model, as ValueError, becomes a UserError with the remedy."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{error}; name another with --base.source") from error


@dataclass(frozen=True)
class _Kind:
    """What a stage reads of a model's folder."""

    patterns: tuple[str, ...]
    first: str  # the file that every such model has


_KINDS: Mapping[str, _Kind] = {
    "base": _Kind(("*/*.json", "*/*.txt", "*/*.safetensors"), "unet/config.json"),
    "captions": _Kind(("*.json", "*.txt", "*.model", "*.safetensors"), "config.json"),
}


def pretrained_models(
    config: RunConfig, runtime: RuntimeConfig, *, stages: set[str], ask_hub: bool = True
) -> dict[str, dict[str, Artifact]]:
    """The models that `stages` read, as a further input of theirs: by stage and role.

    The revision that a hub id stands for is looked up once: what a finished stage below the root has read counts from
    then on. Without `ask_hub` an id that was never looked up has the fingerprint NOT_KNOWN.

    Raises:
        UserError: a folder is missing or holds no such model, or the hub does not answer.
    """
    sources: dict[str, BaseConfig | CaptionsConfig] = {"base": config.base, "captions": config.captions}
    return {
        stage: {ROLE: _model(stage, settings.source, settings.revision, runtime, ask_hub=ask_hub)}
        for stage, settings in sources.items()
        if stage in stages and settings.source is not None
    }


def revision_to_read(source: str, model: Artifact) -> str | None:
    """The commit to read from the hub; None for a folder.

    Raises:
        UserError: the model was a folder, which is gone: of the same name there may be another on the hub.
    """
    commit: str | None = model.facts.get(REVISION_FACT)
    if commit is None and not Path(source).is_dir():
        raise UserError(f"model {source}: the folder is not there any more; restore it or name another")
    return commit


def _model(stage: str, source: str, revision: str | None, runtime: RuntimeConfig, *, ask_hub: bool) -> PretrainedModel:
    if Path(source).is_dir():
        return PretrainedModel(_folder_fingerprint(stage, Path(source)), Path(source).absolute())
    if (model := _read_before(stage, source, revision, runtime.root_dir)) is not None:
        return model
    if source.startswith((".", "/", "~")):
        raise UserError(f"--{stage}.source {source}: no such folder; name a model's folder, or its id on the hub")
    if (commit := _commit(stage, source, revision, ask_hub=ask_hub)) is None:
        return PretrainedModel(NOT_KNOWN, Path())
    if ask_hub and commit != revision:
        print(f"{stage}  {source} is at revision {commit} on the hub", flush=True)
    return PretrainedModel(fingerprint({"model": source, "commit": commit}), Path(), {REVISION_FACT: commit})


def _folder_fingerprint(stage: str, folder: Path) -> str:
    kind = _KINDS[stage]
    if not (folder / kind.first).is_file():
        raise UserError(f"--{stage}.source {folder}: no {kind.first} in it; name the folder of a model for this stage")
    paths = sorted(path for pattern in kind.patterns for path in folder.glob(pattern))
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        digests = list(pool.map(digest_file, paths))
    names = [path.relative_to(folder).as_posix() for path in paths]
    return fingerprint({"model": dict(zip(names, digests, strict=True))})


def _read_before(stage: str, source: str, revision: str | None, root: Path) -> PretrainedModel | None:
    """The model that the newest finished stage below the root has read under this name."""

    def fits(folder: Path) -> bool:
        record = read_record(folder)
        asked = record.get("config", {})
        return ROLE in record["inputs"] and (asked.get("source"), asked.get("revision")) == (source, revision)

    folder = newest(root, stage, fits)
    if folder is None:
        return None
    record = read_record(folder)
    commit = record["facts"].get(REVISION_FACT)
    if commit is not None and commit != revision:
        print(f"{stage}  {source} is taken at revision {commit}, as before; --{stage}.revision names another")
    return PretrainedModel(
        record["inputs"][ROLE]["fingerprint"], Path(), {} if commit is None else {REVISION_FACT: commit}
    )


def _commit(stage: str, source: str, revision: str | None, *, ask_hub: bool) -> str | None:
    """The commit that an id and a revision stand for: what the hub says or, without an answer, its copy on this
    machine. None where only that copy was looked for and there is none.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import hf_hub_download  # takes half a second
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = hf_hub_download(source, _KINDS[stage].first, revision=revision, local_files_only=not ask_hub)
    except (OSError, ValueError) as error:
        if not ask_hub and isinstance(error, LocalEntryNotFoundError):
            return None
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        at = "" if revision is None else f" at revision {revision}"
        raise UserError(
            f"--{stage}.source {source}: no folder of that name, and cannot be read on the hub{at} ({reason}); name "
            "a model's folder, or an id on the hub while it can be reached"
        ) from error
    # <cache>/models--<id>/snapshots/<commit>/<file>: above it there may be other folders of that name.
    return Path(path).as_posix().rpartition("/snapshots/")[2].partition("/")[0]
