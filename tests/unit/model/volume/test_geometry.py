"""model/volume/geometry.py: what follows from cameras and scene, computed once, is the same as computed anew."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import model.unet
from model.config import ProjectionConfig, SamplingConfig
from model.diffusion.sampling import generate_views, render_depth
from model.layers.views import Scene, reorder_views
from model.volume.geometry import LayerShape, compute_geometry
from model.volume.space import SceneFrame, voxel_grid
from tests.support.tiny_network import (
    BLOCKS,
    base_scheduler,
    random_inputs,
    random_request,
    random_scene,
    tiny_config,
    tiny_network,
)


@torch.no_grad()
@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
@pytest.mark.parametrize("background", [True, False])
def test_a_prepared_scene_gives_exactly_the_same(size: tuple[int, int], background: bool) -> None:
    network = tiny_network(tiny_config(projection={"background": background}))
    inputs = random_inputs(2, 3, size=size)
    options: dict[str, Any] = {"hidden_views": 1, "opacity_noise_seeds": torch.tensor([3, 4])}
    prepared = inputs | {"scene": network.prepare(inputs["scene"], size)}
    assert inputs["scene"].prepared is None
    assert prepared["scene"].prepared is not None
    assert torch.equal(network(**prepared, **options), network(**inputs, **options))
    assert torch.equal(network(**prepared, **options), network(**prepared, **options))  # and nothing is used up


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_generation_computes_the_geometry_once(guidance_scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    num_samples: list[int] = []

    def counting(cameras: Any, *args: Any) -> Any:
        num_samples.append(cameras.shape[0])
        return compute_geometry(cameras, *args)

    monkeypatch.setattr(model.unet, "compute_geometry", counting)
    network, config = tiny_network(), SamplingConfig(num_steps=3, guidance_scale=guidance_scale)
    request = random_request(num_samples=2).prepared_by(network)
    render_depth(network, request, generate_views(network, base_scheduler(), request, config))
    assert num_samples == [2]  # with guidance, which asks for every sample twice, and for the depth too


def test_a_prepared_scene_stays_prepared_when_its_views_change() -> None:
    network, scene = tiny_network(), random_scene(2, 4)
    prepared, order = network.prepare(scene, (8, 8)), torch.tensor([[3, 0, 2, 1], [1, 2, 0, 3]])
    changes: list[Callable[[Scene], Scene]] = [
        lambda x: x.map_views(lambda values: reorder_views(values, order)),
        lambda x: x.map_views(lambda values: values[:, [2, 0]]),
        lambda x: x.repeat(2),
    ]
    for change in changes:
        ours, anew = change(prepared), network.prepare(change(scene), (8, 8))
        assert ours.prepared is not None
        assert anew.prepared is not None
        assert ours.prepared.layers.keys() == anew.prepared.layers.keys()
        assert torch.equal(ours.scene_bounds, anew.scene_bounds)
        assert torch.equal(ours.intensity, anew.intensity)
        for shape, layer in anew.prepared.layers.items():
            for part, expected in zip(ours.prepared.layers[shape], layer, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(part, expected, strict=True))
    assert prepared.to("cpu").prepared is None  # on another device it is prepared anew


@torch.no_grad()
def test_a_scene_prepared_for_something_else_is_refused() -> None:
    network, inputs = tiny_network(), random_inputs(1, 2)
    scene = inputs["scene"]
    prepared = network.prepare(scene, (8, 8))
    moved = dataclasses.replace(prepared, cameras=random_scene(1, 2, seed=5).cameras)
    wider = dataclasses.replace(prepared, scene_bounds=2 * scene.scene_bounds)
    coarser = tiny_network(tiny_config(projection={"num_samples": 3})).prepare(scene, (8, 8))
    for other in (moved, wider, coarser, network.prepare(scene, (16, 8))):
        with pytest.raises(ValueError, match=r"scene: was prepared for other cameras, bounds, latents .* prepare it"):
            network(**inputs | {"scene": other})


def test_layers_of_the_same_shape_share_their_geometry() -> None:
    network, size = tiny_network(), (8, 12)
    prepared = network.prepare(random_scene(2, 3), size).prepared
    assert prepared is not None
    geometry = prepared.layers
    assert geometry is not None
    # Both blocks of 6 voxels a side see the deeper level; so does the middle block, with 4.
    assert sorted(geometry) == [LayerShape(4, (4, 6)), LayerShape(6, (4, 6))]
    assert {grid_size for _, grid_size in BLOCKS} == {shape.grid_size for shape in geometry}
    assert len({id(layer.rays) for layer in geometry.values()}) == 1


def test_geometry_is_that_of_each_size_alone() -> None:
    scene, config = random_scene(2, 3), ProjectionConfig(blocks=(), num_samples=4)
    shapes = [LayerShape(4, (2, 3)), LayerShape(6, (4, 6)), LayerShape(6, (2, 3))]
    together = compute_geometry(scene.cameras, scene.scene_bounds, [*shapes, shapes[0]], config)
    assert together.keys() == set(shapes)
    for shape in shapes:
        alone = compute_geometry(scene.cameras, scene.scene_bounds, [shape], config)[shape]
        for ours, theirs in zip(together[shape], alone, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        cameras, voxels = scene.cameras.resize(shape.feature_size), together[shape].voxels
        grid = voxel_grid(shape.grid_size, config.foreground_fraction, scene.scene_bounds.device)
        points = SceneFrame.from_bounds(scene.scene_bounds).to_world(grid.points)
        pixels, depth = cameras.project(points[:, None])
        torch.testing.assert_close(voxels.ray_matrices, cameras.ray_matrices())
        seen = voxels.depth > 0
        torch.testing.assert_close(voxels.depth[seen], depth[seen])
        torch.testing.assert_close(voxels.pixels[seen], pixels[seen])
        size = torch.tensor(shape.feature_size[::-1])
        # Rounding may decide either way exactly at the image's border.
        inside = ((pixels > 1e-4) & (pixels < size - 1e-4)).all(-1) & (depth > 0)
        outside = ((pixels < -1e-4) | (pixels > size + 1e-4)).any(-1) | (depth <= 0)
        assert seen[inside].all()
        assert not seen[outside].any()
        rays = together[shape].rays
        count = math.prod(shape.feature_size)
        assert rays.points.shape == (2, 3, count, 2 * config.num_samples, 3)
        directions = cameras.ray_directions().flatten(2, 3)
        torch.testing.assert_close(rays.directions, directions)


def test_no_layers_have_no_geometry() -> None:
    scene = random_scene(2, 3)
    assert compute_geometry(scene.cameras, scene.scene_bounds, [], ProjectionConfig(blocks=())) == {}
