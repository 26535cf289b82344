"""Four small trainings that `viewdiff plan` is compared with, and one of them run for real in this process."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist
from diffusers import DDPMScheduler, UNet2DConditionModel

from benchmarks.record import peak_resident_bytes, resident_bytes, restart_peak
from infra.engine.config import EngineConfig
from infra.engine.engine import Engine
from model.adapter import freeze_base
from model.config import BaseConfig, ProjectionConfig, TinyBaseConfig, ViewDiffConfig
from model.diffusion.objective import Objective, PriorBatch, ViewBatch, prior_loss, view_loss
from model.layers.views import Scene
from model.unet import ViewDiffUNet
from pipelines.planning.network import base_unet_config
from pipelines.planning.step_work import latent_size, text_length
from pipelines.settings.run import RunConfig, TrainConfig
from preprocessing.config import PreprocessConfig
from tests.support.factories import look_at_cameras

IMAGE_SIZE, MINIATURE_SIZE = 256, 64
BASE = TinyBaseConfig(unet_channels=(64, 128, 384), head_channels=64, text_channels=256)


def _case(name: str, *, model: ViewDiffConfig, engine: EngineConfig, **settings: object) -> RunConfig:
    train = TrainConfig(model=model, engine=engine, batch_size=2, micro_batch_size=1, num_views=4)
    return RunConfig(
        name=name,
        preprocess=PreprocessConfig(image_size=IMAGE_SIZE),
        base=BaseConfig(tiny=BASE),
        train=replace(train, **settings),  # type: ignore[arg-type]
    )


def cases() -> dict[str, RunConfig]:
    """By name: all weights in float32; the same without ZeRO; gradient checkpointing and volumes computed again; an
    adapter in bfloat16.
    """
    released = ProjectionConfig(blocks=(("mid_block", 16), ("up_blocks.0", 16)), num_samples=32)
    paper = replace(
        released, blocks=(("down_blocks.1", 32), ("mid_block", 16)), merge="zero_init", compress="pointwise",
        refine_channels=(16, 32), recompute_volumes=True,
    )  # fmt: skip
    full = _case("full", model=ViewDiffConfig(projection=released), engine=EngineConfig(zero_stage=1))
    alone = _case("alone", model=full.train.model, engine=EngineConfig(zero_stage=0))
    checkpointed = _case(
        "checkpointed",
        model=ViewDiffConfig(projection=paper, include_self=False, gradient_checkpointing=True),
        engine=EngineConfig(zero_stage=2),
    )
    adapter = _case(
        "adapter",
        model=ViewDiffConfig(projection=released),
        engine=EngineConfig(zero_stage=2, precision="bf16"),
        trained="adapter",
    )
    return {config.name: config for config in (full, alone, checkpointed, adapter)}


def build_network(config: RunConfig) -> ViewDiffUNet:
    """The case's network with random weights."""
    network = ViewDiffUNet(UNet2DConditionModel.from_config(base_unet_config(config.base)), config.train.model)
    if config.train.trained == "adapter":
        freeze_base(network)
    return network.train()


def view_batch(config: RunConfig, num_samples: int) -> ViewBatch:
    """Random posed views."""
    num_views, side = config.train.num_views, config.preprocess.image_size
    bounds = torch.tensor([[-1.0] * 3, [1.0] * 3]).repeat(num_samples, 1, 1)
    return ViewBatch(
        latents=torch.randn(num_samples, num_views, 4, *latent_size(config)),
        text=torch.randn(num_samples, text_length(config), config.base.tiny.text_channels),
        scene=Scene.neutral(look_at_cameras(num_samples, num_views, image_size=(side, side)), bounds),
        positions=tuple(range(num_samples)),
    )


def measure_peak(config: RunConfig, *, num_steps: int = 2) -> int:
    """Peak memory in bytes of that many steps with the real engine, over what the process held before."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # as in a worker
    with _one_rank():
        _train(_miniature(config), 1)  # what is loaded and compiled once
        gc.collect()
        restart_peak()
        before = resident_bytes()
        _train(config, num_steps)
        return peak_resident_bytes() - before


def _miniature(config: RunConfig) -> RunConfig:
    """The same training with few channels and pixels."""
    small = replace(config.base.tiny, unet_channels=(32, 32, 32), head_channels=32, text_channels=32)
    preprocess = replace(config.preprocess, image_size=MINIATURE_SIZE)
    return replace(config, base=replace(config.base, tiny=small), preprocess=preprocess)


def _train(config: RunConfig, num_steps: int) -> None:
    network, train = build_network(config), config.train
    engine = Engine(network, network.parameter_groups(), train.engine, num_steps=num_steps, device=torch.device("cpu"))
    objective = Objective(
        scheduler=DDPMScheduler(),
        empty_text=torch.zeros(text_length(config), config.base.tiny.text_channels),
        config=train.diffusion,
        seed=0,
        global_batch_size=train.batch_size,
    )
    batch = view_batch(config, train.micro_batch_size)
    prior = PriorBatch(latents=batch.latents[:, 0], text=batch.text, positions=batch.positions)
    for step in range(num_steps):
        for _ in range(train.batch_size // train.micro_batch_size):
            engine.backward(view_loss(engine.model, batch, objective).loss)
            engine.backward(prior_loss(engine.model, prior, objective).loss)
        engine.step(step, torch.zeros(1, dtype=torch.float64))


@contextmanager
def _one_rank() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        yield
        dist.destroy_process_group()
