"""model/base/stand_in.py: the stand-in before any training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.base.stand_in import build_tiny_base, build_tokenizer
from model.config import TinyBaseConfig

# Of values of size one: channels without a task stay random and shift the last normalisations a little.
TOLERANCE = 0.2

SMALL = TinyBaseConfig(
    vae_channels=(8, 8, 8),
    unet_channels=(16, 32),
    head_channels=16,
    text_channels=32,
    text_length=8,
)


def unit(images: Tensor) -> Tensor:
    """Each image divided by its root mean square, since the autoencoder's last normalisations scale whole images."""
    return images / images.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


@torch.no_grad()
def test_an_untrained_autoencoder_gives_back_the_mean_of_each_latent_pixel() -> None:
    base = build_tiny_base(SMALL, image_size=32, words=["red"], seed=0)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, log_variance = base.encode_moments(images).chunk(2, dim=1)
    averages = F.avg_pool2d(images * 2 - 1, 4)
    torch.testing.assert_close(unit(mean[:, :3]), unit(averages), rtol=0, atol=TOLERANCE)
    assert (log_variance < -5).all()
    restored = base.vae.decode(mean).sample
    restored, averages = unit(restored), unit(F.interpolate(averages, scale_factor=4.0))
    torch.testing.assert_close(restored, averages, rtol=0, atol=TOLERANCE)


def test_it_is_a_function_of_the_seed_alone() -> None:
    first, again, other = (build_tiny_base(SMALL, image_size=32, words=["red"], seed=seed) for seed in (0, 0, 1))
    for name, value in first.unet.state_dict().items():
        assert torch.equal(value, again.unet.state_dict()[name]), name
    assert not torch.equal(first.unet.conv_in.weight, other.unet.conv_in.weight)


def test_known_words_are_one_token() -> None:
    tokenizer = build_tokenizer(["teddybear", "red"], max_length=8)
    assert tokenizer.tokenize("red teddybear") == ["red</w>", "teddybear</w>"]
    assert len(tokenizer.tokenize("blue")) > 1
