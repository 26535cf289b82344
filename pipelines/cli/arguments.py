"""Command-line arguments to settings: a preset, and any of its fields overridden."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import tyro

from infra.errors import UserError
from pipelines.cli.tyro_internals import parse_known
from pipelines.settings.commands import (
    ComparisonConfig,
    GenerateRequest,
    ImportConfig,
    InspectConfig,
    ProfileConfig,
    SizingConfig,
)
from pipelines.settings.names import nearest
from pipelines.settings.presets import PRESETS
from pipelines.settings.run import RunConfig
from pipelines.spine.runtime import RuntimeConfig

DEFAULT_PRESET = "tiny"
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """Of every command that runs stages."""

    preset: str = DEFAULT_PRESET
    """Settings to start from."""
    runtime: Annotated[RuntimeConfig, tyro.conf.arg(name="")] = field(default_factory=RuntimeConfig)
    dry_run: bool = False
    """Print the settings, what would be done, parameter counts and memory; do nothing else."""
    initial: str | None = None
    """Folder of a model to start training from, such as model/ of another training; without it training starts from the
    base model's U-Net and new layers."""
    config: Annotated[RunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class PlanArguments:
    """Of `viewdiff plan`."""

    preset: str = DEFAULT_PRESET
    """Settings to start from."""
    sizing: Annotated[SizingConfig, tyro.conf.arg(name="")] = field(default_factory=SizingConfig)
    config: Annotated[RunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class ProfileArguments:
    """Of `viewdiff profile`."""

    preset: str = DEFAULT_PRESET
    """Settings to start from."""
    runtime: Annotated[RuntimeConfig, tyro.conf.arg(name="")] = field(default_factory=RuntimeConfig)
    profile: Annotated[ProfileConfig, tyro.conf.arg(name="")] = field(default_factory=ProfileConfig)
    config: Annotated[RunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class GenerateArguments:
    """Of `viewdiff generate`."""

    runtime: Annotated[RuntimeConfig, tyro.conf.arg(name="")] = field(default_factory=RuntimeConfig)
    request: Annotated[GenerateRequest, tyro.conf.arg(name="")] = field(default_factory=GenerateRequest)


@dataclass(frozen=True, kw_only=True)
class InspectArguments:
    """Of `viewdiff inspect`."""

    captures: tyro.conf.Positional[str]
    """Folder of captures in CO3Dv2 layout."""
    config: Annotated[InspectConfig, tyro.conf.arg(name="")] = field(default_factory=InspectConfig)


@dataclass(frozen=True, kw_only=True)
class ImportArguments:
    """Of `viewdiff import`."""

    source: tyro.conf.Positional[str]
    """Folder of a COLMAP model; or a transforms.json or its folder; or, with --solve-cameras, a folder of photos or a
    video."""
    config: Annotated[ImportConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class CompareArguments:
    """Of `viewdiff compare`."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Ids of MLflow runs, beginnings of ids, or names; without a run the trainings are listed."""
    config: Annotated[ComparisonConfig, tyro.conf.arg(name="")] = field(default_factory=ComparisonConfig)


def parse_run(
    command: str, arguments: Sequence[str], *, description: str, default: RunConfig | None = None
) -> RunArguments:
    """Settings of a stage command: those of `--preset` or, if it is given, `default`; then the overrides.

    Raises:
        UserError: unknown preset or option (with the nearest name), or a value out of range.
    """
    preset = _preset(arguments)
    started = RunArguments(preset=preset, config=default or PRESETS[preset]())
    return _parse(started, arguments, prog=f"viewdiff {command}", description=description)


def parse_plan(arguments: Sequence[str], *, description: str) -> PlanArguments:
    """Settings of `viewdiff plan`. Raises UserError as `parse_run`."""
    preset = _preset(arguments)
    default = PlanArguments(preset=preset, config=PRESETS[preset]())
    return _parse(default, arguments, prog="viewdiff plan", description=description)


def parse_profile(arguments: Sequence[str], *, description: str) -> ProfileArguments:
    """Settings of `viewdiff profile`. Raises UserError as `parse_run`."""
    preset = _preset(arguments)
    default = ProfileArguments(preset=preset, config=PRESETS[preset]())
    return _parse(default, arguments, prog="viewdiff profile", description=description)


def parse_generate(arguments: Sequence[str], *, description: str) -> GenerateArguments:
    """Settings of `viewdiff generate`. Raises UserError as `parse_run`."""
    return _parse(GenerateArguments(), arguments, prog="viewdiff generate", description=description)


def parse_inspect(arguments: Sequence[str], *, description: str) -> InspectArguments:
    """Settings of `viewdiff inspect`. Raises UserError as `parse_run`, or no folder is named."""
    return _parse(InspectArguments(captures=tyro.MISSING), arguments, prog="viewdiff inspect", description=description)


def parse_import(arguments: Sequence[str], *, description: str) -> ImportArguments:
    """Settings of `viewdiff import`. Raises UserError as `parse_run`, or something that must be named is not."""
    default = ImportArguments(
        source=tyro.MISSING, config=ImportConfig(output=tyro.MISSING, category=tyro.MISSING, name=tyro.MISSING)
    )
    return _parse(default, arguments, prog="viewdiff import", description=description)


def parse_compare(arguments: Sequence[str], *, description: str) -> CompareArguments:
    """Settings of `viewdiff compare`. Raises UserError as `parse_run`."""
    return _parse(CompareArguments(), arguments, prog="viewdiff compare", description=description)


def given_options(arguments: Sequence[str], options: Collection[str]) -> frozenset[str]:
    """Those of `options` that were typed, whatever their value."""
    typed = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    return frozenset(typed.intersection(options))


def _preset(arguments: Sequence[str]) -> str:
    name = DEFAULT_PRESET
    for place, argument in enumerate(arguments):
        if argument == "--preset" and place + 1 < len(arguments):
            name = arguments[place + 1]
        elif argument.startswith("--preset="):
            name = argument.removeprefix("--preset=")
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}{nearest(name, PRESETS)}")
    return name


def _parse(default: Parsed, arguments: Sequence[str], *, prog: str, description: str) -> Parsed:
    parsed, unknown = parse_known(default, arguments, prog=prog, description=description)
    if unknown:
        hint = nearest(unknown[0], _options(default))
        if unknown[0] in PRESETS:
            hint = f"; did you mean --preset {unknown[0]}?"
        raise UserError(f"unknown option {unknown[0]!r}{hint}")
    for option, value in _values(parsed):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{option} {value:g}: must be a finite number; a very large one stands for no limit")
    return parsed


def _options(default: object) -> list[str]:
    """All options of a parsed dataclass, as they are typed."""
    return [option for option, _ in _values(default)]


def _values(parsed: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every option of a parsed dataclass, as it is typed, and its value."""
    for name, value in vars(parsed).items():
        flat = name in ("runtime", "config", "request", "sizing", "profile")
        path = prefix if flat else f"{prefix}{name.replace('_', '-')}"
        if hasattr(value, "__dataclass_fields__"):
            yield from _values(value, path if flat else f"{path}.")
        else:
            yield f"--{path}", value
