"""The stages of a run: which there are, in which order, and what each one takes from the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.spine import artifacts
from pipelines.spine.artifacts import Artifact
from pipelines.spine.stage import StageFunction


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage before its inputs exist."""

    name: str
    kind: type[Artifact]
    inputs: tuple[tuple[str, str], ...]
    """(role, name of the step that makes it)."""
    load: Callable[[], StageFunction]
    """Imports the stage's function only when it is to run: they pull in Ray, DeepSpeed and MLflow."""
    tracks: bool = False
    """Whether it writes to MLflow."""
    version: int = 1
    """Raised when the stage's code would now make another result of the same settings and inputs."""


def _synth() -> StageFunction:
    from pipelines.stages.synth import write_synthetic

    return write_synthetic


def _preprocess() -> StageFunction:
    from pipelines.stages.preprocess import preprocess

    return preprocess


def _captions() -> StageFunction:
    from pipelines.stages.captions import write_captions

    return write_captions


def _base() -> StageFunction:
    from pipelines.stages.base import train_base

    return train_base


def _latents() -> StageFunction:
    from pipelines.stages.latents import cache_latents

    return cache_latents


def _train() -> StageFunction:
    from pipelines.stages.train import train

    return train


def _evaluate() -> StageFunction:
    from pipelines.stages.evaluate import evaluate

    return evaluate


def _report() -> StageFunction:
    from pipelines.stages.report import write_report

    return write_report


def _register() -> StageFunction:
    from pipelines.stages.register import register

    return register


# What stages that use captions take.
_CAPTIONED_SHARDS = (("shards", "preprocess"), ("captions", "captions"))
STEPS: tuple[Step, ...] = (
    Step(name="synth", kind=artifacts.RawDataset, inputs=(), load=_synth),
    Step(name="preprocess", kind=artifacts.Shards, inputs=(("raw", "synth"),), load=_preprocess, version=2),
    Step(name="captions", kind=artifacts.Captions, inputs=(("shards", "preprocess"),), load=_captions),
    Step(name="base", kind=artifacts.BaseFolder, inputs=_CAPTIONED_SHARDS, load=_base),
    Step(
        name="latents",
        kind=artifacts.Latents,
        inputs=(*_CAPTIONED_SHARDS, ("base", "base")),
        load=_latents,
        version=3,
    ),
    Step(
        name="train",
        kind=artifacts.Checkpoint,
        inputs=(*_CAPTIONED_SHARDS, ("latents", "latents"), ("base", "base")),
        load=_train,
        tracks=True,
        version=4,
    ),
    Step(
        name="evaluate",
        kind=artifacts.EvaluationReport,
        inputs=(*_CAPTIONED_SHARDS, ("base", "base"), ("checkpoint", "train")),
        load=_evaluate,
        tracks=True,
        version=2,
    ),
    Step(
        name="report",
        kind=artifacts.Report,
        inputs=(("evaluation", "evaluate"), ("checkpoint", "train"), ("shards", "preprocess"), ("base", "base")),
        load=_report,
        tracks=True,
    ),
    Step(
        name="register",
        kind=artifacts.ModelVersion,
        inputs=(
            ("raw", "synth"),
            ("shards", "preprocess"),
            ("base", "base"),
            ("checkpoint", "train"),
            ("evaluation", "evaluate"),
            ("report", "report"),
        ),
        load=_register,
        tracks=True,
    ),
)
NAMES = tuple(step.name for step in STEPS)
