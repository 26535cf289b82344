"""Networks without some of what ViewDiff adds: they train, they generate, and what is left out has no say."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
import torch

from model.config import Ablation, DiffusionConfig, SamplingConfig
from model.diffusion.objective import Objective, ViewBatch, view_loss
from model.diffusion.sampling import generate_views
from model.layers.views import Scene
from model.unet import ViewDiffUNet
from tests.support.factories import TEXT_CHANNELS, tiny_unet
from tests.support.tiny_network import (
    TEXT_LENGTH,
    base_scheduler,
    random_inputs,
    random_request,
    random_scene,
    tiny_config,
    tiny_network,
)

ALL: tuple[Ablation, ...] = get_args(Ablation)
CASES = [(), *((name,) for name in ALL), ALL]


@pytest.mark.parametrize("without", CASES, ids=lambda names: "+".join(names) or "nothing")
def test_every_parameter_that_remains_trains(without: tuple[Ablation, ...]) -> None:
    network, inputs = tiny_network(tiny_config(without=without)), random_inputs(2, 3)
    batch = ViewBatch(latents=inputs["latents"], text=inputs["text"], scene=inputs["scene"], positions=(0, 1))
    objective = Objective(
        scheduler=base_scheduler(),
        empty_text=torch.zeros(TEXT_LENGTH, TEXT_CHANNELS),
        config=DiffusionConfig(),
        seed=0,
        global_batch_size=2,
    )
    loss = view_loss(network, batch, objective).loss
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if ".refiner." in name and (".timestep." in name or name.endswith("conv1.bias")):
            continue  # the normalisation behind takes them out again, see docs/decisions/008
        # This matrix sees z alone, which is zero then; that of the other attention layers also sees the timestep.
        unseen = "conditioning" in without and "attn2.processor.down_view" in name
        assert (parameter.grad.abs().max() > 0) is not unseen, name


@pytest.mark.parametrize("without", CASES, ids=lambda names: "+".join(names) or "nothing")
def test_every_ablation_generates(without: tuple[Ablation, ...]) -> None:
    network, asked = tiny_network(tiny_config(without=without)), random_request()
    latents = generate_views(network, base_scheduler(), asked, SamplingConfig(num_steps=2, guidance_scale=2.0))
    assert latents.shape == asked.known_latents.shape
    assert torch.isfinite(latents).all()
    assert torch.equal(latents[:, 0], asked.known_latents[:, 0])


def _difference(without: tuple[Ablation, ...], scene: Scene) -> float:
    """How much another scene changes the first view."""
    network, inputs = tiny_network(tiny_config(without=without)), random_inputs(1, 3)
    with torch.no_grad():
        return (network(**inputs)[:, 0] - network(**inputs | {"scene": scene})[:, 0]).abs().max().item()


def test_without_intensity_it_has_no_say() -> None:
    brighter = dataclasses.replace(random_scene(1, 3), intensity=random_scene(1, 3).intensity + 0.2)
    assert _difference((), brighter) > 1e-4
    assert _difference(("intensity",), brighter) == 0
    assert _difference(("conditioning",), brighter) == 0


def test_without_conditioning_cameras_speak_through_the_volume_only() -> None:
    elsewhere = dataclasses.replace(random_scene(1, 3), cameras=random_scene(1, 3, seed=1).cameras)
    assert _difference(("projection",), elsewhere) > 1e-4
    assert _difference(("conditioning",), elsewhere) > 1e-5
    assert _difference(("conditioning", "projection"), elsewhere) == 0


def test_without_attention_and_projection_views_are_alone() -> None:
    inputs = random_inputs(1, 3)
    others = inputs["latents"].clone()
    others[:, 1:] += 1
    for without, alone in (((), False), (("projection",), False), (("cross_frame",), False), (ALL, True)):
        network = tiny_network(tiny_config(without=without))
        with torch.no_grad():
            difference = (network(**inputs | {"latents": others}) - network(**inputs))[:, 0].abs().max().item()
        assert (difference == 0) is alone, without


def test_without_projection_there_is_nothing_to_render() -> None:
    network = ViewDiffUNet(tiny_unet(), tiny_config(without=("projection",)))
    assert network.parameter_groups()["renderer"] == []
    assert not any("projection" in name for name, _ in network.named_parameters())
    prepared = network.prepare(random_scene(1, 2), (8, 8)).prepared
    assert prepared is not None
    assert prepared.layers == {}
