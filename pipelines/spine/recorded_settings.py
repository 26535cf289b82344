"""The settings that led to a finished training, read back from the records beside its results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from infra.errors import UserError
from pipelines.settings.run import RunConfig
from pipelines.spine.artifacts import RECORD_NAME, Checkpoint, newest, read_record

_INPUT_STAGES = {"shards": "preprocess", "captions": "captions", "base": "base", "latents": "latents"}  # by role
Settings = TypeVar("Settings")


def settings_of(checkpoint: Checkpoint, root: Path, default: RunConfig) -> RunConfig:
    """`default`, with the settings of all stages from the shards to the training of `checkpoint`, and of its newest
    evaluation.

    Raises:
        UserError: a record is missing, or names settings that this checkout does not know.
    """
    stages = {"train": checkpoint.folder}
    inputs = read_record(checkpoint.folder)["inputs"]
    for role, stage in _INPUT_STAGES.items():
        stages[stage] = root / stage / inputs[role]["fingerprint"]
    evaluation = newest(root, "evaluate", lambda folder: _evaluates(folder, checkpoint.fingerprint))
    if evaluation is not None:
        stages["evaluate"] = evaluation
    recorded = {name: _recorded(type(getattr(default, name)), folder) for name, folder in stages.items()}
    return replace(default, **recorded)


def _evaluates(folder: Path, checkpoint: str) -> bool:
    return bool(read_record(folder)["inputs"]["checkpoint"]["fingerprint"] == checkpoint)


def _recorded(kind: type[Settings], folder: Path) -> Settings:
    record = read_record(folder)
    try:
        return parse(kind, record["config"])
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / RECORD_NAME}: its settings are none of this checkout ({error}); use the version of the program "
            "that wrote it, or train anew with `viewdiff run`"
        ) from error


def parse(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """The dataclass that `infra.provenance.fingerprint.plain` made `values` of. Fields that are not in it get their
    defaults.

    Raises:
        TypeError or ValueError: a field is not known, is missing without a default, or is out of range.
    """
    kinds = get_type_hints(kind)
    return kind(**{name: _value(kinds.get(name, Any), value) for name, value in values.items()})


def _value(kind: Any, value: Any) -> Any:
    """JSON has no dataclasses and no tuples."""
    if isinstance(value, dict):
        (settings,) = (item for item in (kind, *get_args(kind)) if dataclasses.is_dataclass(item))
        return parse(settings, value)  # type: ignore[arg-type]
    return tuple(_value(Any, item) for item in value) if isinstance(value, list) else value
