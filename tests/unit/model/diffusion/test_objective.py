"""model/diffusion/objective.py with a network that returns what the test wants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from model.config import DiffusionConfig
from model.diffusion.objective import (
    Draws,
    Objective,
    PriorBatch,
    ViewBatch,
    denoising_loss,
    draw,
    prior_loss,
    view_loss,
)
from model.layers.views import Scene
from tests.support.factories import look_at_cameras

V, C, SIZE, TEXT = 4, 2, 4, (3, 5)


class Recorder(nn.Module):
    """Stands for the network: keeps its calls, predicts `weight` times a function of the noisy latents."""

    def __init__(self, predict: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.5))
        self.predict = predict
        self.calls: list[dict[str, Any]] = []

    def forward(self, latents: Tensor, timesteps: Tensor, **facts: Any) -> Tensor:
        self.calls.append(facts | {"latents": latents, "timesteps": timesteps})
        return self.weight * self.predict(latents)


def _objective(*, prediction_type: str = "epsilon", global_batch_size: int = 4, **settings: Any) -> Objective:
    return Objective(
        scheduler=DDPMScheduler(num_train_timesteps=1000, prediction_type=prediction_type),
        empty_text=torch.full(TEXT, -7.0),
        config=DiffusionConfig(**settings),
        seed=3,
        global_batch_size=global_batch_size,
    )


def _batch(positions: tuple[int, ...], *, num_views: int = V) -> ViewBatch:
    """The samples at `positions`, each a function of its position."""
    generators = [torch.Generator().manual_seed(position) for position in positions]
    return ViewBatch(
        latents=torch.stack([torch.randn(num_views, C, SIZE, SIZE, generator=g) for g in generators]),
        text=torch.stack([torch.randn(TEXT, generator=g) for g in generators]),
        scene=Scene(
            cameras=look_at_cameras(len(positions), num_views),
            scene_bounds=torch.tensor([[-1.0] * 3, [1.0] * 3]).repeat(len(positions), 1, 1),
            intensity=torch.rand(len(positions), num_views, 2),
        ),
        positions=positions,
    )


def _draw(positions: tuple[int, ...], *, num_views: int = V, seed: int = 3, **settings: Any) -> Draws:
    return draw(
        seed,
        positions=positions,
        latent_shape=(num_views, C, SIZE, SIZE),
        num_timesteps=1000,
        config=DiffusionConfig(**settings),
    )


def test_draws_do_not_depend_on_the_batch_split() -> None:
    whole, parts = _draw((5, 6, 7, 8)), [_draw((5,)), _draw((6, 7)), _draw((8,))]
    for field in ("timesteps", "known", "drop_caption", "noise", "opacity_noise_seeds"):
        assert torch.equal(getattr(whole, field), torch.cat([getattr(part, field) for part in parts])), field


def test_draws_do_not_touch_the_global_generator_and_depend_on_seed_and_position() -> None:
    state = torch.random.get_rng_state()
    first = _draw((5, 6))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first.noise[0], first.noise[1])
    assert not torch.equal(first.noise, _draw((5, 6), seed=4).noise)
    seeds = torch.cat([first.opacity_noise_seeds, _draw((5, 6), seed=4).opacity_noise_seeds])
    assert seeds.dtype == torch.int64
    assert len(seeds.unique()) == 4


def test_draws_have_the_stated_distributions() -> None:
    draws = _draw(tuple(range(2000)), known_view_probability=0.25, caption_dropout_probability=0.1)
    # Four standard deviations of a mean of 2,000 draws.
    known = draws.known.float().mean(dim=0)
    assert known[:2].sub(0.25).abs().max() < 0.04
    assert known[2:].max() == 0
    assert abs((draws.known[:, 0] & draws.known[:, 1]).float().mean() - 0.0625) < 0.022
    assert abs(draws.drop_caption.float().mean() - 0.1) < 0.027
    assert abs(draws.timesteps.float().mean() - 499.5) < 26
    assert draws.timesteps.min() >= 0
    assert draws.timesteps.max() <= 999
    assert abs(draws.noise.mean()) < 0.005
    assert abs(draws.noise.std() - 1) < 0.005


@pytest.mark.parametrize(("num_views", "expected"), [(1, [0]), (2, [1, 0]), (3, [1, 1, 0]), (4, [1, 1, 0, 0])])
def test_the_last_view_is_never_known(num_views: int, expected: list[int]) -> None:
    assert _draw((0,), num_views=num_views, known_view_probability=1.0).known.int().tolist() == [expected]


def test_network_gets_clean_known_views_at_timestep_zero_and_noisy_others() -> None:
    network, batch = Recorder(), _batch((0, 1))
    objective = _objective(known_view_probability=1.0)
    view_loss(network, batch, objective)
    call, draws = network.calls[0], _draw((0, 1), known_view_probability=1.0)
    assert torch.equal(call["latents"][:, :2], batch.latents[:, :2])
    assert call["timesteps"][:, :2].eq(0).all()
    assert torch.equal(call["timesteps"][:, 2:], draws.timesteps[:, None].expand(-1, 2))
    signal = objective.scheduler.alphas_cumprod[draws.timesteps][:, None, None, None, None]
    noisy = signal.sqrt() * batch.latents + (1 - signal).sqrt() * draws.noise
    torch.testing.assert_close(call["latents"][:, 2:], noisy[:, 2:])
    assert call["hidden_views"] == 1
    assert torch.equal(call["opacity_noise_seeds"], draws.opacity_noise_seeds)
    assert torch.equal(call["scene"].intensity, batch.scene.intensity)


@pytest.mark.parametrize(("num_views", "hidden"), [(1, 0), (2, 0), (3, 1)])
def test_a_view_is_hidden_from_three_views_on(num_views: int, hidden: int) -> None:
    network = Recorder()
    view_loss(network, _batch((0,), num_views=num_views), _objective())
    assert network.calls[0]["hidden_views"] == hidden


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_right_prediction_has_no_loss(prediction_type: str) -> None:
    batch, objective = _batch((0, 1)), _objective(prediction_type=prediction_type)
    draws = _draw((0, 1))
    signal = objective.scheduler.alphas_cumprod[draws.timesteps][:, None, None, None, None]
    velocity = signal.sqrt() * draws.noise - (1 - signal).sqrt() * batch.latents
    right = Recorder(lambda _: 2 * (draws.noise if prediction_type == "epsilon" else velocity))
    assert view_loss(right, batch, objective).loss.item() < 1e-10
    wrong = Recorder(lambda _: 2 * (velocity if prediction_type == "epsilon" else draws.noise))
    assert view_loss(wrong, batch, objective).loss.item() > 0.01


def test_loss_is_the_mean_over_samples_of_the_mean_over_novel_views() -> None:
    batch, objective = _batch((0, 1)), _objective(global_batch_size=2)
    known = torch.tensor([[True, True, False, False], [False, False, False, False]])
    draws = dataclasses.replace(_draw((0, 1)), known=known)
    network = Recorder()
    loss = denoising_loss(network, batch, draws=draws, objective=objective)
    error = (0.5 * torch.tanh(network.calls[0]["latents"]) - draws.noise).square()
    torch.testing.assert_close(loss, (error[0, 2:].mean() + error[1].mean()) / 2)


def test_known_views_are_outside_of_the_loss_and_novel_ones_inside() -> None:
    batch, objective = _batch((0,)), _objective()
    draws = dataclasses.replace(_draw((0,)), known=torch.tensor([[True, False, False, False]]))

    def loss_when_wrong_in(wrong: list[bool]) -> float:
        offset = 10.0 * torch.tensor(wrong).float()[:, None, None, None]
        network = Recorder(lambda latents: torch.tanh(latents) + offset)
        return denoising_loss(network, batch, draws=draws, objective=objective).item()

    right = loss_when_wrong_in([False] * V)
    assert loss_when_wrong_in([True, False, False, False]) == right
    assert loss_when_wrong_in([False, True, False, False]) > right + 1


def test_all_views_known_is_refused() -> None:
    draws = dataclasses.replace(_draw((0,)), known=torch.ones(1, V, dtype=torch.bool))
    with pytest.raises(ValueError, match="all views of a sample are known"):
        denoising_loss(Recorder(), _batch((0,)), draws=draws, objective=_objective())


def test_shares_of_any_split_add_up_to_the_batch() -> None:
    objective = _objective(known_view_probability=0.5)

    def loss_and_gradient(*splits: tuple[int, ...]) -> Tensor:
        network = Recorder()
        parts = [view_loss(network, _batch(positions), objective).loss for positions in splits]
        prior = [prior_loss(network, _prior(positions), objective).loss for positions in splits]
        total = torch.stack([*parts, *prior]).sum()
        total.backward()
        assert network.weight.grad is not None
        return torch.stack([total.detach(), network.weight.grad])

    whole = loss_and_gradient((0, 1, 2, 3))
    torch.testing.assert_close(loss_and_gradient((0, 1), (2, 3)), whole)
    torch.testing.assert_close(loss_and_gradient((0,), (1, 2, 3)), whole)


def test_dropped_captions_become_the_empty_one() -> None:
    for probability in (0.0, 1.0):
        network, batch, objective = Recorder(), _batch((0, 1)), _objective(caption_dropout_probability=probability)
        view_loss(network, batch, objective)
        expected = objective.empty_text.expand(2, *TEXT) if probability else batch.text
        assert torch.equal(network.calls[0]["text"], expected)


def _prior(positions: tuple[int, ...]) -> PriorBatch:
    batch = _batch(positions, num_views=1)
    return PriorBatch(batch.latents[:, 0], batch.text, positions)


def test_prior_part_is_single_views_weighted() -> None:
    network, objective = Recorder(), _objective(prior_weight=0.25, caption_dropout_probability=1.0)
    batch = _prior((0, 1))
    part = prior_loss(network, batch, objective)
    call = network.calls[0]
    assert call["latents"].shape == (2, 1, C, SIZE, SIZE)
    assert call["hidden_views"] == 0
    assert call["scene"].intensity.tolist() == [[[0.5, 0.0]]] * 2
    assert torch.equal(call["text"], batch.text)
    assert part.loss.item() == pytest.approx(0.25 * part.scalars["prior_loss"].item())
    assert not part.scalars["prior_loss"].requires_grad


def test_prior_images_have_random_poses_that_do_not_depend_on_the_split() -> None:
    network = Recorder()
    for positions in ((0, 1), (1,)):
        prior_loss(network, _prior(positions), _objective())
    both, one = (call["scene"].check().cameras for call in network.calls)
    assert both.shape == (2, 1)
    assert torch.equal(both.world_to_camera[1:], one.world_to_camera)
    assert not torch.allclose(both.world_to_camera[0], both.world_to_camera[1], atol=1e-3)


def test_prior_and_views_draw_on_their_own() -> None:
    network = Recorder()
    view_loss(network, _batch((0,), num_views=1), _objective(known_view_probability=0.0))
    prior_loss(network, _prior((0,)), _objective())
    assert not torch.equal(network.calls[0]["opacity_noise_seeds"], network.calls[1]["opacity_noise_seeds"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"known_view_probability": 1.5}, r"known_view_probability 1\.5"),
        ({"caption_dropout_probability": -0.1}, "caption_dropout_probability"),
        ({"prior_weight": -1.0}, "prior_weight"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionConfig(**settings)


def test_another_kind_of_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction_type 'sample'"):
        view_loss(Recorder(), _batch((0,)), _objective(prediction_type="sample"))
