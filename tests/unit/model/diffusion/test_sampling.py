"""The denoising loop, against networks whose right answer is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.cameras import Cameras
from model.config import SamplingConfig
from model.diffusion.sampling import ViewRequest, generate_views, render_depth
from model.diffusion.windows import WindowConfig, generate_trajectory, plan_windows, render_trajectory_depth
from model.layers.views import Scene, reorder_views
from model.unet import ViewDiffUNet
from tests.support.factories import TEXT_CHANNELS
from tests.support.tiny_network import base_scheduler, random_request, tiny_config, tiny_network

SHAPE = (4, 8, 8)  # of one view's latents
NO_GUIDANCE = SamplingConfig(num_steps=10, guidance_scale=1.0)


class Oracle:
    """Knows the clean latents [V, C, h, w] of every view by its camera, and predicts exactly what leads there."""

    def __init__(self, clean: Tensor, cameras: Cameras, schedule: DDPMScheduler) -> None:
        self.clean, self.poses, self.schedule = clean, cameras.world_to_camera, schedule
        self.calls: list[dict[str, Any]] = []
        self.num_prepared = 0

    def prepare(self, scene: Scene, latent_size: tuple[int, int]) -> Scene:
        assert latent_size == self.clean.shape[-2:]
        self.num_prepared += 1
        return scene

    def __call__(self, latents: Tensor, timesteps: Tensor, *, text: Tensor, scene: Scene) -> Tensor:
        self.calls.append({"latents": latents, "timesteps": timesteps, "text": text, "scene": scene})
        poses = scene.cameras.world_to_camera
        same = (poses[:, :, None] == self.poses).all(dim=(-2, -1))  # [B, V, number of poses]
        clean = self.clean[same.int().argmax(dim=-1)]
        alpha = self.schedule.alphas_cumprod[timesteps][:, :, None, None, None]
        noise = (latents - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        if self.schedule.config.prediction_type == "v_prediction":
            return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        return noise


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_network_leads_to_the_clean_latents(prediction_type: str) -> None:
    asked, schedule = random_request(num_samples=1), base_scheduler(prediction_type)
    oracle = Oracle(asked.known_latents[0], asked.scene.cameras[0], schedule)
    steps = []
    latents = generate_views(oracle, schedule, asked, NO_GUIDANCE, progress=lambda *step: steps.append(step))
    # float32; at the noisiest step the clean part is 7 % of the latents, so errors of 1e-7 grow by 14.
    assert torch.allclose(latents, asked.known_latents, atol=1e-4)
    assert steps == [(step, 10) for step in range(1, 11)]
    assert len(oracle.calls) == 10
    assert oracle.num_prepared == 1


def test_known_views_stay_clean_at_time_zero_and_come_back_as_given() -> None:
    asked, schedule = random_request(num_known=2), base_scheduler()
    oracle = Oracle(torch.zeros(8, *SHAPE), asked.scene.cameras.to("cpu")[0], schedule)
    latents = generate_views(oracle, schedule, asked, NO_GUIDANCE)
    for call in oracle.calls:
        assert torch.equal(call["latents"][:, :2], asked.known_latents[:, :2])
        assert (call["timesteps"][:, :2] == 0).all()
        assert (call["timesteps"][:, 2:] > 0).all()
        assert torch.equal(call["scene"].intensity, torch.tensor([0.5, 0.0]).expand(2, 4, 2))
    assert torch.equal(latents[:, :2], asked.known_latents[:, :2])


def test_latents_of_unknown_views_are_never_read() -> None:
    asked, schedule = random_request(), base_scheduler()
    spoiled = asked.known_latents.clone()
    spoiled[:, 1:] = torch.nan
    unet = Oracle(torch.zeros(8, *SHAPE), asked.scene.cameras[0], schedule)
    expected = generate_views(unet, schedule, asked, NO_GUIDANCE)
    assert torch.equal(
        generate_views(unet, schedule, dataclasses.replace(asked, known_latents=spoiled), NO_GUIDANCE), expected
    )


class MeanOfText:
    """A network that is linear in its text."""

    def prepare(self, scene: Scene, latent_size: tuple[int, int]) -> Scene:
        return scene

    def __call__(self, latents: Tensor, timesteps: Tensor, *, text: Tensor, scene: Scene) -> Tensor:
        return 0.1 * latents + text.mean(dim=(1, 2))[:, None, None, None, None]


def test_guidance_leads_away_from_the_empty_text() -> None:
    asked, schedule = random_request(num_known=0), base_scheduler()
    asked = dataclasses.replace(asked, empty_text=torch.full((5, TEXT_CHANNELS), 0.3))
    # Guidance is then the same as asking for a text that lies as much further away.
    further = asked.empty_text + 3 * (asked.text - asked.empty_text)
    expected = generate_views(MeanOfText(), schedule, dataclasses.replace(asked, text=further), NO_GUIDANCE)
    guided = generate_views(MeanOfText(), schedule, asked, SamplingConfig(num_steps=10, guidance_scale=3.0))
    assert torch.allclose(guided, expected, atol=1e-4)
    assert not torch.allclose(guided, generate_views(MeanOfText(), schedule, asked, NO_GUIDANCE), atol=1e-2)


def real_unet() -> ViewDiffUNet:
    return tiny_network(tiny_config(projection={"blocks": (("mid_block", 4), ("up_blocks.1", 6))})).eval()


def test_a_sample_does_not_depend_on_its_batch() -> None:
    unet, asked = real_unet(), random_request(num_samples=2, num_views=3)
    config = SamplingConfig(num_steps=2, guidance_scale=4.0)
    together = generate_views(unet, base_scheduler(), asked, config)
    alone = dataclasses.replace(
        asked,
        scene=Scene.neutral(asked.scene.cameras[1:2], asked.scene.scene_bounds[1:2]),
        text=asked.text[1:2],
        known_latents=asked.known_latents[1:2],
        known=asked.known[1:2],
        seeds=asked.seeds[1:2],
    )
    # Other batch sizes sum in another order; guidance by 4 and two steps multiply float32's 1e-6.
    assert torch.allclose(generate_views(unet, base_scheduler(), alone, config)[0], together[1], atol=2e-3)
    other = generate_views(unet, base_scheduler(), dataclasses.replace(alone, seeds=(99,)), config)
    assert not torch.allclose(other[0, 1:], together[1, 1:], atol=0.1)


def test_depth_is_that_of_the_finest_layer_in_world_units() -> None:
    unet, asked = real_unet(), random_request()
    rendered = render_depth(unet, asked, asked.known_latents)
    assert rendered is not None
    assert rendered.depth.shape == rendered.opacity.shape == (2, 4, 8, 8)  # up_blocks.1 has the latents' size
    assert ((rendered.opacity >= 0) & (rendered.opacity <= 1)).all()
    distance = asked.scene.cameras.centers().norm(dim=-1)[:, :, None, None]
    # With a background, samples reach from 4 in front of the centre to twice 4 + distance behind the camera.
    assert ((rendered.depth > distance - 4) & (rendered.depth < 2 * (distance + 4))).all()
    assert not any(module._forward_hooks for module in unet.modules())


def test_a_network_without_projection_has_no_depth() -> None:
    asked = random_request()
    assert render_depth(tiny_network(tiny_config(without=("projection",))), asked, asked.known_latents) is None


@given(num_views=st.integers(1, 40), num_known=st.integers(0, 6), size=st.integers(2, 9), num_context=st.integers(1, 8))
def test_windows_make_every_view_once(num_views: int, num_known: int, size: int, num_context: int) -> None:
    config = WindowConfig(num_views=size, num_context=min(num_context, size - 1))
    known = tuple(range(min(num_known, num_views - 1)))
    there = list(known)
    for window in plan_windows(num_views, known=known, config=config):
        assert len(window.new) >= 1
        assert len(window.context) + len(window.new) <= size
        assert len(window.context) == min(len(there), config.num_context)
        assert set(window.context) <= set(there)
        if there:
            assert window.context[-1] == there[-1]
        if len(window.context) > 1:
            assert window.context[0] == there[0]
        there += window.new
    assert there == list(range(num_views))


def test_a_trajectory_of_one_window_is_one_generation() -> None:
    schedule, config = base_scheduler(), SamplingConfig(num_steps=2, guidance_scale=2.0)
    asked, unet = random_request(num_samples=1, num_views=3), real_unet()
    windows = WindowConfig(num_views=3, num_context=1)
    expected = generate_views(unet, schedule, asked, config)
    assert torch.equal(generate_trajectory(unet, schedule, asked, config, windows=windows), expected)


def test_a_window_starts_from_the_noise_of_its_own_views() -> None:
    asked = random_request(num_samples=1, num_views=5, num_known=0)
    oracle = Oracle(asked.known_latents[0], asked.scene.cameras[0], base_scheduler())
    windows = WindowConfig(num_views=3, num_context=1)
    generate_trajectory(oracle, base_scheduler(), asked, SamplingConfig(num_steps=1, guidance_scale=1), windows=windows)
    second = oracle.calls[1]["latents"][0, 1:]
    torch.testing.assert_close(second, asked.noise()[0, 3:])


def test_later_windows_see_earlier_ones_and_use_no_guidance() -> None:
    asked, schedule = random_request(num_samples=1, num_views=7, num_known=0), base_scheduler()
    oracle = Oracle(asked.known_latents[0], asked.scene.cameras[0], schedule)
    steps = []
    latents = generate_trajectory(
        oracle,
        schedule,
        asked,
        SamplingConfig(num_steps=2, guidance_scale=3.0),
        windows=WindowConfig(num_views=4, num_context=2),
        progress=lambda *step: steps.append(step),
    )
    assert torch.allclose(latents, asked.known_latents, atol=1e-4)
    # 4 new views, then twice 2 known and 2 (1) new ones; the first window asks with and without its text.
    assert [tuple(call["latents"].shape[:2]) for call in oracle.calls] == [(2, 4)] * 2 + [(1, 4)] * 2 + [(1, 3)] * 2
    second = oracle.calls[2]
    assert torch.equal(second["latents"][0, :2], latents[0, [0, 3]])
    assert second["timesteps"][0].tolist()[:2] == [0, 0]
    assert steps[0] == (1, 6)
    assert steps[-1] == (6, 6)


def test_depth_of_a_trajectory_takes_no_more_views_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, unet = random_request(num_samples=2, num_views=7), real_unet()
    whole = render_depth(unet, asked, asked.known_latents)
    num_views: list[int] = []
    forward = unet.forward
    monkeypatch.setattr(unet, "forward", lambda x, *args, **kw: num_views.append(x.shape[1]) or forward(x, *args, **kw))
    windows = WindowConfig(num_views=4, num_context=2)
    rendered = render_trajectory_depth(unet, asked, asked.known_latents, windows=windows)
    assert num_views == [4, 4, 3]
    assert whole is not None
    assert rendered is not None
    assert rendered.depth.shape == whole.depth.shape
    first = render_depth(unet, asked.map_views(lambda x: x[:, :4]), asked.known_latents[:, :4])
    assert first is not None
    assert torch.equal(rendered.depth[:, :4], first.depth)
    assert torch.equal(rendered.opacity[:, :4], first.opacity)


def test_any_mix_of_known_views_is_the_same_as_known_views_first() -> None:
    """Different ones in each sample, the last among them; the order of views only names them."""
    asked, config = (
        random_request(num_samples=2, num_views=4, num_known=2),
        SamplingConfig(num_steps=2, guidance_scale=1.0),
    )
    order = torch.tensor([[3, 0, 2, 1], [2, 3, 1, 0]])
    mixed = asked.reorder(order)
    assert mixed.known.tolist() == [[False, True, False, True], [False, False, True, True]]
    latents = generate_views(real_unet(), base_scheduler(), mixed, config)
    assert torch.equal(latents[mixed.known], mixed.known_latents[mixed.known])

    class OtherNoise(ViewRequest):
        def noise(self) -> Tensor:  # the same view gets the same noise wherever it stands
            return reorder_views(asked.noise(), order)

    values = {field.name: getattr(mixed, field.name) for field in dataclasses.fields(mixed)}
    moved = generate_views(real_unet(), base_scheduler(), OtherNoise(**values), config)
    expected = generate_views(real_unet(), base_scheduler(), asked, config)
    # The novel views come in another order, so sums over views do too.
    torch.testing.assert_close(moved, reorder_views(expected, order), rtol=0, atol=1e-4)


def test_bad_requests_are_refused() -> None:
    asked = random_request()
    with pytest.raises(ValueError, match="all views of sample 1 are known"):
        dataclasses.replace(asked, known=torch.tensor([[True, True, False, True], [True] * 4]))
    with pytest.raises(ValueError, match=r"known has dtype torch\.int64"):
        dataclasses.replace(asked, known=asked.known.long())
    with pytest.raises(ValueError, match=r"known_latents \(2, 0, 4, 8, 8\) must be"):
        dataclasses.replace(asked, known_latents=asked.known_latents[:, :0])
    with pytest.raises(ValueError, match=r"known_latents \(4, 4, 8, 8\) must be"):
        dataclasses.replace(asked, known_latents=asked.known_latents[0])
    with pytest.raises(ValueError, match="cameras"):
        dataclasses.replace(asked, scene=asked.scene.map_views(lambda x: x[:, :3]))
    with pytest.raises(ValueError, match="text"):
        dataclasses.replace(asked, text=asked.text[:1])
    with pytest.raises(ValueError, match=r"empty_text \(4, \d+\) must be \(5, \d+\), like a text"):
        dataclasses.replace(asked, empty_text=asked.empty_text[1:])
    for guidance_scale in (0.5, float("nan")):
        with pytest.raises(ValueError, match="guidance_scale"):
            SamplingConfig(guidance_scale=guidance_scale)
    with pytest.raises(ValueError, match="num_steps"):
        SamplingConfig(num_steps=0)
    with pytest.raises(ValueError, match="num_context"):
        WindowConfig(num_views=4, num_context=4)
    mixed = dataclasses.replace(asked, known=torch.tensor([[True, False, False, False], [False] * 4]))
    with pytest.raises(ValueError, match="same views"):
        generate_trajectory(
            MeanOfText(), base_scheduler(), mixed, NO_GUIDANCE, windows=WindowConfig(num_views=4, num_context=1)
        )
