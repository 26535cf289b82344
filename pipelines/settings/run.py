"""Settings of a whole run: one frozen dataclass per stage, made of the components' own.

A preset (presets.py) is a function that returns a `RunConfig`; the command line overrides single fields of it. Where
and with how many workers it runs is `RuntimeConfig` (runtime.py), which never enters a fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from infra.engine.config import EngineConfig
from infra.errors import UserError
from infra.provenance.fingerprint import HOW
from model.config import BaseConfig, DiffusionConfig, SamplingConfig, ViewDiffConfig
from preprocessing.config import CaptionsConfig, LatentsConfig, PreprocessConfig
from preprocessing.synthetic.config import SyntheticConfig

# What MLflow refuses in names of registered models or of logged ones, or misreads in a search for one.
_NOT_IN_MODEL_NAMES = "/:.%\"'\\"
_LONGEST_MODEL_NAME = 250


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training of the multi-view model."""

    model: ViewDiffConfig
    """The layers that are added to the base model's U-Net."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Known views, caption dropout, prior preservation."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Optimizer and arithmetic."""
    trained: Literal["full", "adapter"] = "full"
    """Train all weights (full), or only the added layers (adapter), which are then saved as an adapter, too."""
    num_steps: int = 60_000
    """Optimizer steps."""
    batch_size: int = 64
    """Samples per optimizer step, all workers together; at least one for each worker."""
    micro_batch_size: int = field(default=1, metadata=HOW)
    """Samples per forward pass of one worker."""
    num_views: int = 5
    """Views per sample."""
    seed: int = 0
    """Seed of the order of the data and of all random numbers of a sample."""
    average_decay: float = 0.0
    """Decay of the running average of the weights that becomes the model, such as 0.999; with 0 the last weights
    become the model."""
    largest_loss: float = field(default=10.0, metadata=HOW)
    """A step with a larger loss ends the training. A network that has learned nothing has a loss of about 1."""
    validation_samples: int = field(default=32, metadata=HOW)
    """Samples of split val whose loss is measured at each checkpoint; 0 for no measurement."""
    checkpoint_every_steps: int = field(default=500, metadata=HOW)
    """Steps between checkpoints. A crash loses at most these steps."""
    kept_checkpoints: int = field(default=2, metadata=HOW)
    """How many of the newest checkpoints are kept, in addition to the checkpoint with the smallest validation loss."""
    preview_every_steps: int = field(default=1000, metadata=HOW)
    """Steps between preview pictures in MLflow."""

    def __post_init__(self) -> None:
        names = ("num_steps", "batch_size", "micro_batch_size", "checkpoint_every_steps", "preview_every_steps")
        for name in (*names, "kept_checkpoints"):
            if getattr(self, name) < 1:
                raise UserError(f"train: {name} is {getattr(self, name)}, must be at least 1")
        if self.trained not in ("full", "adapter"):
            raise UserError(f"train: trained is {self.trained!r}, must be 'full' or 'adapter'")
        if not 0 <= self.average_decay < 1:
            raise UserError(f"train: average_decay is {self.average_decay}, must lie in [0, 1)")
        if not self.largest_loss > 0:
            raise UserError(f"train: largest_loss is {self.largest_loss}, must be above 0")
        if self.validation_samples < 0:
            raise UserError(f"train: validation_samples is {self.validation_samples}, must be at least 0")
        if self.num_views < 2:
            raise UserError(f"train: num_views is {self.num_views}, must be at least 2")
        if self.seed < 0:
            raise UserError(f"train: seed is {self.seed}, must be at least 0")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Generation of held-out objects, and what it is compared with."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Denoising steps, and guidance for objects from text alone."""
    split: str = "test"
    """Split that the objects are taken from: train, val or test."""
    num_objects: int = 100
    """Objects to generate from one of their views; fewer if the split has fewer."""
    num_text_objects: int = 4
    """Objects to generate from a caption alone."""
    num_views: int = 10
    """Views per object, including the given view."""
    max_batch_size: int = 4
    """Objects that one served copy of the model denoises together."""
    views: Literal["around", "eval_batches"] = "around"
    """Which frames: drawn around each object, or those of CO3Dv2's evaluation batches. Of such a batch the target is
    generated from the first of the other frames; it needs shards that were made with --preprocess.subset."""
    seed: int = 0
    """Seed of frames and noise."""
    max_failed_share: float = field(default=0.1, metadata=HOW)
    """Share of the objects that may fail, in [0, 1). Failed objects are listed with their reasons and are in no mean.
    When more objects fail, the evaluation fails."""

    def __post_init__(self) -> None:
        if self.views not in ("around", "eval_batches"):
            raise UserError(f"evaluate: views is {self.views!r}, must be 'around' or 'eval_batches'")
        if self.split not in ("train", "val", "test"):
            raise UserError(f"evaluate: split is {self.split!r}, must be train, val or test")
        for name, smallest in (("num_objects", 1), ("num_text_objects", 0), ("num_views", 2), ("max_batch_size", 1)):
            if getattr(self, name) < smallest:
                raise UserError(f"evaluate: {name} is {getattr(self, name)}, must be at least {smallest}")
        if not 0 <= self.max_failed_share < 1:
            raise UserError(f"evaluate: max_failed_share is {self.max_failed_share}, must be at least 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The page about a run."""

    title: str = "viewdiff"
    """Heading of the page."""


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """The model registry."""

    model_name: str = "viewdiff"
    """Name of the registered model, and of the logged models behind its versions."""

    def __post_init__(self) -> None:
        name = self.model_name
        if not 1 <= len(name.strip()) <= len(name) <= _LONGEST_MODEL_NAME or not name.isprintable():
            raise UserError(
                f"register: model_name {name!r} has to be a line of 1 to {_LONGEST_MODEL_NAME} characters, not all of "
                "them spaces; choose another name"
            )
        if refused := [character for character in _NOT_IN_MODEL_NAMES if character in name]:
            raise UserError(
                f"register: model_name {name!r} has a {refused[0]} in it, which MLflow refuses in names of models; "
                f"choose a name without {' '.join(_NOT_IN_MODEL_NAMES)}"
            )


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """What is different when a champion is trained further for new captures."""

    num_steps: int = 10_000
    """Optimizer steps, starting from the champion's weights."""
    given_up_categories: tuple[str, ...] = ()
    """Categories that the champion was trained on and that the new model may forget. Without this option retraining
    stops when the captures lack a category of the champion."""

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise UserError(f"retrain: num_steps is {self.num_steps}, must be at least 1")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run, stage by stage."""

    name: str
    """Name of the preset, which `viewdiff plan` shows."""
    synth: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The synthetic captures, used without --co3d-root."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    """Preprocessing: from captures to shards."""
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    """Captions of the sequences."""
    base: BaseConfig = field(default_factory=BaseConfig)
    """The pretrained 2D model."""
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    """The cache of what the 2D model's frozen parts compute."""
    train: TrainConfig
    """Training."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Evaluation."""
    report: ReportConfig = field(default_factory=ReportConfig)
    """The page."""
    register: RegisterConfig = field(default_factory=RegisterConfig)
    """The model registry."""
    retrain: RetrainConfig = field(default_factory=RetrainConfig)
    """Further training for new captures."""
