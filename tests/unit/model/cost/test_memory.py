"""Memory of a pass, counted without values, against tensors that are really kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from model.cost.memory import LiveBytes, PassMemory, pass_memory
from model.cost.products import Workload
from tests.support.factories import tiny_unet
from tests.support.tiny_network import random_inputs, tiny_config, tiny_network

WORK = Workload(num_samples=1, num_views=3, latent_size=(8, 8), text_length=5, hidden_views=1)


def memory(
    *, checkpointing: bool = False, bfloat16: bool = False, adapter: bool = False, samples: int = 1
) -> PassMemory:
    return pass_memory(
        dict(tiny_unet().config),
        tiny_config(gradient_checkpointing=checkpointing),
        replace(WORK, num_samples=samples),
        bfloat16=bfloat16,
        adapter=adapter,
    )


def test_live_bytes_follow_tensors() -> None:
    weight = torch.nn.Parameter(torch.zeros(256))
    with LiveBytes((weight,)) as live:
        first = torch.zeros(1000)
        second = first * 2
        shared = second.view(10, 100)
        assert live.total == 8000  # what shares memory counts once
        del first
        assert (live.total, live.peak) == (4000, 8000)
        assert live.without(shared) == 0
        copy = weight.to(torch.bfloat16)
        assert live.of_copies == 512
        del copy
        assert live.of_copies == 0


def test_what_is_kept_is_what_a_real_pass_keeps() -> None:
    network = tiny_network().train()
    inputs = random_inputs(1, 3) | {"hidden_views": 1, "opacity_noise_seeds": torch.arange(1)}
    with LiveBytes(tuple(network.parameters())) as live:
        output = network(**inputs)
    assert isinstance(output, torch.Tensor)
    # The attention kernel of a CPU keeps a little more than its stand-in says, the cameras' inverse some numbers.
    assert memory().kept == pytest.approx(live.total, rel=0.02)


def test_checkpointing_keeps_less_and_gradients_add_up() -> None:
    plain, again = memory(), memory(checkpointing=True)
    assert again.kept < 0.5 * plain.kept
    assert again.peak < plain.peak
    assert plain.kept <= plain.peak <= plain.peak_with_gradients
    gradients = 4 * sum(parameter.numel() for parameter in tiny_network().parameters())
    assert gradients <= plain.peak_with_gradients <= plain.peak + gradients


def test_samples_add_activations_and_bfloat16_copies_weights() -> None:
    one, two = memory(), memory(samples=2)
    assert two.kept == pytest.approx(2 * one.kept, rel=0.05)  # the grid of voxels is that of all
    assert one.weight_copies == 0
    half = memory(bfloat16=True)
    weights = sum(parameter.numel() for parameter in tiny_network().parameters())
    assert 0 < half.weight_copies <= 2 * weights
    assert memory(adapter=True).peak_with_gradients < one.peak_with_gradients
