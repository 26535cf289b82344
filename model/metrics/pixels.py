"""How close pictures are to the truth (the paper, section 4).

Pictures are float tensors [..., 3, H, W] with values in [0, 1]; every function returns one float64 number per picture,
[...].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

# Equal pictures would be infinitely good and spoil every mean, so that errors below 8-bit rounding's 1e-5 all count
# alike.
SMALLEST_SQUARED_ERROR = 1e-10
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5  # Wang et al. 2004, "Image quality assessment", section III-C


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
    flat = (images.double().reshape(-1, *images.shape[-3:]) for images in (pictures, truth))
    _, positions = structural_similarity_index_measure(
        *flat, sigma=SSIM_SIGMA, data_range=1.0, reduction="none", return_full_image=True
    )
    border = SSIM_WINDOW // 2  # where the window hangs over the edge, on pixels that were made up
    inside = positions[..., border:-border, border:-border]
    return inside.mean(dim=(-3, -2, -1)).reshape(pictures.shape[:-3])


def _check(pictures: Tensor, truth: Tensor) -> None:
    if pictures.shape != truth.shape or pictures.dim() < 3 or pictures.shape[-3] != 3:
        raise ValueError(f"pictures {tuple(pictures.shape)} and truth {tuple(truth.shape)} must both be [..., 3, H, W]")
