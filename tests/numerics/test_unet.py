"""ViewDiffUNet: what must hold exactly, on a tiny stock U-Net."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.augment import projectable_blocks
from model.config import ProjectionConfig, ViewDiffConfig
from model.unet import ViewDiffUNet
from tests.factories import TEXT_CHANNELS, look_at_cameras, randomize, tiny_unet

BLOCKS = (("down_blocks.1", 6), ("mid_block", 4), ("up_blocks.0", 6))
# Another order of float32 sums, through about thirty layers with values of order one.
TOLERANCE = 2e-4


def _config(*, merge: str = "replace", **settings: Any) -> ViewDiffConfig:
    projection = ProjectionConfig(blocks=BLOCKS, merge=merge, num_samples=4)  # type: ignore[arg-type]
    defaults: dict[str, Any] = {"rank": 2, "projection": projection}
    return ViewDiffConfig(**(defaults | settings))


def _network(config: ViewDiffConfig | None = None) -> ViewDiffUNet:
    """A network of which every layer takes part."""
    torch.manual_seed(0)
    network = ViewDiffUNet(tiny_unet(), config or _config())
    randomize(network, seed=1, std=0.05)
    return network


def _inputs(num_samples: int, num_views: int, *, size: tuple[int, int] = (8, 8), seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    bounds = torch.tensor([[-1.0, -0.8, -0.6], [1.0, 0.8, 0.6]])
    return {
        "latents": torch.randn(num_samples, num_views, 4, *size, generator=generator),
        "timesteps": torch.randint(1000, (num_samples, 1), generator=generator).repeat(1, num_views),
        "text": torch.randn(num_samples, 5, TEXT_CHANNELS, generator=generator),
        "cameras": look_at_cameras(num_samples, num_views, seed=seed, image_size=(8 * size[0], 8 * size[1])),
        "scene_bounds": bounds.repeat(num_samples, 1, 1),
        "intensity": torch.rand(num_samples, num_views, 2, generator=generator),
    }


def _max_difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (12, 8)])
def test_one_view_and_fresh_zero_init_layers_equal_the_stock_unet(size: tuple[int, int]) -> None:
    inputs = _inputs(2, 1, size=size)
    stock = tiny_unet()(inputs["latents"][:, 0], inputs["timesteps"][:, 0], inputs["text"]).sample
    output = ViewDiffUNet(tiny_unet(), _config(merge="zero_init"))(**inputs)
    assert _max_difference(output[:, 0], stock) == 0.0


@torch.no_grad()
def test_every_added_part_changes_the_output_once_it_is_not_zero() -> None:
    inputs = _inputs(1, 2)
    for name in ("projection_out", "down_z", "down_e", "low_rank.to_out"):
        network = ViewDiffUNet(tiny_unet(), _config(merge="zero_init"))
        randomize(network, seed=1, std=0.05)
        before = network(**inputs)
        for key, parameter in network.named_parameters():
            if name in key:
                parameter.zero_()
        assert _max_difference(network(**inputs), before) > 1e-4, name


@torch.no_grad()
@pytest.mark.parametrize("include_self", [True, False])
def test_permuting_views_permutes_outputs(include_self: bool) -> None:
    network, inputs = _network(_config(include_self=include_self)), _inputs(2, 4)
    order = torch.tensor([2, 0, 3, 1])
    per_view = ("latents", "timesteps", "cameras", "intensity")
    permuted = {key: value[:, order] if key in per_view else value for key, value in inputs.items()}
    output = network(**inputs)
    assert _max_difference(network(**permuted), output[:, order]) < TOLERANCE
    assert _max_difference(network(**permuted), output) > 100 * TOLERANCE  # the test can fail


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix() -> None:
    network = _network()
    one, two = _inputs(1, 3, seed=1), _inputs(1, 3, seed=2)
    two["scene_bounds"] = two["scene_bounds"] * 0.7 + 0.1
    both: dict[str, Any] = {key: torch.cat([one[key], two[key]]) for key in one if key != "cameras"}
    both["cameras"] = type(one["cameras"]).cat([one["cameras"], two["cameras"]])
    options: dict[str, Any] = {"hidden_views": 1}
    output = network(**both, **options, opacity_noise_seeds=(7, 8))
    assert _max_difference(output[:1], network(**one, **options, opacity_noise_seeds=(7,))) < TOLERANCE
    assert _max_difference(output[1:], network(**two, **options, opacity_noise_seeds=(8,))) < TOLERANCE


@torch.no_grad()
def test_views_reach_each_other_through_the_volume_unless_hidden() -> None:
    network = _network(_config(cross_frame=False))  # the volume is then the only way
    inputs = _inputs(1, 3)
    changed = dict(inputs, latents=inputs["latents"].clone())
    changed["latents"][:, 2] += 1
    for hidden_views, reaches in ((0, True), (1, False)):
        difference = network(**changed, hidden_views=hidden_views) - network(**inputs, hidden_views=hidden_views)
        assert (difference[:, :2].abs().max().item() > 1e-5) is reaches


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        network, inputs = _network(_config(gradient_checkpointing=checkpointing)), _inputs(1, 3)
        first = network(**inputs, hidden_views=1, opacity_noise_seeds=(5,))
        # A second call with other views before the backward pass must not disturb the first one's recomputation.
        second = network(**_inputs(2, 1, seed=3))
        (first.square().mean() + second.square().mean()).backward()
        gradients.append({key: parameter.grad for key, parameter in network.named_parameters()})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert sum(gradient is not None for gradient in plain.values()) == len(plain)
    for key, gradient in plain.items():
        torch.testing.assert_close(recomputed[key], gradient, msg=key, atol=1e-6, rtol=1e-4)


def test_stock_keys_are_unchanged() -> None:
    stock = tiny_unet(seed=3).state_dict()
    network = ViewDiffUNet(tiny_unet(), _config(merge="zero_init"))
    result = network.unet.load_state_dict(stock, strict=False)
    assert not result.unexpected_keys
    added = ("processor.", "projection.", "projection_out.", "norm_projection.")
    assert all(any(part in key for part in added) for key in result.missing_keys)
    assert torch.equal(
        network.unet.state_dict()["mid_block.attentions.0.proj_in.weight"],
        stock["mid_block.attentions.0.proj_in.weight"],
    )


@torch.no_grad()
@pytest.mark.parametrize("config", [_config(merge="zero_init"), _config(projection=None, include_self=False)])
def test_save_and_load_round_trip_is_exact(config: ViewDiffConfig, tmp_path: Path) -> None:
    network = _network(config)
    network.save_pretrained(tmp_path / "model")
    loaded = ViewDiffUNet.from_pretrained(tmp_path / "model")
    assert loaded.config == config
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    inputs = _inputs(1, 2)
    assert torch.equal(loaded(**inputs), network(**inputs))


def _saved(folder: Path) -> dict[str, Any]:
    _network().save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


def test_loading_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json: cannot be read"):
        ViewDiffUNet.from_pretrained(tmp_path / "nothing")

    record, path = _saved(tmp_path), tmp_path / "config.json"
    for change, message in (
        ({"format_version": 2}, "format version 2"),
        ({"kind": "something"}, "kind is 'something'"),
        (
            {"viewdiff": record["viewdiff"] | {"rank": 3}},
            r"down_x.weight \(2, 16\) instead of \(3, 16\).* and \d+ more",
        ),
        ({"viewdiff": record["viewdiff"] | {"projection": None}}, "unknown unet.*projection"),
        ({"viewdiff": record["viewdiff"] | {"flavour": 3}}, "does not describe a network .*flavour"),
    ):
        path.write_text(json.dumps(record | change))
        with pytest.raises(ValueError, match=message):
            ViewDiffUNet.from_pretrained(tmp_path)

    path.write_text(json.dumps(record))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read"):
        ViewDiffUNet.from_pretrained(tmp_path)


def test_parameter_groups_hold_every_parameter_once() -> None:
    network = ViewDiffUNet(tiny_unet(), _config())
    groups = network.parameter_groups()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    assert sorted(names[id(p)] for group in groups.values() for p in group) == sorted(names.values())
    assert groups["renderer"]
    assert all(".renderer." in names[id(parameter)] for parameter in groups["renderer"])
    assert not any(".renderer." in names[id(parameter)] for parameter in groups["unet"])


def test_meta_network_counts_parameters_without_values() -> None:
    network = ViewDiffUNet.meta(dict(tiny_unet().config), _config())
    assert all(parameter.is_meta for parameter in network.parameters())
    real = ViewDiffUNet(tiny_unet(), _config())
    assert {k: v.shape for k, v in network.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}


def test_unknown_blocks_are_named_with_those_that_exist() -> None:
    projection = ProjectionConfig(blocks=(("down_blocks.7", 4),))
    with pytest.raises(ValueError, match=r"down_blocks\.7; .* down_blocks\.0, down_blocks\.1, mid_block, up_blocks\.0"):
        ViewDiffUNet(tiny_unet(), _config(projection=projection))
    partly = tiny_unet(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"))
    assert projectable_blocks(partly) == ("down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")


def test_a_unet_is_augmented_only_once() -> None:
    unet = tiny_unet()
    ViewDiffUNet(unet, _config())
    with pytest.raises(ValueError, match="only once"):
        ViewDiffUNet(unet, _config())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": torch.zeros(2, 0, 4, 8, 8)}, "views ≥ 1"),
        ({"latents": torch.zeros(2, 3, 5, 8, 8)}, r"views ≥ 1, 4, height"),
        ({"latents": torch.zeros(2, 3, 4, 9, 8)}, r"\(9, 8\) must be divisible by 2"),
        ({"timesteps": torch.zeros(2, 2)}, r"timesteps: shape \(2, 2\) must be \(2, 3\)"),
        ({"text": torch.zeros(1, 5, TEXT_CHANNELS)}, "text"),
        ({"text": torch.zeros(2, 5, 3)}, "text"),
        ({"cameras": look_at_cameras(1, 3)}, r"cameras: shape \(1, 3\) must be \(2, 3\)"),
        ({"scene_bounds": torch.zeros(2, 3)}, "scene_bounds"),
        ({"intensity": torch.zeros(2, 3)}, "intensity"),
        ({"hidden_views": 3}, "hidden_views 3"),
        ({"opacity_noise_seeds": (1,)}, "1 seeds for 2 samples"),
    ],
)
def test_inputs_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    network = ViewDiffUNet(tiny_unet(), _config(projection=None))
    with pytest.raises(ValueError, match=message):
        network(**_inputs(2, 3) | change)


def test_configs_are_frozen_and_checked() -> None:
    with pytest.raises(ValueError, match="rank 0"):
        _config(rank=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        _config().rank = 3  # type: ignore[misc]
