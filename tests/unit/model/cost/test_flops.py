"""The FLOP model against what PyTorch counts while a network computes, and what follows from it for a training step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.counted_flops import count_passes, workload_of
from model.adapter import freeze_base
from model.config import DiffusionConfig
from model.cost.flops import count_flops, total
from model.cost.products import CROSS_FRAME, FILL, STOCK, Workload
from pipelines.planning.step_work import step_flops
from pipelines.settings.presets import tiny
from tests.support.tiny_network import random_inputs, tiny_config, tiny_network

# Left out are the cameras' matrices, a thousandth of so small a network, and where exactly computing again ends in
# layers that hold nothing to train.
TOLERANCE = 0.01
PAPER = {"merge": "zero_init", "compress": "pointwise", "refine_channels": (16, 32), "recompute_volumes": True}
CASES: dict[str, dict[str, Any]] = {
    "all weights": {},
    "gradient checkpointing, volumes computed again": {
        "gradient_checkpointing": True, "include_self": False, "projection": PAPER,
    },
    "a mean in place of what is learned": {"projection": {"aggregation": "mean", "background": False}},
    "no projection, no views": {"without": ("projection", "cross_frame")},
}  # fmt: skip
WORK = Workload(num_samples=2, num_views=4, latent_size=(8, 8), text_length=5, hidden_views=1)


def assert_counted(settings: dict[str, Any], *, adapter: bool) -> None:
    network = tiny_network(tiny_config(**settings)).train()
    if adapter:
        freeze_base(network)
    inputs = random_inputs(1, 3) | {"hidden_views": 1, "opacity_noise_seeds": torch.arange(1)}
    forward, backward = count_passes(network, inputs)
    flops = total(count_flops(network, workload_of(network, inputs)))
    assert flops.forward == pytest.approx(forward, rel=TOLERANCE)
    assert flops.executed - flops.forward == pytest.approx(backward, rel=TOLERANCE)


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_flops_are_those_that_are_counted(settings: dict[str, Any]) -> None:
    assert_counted(settings, adapter=False)


def test_frozen_weights_cost_no_gradient_of_their_own() -> None:
    assert_counted({}, adapter=True)


def test_what_is_useful_does_not_depend_on_what_is_computed_again() -> None:
    kept, again = (
        total(count_flops(tiny_network(tiny_config(gradient_checkpointing=on)), WORK)) for on in (False, True)
    )
    assert kept.useful == again.useful
    assert kept.recomputed < again.recomputed < kept.recomputed + again.forward
    assert kept.useful == pytest.approx(3 * kept.forward, rel=0.02)  # but for first layers, whose input has no gradient


def test_how_parts_grow_with_views() -> None:
    network = tiny_network()
    few, many = (count_flops(network, replace(WORK, num_views=views)) for views in (4, 8))
    assert many[STOCK].forward == pytest.approx(2 * few[STOCK].forward)
    assert many[CROSS_FRAME].forward == pytest.approx(4 * few[CROSS_FRAME].forward)  # each view looks at all
    unseen = count_flops(network, replace(WORK, seen_share=0.0))
    assert 0 < unseen[FILL].forward < few[FILL].forward


def test_a_step_has_views_and_prior_images() -> None:
    train, network = tiny().train, tiny_network()
    sizes: dict[str, Any] = {"latent_size": (8, 8), "text_length": 5}
    with_prior = total(step_flops(train, network, **sizes)).useful
    alone = replace(train, diffusion=DiffusionConfig(prior_weight=0.0))
    without = total(step_flops(alone, network, **sizes)).useful
    image = replace(WORK, num_samples=train.batch_size, num_views=1, hidden_views=0)
    assert with_prior - without == pytest.approx(total(count_flops(network, image)).useful)
    smaller = replace(train, micro_batch_size=1)
    assert total(step_flops(smaller, network, **sizes)).useful == with_prior
