"""preprocessing/latents/prior.py: what the base model makes of captions, at the size of the training's pictures."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch

from model.base.stable_diffusion import BaseModel
from model.base.stand_in import build_tiny_base
from preprocessing.config import LatentsConfig
from preprocessing.latents.prior import sample_prior
from tests.support.training_inputs import BASE

CONFIG = LatentsConfig(prior_num_steps=2, batch_size=2)
NATIVE, SMALLER = 64, 32


def stand_in() -> BaseModel:
    """Made for pictures of 64 pixels, which are 16 latent pixels."""
    return build_tiny_base(BASE, image_size=NATIVE, words=["red", "apple"], seed=0).frozen()


def sample(base: BaseModel, config: LatentsConfig = CONFIG, *, image_size: int) -> torch.Tensor:
    text = base.encode_text(["", "a red apple", "a red apple", "an apple"])
    return sample_prior(base, text[1:], text[0], config, image_size=image_size, first_seed=5)


def test_at_the_base_models_own_size_samples_stay_as_they_are() -> None:
    base = stand_in()
    latents = sample(base, image_size=NATIVE)
    assert latents.shape == (3, 4, 16, 16)
    assert not torch.equal(latents[0], latents[1])  # the same caption, other noise


def test_samples_are_drawn_at_the_base_models_size_and_scaled_as_pictures() -> None:
    base = stand_in()
    native = sample(base, image_size=NATIVE)
    scaled = sample(base, image_size=SMALLER)
    assert scaled.shape == (3, 4, 8, 8)
    with torch.no_grad():
        for number in range(3):
            (picture,) = (base.decode(native[number : number + 1]) * 255).round().byte().permute(0, 2, 3, 1).numpy()
            half = cv2.resize(picture, (SMALLER, SMALLER), interpolation=cv2.INTER_AREA)
            pixels = torch.from_numpy(half.astype(np.float32) / 255).permute(2, 0, 1)[None]
            expected = base.latents_from_moments(base.encode_moments(pixels))
            torch.testing.assert_close(scaled[number : number + 1], expected)


def test_samples_do_not_depend_on_their_batch() -> None:
    base = stand_in()
    alone = sample(base, replace(CONFIG, batch_size=1), image_size=NATIVE)
    torch.testing.assert_close(alone, sample(base, image_size=NATIVE), rtol=1e-4, atol=1e-4)  # sums in another order
