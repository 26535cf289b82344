"""model/volume/rendering.py: where rays are sampled, how samples add up, noise, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from model.cameras import Cameras
from model.config import ProjectionConfig
from model.volume.filling import project_voxels, unproject
from model.volume.rendering import (
    MISSED_NEAR_FAR,
    Rays,
    RaySamples,
    Rendered,
    VolumeRenderer,
    background_near_far,
    box_near_far,
    composite,
    opacity_noise,
    sample_depths,
    sample_rays,
    sample_volume,
)
from model.volume.space import SceneFrame

UNIT_BOX = torch.tensor([[[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]])


def _camera(image_size: tuple[int, int] = (3, 5), offset: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Cameras:
    """One camera [1, 1] four units before `offset` on the z axis, looking along +z through the middle of its image."""
    pose = torch.eye(4)
    pose[:3, 3] = torch.tensor([0.0, 0.0, 4.0]) - torch.tensor(offset)
    height, width = image_size
    intrinsics = torch.tensor([[10.0, 0.0, width / 2], [0.0, 10.0, height / 2], [0.0, 0.0, 1.0]])
    return Cameras(pose[None, None], intrinsics[None, None], image_size)


def _renderer() -> VolumeRenderer:
    torch.manual_seed(0)
    return VolumeRenderer(4)


def _rays_of(cameras: Cameras, bounds: Tensor, *, background: bool, num_samples: int = 16) -> RaySamples:
    config = ProjectionConfig(blocks=(), background=background, num_samples=num_samples)
    (rays,) = sample_rays(cameras, bounds, config, cameras.image_size)
    return rays


def _set_density(renderer: VolumeRenderer, *, weight: float, bias: float) -> None:
    """Make density softplus(weight · first channel + bias)."""
    for index in (0, 2):
        linear = renderer.trunk[index]
        assert isinstance(linear, nn.Linear)
        nn.init.eye_(linear.weight)
        nn.init.zeros_(linear.bias)
    nn.init.zeros_(renderer.density.weight)
    renderer.density.weight.data[0, 0] = weight
    nn.init.constant_(renderer.density.bias, bias)


def _rays(*rays: tuple[tuple[float, float, float], tuple[float, float, float]]) -> Rays:
    """One view per ray (origin, direction)."""
    values = torch.tensor(rays)
    return Rays(values[None, :, 0, None], values[None, :, 1, None])


def test_rays_enter_and_leave_the_box() -> None:
    rays = _rays(
        ((0.0, 0.0, -4.0), (0.0, 0.0, 1.0)),  # straight through, parallel to the other sides
        ((-4.0, 0.5, 0.0), (2.0, 0.0, 0.0)),  # depth counts directions, not units
        ((0.0, 0.0, 0.0), (0.0, 1.0, 0.0)),  # from inside
        ((0.0, 3.0, -4.0), (0.0, 0.0, 1.0)),  # misses
        ((0.0, 0.0, 4.0), (0.0, 0.0, 1.0)),  # the box lies behind
    )
    near, far = box_near_far(rays, UNIT_BOX, torch.ones(1))
    torch.testing.assert_close(near[0, :, 0], torch.tensor([3.0, 1.5, 0.0, MISSED_NEAR_FAR[0], MISSED_NEAR_FAR[0]]))
    torch.testing.assert_close(far[0, :, 0], torch.tensor([5.0, 2.5, 1.0, MISSED_NEAR_FAR[1], MISSED_NEAR_FAR[1]]))


def test_rays_respect_the_offset_and_size_of_the_scene() -> None:
    bounds = torch.tensor([[[1.0, 2.0, 3.0], [3.0, 6.0, 5.0]]])  # centred at (2, 4, 4), half size 2
    frame, camera = SceneFrame.from_bounds(bounds), _camera(offset=(2.0, 4.0, 4.0))
    rays = Rays.from_cameras(camera, frame, camera.image_size)
    torch.testing.assert_close(rays.origins[0, 0, 0], torch.tensor([0.0, 0.0, -2.0]))
    middle = rays.directions.unflatten(2, (3, 5))[0, 0, 1, 2]
    torch.testing.assert_close(middle, torch.tensor([0.0, 0.0, 0.5]))
    near, far = box_near_far(rays, frame.to_normalized(bounds), frame.half_size)
    assert near.unflatten(2, (3, 5))[0, 0, 1, 2] == 3.0  # world units
    assert far.unflatten(2, (3, 5))[0, 0, 1, 2] == 5.0


def test_background_rays_reach_four_around_the_centre() -> None:
    rays = _rays(((0.0, 3.0, -4.0), (0.0, 0.0, 1.0)), ((0.0, 0.0, 1.0), (0.0, 0.0, 1.0)))
    near, far = background_near_far(rays, torch.tensor([1.0]))
    torch.testing.assert_close(near[0, :, 0], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(far[0, :, 0], torch.tensor([9.0, 5.0]))


@pytest.mark.parametrize("background", [False, True])
def test_a_scene_in_other_units_is_sampled_at_the_same_places(background: bool) -> None:
    """Ten times as large, cameras ten times as far: the same points of the grid, at ten times the depths."""
    camera, config = _camera(), ProjectionConfig(blocks=(), background=background, num_samples=5)
    pose = camera.world_to_camera.clone()
    pose[..., :3, 3] *= 10
    larger = Cameras(pose, camera.intrinsics, camera.image_size)
    (small,) = sample_rays(camera, UNIT_BOX, config, camera.image_size)
    (large,) = sample_rays(larger, 10 * UNIT_BOX, config, camera.image_size)
    torch.testing.assert_close(large.points, small.points)
    torch.testing.assert_close(large.depths, 10 * small.depths)


def test_depths_are_even_then_even_in_disparity() -> None:
    near, far = torch.full((1, 1, 1), 1.0), torch.full((1, 1, 1), 4.0)
    depths, intervals = sample_depths(near, far, num_samples=4, disparity_at_infinity=None)
    torch.testing.assert_close(depths[0, 0, 0], torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(intervals[0, 0, 0], torch.ones(4))
    depths, intervals = sample_depths(near, far, num_samples=4, disparity_at_infinity=0.5)
    behind = 4.0 / torch.tensor([0.875, 0.75, 0.625, 0.5])
    torch.testing.assert_close(depths[0, 0, 0], torch.cat([torch.tensor([1.0, 2.0, 3.0, 4.0]), behind]))
    torch.testing.assert_close(intervals[0, 0, 0, 4:], behind - torch.cat([torch.tensor([4.0]), behind[:-1]]))


def test_trilinear_samples_and_their_edges() -> None:
    G = 4
    z, y, x = torch.meshgrid(*(3 * [torch.arange(G, dtype=torch.float32)]), indexing="ij")
    volume = torch.stack([x, y, z])[None] + 1.0
    inside = torch.tensor([[0.1, -0.3, 0.6]])
    expected = (inside + 1) / 2 * G - 0.5 + 1.0
    edges = torch.tensor([[-0.76, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.3]])
    samples = sample_volume(volume, torch.cat([inside, edges])[None, None, None])[0, 0, 0]
    torch.testing.assert_close(samples[0:1], expected)
    assert (samples[1] == 0).all()  # before the first centre at once
    torch.testing.assert_close(samples[2, 2], torch.tensor(2.0))  # half a voxel behind the last: half of its 4
    assert (samples[3] == 0).all()


def test_weights_of_a_homogeneous_medium_are_exponential() -> None:
    weights = composite(torch.full((50,), 0.7, dtype=torch.float64), torch.full((50,), 0.1, dtype=torch.float64))
    assert math.isclose(weights.sum().item(), 1 - math.exp(-0.7 * 5.0), rel_tol=1e-12)
    assert math.isclose(weights[7].item(), math.exp(-0.7 * 0.7) - math.exp(-0.7 * 0.8), rel_tol=1e-9)


@pytest.mark.parametrize("background", [False, True])
def test_an_empty_volume_shows_ones(background: bool) -> None:
    renderer, rays = _renderer(), _rays_of(_camera(), UNIT_BOX, background=background)
    _set_density(renderer, weight=0.0, bias=-80.0)
    rendered: Rendered = renderer(torch.randn(1, 4, 6, 6, 6), rays, (3, 5))
    assert rendered.features.shape == (1, 1, 4, 3, 5)
    assert rendered.opacity.shape == rendered.depth.shape == (1, 1, 1, 3, 5)
    torch.testing.assert_close(rendered.features, torch.ones_like(rendered.features))
    assert rendered.opacity.abs().max() < 1e-6
    assert rendered.depth.abs().max() < 1e-6


def test_an_opaque_wall_hides_what_is_behind_it() -> None:
    """A wall that fills the far half of the scene, seen along +z: depth is that of its front, at z = 0."""
    renderer, rays = _renderer(), _rays_of(_camera(), UNIT_BOX, background=False, num_samples=200)
    _set_density(renderer, weight=200.0, bias=-80.0)
    volume = torch.zeros(1, 4, 16, 16, 16)
    volume[:, 0, 8:] = 1.0  # z is the first of the volume's axes
    rendered: Rendered = renderer(volume, rays, (3, 5))
    assert rendered.opacity.min() > 0.99
    # Between two voxel centres, 1/8 apart, density rises from 0 to 120.
    torch.testing.assert_close(rendered.depth, torch.full_like(rendered.depth, 4.0), rtol=0, atol=0.07)


@torch.no_grad()
def test_noise_depends_on_seed_and_layer_but_not_on_the_batch() -> None:
    sizes = [7, 3 * 5 * 32]
    both = opacity_noise(torch.tensor([5, 6]), sizes)
    for ours, theirs, size in zip(both, opacity_noise(torch.tensor([6]), sizes), sizes, strict=True):
        assert ours.shape == (2, size)
        assert torch.equal(ours[1:], theirs)
        assert not torch.equal(ours[0], ours[1])
    assert not torch.equal(both[0], both[1][:, :7])

    renderer, volume = _renderer(), torch.randn(2, 4, 6, 6, 6)
    cameras = Cameras.cat([_camera(), _camera()])
    noise = both[1].view(2, 1, 15, 32)
    rays = _rays_of(cameras, UNIT_BOX.expand(2, -1, -1), background=True)
    of_second = _rays_of(cameras[1:], UNIT_BOX, background=True)
    together = renderer(volume, rays, (3, 5), noise)
    alone = renderer(volume[1:], of_second, (3, 5), noise[1:])
    quiet = renderer(volume[1:], of_second, (3, 5))
    # Matrix products of another size may round differently.
    torch.testing.assert_close(together.features[1:], alone.features, rtol=0, atol=1e-6)
    assert (alone.opacity - quiet.opacity).abs().max() > 1e-4


def test_noise_is_normal_and_has_no_pattern() -> None:
    """Over a million numbers, for seeds that are neighbours and seeds that are far apart."""
    near = torch.arange(500)
    (noise,) = opacity_noise(torch.cat([near, 2**61 + near]), [1001])
    noise = noise.double()
    # A mean of a million numbers of deviation 1 has a standard error of 0.001, a mean of squares one of 0.0014; five.
    for name, product, variance in (
        ("mean", noise, 1),
        ("variance", noise.square() - 1, 2),
        ("neighbours", noise[:, 1:] * noise[:, :-1], 1),
        ("next but one", noise[:, 2:] * noise[:, :-2], 1),
        ("neighbouring seeds", noise[1:] * noise[:-1], 1),
        ("neighbours of neighbouring seeds", noise[1:, 1:] * noise[:-1, :-1], 1),
        ("far seeds", noise[500:] * noise[:500], 1),
        ("sizes of neighbours", (noise[:, 1:].square() - 1) * (noise[:, :-1].square() - 1), 4),
    ):
        assert abs(product.mean()) < 5 * math.sqrt(variance / product.numel()), name
    # Each seed's own mean, of 1001 numbers; 1000 of them stay within five standard errors.
    assert noise.mean(dim=1).abs().max() < 5 / math.sqrt(1001)
    for bound in (0.5, 1.0, 2.0, 3.0):
        expected = math.erf(bound / math.sqrt(2))
        error = math.sqrt(expected * (1 - expected) / noise.numel())
        assert abs((noise.abs() < bound).double().mean() - expected) < 5 * error, bound
    assert 4.5 < noise.abs().max() < 5.5  # finite even where the uniform number is the largest there is


def test_noise_is_that_of_splitmix64() -> None:
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]  # its first three outputs from seed 0
    (noise,) = opacity_noise(torch.tensor([0]), [4])  # counts from 0, SplitMix64 from 1
    uniform = (noise[0, 1:] / math.sqrt(2)).double().erf()
    expected = torch.tensor([(bits - 2**64 * (bits >> 63)) / 2**63 for bits in published], dtype=torch.float64)
    # 24 bits of each number are used; float32's normal numbers keep them to about 1e-6.
    torch.testing.assert_close(uniform, expected, rtol=0, atol=1e-6)


def test_a_fresh_renderer_is_almost_transparent() -> None:
    density = nn.functional.softplus(_renderer().density.bias)
    assert density.item() == pytest.approx(0.0067, rel=0.01)


@pytest.mark.parametrize("background", [False, True])
def test_gradients_of_unproject_and_render(background: bool) -> None:
    """Finite differences agree, in double precision, for features that pass through the volume to the picture."""
    renderer = _renderer().double()
    # ReLU kinks within the finite difference's step would spoil it; biases move most of them away.
    nn.init.constant_(renderer.density.bias, 0.0)
    cameras, bounds = _camera((2, 3)).to(torch.float64), UNIT_BOX.double()
    voxels = project_voxels(cameras, bounds, grid_size=3, foreground_fraction=0.5 if background else None)
    voxels = voxels.resize(cameras.image_size)
    rays = _rays_of(cameras, bounds, background=background, num_samples=4)
    features = torch.randn(1, 1, 4, 2, 3, dtype=torch.float64, requires_grad=True)

    def picture(values: Tensor) -> tuple[Tensor, ...]:
        volume = unproject(values, voxels).features.mean(1).mT.unflatten(-1, (3, 3, 3))
        return tuple(renderer(volume, rays, (2, 3)))

    assert torch.autograd.gradcheck(picture, (features,))
