"""PSNR and SSIM against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from model.metrics.pixels import psnr, ssim


def test_psnr_of_a_known_error() -> None:
    truth = torch.full((2, 3, 4, 5), 0.5)
    pictures = truth + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    # 10 log10(1 / 0.1²) = 20 dB. float32 holds 0.51 to 6e-8, which is 1e-4 dB of an error of 0.01.
    assert psnr(pictures, truth) == pytest.approx([20.0, 40.0], abs=1e-3)


def test_psnr_is_of_the_mean_error_over_the_picture_not_the_mean_of_psnrs() -> None:
    truth = torch.zeros(1, 3, 2, 2)
    pictures = truth.clone()
    pictures[0, :, 0, 0] = 0.4  # a quarter of the pixels: mean squared error 0.04
    assert psnr(pictures, truth).item() == pytest.approx(13.979, abs=1e-3)


def test_equal_pictures_are_finite() -> None:
    pictures = torch.rand(3, 16, 16)
    assert psnr(pictures, pictures).item() == pytest.approx(100.0)
    assert ssim(pictures, pictures).item() == pytest.approx(1.0)


def defined_ssim(picture: np.ndarray, truth: np.ndarray) -> float:
    """Wang et al. 2004, equations 13 to 17, of [3, H, W] pictures: window by window, each wholly inside."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    values = []
    for x_plane, y_plane in zip(picture, truth, strict=True):
        windows = (sliding_window_view(plane, (11, 11)).reshape(-1, 11, 11) for plane in (x_plane, y_plane))
        for x, y in zip(*windows, strict=True):
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
            covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
            luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
            values.append(luminance * (2 * covariance + 0.03**2) / (var_x + var_y + 0.03**2))
    return float(np.mean(values))


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_ssim_is_what_its_definition_says(noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(2, 3, 24, 31, generator=generator).double()
    pictures = (truth + noise * torch.randn(truth.shape, generator=generator)).clamp(0, 1)
    expected = [defined_ssim(x.numpy(), y.numpy()) for x, y in zip(pictures, truth, strict=True)]
    # Variances as differences of squares in float64: 1e-16 of values of one, over the smallest constant, 1e-4.
    assert ssim(pictures, truth).numpy() == pytest.approx(np.array(expected), abs=1e-9)
    assert ssim(pictures[0], truth[0]).shape == ()


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="must both be"):
        psnr(torch.rand(3, 8, 8), torch.rand(3, 8, 9))
    with pytest.raises(ValueError, match="must both be"):
        psnr(torch.rand(8, 8, 3), torch.rand(8, 8, 3))
    with pytest.raises(ValueError, match="smaller than its window"):
        ssim(torch.rand(3, 8, 8), torch.rand(3, 8, 8))
