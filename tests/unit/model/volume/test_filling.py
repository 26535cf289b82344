"""model/volume/filling.py: voxel centres, contraction, unprojection, aggregation."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from model.cameras import Cameras
from model.volume.filling import ViewAggregator, ViewSamples, VoxelProjections, project_voxels, unproject
from model.volume.space import SceneFrame, contract, outside_scene, uncontract, voxel_centers, voxel_grid

CPU = torch.device("cpu")


def _points_in_all_directions(count: int = 4000) -> Tensor:
    """Normalised points from inside the scene to 50 half sizes away, on both sides of every axis."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    distances = torch.logspace(-2, 1.7, count, dtype=torch.float64)
    return directions / directions.abs().amax(-1, keepdim=True) * distances[:, None]


def _is_reached(grid_points: Tensor, foreground_fraction: float) -> Tensor:
    """At most one axis lies outside of the scene's part."""
    return (grid_points.abs() > foreground_fraction).sum(-1) < 2


def _camera(image_size: tuple[int, int] = (6, 8)) -> Cameras:
    """One camera [1, 1] five units before the origin on the z axis, looking along +z."""
    pose = torch.eye(4)
    pose[2, 3] = 5.0
    intrinsics = torch.tensor([[10.0, 0.0, 4.0], [0.0, 12.0, 3.0], [0.0, 0.0, 1.0]])
    return Cameras(pose[None, None], intrinsics[None, None], image_size)


@pytest.mark.parametrize("foreground_fraction", [0.3, 0.5, 0.8])
def test_uncontract_inverts_contract(foreground_fraction: float) -> None:
    points = _points_in_all_directions()
    contracted = contract(points, foreground_fraction)
    assert contracted.abs().max() < 1
    assert _is_reached(contracted, foreground_fraction).all()
    # Far away, 1/p - n is a small difference of numbers near 1: 50 times their rounding, squared by the derivative.
    torch.testing.assert_close(uncontract(contracted, foreground_fraction), points, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("foreground_fraction", [0.3, 0.5])
def test_contract_inverts_uncontract_where_reachable(foreground_fraction: float) -> None:
    generator = torch.Generator().manual_seed(1)
    grid_points = torch.rand(4000, 3, generator=generator, dtype=torch.float64) * 1.98 - 0.99
    back = contract(uncontract(grid_points, foreground_fraction), foreground_fraction)
    same = (back - grid_points).abs().amax(-1) < 1e-9
    assert torch.equal(same, _is_reached(grid_points, foreground_fraction))
    assert 0.1 < same.float().mean() < 0.9  # both kinds are among them


def test_contraction_at_hand_computed_points() -> None:
    points = torch.tensor([[0.5, -1.0, 0.2], [0.0, -3.0, 0.0], [-4.0, 2.0, 1.0], [2.0, 2.0, -1.0]])
    # p = 1/2: n = 2 - 1/n0, scaled by 1/2. Where two coordinates tie, one of them counts as the largest.
    expected = torch.tensor([[0.25, -0.5, 0.1], [0.0, -5 / 6, 0.0], [-0.875, 0.25, 0.125], [0.75, 0.5, -0.25]])
    torch.testing.assert_close(contract(points, 0.5), expected)


def test_unreachable_voxels_lie_where_two_axes_leave_the_scene() -> None:
    G = 8
    mask = voxel_grid(G, 0.5, CPU).reachable.reshape(G, G, G)
    outside = torch.tensor([True, True, False, False, False, False, True, True])
    num_outside = outside[:, None, None].int() + outside[:, None].int() + outside.int()
    assert torch.equal(mask, num_outside < 2)
    # Both signs of every axis are treated alike.
    assert torch.equal(mask, mask.flip(0))
    assert torch.equal(mask, mask.flip(1))
    assert torch.equal(mask, mask.flip(2))
    assert voxel_grid(G, None, CPU).reachable.all()


@pytest.mark.parametrize("share", ["1/2", "1/4", "3/10", "2/5", "3/5", "3/4", "9/10"])
def test_the_scene_ends_where_whole_numbers_say(share: str) -> None:
    fraction = Fraction(share)
    for G in range(6, 129):
        # The centre's distance from the middle is |2i + 1 - G| / G of the half side.
        expected = [abs(2 * i + 1 - G) * fraction.denominator > fraction.numerator * G for i in range(G)]
        assert outside_scene(G, float(fraction)).tolist() == expected, G


@pytest.mark.parametrize(("G", "unreachable"), [(10, 352), (12, 864), (14, 1080), (30, 12152)])
def test_so_many_voxels_are_unreachable(G: int, unreachable: int) -> None:
    """Counted by hand: of 14 centres an axis, 8 lie in the scene (two on its border), so 8³ + 3·8²·6 of 14³ voxels are
    reached; of 10, 6; of 12, 6; of 30, 16.
    """
    inside = {10: 6, 12: 6, 14: 8, 30: 16}[G]
    assert G**3 - inside**3 - 3 * inside**2 * (G - inside) == unreachable
    assert (~voxel_grid(G, 0.5, CPU).reachable).sum() == unreachable


def test_centres_are_where_and_in_the_order_that_whole_numbers_say() -> None:
    for G in range(6, 129):
        centers, steps = voxel_centers(G), 2 * torch.arange(G) + 1 - G
        # Two roundings of numbers below one, each by at most half of 2⁻²⁴ after the doubling by 2⁻²⁴.
        torch.testing.assert_close(centers.double(), steps.double() / G, rtol=0, atol=1.5 * 2**-24)
        assert torch.equal(centers[steps.abs() * 2 == G].abs(), torch.full((int((steps.abs() * 2 == G).sum()),), 0.5))
        order = steps.abs()[:, None] - steps.abs()
        assert (centers.abs()[:, None] > centers.abs())[order > 0].all()


@pytest.mark.parametrize("G", [6, 12, 14, 30, 37])
def test_centres_beyond_the_scene_are_where_exact_numbers_put_them(G: int) -> None:
    points, steps = voxel_grid(G, 0.5, CPU).points.double(), 2 * torch.arange(G, dtype=torch.float64) + 1 - G
    z, y, x = torch.meshgrid(steps, steps, steps, indexing="ij")
    n = 2 * torch.stack([x, y, z], dim=-1).reshape(-1, 3)  # u = n / G
    largest = n.abs().amax(-1, keepdim=True)
    radius = G / (2 * G - largest)
    is_largest = n.abs() == largest
    expected = torch.where(largest <= G, n / G, torch.where(is_largest, n.sign(), n / G) * radius)
    alone = (largest[:, 0] <= G) | (is_largest.sum(-1) == 1)
    torch.testing.assert_close(points[alone], expected[alone], rtol=1e-5, atol=1e-6)
    assert (voxel_grid(G, 0.5, CPU).reachable <= alone).all()  # so every one that is rendered has its place
    # In corners coordinates tie, and rounding decides which of them is the largest: one at least.
    tied = torch.where(is_largest, n / G, 0.0) * radius
    as_largest, as_other = (torch.isclose(points, values, rtol=1e-5, atol=1e-6) for values in (expected, tied))
    assert (as_largest | (is_largest & as_other)).all()
    assert (as_largest & is_largest).any(-1).all()


def test_what_is_compiled_has_the_same_centres() -> None:
    compiled = torch.compile(lambda: voxel_grid(14, 0.5, CPU), fullgraph=True, backend="aot_eager")
    for ours, eager in zip(compiled(), voxel_grid(14, 0.5, CPU), strict=True):
        assert torch.equal(ours, eager)


def test_voxels_are_stored_z_y_x() -> None:
    G = 4
    points = voxel_grid(G, None, CPU).points.reshape(G, G, G, 3)
    torch.testing.assert_close(points[3, 2, 0], torch.tensor([-0.75, 0.25, 0.75]))  # index z, y, x; values x, y, z
    contracted = voxel_grid(G, 0.5, CPU).points.reshape(G, G, G, 3)
    torch.testing.assert_close(contracted[1, 2, 0], torch.tensor([-2.0, 1.0, -1.0]))  # u = (-1.5, 0.5, -0.5), n0 = 2


def test_a_grid_made_in_inference_mode_does_not_come_back_in_training() -> None:
    with torch.inference_mode():
        voxel_grid(3, 0.4, CPU)
    points, weight = voxel_grid(3, 0.4, CPU).points, torch.ones(3, requires_grad=True)
    (points * weight).sum().backward()
    assert weight.grad is not None


def test_scene_frame_moves_points_both_ways() -> None:
    bounds = torch.tensor([[[-1.0, 0.0, 2.0], [1.0, 3.0, 6.0]]])
    frame = SceneFrame.from_bounds(bounds)
    world = frame.to_world(torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 0.5]]))
    torch.testing.assert_close(world, torch.tensor([[[0.0, 1.5, 4.0], [2.0, -0.5, 5.0]]]))
    torch.testing.assert_close(
        frame.to_normalized(world), torch.tensor([[[0.0, 0.0, 0.0], [1.0, -1.0, 0.5]]]), rtol=0, atol=1e-6
    )


def _voxels_at(points: Tensor, cameras: Cameras) -> VoxelProjections:
    """Every point [N, 3] as the only voxel of a sample of its own, seen by the same cameras [1, V]."""
    bounds = torch.stack([points - 1, points + 1], dim=1)
    return project_voxels(Cameras.cat([cameras] * len(points)), bounds, grid_size=1, foreground_fraction=None).resize(
        cameras.image_size
    )


def test_unproject_reads_the_pixel_that_a_point_projects_to() -> None:
    cameras = _camera()
    features = torch.arange(48.0).reshape(1, 1, 1, 6, 8)
    rays = cameras.ray_directions()[0, 0]  # [6, 8, 3]
    on_pixel = cameras.centers()[0, 0] + 4.0 * rays[2, 5]
    between = cameras.centers()[0, 0] + 4.0 * (rays[2, 5] + rays[2, 6]) / 2
    behind = cameras.centers()[0, 0] - 4.0 * rays[2, 5]
    beside = cameras.centers()[0, 0] + 4.0 * (rays[2, 0] * 2 - rays[2, 2])
    voxels = _voxels_at(torch.stack([on_pixel, between, behind, beside]), cameras)
    samples = unproject(features.expand(4, -1, -1, -1, -1), voxels)
    # Voxel centres are rounded, float32; neighbouring pixels differ by 8 at most.
    torch.testing.assert_close(samples.features[:, 0, 0, 0], torch.tensor([21.0, 21.5, 0.0, 0.0]), rtol=0, atol=1e-4)
    assert samples.valid[:, 0, 0].tolist() == [True, True, False, False]
    torch.testing.assert_close(samples.depth[:, 0, 0], torch.tensor([4.0, 4.0, 0.0, 0.0]))
    torch.testing.assert_close(samples.rays[0, 0, 0], rays[2, 5])
    assert (samples.rays[2:] == 0).all()


def test_unreachable_points_have_no_features_but_a_depth() -> None:
    cameras = _camera()
    points = cameras.centers()[0] + 4.0 * cameras.ray_directions()[0, :, 2, 5]
    voxels = _voxels_at(points, cameras)._replace(reachable=torch.tensor([False]))
    samples = unproject(torch.ones(1, 1, 2, 6, 8), voxels)
    assert (samples.features == 0).all()
    assert (samples.rays == 0).all()
    torch.testing.assert_close(samples.depth, torch.full((1, 1, 1), 4.0))
    assert samples.valid.all()


def test_projections_of_a_resized_image_are_resized_projections() -> None:
    bounds = torch.tensor([[[-1.0, 0.0, -2.0], [1.0, 3.0, 1.0]]])
    camera = _camera().resize((12, 4))
    voxels = project_voxels(camera, bounds, grid_size=4, foreground_fraction=0.5).resize((12, 4))
    points = SceneFrame.from_bounds(bounds).to_world(voxel_grid(4, 0.5, CPU).points)
    torch.testing.assert_close(voxels.pixels, camera.project(points[:, None])[0])
    torch.testing.assert_close(voxels.ray_matrices, camera.ray_matrices())


def _merge(aggregator: ViewAggregator, samples: ViewSamples, timestep_embedding: Tensor) -> Tensor:
    return aggregator.merge(samples, aggregator.timestep_encoder(timestep_embedding))


def _samples(num_views: int, num_voxels: int) -> ViewSamples:
    generator = torch.Generator().manual_seed(2)
    valid = torch.rand(2, num_views, num_voxels, generator=generator) < 0.7
    valid[:, 0] = True
    valid[:, :, 0] = False  # nobody sees voxel 0
    return ViewSamples(
        torch.randn(2, num_views, num_voxels, 4, generator=generator) * valid[..., None],
        torch.randn(2, num_views, num_voxels, 3, generator=generator) * valid[..., None],
        torch.rand(2, num_views, num_voxels, generator=generator) * valid,
        valid,
    )


@torch.no_grad()
def test_aggregation_ignores_the_order_of_views_and_those_that_see_nothing() -> None:
    torch.manual_seed(0)
    aggregator, samples, timesteps = ViewAggregator(4, 6), _samples(5, 7), torch.randn(2, 5, 6)
    merged = _merge(aggregator, samples, timesteps)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = _merge(aggregator, ViewSamples(*(part[:, order] for part in samples)), timesteps[:, order])
    # Sums over five views in another order, float32.
    torch.testing.assert_close(permuted, merged, rtol=0, atol=1e-5)
    # A view's values where it sees nothing must not matter.
    junk = samples.features + 10.0 * ~samples.valid[..., None]
    spoiled = _merge(aggregator, samples._replace(features=junk), timesteps)
    torch.testing.assert_close(spoiled, merged, rtol=0, atol=1e-5)
    # A voxel that nobody sees is what the last layer makes of zeros.
    unseen = aggregator.output(torch.zeros(9))
    torch.testing.assert_close(merged[:, 0], unseen.expand(2, -1), rtol=0, atol=1e-5)


@torch.no_grad()
def test_aggregation_sees_depth_ray_and_timestep() -> None:
    torch.manual_seed(0)
    aggregator, samples, timesteps = ViewAggregator(4, 6), _samples(3, 7), torch.randn(2, 3, 6)
    merged = _merge(aggregator, samples, timesteps)
    changed = {
        "depth": _merge(aggregator, samples._replace(depth=samples.depth + 0.5), timesteps),
        "rays": _merge(aggregator, samples._replace(rays=samples.rays + 0.5), timesteps),
        "timestep": _merge(aggregator, samples, timesteps + 0.5),
    }
    for name, other in changed.items():
        assert (other - merged).abs().max() > 1e-5, name
