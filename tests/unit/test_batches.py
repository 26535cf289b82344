"""A sample is a function of the seed and its position, whatever it is batched with."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from infra.errors import UserError
from model.cameras import Cameras
from model.views import Scene
from preprocessing.batches import ViewBatches
from preprocessing.dataset import FrameIndex, choose_views
from preprocessing.latents import LatentCache
from tests.training_inputs import NUM_FRAMES, open_index, write_inputs

NUM_VIEWS, SEED = 3, 7


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[FrameIndex, LatentCache]:
    inputs = write_inputs(tmp_path_factory.mktemp("inputs"))
    return open_index(inputs), LatentCache(inputs["latents"].folder)


def batches(opened: tuple[FrameIndex, LatentCache], **settings: Any) -> ViewBatches:
    return ViewBatches(*opened, **({"seed": SEED, "num_views": NUM_VIEWS} | settings))


def assert_equal(batch: object, other: object) -> None:
    for field in fields(batch):  # type: ignore[arg-type]
        a, b = getattr(batch, field.name), getattr(other, field.name)
        if isinstance(a, Scene | Cameras):
            assert_equal(a, b)
        else:
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b, field.name


def test_a_sample_is_what_its_position_says(opened: tuple[FrameIndex, LatentCache]) -> None:
    index, latents = opened
    batch = batches(opened).views([5])
    choice = choose_views(index.sequences("train"), seed=SEED, position=5, num_views=NUM_VIEWS)
    assert batch.positions == (5,)
    assert batch.latents.shape == (1, NUM_VIEWS, *latents.latent_shape)
    assert_equal(batch.scene.cameras[0], index.cameras(choice.rows))
    assert torch.equal(batch.scene.intensity[0], index.intensity(choice.rows))
    assert torch.equal(batch.text[0], latents.text(choice.caption))
    assert batch.scene.scene_bounds.tolist() == [choice.sequence.scene_bounds.tolist()]


def test_latents_are_drawn_around_the_mean(opened: tuple[FrameIndex, LatentCache]) -> None:
    index, latents = opened
    choice = choose_views(index.sequences("train"), seed=SEED, position=5, num_views=NUM_VIEWS)
    shape = (NUM_VIEWS, *latents.latent_shape)
    mean, one_off = latents.latents(choice.rows, torch.zeros(shape)), latents.latents(choice.rows, torch.ones(shape))
    noise = (batches(opened).views([5]).latents[0] - mean) / (one_off - mean)
    # 768 normal numbers: the mean's standard error is 0.036, the deviation's 0.026; five of them
    assert abs(noise.mean().item()) < 0.18
    assert abs(noise.std().item() - 1) < 0.13


def test_batching_changes_no_sample(opened: tuple[FrameIndex, LatentCache]) -> None:
    made = batches(opened)
    whole, part = made.views(range(4)), made.views(range(2, 3))
    assert torch.equal(whole.latents[2:3], part.latents)
    assert torch.equal(made.prior(range(4)).latents[2:3], made.prior(range(2, 3)).latents)
    assert_equal(whole, batches(opened).views(range(4)))
    assert not torch.equal(whole.latents, batches(opened, seed=8).views(range(4)).latents)
    assert not torch.equal(whole.latents[0], whole.latents[1])


def test_prior_samples_come_from_the_cache(opened: tuple[FrameIndex, LatentCache]) -> None:
    latents = opened[1]
    batch = batches(opened).prior(range(40))
    cached = [latents.prior(number) for number in range(latents.num_prior)]
    drawn = [next(i for i, (image, _) in enumerate(cached) if torch.equal(image, found)) for found in batch.latents]
    assert set(drawn) == set(range(latents.num_prior))
    assert all(torch.equal(cached[number][1], text) for number, text in zip(drawn, batch.text, strict=True))


def test_too_many_views_are_refused(opened: tuple[FrameIndex, LatentCache]) -> None:
    with pytest.raises(UserError, match=f"has {NUM_FRAMES} frames, num_views is {NUM_FRAMES + 1}"):
        batches(opened, num_views=NUM_FRAMES + 1)


def test_an_empty_split_is_refused(opened: tuple[FrameIndex, LatentCache]) -> None:
    with pytest.raises(UserError, match="split 'test' has no sequence"):
        batches(opened, split="test")
