"""Every preset constructs, counts its parameters and plans without doing anything."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from infra.provenance.fingerprint import fingerprint
from model.cost.memory import PassMemory
from pipelines.chain.table import NAMES
from pipelines.commands import dry_run
from pipelines.planning import memory
from pipelines.planning.network import count_parameters
from pipelines.settings.names import PRESET_NAMES
from pipelines.settings.presets import PRESETS, paper, pyramid, released
from pipelines.settings.run import RunConfig
from pipelines.spine.runtime import RuntimeConfig

SD_2_UNET_PARAMETERS = 865_910_724  # published for Stable Diffusion 2.x
# Channels of the blocks of Stable Diffusion's U-Net, and the paper's voxels per side for them.
SD_CHANNELS = {"down_blocks.1": 640, "down_blocks.2": 1280, "mid_block": 1280, "up_blocks.1": 1280, "up_blocks.2": 640}
PAPER_GRID = {320: 128, 640: 64, 1280: 32}
# Pixels per side of those blocks' features, for latents of 64 × 64.
SD_SIDES = {"down_blocks.1": 32, "down_blocks.2": 16, "mid_block": 8, "up_blocks.1": 16, "up_blocks.2": 32}


@pytest.fixture(params=PRESET_NAMES)
def preset(request: pytest.FixtureRequest) -> RunConfig:
    return PRESETS[request.param]()


def test_names_agree() -> None:
    assert tuple(PRESETS) == PRESET_NAMES
    assert [make().name for make in PRESETS.values()] == list(PRESET_NAMES)
    assert len({fingerprint(make()) for make in PRESETS.values()}) == len(PRESET_NAMES)


def test_a_batch_splits_over_the_default_workers(preset: RunConfig) -> None:
    share = preset.train.batch_size / RuntimeConfig().num_workers
    assert share == int(share)
    assert share % preset.train.micro_batch_size == 0


def test_paper_is_the_papers_text() -> None:
    train = paper().train
    assert dict(train.model.projection.blocks) == {name: PAPER_GRID[width] for name, width in SD_CHANNELS.items()}
    assert (train.num_steps, train.batch_size, train.num_views, train.model.rank) == (60_000, 64, 5, 64)
    engine = train.engine
    assert (engine.learning_rate, engine.renderer_learning_rate, engine.gradient_clip) == (5e-5, 5e-3, 5e-3)
    diffusion = train.diffusion
    assert (diffusion.known_view_probability, diffusion.prior_weight) == (0.25, 0.1)
    assert not train.model.include_self
    assert paper().evaluate.sampling.num_steps == 10


def test_released_is_the_authors_run() -> None:
    model = released().train.model
    assert dict(model.projection.blocks) == {"down_blocks.2": 32, "mid_block": 32, "up_blocks.1": 32}
    assert (model.include_self, model.projection.merge, model.rank) == (True, "replace", 64)


def test_pyramid_is_the_papers_with_finer_volumes() -> None:
    model, of_paper = pyramid().train.model, paper().train.model
    assert dict(model.projection.blocks) == {name: 4 * side for name, side in SD_SIDES.items()}
    unchanged = replace(model.projection, blocks=of_paper.projection.blocks)
    assert replace(model, projection=unchanged) == of_paper
    assert model.projection.recompute_volumes


def test_dry_run_prints_everything_and_does_nothing(
    preset: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if (
        preset.base.source is not None
    ):  # counting at that size takes seconds; tests/unit/model/cost/test_counts.py does so
        passes = PassMemory(kept=3, weight_copies=1, peak=4, peak_with_gradients=5)
        monkeypatch.setattr(memory, "passes_memory", lambda *_: passes)
    dry_run.print_plan(preset, RuntimeConfig(root=str(tmp_path / "runs")), until="register")
    printed = capsys.readouterr().out
    assert f'"num_steps": {preset.train.num_steps}' in printed
    for name in NAMES:
        assert f"\n  {name} " in printed
    assert re.search(r"\n  peak +\d+\.\d\d GB\n", printed)
    assert list(tmp_path.iterdir()) == []


def test_stable_diffusion_is_counted_without_its_weights() -> None:
    counts = count_parameters(released())
    assert counts["U-Net of the base model"] == SD_2_UNET_PARAMETERS
    assert counts["total"] > SD_2_UNET_PARAMETERS


def test_an_adapter_trains_what_is_added() -> None:
    config = released()
    counts = count_parameters(replace(config, train=replace(config.train, trained="adapter")))
    assert counts["trained"] == counts["total"] - SD_2_UNET_PARAMETERS
