"""PSNR against its definition, SSIM against an independent implementation."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from model.metrics import psnr, ssim


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


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_ssim_agrees_with_torchmetrics(noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 3, 24, 31, generator=generator)
    pictures = (truth + noise * torch.randn(truth.shape, generator=generator)).clamp(0, 1)
    _, positions = structural_similarity_index_measure(
        pictures.double(), truth.double(), data_range=1.0, sigma=1.5, return_full_image=True
    )
    # torchmetrics pads the pictures by reflection; half a window from the border its positions see the picture alone.
    theirs = positions[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    assert ssim(pictures, truth).numpy() == pytest.approx(theirs.numpy(), abs=1e-9)  # both in float64


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="must both be"):
        psnr(torch.rand(3, 8, 8), torch.rand(3, 8, 9))
    with pytest.raises(ValueError, match="must both be"):
        psnr(torch.rand(8, 8, 3), torch.rand(8, 8, 3))
    with pytest.raises(ValueError, match="smaller than its window"):
        ssim(torch.rand(3, 8, 8), torch.rand(3, 8, 8))
