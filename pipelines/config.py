"""Settings of a whole run: one frozen dataclass per stage, made of the components' own.

A preset (presets.py) is a function that returns a `RunConfig`; the command line overrides single fields of it. Where
and with how many workers it runs is `RuntimeConfig` (runtime.py), which never enters a fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from infra.config import EngineConfig
from model.config import BaseConfig, DiffusionConfig, SamplingConfig, ViewDiffConfig
from preprocessing.config import LatentsConfig, PreprocessConfig, SyntheticConfig


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Training of the multi-view model."""

    model: ViewDiffConfig
    """What is added to the base model's U-Net."""
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    """Known views, caption dropout, prior preservation."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Optimizer and arithmetic."""
    num_steps: int = 60_000
    """Optimizer steps."""
    batch_size: int = 64
    """Samples per optimizer step over all workers; must be divisible by their number."""
    micro_batch_size: int = 1
    """Samples per forward pass of one worker."""
    num_views: int = 5
    """Views per sample."""
    seed: int = 0
    """Seed of the order of the data and of everything that is drawn per sample."""
    checkpoint_every_steps: int = 500
    """Steps between checkpoints, which is what a crash can cost."""
    preview_every_steps: int = 1000
    """Steps between preview pictures in MLflow."""

    def __post_init__(self) -> None:
        names = ("num_steps", "batch_size", "micro_batch_size", "checkpoint_every_steps", "preview_every_steps")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"train: {name} is {getattr(self, name)}, must be at least 1")
        if self.num_views < 2:
            raise ValueError(f"train: num_views is {self.num_views}, must be at least 2")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Generation of held-out objects, and what it is compared with."""

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Denoising steps, and the guidance of objects made from text alone."""
    split: str = "test"
    """Split of the sequences: train, val or test."""
    num_objects: int = 100
    """Held-out objects, generated from one of their views; as many as there are, at most."""
    num_text_objects: int = 4
    """Objects generated from a caption alone."""
    num_views: int = 10
    """Views per object, the given one among them."""
    max_batch_size: int = 4
    """Objects that one replica denoises together."""
    seed: int = 0
    """Seed of frames and noise."""

    def __post_init__(self) -> None:
        if self.split not in ("train", "val", "test"):
            raise ValueError(f"evaluate: split is {self.split!r}, must be train, val or test")
        for name, smallest in (("num_objects", 1), ("num_text_objects", 0), ("num_views", 2), ("max_batch_size", 1)):
            if getattr(self, name) < smallest:
                raise ValueError(f"evaluate: {name} is {getattr(self, name)}, must be at least {smallest}")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The page about a run."""

    title: str = "viewdiff"
    """Heading of the page."""


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """The model registry."""

    model_name: str = "viewdiff"
    """Name of the registered model."""


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """What is different when a champion is trained further for new captures."""

    num_steps: int = 10_000
    """Optimizer steps, starting from the champion's weights."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run, stage by stage."""

    name: str
    """Name of the preset, shown in reports."""
    synth: SyntheticConfig = field(default_factory=SyntheticConfig)
    """The synthetic captures, used when no root of real ones is given."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    """Captures to shards."""
    base: BaseConfig = field(default_factory=BaseConfig)
    """The pretrained 2D model."""
    latents: LatentsConfig = field(default_factory=LatentsConfig)
    """What is cached of the 2D model's frozen parts."""
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
