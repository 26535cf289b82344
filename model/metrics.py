"""How close pictures are to the truth.

Pictures are float tensors [..., 3, H, W] with values in [0, 1]; every function returns one float64 number per picture,
[...].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Equal pictures would be infinitely good and spoil every mean, so that errors below 8-bit rounding's 1e-5 all count
# alike.
SMALLEST_SQUARED_ERROR = 1e-10
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # Wang et al. 2004, "Image quality assessment", section III-C
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # the same; for a data range of 1


def psnr(pictures: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for a data range of 1; 100 dB for equal pictures.

    Raises ValueError on unequal shapes.
    """
    _check(pictures, truth)
    squared_error = (pictures.double() - truth.double()).square().mean(dim=(-3, -2, -1))
    return -10 * torch.log10(squared_error.clamp_min(SMALLEST_SQUARED_ERROR))


def ssim(pictures: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity in [-1, 1] (Wang et al. 2004): Gaussian window of 11 × 11 pixels, only where it lies
    inside.

    Mean over positions and channels. Raises ValueError on unequal shapes and on pictures smaller than the window.
    """
    _check(pictures, truth)
    if min(pictures.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(
            f"ssim: pictures of {tuple(pictures.shape[-2:])} are smaller than its window; use {SSIM_WINDOW} or more"
        )
    x, y = pictures.double(), truth.double()
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    structure = (2 * covariance + SSIM_C2) / (variance_x + variance_y + SSIM_C2)
    return (luminance * structure).mean(dim=(-3, -2, -1))


def _window_mean(pictures: Tensor) -> Tensor:
    """Gaussian-weighted mean around every pixel whose whole window lies inside: [..., 3, H-10, W-10]."""
    offsets = torch.arange(SSIM_WINDOW, dtype=pictures.dtype, device=pictures.device) - SSIM_WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    weights = weights / weights.sum()
    planes = pictures.reshape(-1, 1, *pictures.shape[-2:])
    planes = F.conv2d(F.conv2d(planes, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return planes.reshape(*pictures.shape[:-2], *planes.shape[-2:])


def _check(pictures: Tensor, truth: Tensor) -> None:
    if pictures.shape != truth.shape or pictures.dim() < 3 or pictures.shape[-3] != 3:
        raise ValueError(f"pictures {tuple(pictures.shape)} and truth {tuple(truth.shape)} must both be [..., 3, H, W]")
