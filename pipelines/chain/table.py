"""The stages of a run: which there are, in which order, and what each one takes from the others."""

from __future__ import annotations

from pipelines.spine import artifacts
from pipelines.spine.sources import ROLE
from pipelines.spine.stage import Stage

# What stages that use captions take.
_CAPTIONED_SHARDS = (("shards", "preprocess"), ("captions", "captions"))
STAGES = (
    Stage(name="synth", kind=artifacts.RawDataset, run="pipelines.stages.synth:write_synthetic"),
    Stage(
        name="preprocess",
        kind=artifacts.Shards,
        run="pipelines.stages.preprocess:preprocess",
        takes=(("raw", "synth"),),
        version=2,
        check_result="pipelines.chain.hooks:check_shards",
    ),
    Stage(
        name="captions",
        kind=artifacts.Captions,
        run="pipelines.stages.captions:write_captions",
        takes=(("shards", "preprocess"),),
        on_gpu=True,
    ),
    Stage(
        name="base",
        kind=artifacts.BaseFolder,
        run="pipelines.stages.base:train_base",
        takes=_CAPTIONED_SHARDS,
        replaces_inputs=ROLE,
        check_before="pipelines.chain.hooks:check_base_on_hub",
        check_result="pipelines.chain.hooks:check_base",
    ),
    Stage(
        name="latents",
        kind=artifacts.Latents,
        run="pipelines.stages.latents:cache_latents",
        takes=(*_CAPTIONED_SHARDS, ("base", "base")),
        version=3,
        on_gpu=True,
    ),
    Stage(
        name="train",
        kind=artifacts.Checkpoint,
        run="pipelines.stages.train:train",
        takes=(*_CAPTIONED_SHARDS, ("latents", "latents"), ("base", "base")),
        version=4,
        on_gpu=True,
        tracks=True,
    ),
    Stage(
        name="evaluate",
        kind=artifacts.EvaluationReport,
        run="pipelines.stages.evaluate:evaluate",
        takes=(*_CAPTIONED_SHARDS, ("base", "base"), ("checkpoint", "train")),
        version=2,
        on_gpu=True,
        tracks=True,
    ),
    Stage(
        name="report",
        kind=artifacts.Report,
        run="pipelines.stages.report:write_report",
        takes=(("evaluation", "evaluate"), ("checkpoint", "train"), ("shards", "preprocess"), ("base", "base")),
        tracks=True,
    ),
    Stage(
        name="register",
        kind=artifacts.ModelVersion,
        run="pipelines.stages.register:register",
        takes=(
            ("raw", "synth"),
            ("shards", "preprocess"),
            ("base", "base"),
            ("checkpoint", "train"),
            ("evaluation", "evaluate"),
            ("report", "report"),
        ),
        tracks=True,
        check_before="pipelines.chain.hooks:check_champion",
        run_in_chain="pipelines.chain.hooks:register_against_champion",
    ),
)
NAMES = tuple(stage.name for stage in STAGES)
