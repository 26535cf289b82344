"""A model that others trained is known by its content: other weights under the same name are another model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from infra.errors import UserError
from pipelines.chain import checks, running
from pipelines.chain.checks import check_base_on_hub
from pipelines.chain.running import describe_chain, run_chain
from pipelines.chain.table import STAGES
from pipelines.settings.presets import tiny
from pipelines.settings.run import RunConfig
from pipelines.spine.artifacts import Artifact
from pipelines.spine.runtime import RuntimeConfig
from pipelines.spine.sources import NOT_KNOWN, pretrained_models
from pipelines.spine.stage import Stage

FIRST, SECOND = "1" * 40, "2" * 40


def write_base(folder: Path, weights: str = "weights") -> Path:
    for part in ("unet", "vae", "text_encoder"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text("{}")
        (folder / part / "model.safetensors").write_text(f"{part} {weights}")
    return folder


def put_on_hub(hub: Path, commit: str, *, revision: str = "main") -> None:
    """What huggingface_hub keeps of a model that it has read: the hub itself is not asked here."""
    copy = hub / "models--a--b"
    (copy / "refs").mkdir(parents=True, exist_ok=True)
    (copy / "refs" / revision).write_text(commit)
    if not (copy / "snapshots" / commit).exists():
        write_base(copy / "snapshots" / commit)
        (copy / "snapshots" / commit / "config.json").write_text("{}")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the hub's copies on this machine, which counts because the hub does not answer."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stages that do nothing; the revision that each run of stage base would have read."""
    revisions: list[Any] = []

    def make(stage: Stage) -> Stage:
        def run(config: object, inputs: Mapping[str, Any], folder: Path, runtime: RuntimeConfig) -> dict[str, Any]:
            facts = dict(inputs["source"].facts) if "source" in inputs else {}
            if stage.name == "base":
                revisions.append(facts.get("revision"))
            (folder / "result").touch()
            return facts

        return replace(stage, run=run, tracks=False)

    monkeypatch.setattr(running, "STAGES", tuple(make(stage) for stage in STAGES))
    monkeypatch.setattr(running, "check_settings", lambda *arguments, **stages: None)
    for check in ("check_base_on_hub", "check_sampling"):
        monkeypatch.setattr(checks, check, lambda *arguments, **stages: None)  # these models are none
    return revisions


@pytest.fixture
def runtime(tmp_path: Path) -> RuntimeConfig:
    return RuntimeConfig(root=str(tmp_path / "runs"))


def with_base(source: object, revision: str | None = None) -> RunConfig:
    return replace(tiny(), base=replace(tiny().base, source=str(source), revision=revision))


def fingerprint(source: object, runtime: RuntimeConfig, *, stage: str = "base", revision: str | None = None) -> str:
    config = replace(tiny(), **{stage: replace(getattr(tiny(), stage), source=str(source), revision=revision)})
    return pretrained_models(config, runtime, stages={stage})[stage]["source"].fingerprint


def test_runs_without_such_a_model_keep_their_inputs(runtime: RuntimeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so their fingerprints and finished results."""
    made = {}
    run_stage = running.run_stage

    def noted(stage: Stage, runtime: RuntimeConfig) -> Artifact:
        made[stage.name] = set(stage.inputs)
        return run_stage(replace(stage, run=lambda *arguments: {}), runtime)

    monkeypatch.setattr(running, "run_stage", noted)
    monkeypatch.setattr(checks, "check_sampling", lambda *arguments, **stages: None)  # nothing is made
    run_chain(tiny(), runtime, until="latents")
    assert made["captions"] == {"shards"}
    assert made["base"] == {"shards", "captions"}
    assert made["latents"] == {"shards", "captions", "base"}


def test_a_folder_is_its_files(tmp_path: Path, runtime: RuntimeConfig) -> None:
    folder = write_base(tmp_path / "a")
    first = fingerprint(folder, runtime)
    assert fingerprint(write_base(tmp_path / "copy"), runtime) == first
    assert fingerprint(write_base(tmp_path / "b", "others"), runtime) != first
    (folder / "README.md").write_text("no stage reads this")
    (folder / "v2-1.ckpt").write_text("nor this")
    assert fingerprint(folder, runtime) == first
    weights = folder / "vae" / "model.safetensors"
    before = weights.stat()
    weights.write_text("vae weighty")  # as long, and
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # as old
    assert fingerprint(folder, runtime) != first


def test_swapped_weights_are_read_again(tmp_path: Path, runtime: RuntimeConfig, log: list[Any]) -> None:
    folder = write_base(tmp_path / "model")
    run_chain(with_base(folder), runtime, until="base")
    run_chain(with_base(folder), runtime, until="base")
    assert log == [None]
    (folder / "unet" / "model.safetensors").write_text("unet others")
    assert describe_chain(with_base(folder), runtime, until="base")[-1][2] == "run"
    run_chain(with_base(folder), runtime, until="base")
    assert log == [None, None]


def test_a_finished_stage_does_not_need_the_folder(tmp_path: Path, runtime: RuntimeConfig, log: list[Any]) -> None:
    folder = write_base(tmp_path / "model")
    first = run_chain(with_base(folder), runtime, until="base")
    folder.rename(tmp_path / "elsewhere")
    assert run_chain(with_base(folder), runtime, until="base") == first
    assert len(log) == 1


def test_a_hub_id_is_the_commit_that_it_stands_for(hub: Path, runtime: RuntimeConfig) -> None:
    put_on_hub(hub, FIRST)
    put_on_hub(hub, SECOND, revision="fp16")
    for stage in ("base", "captions"):
        first = fingerprint("a/b", runtime, stage=stage)
        assert fingerprint("a/b", runtime, stage=stage, revision=FIRST) == first
        assert fingerprint("a/b", runtime, stage=stage, revision="main") == first
        assert fingerprint("a/b", runtime, stage=stage, revision="fp16") != first


def test_the_hubs_copies_may_lie_in_any_folder(
    tmp_path: Path, runtime: RuntimeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "snapshots" / "hf"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    put_on_hub(folder, FIRST)
    assert fingerprint("a/b", runtime) == fingerprint("a/b", runtime, revision=FIRST)


def test_a_commit_needs_no_hub(hub: Path, runtime: RuntimeConfig) -> None:
    assert not hub.exists()
    assert fingerprint("a/b", runtime, revision=FIRST) != fingerprint("a/b", runtime, revision=SECOND)


def test_what_a_hub_id_stood_for_at_first_is_kept(
    hub: Path, runtime: RuntimeConfig, log: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    put_on_hub(hub, FIRST)
    run_chain(with_base("a/b"), runtime, until="base")
    assert f"base  a/b is at revision {FIRST} on the hub\n" in capsys.readouterr().out
    put_on_hub(hub, SECOND)
    run_chain(with_base("a/b"), runtime, until="base")
    assert f"base  a/b is taken at revision {FIRST}, as before; --base.revision" in capsys.readouterr().out
    assert log == [FIRST]
    run_chain(replace(with_base("a/b"), base=replace(with_base("a/b").base, seed=5)), runtime, until="base")
    assert log == [FIRST, FIRST]
    run_chain(with_base("a/b", SECOND), runtime, until="base")
    assert log[2:] == [SECOND]
    elsewhere = replace(runtime, root=f"{runtime.root}2")
    run_chain(with_base("a/b"), elsewhere, until="base")
    assert log[3:] == [SECOND]


def test_a_dry_run_does_not_ask_the_hub(hub: Path, runtime: RuntimeConfig) -> None:
    rows = describe_chain(with_base("a/b"), runtime, until="train")
    known = {name: value != NOT_KNOWN for name, value, _ in rows}
    assert known == {
        "synth": True,
        "preprocess": True,
        "captions": True,
        "base": False,
        "latents": False,
        "train": False,
    }
    assert {state for *_, state in rows} == {"run"}
    put_on_hub(hub, FIRST)
    assert NOT_KNOWN not in {value for _, value, _ in describe_chain(with_base("a/b"), runtime, until="train")}


def test_a_model_that_cannot_be_known_is_told_before_any_work(
    hub: Path, tmp_path: Path, runtime: RuntimeConfig, log: list[Any]
) -> None:
    (tmp_path / "empty").mkdir()
    for source, message in (
        ("a/b", r"--base\.source a/b: no folder of that name, and cannot be read on the hub \(.+\); name"),
        ("a/b/c", r"--base\.source a/b/c: no folder of that name, and cannot be read on the hub \(.+\); name"),
        (tmp_path / "none", r"none: no such folder; name a model's folder"),
        ("./none", r"--base\.source \./none: no such folder"),
        (tmp_path / "empty", r"empty: no unet/config\.json in it; name the folder"),
    ):
        config = with_base(source)
        with pytest.raises(UserError, match=message):
            run_chain(config, runtime, until="base")
    assert log == []
    assert not runtime.root_dir.exists()


def test_a_model_on_the_hub_is_checked_before_any_stage(
    hub: Path, runtime: RuntimeConfig, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "check_base_on_hub", check_base_on_hub)
    put_on_hub(hub, FIRST)
    unet = hub / "models--a--b" / "snapshots" / FIRST / "unet" / "config.json"
    unet.write_text('{"addition_embed_type": "text_time"}')
    with pytest.raises(UserError, match=r"base model a/b is no plain Stable Diffusion \(addition_embed_type"):
        run_chain(with_base("a/b"), runtime, until="train")
    assert log == []
    assert not runtime.root_dir.exists()


def test_a_model_that_stage_base_has_read_needs_no_hub(
    hub: Path, runtime: RuntimeConfig, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_on_hub(hub, FIRST)
    run_chain(with_base("a/b"), runtime, until="base")
    shutil.rmtree(hub)
    monkeypatch.setattr(checks, "check_base_on_hub", check_base_on_hub)
    run_chain(with_base("a/b"), runtime, until="latents")
    assert log == [FIRST]
