"""A worker's training with the real network: any split gives the same model, and a kill leaves no trace in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from infra.engine.config import EngineConfig
from model.adapter import read_adapter, use_adapter
from model.unet import ViewDiffUNet
from pipelines.settings.run import TrainConfig
from pipelines.spine.artifacts import Artifact
from pipelines.training.job import TrainJob
from pipelines.training.loop import DivergedError
from pipelines.training.worker import train_in_worker
from tests.distributed.launch import TIMEOUT_SECONDS, kill_distributed, run_distributed
from tests.support.training_inputs import train_config, write_inputs

pytestmark = pytest.mark.timeout(3 * TIMEOUT_SECONDS)

# Sums in another order. The first steps of AdamW divide a gradient by its own size, so where that is all but zero a
# weight may move another way, by less than a learning rate: measured for one in 5,000 weights.
ENGINE = EngineConfig(learning_rate=1e-4, renderer_learning_rate=1e-4, gradient_clip=1.0)
LOSS_TOLERANCE, NORM_TOLERANCE = 2e-7, 1e-6  # relative


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def job(inputs: dict[str, Artifact], folder: Path, config: TrainConfig) -> TrainJob:
    folder.mkdir()
    return TrainJob(
        config=config,
        shards_dir=inputs["shards"].folder,
        captions_dir=inputs["captions"].folder,
        latents_dir=inputs["latents"].folder,
        base_dir=inputs["base"].folder,
        initial_dir=None,
        folder=folder,
        num_loaders=0,
    )


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def test_however_samples_are_shared_out_the_model_is_the_same(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    """Two ranks of two passes for each part of the objective; one rank of four; one rank of one."""
    folders = []
    for num_ranks, micro_batch_size in ((2, 1), (1, 1), (1, 4)):
        config = train_config(num_steps=3, micro_batch_size=micro_batch_size, engine=ENGINE, preview_every_steps=100)
        assert config.batch_size == 4
        folders.append(tmp_path / f"{num_ranks} by {micro_batch_size}")
        run_distributed(train_in_worker, num_ranks, job(inputs, folders[-1], config))
    first, *others = [(records(folder), load_file(folder / "model" / "model.safetensors")) for folder in folders]
    for lines, weights in others:
        assert [line["step"] for line in lines] == [1, 2, 3]
        for mine, theirs in zip(lines, first[0], strict=True):
            for name in ("loss", "view_loss", "prior_loss"):
                assert mine[name] == pytest.approx(theirs[name], rel=LOSS_TOLERANCE)
            assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=NORM_TOLERANCE)
            assert mine["loss"] == pytest.approx(mine["view_loss"] + 0.1 * mine["prior_loss"])
        differences = torch.cat([(weights[name] - value).abs().flatten() for name, value in first[1].items()])
        assert differences.max() < ENGINE.learning_rate
        assert differences.mean() < 1e-3 * ENGINE.learning_rate
        assert (differences > 0.1 * ENGINE.learning_rate).double().mean() < 1e-3


def test_an_adapter_is_trained_on_a_frozen_base(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    config = train_config(num_steps=3, engine=ENGINE, trained="adapter", average_decay=0.9, preview_every_steps=100)
    trained = job(inputs, tmp_path / "adapter", config)
    run_distributed(train_in_worker, 2, trained)
    network = ViewDiffUNet.from_pretrained(trained.model_dir)
    base = UNet2DConditionModel.from_pretrained(trained.base_dir, subfolder="unet")
    for name, value in base.state_dict().items():
        assert torch.equal(network.unet.state_dict()[name], value), name
    fresh = ViewDiffUNet(base, config.model)
    use_adapter(fresh, read_adapter(trained.adapter_dir))
    for name, value in network.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def diverge(trained: TrainJob) -> str:
    """What a rank says when its loss is too large."""
    try:
        train_in_worker(trained)
    except DivergedError as error:
        return str(error)
    return ""


def test_every_rank_says_what_the_samples_of_a_diverged_step_were(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    trained = job(inputs, tmp_path / "diverged", train_config(largest_loss=1e-3))
    first, second = run_distributed(diverge, 2, trained)
    assert first == second
    assert re.match(r"step 1: the loss is [\d.]+, more than 0.001 \(view_loss ", first)
    assert "its samples are of apple/sequence_0, apple/sequence_1; there is no checkpoint yet" in first


def test_a_kill_leaves_no_trace(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    config = train_config(num_steps=8, checkpoint_every_steps=2, preview_every_steps=4)
    whole, broken = job(inputs, tmp_path / "whole", config), job(inputs, tmp_path / "broken", config)
    run_distributed(train_in_worker, 2, whole)

    def mid_way() -> bool:
        return broken.metrics_path.exists() and broken.metrics_path.read_bytes().count(b"\n") >= 3

    kill_distributed(train_in_worker, 2, broken, when=mid_way)
    with broken.metrics_path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    run_distributed(train_in_worker, 2, broken)
    assert records(broken.folder) == records(whole.folder)
    assert [record["step"] for record in records(broken.folder)] == list(range(1, 9))
    expected = load_file(whole.model_dir / "model.safetensors")
    for name, value in load_file(broken.model_dir / "model.safetensors").items():
        assert torch.equal(value, expected[name]), name
    assert {path.name for path in broken.previews_dir.iterdir()} == {"step-000004.png", "step-000008.png"}
    assert len(list((broken.folder / "checkpoints").glob("step-*"))) == 2
