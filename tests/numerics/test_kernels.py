"""model/kernels against its plain twins: outputs and gradients."""

from __future__ import annotations

import pytest
import torch

from model.volume.filling import MeanAggregator
from model.volume.kernels.aggregation import unproject_aggregate
from model.volume.kernels.marching import march
from tests.numerics.comparison import assert_same
from tests.numerics.kernel_cases import aggregation_case, march_case


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("num_views", [1, 3])
def test_tiled_aggregation_equals_the_plain_one(background: bool, num_views: int, dtype: torch.dtype) -> None:
    case = aggregation_case(grid_size=10, num_views=num_views, background=background, dtype=dtype)
    # One view's weight is one whatever the network says, so that network's gradients are rounding errors.
    assert_same(case, "tiled", without=("weight.",) if num_views == 1 else ())


def test_tiles_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    case = aggregation_case(grid_size=6)
    monkeypatch.setattr("model.volume.kernels.aggregation.PAIRS_PER_THREAD", 50)
    monkeypatch.setattr("model.volume.kernels.aggregation.MOST_THREADS", 1)  # 216 voxels make 14 tiles
    assert_same(case, "tiled")


@pytest.mark.parametrize("num_samples", [1, 3, 4, 7])
def test_tiles_of_several_samples_join_without_a_seam(monkeypatch: pytest.MonkeyPatch, num_samples: int) -> None:
    """Of 27 voxels and 3 views; three samples a tile forwards, one backwards."""
    monkeypatch.setattr("model.volume.kernels.aggregation.PAIRS_PER_THREAD", 3 * 27 * 3)
    monkeypatch.setattr("model.volume.kernels.aggregation.MOST_THREADS", 1)
    assert_same(aggregation_case(grid_size=3, num_samples=num_samples), "tiled")


def test_mean_over_views_equals_the_plain_one() -> None:
    case = aggregation_case(grid_size=8)._replace(aggregator=MeanAggregator())
    assert_same(case, "tiled", without=("timestep_embedding",))


def test_voxels_that_no_view_sees_are_alike() -> None:
    case = aggregation_case(grid_size=10)
    unseen = (case.voxels.depth == 0).all(1)
    assert 0.05 < unseen.float().mean() < 0.95
    volume = case.aggregator(*case[1:]).mT
    torch.testing.assert_close(volume[unseen], volume[unseen][:1].expand_as(volume[unseen]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("noise", [True, False])
def test_march_equals_the_plain_one(background: bool, noise: bool, dtype: torch.dtype) -> None:
    case = march_case(grid_size=5, background=background, noise=noise, dtype=dtype)
    assert_same(case, "tiled")


def test_parts_of_rays_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    case = march_case(grid_size=5)
    monkeypatch.setattr("model.volume.kernels.marching.POSITIONS_PER_PART", 60)  # 24 rays of 12 positions make 5 parts
    assert_same(case, "tiled")


def test_gradients_of_aggregation_are_those_of_finite_differences() -> None:
    case = aggregation_case(
        grid_size=3, num_samples=1, num_views=2, channels=2, size=(3, 4), dtype=torch.float64, background=False
    )
    channels_last = case.features.movedim(2, -1).contiguous().requires_grad_()
    codes = torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True)
    weights = [weight.detach().requires_grad_() for weight in case.aggregator.weights()]
    assert torch.autograd.gradcheck(
        lambda features, codes, *weights: unproject_aggregate(features, codes, *case.voxels, list(weights)),
        (channels_last, codes, *weights),
    )


@pytest.mark.parametrize("noise", [True, False])
def test_gradients_of_the_march_are_those_of_finite_differences(noise: bool) -> None:
    case = march_case(
        grid_size=3,
        num_samples=1,
        num_views=2,
        channels=2,
        size=(2, 2),
        num_positions=4,
        dtype=torch.float64,
        noise=noise,
    )
    codes = torch.randn(1, 2, 4, 2, dtype=torch.float64, requires_grad=True)
    weights = [weight.detach().requires_grad_() for weight in case.renderer.weights()]
    rays = case.rays
    assert torch.autograd.gradcheck(
        lambda volume, codes, *weights: march(
            volume, codes, rays.points, rays.depths, rays.intervals, case.noise, list(weights)
        ),
        (case.volume.requires_grad_(), codes, *weights),
    )


@pytest.mark.parametrize("operator", ["unproject_aggregate", "march"])
def test_operators_keep_the_compilers_rules(operator: str) -> None:
    """Shapes and types of fake runs, autograd's registration, no changed inputs: PyTorch's own checks."""
    if operator == "march":
        case = march_case(grid_size=4, num_samples=1, size=(2, 2), num_positions=3)
        codes = torch.randn(1, 2, 4, 16, requires_grad=True)
        rays, weights = case.rays, [weight.detach().requires_grad_() for weight in case.renderer.weights()]
        arguments = (case.volume.requires_grad_(), codes, rays.points, rays.depths, rays.intervals, case.noise, weights)
        torch.library.opcheck(march, arguments)
        return
    views = aggregation_case(grid_size=4, num_samples=1)
    weights = [weight.detach().requires_grad_() for weight in views.aggregator.weights()]
    features = views.features.movedim(2, -1).contiguous().requires_grad_()
    torch.library.opcheck(unproject_aggregate, (features, torch.randn(1, 3, 16), *views.voxels, weights))
