"""A point seen in several views, unprojected into the volume and rendered back, lands on its own pixel in every view.

The layer's own path is used, from tokens to the renderer; only its learned parts are replaced by ones that can be
computed by hand. A wrong axis order, a forgotten scene centre or a wrong contraction moves the point by more than a
pixel or makes it vanish.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from model.cameras import Cameras
from model.config import ProjectionConfig
from model.layers.projection import ProjectionLayer
from model.layers.views import ViewContext
from model.volume.filling import VoxelProjections, unproject
from model.volume.geometry import LayerShape, compute_geometry
from model.volume.rendering import Rendered
from model.volume.space import SceneFrame
from pipelines.settings.presets import PRESETS

SIZE = (24, 28)  # latent pixels, not square
IMAGE_SIZE = (192, 224)
INTRINSICS = torch.tensor([[230.0, 0.0, 118.0], [0.0, 215.0, 92.0], [0.0, 0.0, 1.0]])
NUM_SEEN, NUM_HIDDEN = 8, 1
SCENE_BOUNDS = torch.tensor([[-0.9, -1.0, -0.6], [1.3, 0.8, 1.4]])  # centred at (0.2, -0.1, 0.4), largest side 2.2
DISTANCE = 3.6  # of the cameras from the scene's centre, world units
BLOB_RADIUS = 2.5  # latent pixels; wider than a voxel's image, so that the volume can hold it
# A voxel of the scene may not be wider than this in the image. The grids of presets that are coarser than that are seen
# by cameras of a shorter focal length, like the small features that those presets have there: 8³ voxels with a
# background leave 4 a side for the scene, 4.4 pixels wide with the focal length below, and such a volume cannot say
# where a point is to a ninth of a voxel.
WIDEST_VOXEL = 1.0


class Volume(NamedTuple):
    """What a preset says of a projection layer's geometry."""

    config: ProjectionConfig
    grid_size: int

    def voxel_size(self) -> float:
        """Side of a voxel of the scene, world units."""
        fraction = self.config.foreground_fraction if self.config.background else 1.0
        half_size = SceneFrame.from_bounds(SCENE_BOUNDS[None]).half_size.item()
        return 2 * half_size / (fraction * self.grid_size)

    def intrinsics(self) -> Tensor:
        """With the focal length that shows no voxel wider than `WIDEST_VOXEL`."""
        latent_pixels = INTRINSICS[0, 0].item() * SIZE[1] / IMAGE_SIZE[1]
        zoom = min(1.0, WIDEST_VOXEL * DISTANCE / (latent_pixels * self.voxel_size()))
        return INTRINSICS * torch.tensor([[zoom, 1, 1], [1, zoom, 1], [1, 1, 1]])


def _volume(config: ProjectionConfig, grid_size: int) -> Volume:
    """The same geometry with two channels and no compression."""
    small = {"blocks": (), "compress": "pointwise", "refine_channels": (2,), "feature_channels": 2}
    return Volume(dataclasses.replace(config, **small), grid_size)


# A voxel of the scene is as large in both.
SCENE_VOLUME = _volume(ProjectionConfig(blocks=(), background=False, num_samples=64), 24)
BACKGROUND_VOLUME = _volume(ProjectionConfig(blocks=(), num_samples=64), 48)


def _volumes_of_presets() -> dict[str, Volume]:
    """Every different geometry of the presets' layers, by the presets that have it and its voxels per side."""
    names: dict[tuple[object, ...], list[str]] = {}
    volumes: dict[tuple[object, ...], Volume] = {}
    for name, make in PRESETS.items():
        config = make().train.model.projection
        for grid_size in sorted({size for _, size in config.blocks}):
            volume = _volume(config, grid_size)
            geometry = (
                config.background,
                config.foreground_fraction,
                config.disparity_at_infinity,
                config.num_samples,
                grid_size,
            )
            names.setdefault(geometry, []).append(name)
            volumes[geometry] = volume
    return {f"{'+'.join(names[key])}-{volume.grid_size}": volume for key, volume in volumes.items()}


PRESET_VOLUMES = _volumes_of_presets()
WITH_BACKGROUND = {name: volume for name, volume in PRESET_VOLUMES.items() if volume.config.background}


class RoundTrip(NamedTuple):
    """V views of one point, before and after."""

    pixels: Tensor  # [V, 2] where the point projects to, latent pixels
    depth: Tensor  # [V] of the point, world units
    opacity: Tensor  # [V, h, w] rendered
    depth_sum: Tensor  # [V, h, w] rendered, weighted by opacity

    def error(self) -> Tensor:
        """Distances [V] in latent pixels of the rendered blob's centre from the point."""
        v, u = _pixel_centers()
        seen = self.opacity - self.opacity.amin((-2, -1), keepdim=True)  # without the faint haze of empty space
        total = seen.sum((-2, -1))
        center = torch.stack([(seen * u).sum((-2, -1)) / total, (seen * v).sum((-2, -1)) / total], dim=-1)
        return (center - self.pixels).norm(dim=-1)


class _Intersection(nn.Module):
    """Stands in for the learned aggregation: a voxel is as bright as the geometric mean over the views."""

    def forward(self, features: Tensor, voxels: VoxelProjections, timestep_embedding: Tensor) -> Tensor:
        num_views, product = features.shape[1], torch.ones(())
        for view in range(num_views):  # one after another: 128³ voxels of all views at once take gigabytes
            one = slice(view, view + 1)
            pixels, depth, reachable, rays = voxels
            seen = unproject(features[:, one], VoxelProjections(pixels[:, one], depth[:, one], reachable, rays[:, one]))
            product = product * seen.features[:, 0]
        return product.pow(1 / num_views).mT


class _Unchanged(nn.Module):
    """Stands in for the 3D CNN."""

    dtype = torch.float32

    def forward(self, volume: Tensor, timestep_embedding: Tensor) -> Tensor:
        return volume


def _pixel_centers() -> tuple[Tensor, Tensor]:
    rows, columns = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    return rows, columns


def _looking_at_the_scene(directions: list[Tensor], intrinsics: Tensor) -> Cameras:
    """Cameras [1, V] in these unit directions from about the scene's centre, at different distances and rolled."""
    poses = []
    for view, direction in enumerate(directions):
        target = SCENE_BOUNDS.mean(0) + 0.1 * torch.tensor([math.sin(view), math.cos(view), math.sin(2.0 * view)])
        position = target + (DISTANCE + 0.3 * math.cos(5.0 * view)) * direction
        right = torch.linalg.cross(-direction, torch.tensor([0.0, 0.0, 1.0]))
        right = right / right.norm()
        down = torch.linalg.cross(-direction, right)
        cos, sin = math.cos(0.2 * view), math.sin(0.2 * view)
        rotation = torch.stack([cos * right + sin * down, cos * down - sin * right, -direction])
        pose = torch.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, -rotation @ position
        poses.append(pose)
    return Cameras(torch.stack(poses)[None], intrinsics.expand(1, len(poses), 3, 3), IMAGE_SIZE).check()


def _around() -> list[Tensor]:
    """Directions all around the scene at different heights."""
    directions = []
    for view in range(NUM_SEEN + NUM_HIDDEN):
        azimuth = 0.2 + 2 * math.pi * view / (NUM_SEEN + NUM_HIDDEN)
        elevation = 0.35 + 0.4 * math.sin(3.0 * view)
        directions.append(
            torch.tensor(
                [math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation), math.sin(elevation)]
            )
        )
    return directions


def _facing(axis: int, sign: float) -> list[Tensor]:
    """Directions on a cone of 25° whose cameras all look along `sign` of the axis."""
    directions = []
    for view in range(NUM_SEEN + NUM_HIDDEN):
        angle = 2 * math.pi * view / (NUM_SEEN + NUM_HIDDEN)
        direction = torch.empty(3)
        direction[axis] = -sign * math.cos(math.radians(25))
        direction[(axis + 1) % 3] = math.sin(math.radians(25)) * math.cos(angle)
        direction[(axis + 2) % 3] = math.sin(math.radians(25)) * math.sin(angle)
        directions.append(direction)
    return directions


def _layer(volume: Volume) -> ProjectionLayer:
    """A layer whose volume has two equal channels, and whose density grows exponentially with them."""
    layer = ProjectionLayer(2, volume.grid_size, 4, volume.config, layer_index=0)
    layer.compress, layer.aggregator, layer.refiner = nn.Identity(), _Intersection(), _Unchanged()
    for index in (0, 2):
        linear = layer.renderer.trunk[index]
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    # Thin everywhere (softplus(-1) at the brightest), so that the blob's front does not hide its back.
    nn.init.constant_(layer.renderer.density.weight, 6.0)
    nn.init.constant_(layer.renderer.density.bias, -13.0)
    return layer


@torch.no_grad()
def _round_trip(point: tuple[float, float, float], directions: list[Tensor], volume: Volume) -> RoundTrip:
    cameras, num_views = _looking_at_the_scene(directions, volume.intrinsics()), len(directions)
    pixels, depth = cameras.resize(SIZE).project(torch.tensor(point)[None])
    views = ViewContext(
        num_views=num_views,
        latent_size=SIZE,
        conditioning=torch.zeros(num_views, 10),
        timestep_embedding=torch.zeros(num_views, 4),
        geometry=compute_geometry(cameras, SCENE_BOUNDS[None], [LayerShape(volume.grid_size, SIZE)], volume.config),
        hidden_views=NUM_HIDDEN,
        opacity_noise=None,
    )
    v, u = _pixel_centers()
    squared = (u - pixels[0, :, 0, 0, None, None]).square() + (v - pixels[0, :, 0, 1, None, None]).square()
    blobs = torch.exp(-squared / (2 * BLOB_RADIUS**2))  # [V, h, w]
    blobs[NUM_SEEN:] = 0  # what a hidden view shows must not matter
    layer = _layer(volume)
    rendered: list[Rendered] = []
    layer.renderer.register_forward_hook(lambda _module, _inputs, output: rendered.append(output))
    layer(blobs.flatten(1)[..., None].repeat(1, 1, 2), *SIZE, views)
    return RoundTrip(pixels[0, :, 0], depth[0, :, 0], rendered[0].opacity[0, :, 0], rendered[0].depth[0, :, 0])


def _assert_lands_on_its_pixel(result: RoundTrip) -> None:
    inside = (result.pixels > 0) & (result.pixels < torch.tensor(SIZE[::-1]))
    assert inside.all(), "the test's point must be seen by all cameras"
    assert result.opacity.amax((-2, -1)).min() > 0.02, "the point vanished"
    assert result.error().max() < 0.5, result.error()


def _assert_has_its_depth(result: RoundTrip, tolerance: float) -> None:
    """Depth of what is clearly hit."""
    hit = result.opacity > result.opacity.amax((-2, -1), keepdim=True) / 2
    depth = (result.depth_sum * hit).sum((-2, -1)) / (result.opacity * hit).sum((-2, -1))
    torch.testing.assert_close(depth, result.depth, rtol=0, atol=tolerance)


def _behind(axis: int, sign: float) -> tuple[float, float, float]:
    """Two half scene sizes behind the centre, which the contraction maps halfway to the volume's end."""
    point = SCENE_BOUNDS.mean(0).clone()
    point[axis] += sign * 2.2
    point[(axis + 1) % 3] += 0.3
    point[(axis + 2) % 3] -= 0.25
    x, y, z = point.tolist()
    return x, y, z


@pytest.mark.parametrize("volume", [SCENE_VOLUME, BACKGROUND_VOLUME], ids=["scene", "background"])
@pytest.mark.parametrize("point", [(0.75, -0.55, 0.05), (-0.2, 0.25, 0.7), (0.2, -0.1, 0.4), (-0.15, -0.4, 0.8)])
def test_a_point_of_the_scene(point: tuple[float, float, float], volume: Volume) -> None:
    result = _round_trip(point, _around(), volume)
    _assert_lands_on_its_pixel(result)
    _assert_has_its_depth(result, 0.15)  # a voxel is 0.09 world units, and the blob is about 0.2 thick


@pytest.mark.parametrize("sign", [-1.0, 1.0], ids=["negative", "positive"])
@pytest.mark.parametrize("axis", [0, 1, 2], ids=["x", "y", "z"])
def test_a_point_behind_the_scene(axis: int, sign: float) -> None:
    _assert_lands_on_its_pixel(_round_trip(_behind(axis, sign), _facing(axis, sign), BACKGROUND_VOLUME))


@pytest.mark.parametrize("volume", PRESET_VOLUMES.values(), ids=PRESET_VOLUMES)
def test_a_point_of_the_scene_in_a_presets_volume(volume: Volume) -> None:
    result = _round_trip((0.75, -0.55, 0.05), _around(), volume)
    _assert_lands_on_its_pixel(result)
    _assert_has_its_depth(result, max(0.15, volume.voxel_size() / 2))


@pytest.mark.parametrize("volume", WITH_BACKGROUND.values(), ids=WITH_BACKGROUND)
@pytest.mark.parametrize(("axis", "sign"), [(0, -1.0), (1, 1.0), (2, -1.0)], ids=["x", "y", "z"])
def test_a_point_behind_the_scene_in_a_presets_volume(axis: int, sign: float, volume: Volume) -> None:
    _assert_lands_on_its_pixel(_round_trip(_behind(axis, sign), _facing(axis, sign), volume))
