"""The presets for Stable Diffusion, run as people run them: `viewdiff run` on 256-pixel captures, from a diffusers
folder to the registry, killed on the way, and a generated object at the end.

The base models are narrow (tests/support/narrow_models.py); sizes of pictures and latents, types and precision are the
true ones. Steps, views, samples along a ray and voxels are fewer.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from PIL import Image

from infra.tracking.registry import Registry
from pipelines.chain.running import run_chain
from pipelines.cli import main
from pipelines.cli.arguments import parse_run
from pipelines.settings.presets import PRESETS
from pipelines.spine.artifacts import newest
from pipelines.spine.runtime import RuntimeConfig
from preprocessing.latents.reading import LatentCache
from tests.distributed.launch import TIMEOUT_SECONDS
from tests.support.narrow_models import save_narrow_model
from tests.support.paths import CHECKOUT
from tests.support.small_runs import SMALL_DATA, words

pytestmark = pytest.mark.timeout(3 * TIMEOUT_SECONDS)

FEWER_VOXELS = 8  # times fewer along a side
FEW = {
    **SMALL_DATA,
    "train.num-steps": "2",
    "train.batch-size": "1",
    "train.num-views": "3",
    "train.model.projection.num-samples": "8",
    "evaluate.num-objects": "1",
    "evaluate.num-text-objects": "1",
    "evaluate.num-views": "3",
    "evaluate.sampling.num-steps": "2",
}
BEFORE_TRAINING = ("synth", "preprocess", "captions", "base", "latents")


def options(root: Path, preset: str, kind: str) -> list[str]:
    """Of `viewdiff run` and its stages, for the narrow base model `kind`."""
    base = root / "bases" / kind
    if not base.is_dir():
        save_narrow_model(base, kind)
    blocks = PRESETS[preset]().train.model.projection.blocks
    grids = " ".join(f"{name} {size // FEWER_VOXELS}" for name, size in blocks)
    settings = {"preset": preset, "root": str(root), "base.source": str(base), "train.model.projection.blocks": grids}
    return words(settings | FEW)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captures and shards are made by the first test, and reused by the others."""
    return tmp_path_factory.mktemp("real")


def train(chosen: list[str]) -> Path:
    """Folder of the training with these options, which is there already if a test before has run it."""
    parsed = parse_run("train", chosen, description="")
    return run_chain(parsed.config, parsed.runtime, until="train")["train"].folder


def steps(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


@pytest.mark.parametrize(
    ("preset", "kind"),
    [
        ("single_gpu", "2.1-base"),
        ("released", "2.1-base"),
        ("paper", "2.1-base"),
        ("pyramid", "2.1-base"),
        ("released", "1.5"),
        ("released", "2.1"),
    ],
)
def test_a_preset_runs_to_the_registry(root: Path, preset: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    name = f"{preset}-{kind}".replace(".", "-")  # MLflow takes no dots
    main.dispatch(["run", *options(root, preset, kind), "--register.model-name", name])
    trained = newest(root, "train")
    assert trained is not None
    assert [line["step"] for line in steps(trained)] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in steps(trained))
    unet = json.loads((trained / "model" / "config.json").read_text())["unet"]
    assert unet["sample_size"] == 32  # of the training, whatever the base model's is
    latents = newest(root, "latents")
    assert latents is not None
    assert LatentCache(latents).latent_shape == (4, 32, 32)
    evaluation = newest(root, "evaluate")
    assert evaluation is not None
    assert np.isfinite(pq.read_table(evaluation / "objects.parquet").column("psnr").to_pylist()).all()
    champion = Registry(RuntimeConfig(root=str(root)).tracking, name).champion()
    assert champion is not None
    assert champion.version == 1


def test_a_killed_training_goes_on_bit_for_bit(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, with latents of a base model made for 512 pixels."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    chosen = options(root, "released", "2.1-base")
    peaceful = train(chosen)
    for stage in BEFORE_TRAINING:
        shutil.copytree(root / stage, tmp_path / stage)
    chosen[chosen.index("--root") + 1] = str(tmp_path)
    process = subprocess.Popen([sys.executable, "-m", "pipelines.cli", "train", *chosen], cwd=CHECKOUT)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not any(path.read_bytes().count(b"\n") for path in tmp_path.glob("train/*/metrics.jsonl")):
        assert process.poll() is None, "the training ended by itself"
        assert time.monotonic() < deadline, "no step was made"
        time.sleep(0.05)
    for member in (psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # Ray ends its own when the first is gone
            member.kill()
    process.wait()
    resumed = train(chosen)
    assert json.loads((resumed / "artifact.json").read_text())["resumed"]
    assert steps(resumed) == steps(peaceful)


def test_the_trained_model_generates_at_the_size_that_it_was_trained_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its shards too: 256 pixels, though the base model was made for 512."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    shutil.copytree(train(options(root, "released", "2.1-base")) / "model", tmp_path / "model")
    few = ["--num-views", "2", "--sampling.num-steps", "2", "--output", str(tmp_path / "pictures")]
    base = ["--model", str(tmp_path / "model"), "--base", str(root / "bases" / "2.1-base")]
    main.dispatch(["generate", *base, "--text", "a toy", *few])
    pictures = list((tmp_path / "pictures").glob("view-*.png"))
    assert len(pictures) == 2
    assert {Image.open(path).size for path in pictures} == {(256, 256)}
