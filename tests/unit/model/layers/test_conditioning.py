"""model/layers/conditioning.py and model/layers/views.py."""

from __future__ import annotations

import math

import pytest
import torch

from model.cameras import Cameras
from model.layers.conditioning import LowRank, camera_conditioning, conditioning_vector, low_rank_down
from model.layers.views import ViewContext
from tests.support.factories import look_at_cameras


def _camera_at(center: tuple[float, float, float]) -> Cameras:
    world_to_camera = torch.eye(4)
    world_to_camera[:3, 3] = -torch.tensor(center)
    intrinsics = torch.tensor([[50.0, 0, 20.0], [0, 40.0, 30.0], [0, 0, 1]])
    return Cameras(world_to_camera, intrinsics, (80, 100))


def test_camera_conditioning_by_hand() -> None:
    # Centre (0, 2, 2): 45° from the z axis, azimuth 90°, distance √8.
    expected = torch.tensor([math.pi / 4, 1.0, 0.0, math.sqrt(8), 0.5, 0.5, 0.2, 0.375])
    torch.testing.assert_close(camera_conditioning(_camera_at((0.0, 2.0, 2.0))), expected)


def test_camera_below_the_plane_has_a_polar_angle_above_90_degrees() -> None:
    assert camera_conditioning(_camera_at((1.0, 0.0, -1.0)))[0].item() == pytest.approx(3 * math.pi / 4)


def test_conditioning_does_not_depend_on_the_image_size() -> None:
    cameras = look_at_cameras(2, 3, image_size=(64, 96))
    torch.testing.assert_close(camera_conditioning(cameras), camera_conditioning(cameras.resize((32, 24))))


def test_conditioning_vector_ends_with_the_intensity() -> None:
    intensity = torch.rand(2, 3, 2)
    vector = conditioning_vector(look_at_cameras(2, 3), intensity)
    assert vector.shape == (2, 3, 10)
    torch.testing.assert_close(vector[..., 8:], intensity)


def test_intensity_of_another_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="intensity"):
        conditioning_vector(look_at_cameras(2, 3), torch.rand(2, 4, 2))


def test_low_rank_terms_equal_one_projection_each_of_the_concatenation() -> None:
    """Each projection has its own rows of `down`, as if it were alone."""
    torch.manual_seed(0)
    layer, down_view = LowRank(12, out_channels=(7, 5), rank=3), low_rank_down(10 + 8, rank=3, num_projections=2)
    x, z, e = torch.randn(4, 5, 12), torch.randn(4, 10), torch.randn(4, 8)
    joined = torch.cat([x, z[:, None].expand(-1, 5, -1), e[:, None].expand(-1, 5, -1)], dim=-1)
    down = torch.cat([layer.down.weight, down_view.weight], dim=1)
    projected = [torch.randn(4, 5, 7), torch.randn(4, 5, 5)]
    for up in layer.up:
        torch.nn.init.normal_(up.weight)
    outputs = layer(projected, x, down_view(torch.cat([z, e], dim=-1)))
    assert len(outputs) == 2
    for number, (output, base, up) in enumerate(zip(outputs, projected, layer.up, strict=True)):
        term = joined @ down[3 * number : 3 * (number + 1)].T @ up.weight.T
        # float32 sums of 30 products of order one, in another order
        torch.testing.assert_close(output, base + term, rtol=1e-5, atol=1e-4)


def test_low_rank_terms_without_views_see_the_tokens_alone() -> None:
    layer = LowRank(12, out_channels=(7,), rank=3)
    torch.nn.init.normal_(layer.up[0].weight)
    x, base = torch.randn(4, 5, 12), torch.randn(4, 5, 7)
    torch.testing.assert_close(layer([base], x)[0], base + x @ layer.down.weight.T @ layer.up[0].weight.T)


def test_low_rank_terms_start_at_zero_and_learn() -> None:
    layer = LowRank(12, out_channels=(7, 5), rank=3)
    projected = [torch.randn(2, 5, 7), torch.randn(2, 5, 5)]
    outputs = layer(projected, torch.randn(2, 5, 12), torch.randn(2, 2 * 3))
    assert all(torch.equal(output, base) for output, base in zip(outputs, projected, strict=True))
    sum(output.sum() for output in outputs).backward()
    for up in layer.up:
        assert up.weight.grad is not None
        assert up.weight.grad.abs().max() > 0


def _context(latent_size: tuple[int, int]) -> ViewContext:
    return ViewContext(
        num_views=1,
        latent_size=latent_size,
        conditioning=torch.zeros(1, 10),
        timestep_embedding=torch.zeros(1, 4),
        geometry={},
        hidden_views=0,
        opacity_noise=None,
    )


@pytest.mark.parametrize(("num_tokens", "size"), [(384, (24, 16)), (96, (12, 8)), (24, (6, 4)), (6, (3, 2))])
def test_feature_size_of_latents_that_are_not_square(num_tokens: int, size: tuple[int, int]) -> None:
    assert _context((24, 16)).feature_size(num_tokens) == size


@pytest.mark.parametrize("num_tokens", [400, 100, 1])
def test_feature_size_of_no_level_is_refused(num_tokens: int) -> None:
    with pytest.raises(ValueError, match="tokens"):
        _context((24, 16)).feature_size(num_tokens)
