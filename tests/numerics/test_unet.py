"""ViewDiffUNet: what must hold exactly, on a tiny stock U-Net."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from model.cameras import Cameras
from model.config import ViewDiffConfig
from model.layers.views import Scene
from model.unet import ViewDiffUNet
from tests.support.factories import tiny_unet
from tests.support.tiny_network import random_inputs, tiny_config, tiny_network

# Another order of float32 sums, through about thirty layers with values of order one.
TOLERANCE = 2e-4
ZERO_INIT = {"merge": "zero_init"}


def _max_difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


def _with_scene(inputs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return inputs | {"scene": dataclasses.replace(inputs["scene"], **changes)}


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (12, 8)])
def test_one_view_and_fresh_zero_init_layers_equal_the_stock_unet(size: tuple[int, int]) -> None:
    inputs = random_inputs(2, 1, size=size)
    stock = tiny_unet()(inputs["latents"][:, 0], inputs["timesteps"][:, 0], inputs["text"]).sample
    output = ViewDiffUNet(tiny_unet(), tiny_config(projection=ZERO_INIT))(**inputs)
    assert _max_difference(output[:, 0], stock) == 0.0


@torch.no_grad()
def test_every_added_part_changes_the_output_once_it_is_not_zero() -> None:
    inputs = random_inputs(1, 2)
    for name in (
        "projection_out",
        "down_view",
        "timestep_code",
        "low_rank_qkv",
        "low_rank_q.",
        "low_rank_kv",
        "low_rank_out",
    ):
        network = tiny_network(tiny_config(projection=ZERO_INIT))
        before = network(**inputs)
        matching = [parameter for key, parameter in network.named_parameters() if name in key]
        assert matching, name
        for parameter in matching:
            parameter.zero_()
        assert _max_difference(network(**inputs), before) > 1e-4, name


@torch.no_grad()
@pytest.mark.parametrize("include_self", [True, False])
def test_permuting_views_permutes_outputs(include_self: bool) -> None:
    network, inputs = tiny_network(tiny_config(include_self=include_self)), random_inputs(2, 4)
    order = torch.tensor([2, 0, 3, 1])
    scene = inputs["scene"]
    permuted = {key: inputs[key][:, order] for key in ("latents", "timesteps")} | {
        "text": inputs["text"],
        "scene": Scene(scene.cameras[:, order], scene.scene_bounds, scene.intensity[:, order]),
    }
    output = network(**inputs)
    assert _max_difference(network(**permuted), output[:, order]) < TOLERANCE
    assert _max_difference(network(**permuted), output) > 100 * TOLERANCE  # the test can fail


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix() -> None:
    network = tiny_network()
    one, two = random_inputs(1, 3, seed=1), random_inputs(1, 3, seed=2)
    two = _with_scene(two, scene_bounds=two["scene"].scene_bounds * 0.7 + 0.1)
    both: dict[str, Any] = {key: torch.cat([one[key], two[key]]) for key in one if key != "scene"}
    a, b = one["scene"], two["scene"]
    both["scene"] = Scene(
        cameras=Cameras.cat([a.cameras, b.cameras]),
        scene_bounds=torch.cat([a.scene_bounds, b.scene_bounds]),
        intensity=torch.cat([a.intensity, b.intensity]),
    )
    options: dict[str, Any] = {"hidden_views": 1}
    seeds = torch.tensor([7, 8])
    output = network(**both, **options, opacity_noise_seeds=seeds)
    assert _max_difference(output[:1], network(**one, **options, opacity_noise_seeds=seeds[:1])) < TOLERANCE
    assert _max_difference(output[1:], network(**two, **options, opacity_noise_seeds=seeds[1:])) < TOLERANCE
    assert _max_difference(output, network(**both, **options)) > 1e-5  # the noise takes part


@torch.no_grad()
def test_views_reach_each_other_through_the_volume_unless_hidden() -> None:
    network = tiny_network(tiny_config(without=("cross_frame",)))  # the volume is then the only way
    inputs = random_inputs(1, 3)
    changed = dict(inputs, latents=inputs["latents"].clone())
    changed["latents"][:, 2] += 1
    for hidden_views, reaches in ((0, True), (1, False)):
        difference = network(**changed, hidden_views=hidden_views) - network(**inputs, hidden_views=hidden_views)
        assert (difference[:, :2].abs().max().item() > 1e-5) is reaches


def _gradients(config: ViewDiffConfig) -> dict[str, Tensor]:
    network, inputs = tiny_network(config), random_inputs(1, 3)
    first = network(**inputs, hidden_views=1, opacity_noise_seeds=torch.tensor([5]))
    # A second call with other views before the backward pass must not disturb the first one's recomputation.
    second = network(**random_inputs(2, 1, seed=3))
    (first.square().mean() + second.square().mean()).backward()
    gradients = {key: parameter.grad for key, parameter in network.named_parameters()}
    found = {key: gradient for key, gradient in gradients.items() if gradient is not None}
    assert found.keys() == gradients.keys()
    return found


@pytest.mark.parametrize(
    "recomputing",
    [
        tiny_config(gradient_checkpointing=True),
        tiny_config(projection={"recompute_volumes": True}),
        tiny_config(projection={"recompute_volumes": True}, gradient_checkpointing=True),
    ],
    ids=["activations", "volumes", "both"],
)
def test_recomputing_changes_no_gradient(recomputing: ViewDiffConfig) -> None:
    plain, recomputed = _gradients(tiny_config()), _gradients(recomputing)
    assert plain.keys() == recomputed.keys()
    for key, gradient in plain.items():
        # The same float32 operations run again; only sums over the uses of a value may take another order.
        torch.testing.assert_close(recomputed[key], gradient, msg=key, atol=1e-6, rtol=1e-4)


def test_recomputed_volumes_are_computed_twice() -> None:
    """Once forward and once backward, and once alone where no gradient is asked for: else nothing is saved by it."""
    network, inputs = tiny_network(tiny_config(projection={"recompute_volumes": True})), random_inputs(1, 3)
    calls: list[str] = []
    for name, module in network.named_modules():
        if name.endswith(".refiner"):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        network(**inputs)
    in_one_pass = len(calls)
    network(**inputs).sum().backward()
    assert len(calls) == 3 * in_one_pass


@torch.no_grad()
@pytest.mark.parametrize(
    ("num_views", "refine_channels"), [(1, (16,)), (2, (16, 8)), (7, (16, 8, 12)), (7, (16,)), (1, (16, 8, 12))]
)
@pytest.mark.parametrize("size", [(8, 12), (16, 8)])
def test_any_number_of_views_and_levels(
    num_views: int, refine_channels: tuple[int, ...], size: tuple[int, int]
) -> None:
    blocks = (("down_blocks.1", 8), ("mid_block", 8), ("up_blocks.1", 16))
    network = tiny_network(tiny_config(projection={"blocks": blocks, "refine_channels": refine_channels}))
    inputs = random_inputs(2, num_views, size=size)
    output = network(**inputs, hidden_views=int(num_views > 2))
    assert output.shape == inputs["latents"].shape
    assert torch.isfinite(output).all()
    assert output.std() > 0.1  # it is not that nothing passes
