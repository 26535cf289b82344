"""What a person types: help, settings, and one line with a remedy for everything that is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.console import exit_code
from infra.errors import UserError
from pipelines.chain import checks, running
from pipelines.chain.running import needed_stages, run_chain
from pipelines.chain.table import NAMES, STAGES
from pipelines.cli import main
from pipelines.cli.arguments import parse_run
from pipelines.settings.names import PRESET_NAMES
from pipelines.settings.presets import tiny
from pipelines.spine.runtime import RuntimeConfig
from pipelines.spine.stage import Stage
from tests.support.paths import CHECKOUT

STAGE_COMMANDS = ("run", *NAMES)


def test_help_is_short_and_names_every_command_and_preset() -> None:
    text = main.main_help()
    for command in (*STAGE_COMMANDS, "generate", "retrain", "plan", "profile"):
        assert re.search(rf"^  {command} +\w", text, re.MULTILINE), command
    assert all(preset in text for preset in PRESET_NAMES)
    assert len(text.splitlines()) < 40
    assert max(map(len, text.splitlines())) <= 110


def test_reading_settings_imports_nothing_heavy() -> None:
    program = (
        "import sys; from pipelines.cli.main import dispatch; dispatch(['--help']); "
        "from pipelines.cli.arguments import parse_run; parse_run('train', [], description=''); "
        "sys.exit(', '.join({'torch', 'diffusers', 'ray', 'mlflow', 'deepspeed'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == main.main_help()


def test_help_of_a_command_lists_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        parse_run("train", ["--help"], description="train the model")
    printed = capsys.readouterr().out
    assert "train the model" in printed
    assert "--train.num-steps" in printed
    assert "Optimizer steps" in printed


def test_options_override_single_fields_of_the_preset() -> None:
    line = "--preset tiny --root /r --num-workers 3 --train.num-steps 20 --train.engine.learning-rate 1e-3 --dry-run"
    parsed = parse_run("train", [*line.split(), "--synth.categories", "teddybear", "apple"], description="")
    expected = tiny()
    engine = replace(expected.train.engine, learning_rate=1e-3)
    expected = replace(
        expected,
        synth=replace(expected.synth, categories=("teddybear", "apple")),
        train=replace(expected.train, num_steps=20, engine=engine),
    )
    assert parsed.config == expected
    assert parsed.runtime == RuntimeConfig(root="/r", num_workers=3)
    assert parsed.dry_run


def test_ablations_are_listed_by_name() -> None:
    line = "--train.model.without cross_frame intensity --train.model.projection.aggregation mean"
    model = parse_run("train", line.split(), description="").config.train.model
    assert model.without == ("cross_frame", "intensity")
    assert model.projection.aggregation == "mean"


def test_paper_preset_takes_overrides_too() -> None:
    parsed = parse_run("train", ["--preset=paper", "--train.model.rank", "8"], description="")
    assert (parsed.config.name, parsed.config.train.model.rank) == ("paper", 8)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian", "unknown command 'trian'; did you mean 'train'?"),
        ("train --preset tini", "unknown preset 'tini'; did you mean 'tiny'?"),
        ("train --preset zzz", "unknown preset 'zzz'; choose from tiny, single_gpu, released, paper, pyramid"),
        ("train --train.nun-steps 3", "unknown option '--train.nun-steps'; did you mean '--train.num-steps'?"),
        ("--preset tiny train", "--preset comes before the command; options follow it: viewdiff COMMAND --preset ..."),
        ("plan paper", "unknown option 'paper'; did you mean --preset paper?"),
        ("plan --gpus 2.5", "--gpus: '2.5' is no whole number"),
        ("train --train.num-steps many", "--train.num-steps: 'many' is no whole number"),
        ("train --train.engine.learning-rate fast", "--train.engine.learning-rate: 'fast' is no number"),
        ("train --train.largest-loss inf", "--train.largest-loss inf: must be a finite number; a very large one"),
        ("retrain --initial model", "--initial model: retrain starts from the champion"),
        (
            "retrain --train.num_steps=7",
            "--train.num-steps: of retrain the number of steps is --retrain.num-steps; write",
        ),
        ("retrain --base.source a/b", "--base.source: retrain goes on with the champion's base model; drop it"),
        ("train --initial /nowhere --dry-run", "--initial /nowhere: no config.json in it; name the folder of a"),
        ("train --train.num-steps", "--train.num-steps: needs a value"),
        ("captions --captions.num-captions 0", "num_captions is 0, must be at least 1"),
        ("run --captions.source /nowhere", "cannot read BLIP-2 model /nowhere (no such folder)"),
        ("train --train.num-views 1", "num_views is 1, must be at least 2"),
        ("train --evaluate.sampling.num-steps 0", "num_steps 0 must be at least 1"),
        ("train --num-workers 0", "--num-workers 0: must be at least 1"),
        ("train --num-workers 9", "batch_size 8 is less than a sample for each of 9 workers"),
        ("train --train.seed -1", "seed is -1, must be at least 0"),
        ("train --train.model.projection.blocks attic 8 --dry-run", "no attention in attic"),
        ("train --train.model.without everything", "--train.model.without 'everything': choose from projection, "),
        ("train --preprocess.image-size 60", "image_size 60 must be a multiple of 16"),
        ("train --base.tiny.head-channels 0", "head_channels 0 must be at least 1"),
        ("generate --num-views 0", "num_views is 0, must be at least 1"),
        ("generate --text x", "holds no trained model; run `viewdiff train`"),
        ("plan --gpus 0", "--gpus 0: must be at least 1"),
        ("plan --gpu-memory -1", "--gpu-memory -1: must be above 0, in GB"),
        ("plan --gpu-memory nan", "--gpu-memory nan: must be above 0, in GB"),
        ("plan --utilisation 2", "--utilisation 2: must lie above 0 and be at most 1"),
        ("plan --network-gigabits 0", "--network-gigabits 0: must be above 0, in Gb/s"),
        ("plan --gpu h10", "unknown GPU 'h10'; did you mean 'h100'?"),
        ("plan --gpus 9", "--gpus 9: batch_size 8 is less than a sample for each"),
        ("plan --preset papre", "unknown preset 'papre'; did you mean 'paper'?"),
        ("plan --gpu-memroy 3", "unknown option '--gpu-memroy'; did you mean '--gpu-memory'?"),
        ("profile --profiled-steps 0", "profiled_steps is 0, must be at least 1"),
        ("profile --min-workers 1", "--min-workers 1: `viewdiff profile` has no use for it, drop it"),
        ("profile --num-workers 9", "--num-workers 9: train.batch_size 8 is less than a sample for each"),
        ("profile --output .", "exists already; remove it or name another with --output"),
        ("retrain --retrain.num-steps 0", "num_steps is 0, must be at least 1"),
        ("retrain", "no champion of model 'viewdiff'"),
        ("run --dry-run --register.model-name a/b", "model_name 'a/b' has a / in it, which MLflow refuses in names of"),
        ("train --register.model-name v2.1", "model_name 'v2.1' has a . in it"),
        ("retrain --register.model-name a:b", "model_name 'a:b' has a : in it"),
        ("run --register.model-name=", "model_name '' has to be a line of 1 to 250 characters"),
        ("synth --co3d-root somewhere --dry-run", "drop one of the two"),
        ("synth --synth.categories unicorn", "'unicorn': unknown, choose from teddybear, hydrant, apple, donut"),
        ("synth --co3d-root somewhere", "drop one of the two"),
        ("preprocess --co3d-root somewhere", "data set somewhere: no such folder"),
        ("train --dry-run --co3d-root .", "not in CO3Dv2 layout"),
        ("train --tracking-uri http://127.0.0.1:9", "MLflow at http://127.0.0.1:9 cannot be reached"),
        ("train --root /dev/null/runs", "/dev/null is a file; choose another folder"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2(
    line: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code("viewdiff", lambda: main.dispatch(line.split())) == 2
    error = capsys.readouterr().err
    assert error.startswith("viewdiff: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_each_command_needs_what_leads_to_it() -> None:
    assert [stage.name for stage in needed_stages("latents", set())] == list(NAMES[:5])
    assert [stage.name for stage in needed_stages("register", {"synth"})] == list(NAMES[1:])
    assert [stage.name for stage in needed_stages("report", set())] == list(NAMES[:8])


def use_fake_stages(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
    """The real chain with stages that only write their name."""

    def make(stage: Stage) -> Stage:
        def run(config: object, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
            log.append(f"{stage.name}({','.join(inputs)})")
            (folder / "result").write_text(stage.name)
            return {}

        return replace(stage, run=run, tracks=False)

    monkeypatch.setattr(running, "STAGES", tuple(make(stage) for stage in STAGES))
    monkeypatch.setattr(checks, "check_held_out", lambda config, shards_dir: None)
    monkeypatch.setattr(checks, "check_sampling", lambda config, source, stages: None)  # no base is made


def test_a_chain_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    use_fake_stages(monkeypatch, log)
    runtime = RuntimeConfig(root=str(tmp_path))
    first = run_chain(tiny(), runtime, until="evaluate")
    assert log == [
        "synth()",
        "preprocess(raw)",
        "captions(shards)",
        "base(shards,captions)",
        "latents(shards,captions,base)",
        "train(shards,captions,latents,base)",
        "evaluate(shards,captions,base,checkpoint)",
    ]
    log.clear()
    assert run_chain(tiny(), replace(runtime, num_workers=4), until="evaluate") == first
    assert log == []
    changed = replace(tiny(), evaluate=replace(tiny().evaluate, seed=1))
    run_chain(changed, runtime, until="evaluate")
    assert log == ["evaluate(shards,captions,base,checkpoint)"]
    log.clear()
    described = replace(tiny(), captions=replace(tiny().captions, source="a/b", revision="0" * 40))
    run_chain(described, runtime, until="evaluate")
    assert log[0] == "captions(shards,source)"
    assert [line.partition("(")[0] for line in log[1:]] == ["base", "latents", "train", "evaluate"]


def test_a_plan_tells_what_would_be_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_stages(monkeypatch, [])
    runtime = RuntimeConfig(root=str(tmp_path))
    results = run_chain(tiny(), runtime, until="latents")
    changed = replace(tiny(), latents=replace(tiny().latents, num_prior_images=1))
    rows = running.describe_chain(changed, runtime, until="train")
    assert [(name, state) for name, _, state in rows] == [
        ("synth", "reuse"),
        ("preprocess", "reuse"),
        ("captions", "reuse"),
        ("base", "reuse"),
        ("latents", "run"),
        ("train", "run"),
    ]
    assert rows[1][1] == results["preprocess"].fingerprint


def test_further_inputs_and_given_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    use_fake_stages(monkeypatch, log)
    runtime = RuntimeConfig(root=str(tmp_path))
    results = run_chain(tiny(), runtime, until="train")
    log.clear()
    given = {name: results[name] for name in ("synth", "base")}
    run_chain(tiny(), runtime, until="train", given=given, extra={"train": {"initial": results["train"]}})
    assert log == ["train(shards,captions,latents,base,initial)"]


def test_a_given_model_is_known_by_its_content(tmp_path: Path) -> None:
    runtime = RuntimeConfig(root=str(tmp_path))
    fingerprints = {}
    for name, weights in (("none", ""), ("a", "weights"), ("copy", "weights"), ("b", "others")):
        extra = None
        if weights:
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").touch()
            (tmp_path / name / "model.safetensors").write_text(weights)
            extra = running.given_model(str(tmp_path / name))
        *before, (_, fingerprints[name], _) = running.describe_chain(tiny(), runtime, until="train", extra=extra)
    assert fingerprints["a"] == fingerprints["copy"]
    assert len(set(fingerprints.values())) == 3
    assert before[0][1] == running.describe_chain(tiny(), runtime, until="synth")[0][1]


def test_a_base_model_that_is_read_does_not_depend_on_the_captures(tmp_path: Path) -> None:
    config = replace(tiny(), base=replace(tiny().base, source="a/b", revision="0" * 40))
    other = replace(config, preprocess=replace(config.preprocess, image_size=128))
    runtime = RuntimeConfig(root=str(tmp_path))
    fingerprints = [
        {name: value for name, value, _ in running.describe_chain(settings, runtime, until="latents")}
        for settings in (config, other)
    ]
    assert fingerprints[0]["base"] == fingerprints[1]["base"]
    assert fingerprints[0]["latents"] != fingerprints[1]["latents"]


def test_a_missing_champion_does_not_hide_bad_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown option '--retrain.steps'"):
        main.dispatch(["retrain", "--root", str(tmp_path), "--retrain.steps", "3"])
