"""model/layers/projection.py: the layer as a whole, at a tiny size."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from model.cameras import Cameras
from model.config import ProjectionConfig
from model.layers.projection import ProjectionLayer, VolumeRefiner, renderer_parameters
from model.layers.views import ViewContext
from model.volume.geometry import Geometry, LayerShape, compute_geometry
from model.volume.kernels.selection import use
from model.volume.rendering import opacity_noise

CHANNELS, TIMESTEP_CHANNELS, SIZE, GRID_SIZE = 6, 8, (3, 4), 4


def _config(**changes: Any) -> ProjectionConfig:
    values: dict[str, Any] = {"blocks": (("mid_block", 4),), "num_samples": 4, "refine_channels": (4,)}
    return ProjectionConfig(**{**values, "feature_channels": 4, **changes})


def _layer(config: ProjectionConfig | None = None) -> ProjectionLayer:
    torch.manual_seed(0)
    return ProjectionLayer(CHANNELS, GRID_SIZE, TIMESTEP_CHANNELS, config or _config(), layer_index=0)


def _cameras(num_samples: int, num_views: int) -> Cameras:
    """Cameras that look along +z at the origin, from slightly different places."""
    generator = torch.Generator().manual_seed(0)
    pose = torch.eye(4).repeat(num_samples, num_views, 1, 1)
    pose[..., :3, 3] = torch.tensor([0.0, 0.0, 3.0]) + 0.3 * torch.randn(num_samples, num_views, 3, generator=generator)
    intrinsics = torch.tensor([[40.0, 0.0, 20.0], [0.0, 40.0, 15.0], [0.0, 0.0, 1.0]])
    return Cameras(pose, intrinsics.repeat(num_samples, num_views, 1, 1), (30, 40))


def _geometry(cameras: Cameras, config: ProjectionConfig) -> Geometry:
    bounds = torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]).repeat(len(cameras.world_to_camera), 1, 1)
    return compute_geometry(cameras, bounds, [LayerShape(GRID_SIZE, SIZE)], config)


def _inputs(
    num_samples: int, num_views: int, hidden_views: int, config: ProjectionConfig | None = None
) -> tuple[Tensor, ViewContext]:
    """Tokens and views, with noise in the renderer."""
    generator = torch.Generator().manual_seed(1)
    geometry = _geometry(_cameras(num_samples, num_views), config or _config())
    depths = geometry[LayerShape(GRID_SIZE, SIZE)].rays.depths
    noise = opacity_noise(torch.arange(num_samples), [depths[0].numel()])
    views = ViewContext(
        num_views=num_views,
        latent_size=SIZE,
        conditioning=torch.zeros(num_samples * num_views, 10),
        timestep_embedding=torch.randn(num_samples * num_views, TIMESTEP_CHANNELS, generator=generator),
        geometry=geometry,
        hidden_views=hidden_views,
        opacity_noise=(noise[0].view(depths.shape),),
    )
    tokens = torch.randn(num_samples * num_views, SIZE[0] * SIZE[1], CHANNELS, generator=generator)
    return tokens, views


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("compress", ["conv3x3", "pointwise"])
@pytest.mark.parametrize("aggregation", ["learned", "mean"])
def test_every_parameter_learns(background: bool, compress: str, aggregation: str) -> None:
    config = _config(background=background, compress=compress, aggregation=aggregation)
    layer = _layer(config)
    tokens, views = _inputs(2, 3, hidden_views=1, config=config)
    tokens.requires_grad_()
    out = layer(tokens, *SIZE, views)
    assert out.shape == tokens.shape
    out.square().sum().backward()
    without = [name for name, parameter in layer.named_parameters() if parameter.grad is None]
    assert without == []
    assert tokens.grad is not None
    per_view = tokens.grad.unflatten(0, (2, 3)).abs().sum((-2, -1))
    assert (per_view[:, :2] > 0).all()
    assert (per_view[:, 2] == 0).all()  # the hidden view is rendered, but never read


@torch.no_grad()
def test_a_hidden_view_cannot_be_seen_by_any_view() -> None:
    layer = _layer()
    tokens, views = _inputs(1, 3, hidden_views=1)
    changed = tokens.clone()
    changed[2] += 1.0
    assert torch.equal(layer(tokens, *SIZE, views), layer(changed, *SIZE, views))
    shown = dataclasses.replace(views, hidden_views=0)
    assert not torch.equal(layer(tokens, *SIZE, shown), layer(changed, *SIZE, shown))


@torch.no_grad()
def test_one_view_works_and_none_is_refused() -> None:
    layer = _layer()
    tokens, views = _inputs(2, 1, hidden_views=0)
    assert torch.isfinite(layer(tokens, *SIZE, views)).all()
    with pytest.raises(ValueError, match="at least one"):
        layer(tokens, *SIZE, dataclasses.replace(views, hidden_views=1))


@torch.no_grad()
def test_the_volume_is_refined_at_the_last_views_time() -> None:
    """The last view is never a known one."""
    layer, (tokens, views), seen = _layer(), _inputs(2, 3, 1), list[Tensor]()
    layer.refiner.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[1]))
    layer(tokens, *SIZE, views)
    assert torch.equal(seen[0], views.timestep_embedding[[2, 5]])


def test_samples_do_not_mix() -> None:
    layer = _layer()
    tokens, views = _inputs(2, 3, hidden_views=1)
    assert views.opacity_noise is not None
    (noise,) = views.opacity_noise
    second = dataclasses.replace(
        views,
        conditioning=views.conditioning[3:],
        timestep_embedding=views.timestep_embedding[3:],
        geometry=_geometry(_cameras(2, 3)[1:], _config()),
        opacity_noise=(noise[1:],),
    )
    # Matrix products and convolutions of another batch size may round differently.
    torch.testing.assert_close(layer(tokens, *SIZE, views)[3:], layer(tokens[3:], *SIZE, second), rtol=0, atol=1e-5)


@torch.no_grad()
def test_geometry_stays_exact_under_autocast() -> None:
    layer, config = _layer(), _config()
    tokens, views = _inputs(1, 3, hidden_views=0)
    seen: list[Any] = []
    layer.aggregator.register_forward_hook(lambda _module, inputs, output: seen.append((*inputs[1], output)))
    layer.renderer.register_forward_hook(lambda _module, inputs, output: seen.append((*inputs[1], *output)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = _geometry(_cameras(1, 3), config)
        layer(tokens, *SIZE, dataclasses.replace(views, geometry=cast))
    exact = _geometry(_cameras(1, 3), config)
    assert exact.keys() == cast.keys()
    for shape, layer_geometry in exact.items():
        for ours, theirs in zip(cast[shape], layer_geometry, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert {part.dtype for parts in seen for part in parts} == {torch.float32, torch.bool}


@torch.no_grad()
def test_a_network_in_half_precision_runs() -> None:
    tokens, views = _inputs(1, 3, hidden_views=1)
    views = dataclasses.replace(views, timestep_embedding=views.timestep_embedding.bfloat16())
    out = _layer().bfloat16()(tokens.bfloat16(), *SIZE, views)
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


@torch.no_grad()
@pytest.mark.parametrize("aggregation", ["learned", "mean"])
def test_the_plain_versions_give_the_same(aggregation: str) -> None:
    config = _config(aggregation=aggregation)
    layer, (tokens, views) = _layer(config), _inputs(2, 3, hidden_views=1, config=config)
    with use("plain"):
        plain = layer(tokens, *SIZE, views)
    # float32 sums of some ten terms of order one, in another order, through a dozen layers
    torch.testing.assert_close(layer(tokens, *SIZE, views), plain, rtol=0, atol=1e-5)


@torch.no_grad()
def test_refining_in_several_levels_keeps_the_shape() -> None:
    refiner = VolumeRefiner((4, 8, 12), TIMESTEP_CHANNELS)
    volume = torch.randn(2, 4, 8, 8, 8)
    refined = refiner(volume, torch.randn(2, TIMESTEP_CHANNELS))
    assert refined.shape == volume.shape
    assert (refined - volume).abs().max() > 0.1


def test_the_refiners_time_cancels() -> None:
    """Not a wish but the published arithmetic: docs/decisions/008."""
    refiner = VolumeRefiner((4, 8), TIMESTEP_CHANNELS).double()
    volume = torch.randn(2, 4, 8, 8, 8, dtype=torch.float64)
    times = torch.randn(2, 2, TIMESTEP_CHANNELS, dtype=torch.float64)
    torch.testing.assert_close(refiner(volume, times[0]), refiner(volume, 100 * times[1]), rtol=0, atol=1e-9)


def test_renderer_parameters_are_those_of_the_renderers() -> None:
    layer = _layer()
    named = {name for name, parameter in layer.named_parameters() if name.startswith("renderer.")}
    found = {id(parameter) for parameter in renderer_parameters(layer)}
    assert {name for name, parameter in layer.named_parameters() if id(parameter) in found} == named
    assert len(found) == 12  # six linear layers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"foreground_fraction": 1.0}, "foreground_fraction is 1.0"),
        ({"disparity_at_infinity": 0.0}, "disparity_at_infinity is 0.0"),
        ({"merge": "add"}, "merge is 'add'"),
        ({"compress": "linear"}, "compress is 'linear'"),
        ({"aggregation": "sum"}, "aggregation is 'sum'"),
        ({"num_samples": 1}, "num_samples is 1"),
        ({"feature_channels": 5}, "feature_channels is 5"),
        ({"refine_channels": (8,)}, "must start with"),
        ({"refine_channels": (4, 8, 8), "blocks": (("mid_block", 6),)}, "multiple of 4"),
        ({"refine_channels": (4, 8), "blocks": (("mid_block", 2),)}, "at least 4"),
        ({"blocks": (("mid_block", 1),)}, "at least 2"),
        ({"blocks": (("mid_block", 4), ("mid_block", 8))}, "only once"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(**changes)
