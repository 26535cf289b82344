"""Stage captions: described shard by shard, interrupted, by any number of workers; and who uses what it wrote."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from model.base.stable_diffusion import load_base
from model.config import BaseConfig, FitConfig
from pipelines.spine.artifacts import Artifact, BaseFolder, Captions, PretrainedModel, Shards
from pipelines.spine.runtime import RuntimeConfig
from pipelines.stages import captions as stage
from pipelines.stages.base import train_base
from pipelines.stages.latents import cache_latents
from preprocessing.captions.blip2 import Captioner
from preprocessing.captions.describing import captions_path, described_rows
from preprocessing.captions.files import read_sequence_captions
from preprocessing.captures.captions import CAPTIONS_NAME
from preprocessing.config import CaptionsConfig, LatentsConfig, PreprocessConfig
from preprocessing.latents.reading import LatentCache
from preprocessing.shards.commit import commit_folder
from preprocessing.shards.planning import plan_shards
from preprocessing.shards.reading import FrameIndex, ShardReader
from preprocessing.shards.writing import write_shard
from tests.support.captures import make_capture, write_dataset
from tests.support.paths import CHECKOUT
from tests.support.tiny_blip import write_tiny_blip
from tests.support.training_inputs import BASE

PREPROCESS = PreprocessConfig(image_size=32, sequences_per_shard=2, minimum_frames=3, split_fractions=(1, 0, 0))
NUM_FRAMES = {"apple/a": 9, "apple/b": 10, "hydrant/b": 3, "toy_truck/c": 12, "zebra/d": 7}
STORED = {
    "apple/a": ("a photo of an apple",),
    "apple/b": ("a photo of an apple",),
    "hydrant/b": ("a photo of a hydrant",),
    "toy_truck/c": ("a photo of a toy truck",),
    "zebra/d": ("a photo of a zebra",),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Three shards."""
    root, folder = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("shards")
    names = [key.split("/") for key in NUM_FRAMES]
    write_dataset(
        root,
        [
            make_capture(category, name, seed=number, num_frames=NUM_FRAMES[f"{category}/{name}"])
            for number, (category, name) in enumerate(names)
        ],
    )
    plan = plan_shards(root, PREPROCESS)
    records = [write_shard(task, root, folder, PREPROCESS) for task in plan.tasks]
    commit_folder(folder, records, plan.rejected, PREPROCESS.image_size)
    return {"shards": Shards("shards", folder)}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CaptionsConfig:
    source = write_tiny_blip(tmp_path_factory.mktemp("blip"))
    return CaptionsConfig(source=str(source), batch_size=4, max_new_tokens=12)


class HereAndNow:
    """Takes the place of Ray: describes in this process, and is killed after `lifetime` shards."""

    def __init__(self, lifetime: int = 1000) -> None:
        self._lifetime = lifetime
        self.shards: list[str] = []

    def __call__(
        self,
        actor: type,
        items: list[dict[str, Any]],
        *,
        settings: dict[str, Any],
        folder: Path,
        num_workers: int,
        use_gpu: bool,
    ) -> Generator[dict[str, Any], None, None]:
        made = actor(folder=folder, use_gpu=use_gpu, **settings)
        for item in items:
            if len(self.shards) == self._lifetime:
                raise ConnectionError("killed")
            self.shards.append(item["shard"])
            yield made(item)


def describe(
    config: CaptionsConfig, inputs: dict[str, Artifact], folder: Path, *, num_workers: int = 1
) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    runtime = RuntimeConfig(root=str(folder), num_workers=num_workers)
    model = PretrainedModel("blip", Path(str(config.source)))
    return stage.write_captions(config, inputs | {"source": model}, folder, runtime)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> HereAndNow:
    runner = HereAndNow()
    monkeypatch.setattr(stage, "run_actors", runner)
    return runner


def test_taking_the_stored_captions_needs_no_model_and_no_cluster() -> None:
    program = (
        "import sys, pipelines.stages.captions; sys.exit(', '.join({'ray', 'transformers'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT, check=True)


def test_without_a_model_captions_are_those_of_the_shards(
    inputs: dict[str, Artifact], here: HereAndNow, tmp_path: Path
) -> None:
    facts = describe(CaptionsConfig(), inputs, tmp_path)
    assert here.shards == []
    assert read_sequence_captions(tmp_path) == STORED
    assert facts == {
        "num_sequences": 5,
        "num_captions": 5,
        "num_distinct_captions": 4,
        "num_named_by_category_only": 5,
    }


def test_each_sequence_is_described_by_its_frames(
    config: CaptionsConfig, inputs: dict[str, Artifact], here: HereAndNow, tmp_path: Path
) -> None:
    facts = describe(config, inputs, tmp_path)
    assert here.shards == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    assert [path.name for path in tmp_path.iterdir()] == [CAPTIONS_NAME]
    captions = read_sequence_captions(tmp_path)
    index = FrameIndex.open(inputs["shards"].folder)
    reader = ShardReader(inputs["shards"].folder, index)
    captioner = Captioner.from_pretrained(str(config.source), max_new_tokens=config.max_new_tokens)
    for sequence in index.sequences():
        rows = described_rows(sequence, 5)
        assert len(rows) == min(5, NUM_FRAMES[sequence.key])
        said = captioner.captions([reader.image(row) for row in rows])
        assert list(captions[sequence.key]) == list(dict.fromkeys(said))
    assert max(map(len, captions.values())) == 5
    assert facts["num_sequences"] == len(captions) == 5
    assert facts["num_captions"] == sum(map(len, captions.values()))
    assert facts["num_named_by_category_only"] == 0


def test_the_batch_size_changes_no_caption(
    config: CaptionsConfig, inputs: dict[str, Artifact], here: HereAndNow, tmp_path: Path
) -> None:
    written = set()
    for batch_size in (1, 3, 100):
        folder = tmp_path / str(batch_size)
        describe(replace(config, batch_size=batch_size), inputs, folder)
        written.add((folder / CAPTIONS_NAME).read_bytes())
    assert len(written) == 1


def test_what_is_described_is_not_described_again(
    config: CaptionsConfig, inputs: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = HereAndNow()
    monkeypatch.setattr(stage, "run_actors", whole)
    describe(config, inputs, tmp_path / "whole")
    folder = tmp_path / "killed"
    monkeypatch.setattr(stage, "run_actors", HereAndNow(lifetime=1))
    with pytest.raises(ConnectionError):
        describe(config, inputs, folder)
    part = captions_path(folder, "shard-000000.tar")
    assert [path.name for path in folder.iterdir()] == [part.name]
    first = part.stat()
    again = HereAndNow(lifetime=1)
    monkeypatch.setattr(stage, "run_actors", again)
    with pytest.raises(ConnectionError):
        describe(config, inputs, folder)
    assert again.shards == ["shard-000001.tar"]
    assert (part.stat().st_ino, part.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    (folder / f".{part.name}.x1.tmp").write_bytes(b"{")  # as a worker leaves it that is killed while it writes
    last = HereAndNow()
    monkeypatch.setattr(stage, "run_actors", last)
    facts = describe(config, inputs, folder)
    assert last.shards == ["shard-000002.tar"]
    assert [path.name for path in folder.iterdir()] == [CAPTIONS_NAME]
    assert (folder / CAPTIONS_NAME).read_bytes() == (tmp_path / "whole" / CAPTIONS_NAME).read_bytes()
    assert describe(config, inputs, folder) == facts  # killed before it was recorded: nothing is done again
    assert last.shards == ["shard-000002.tar"]


@pytest.mark.timeout(300)
def test_workers_write_what_one_process_writes(
    config: CaptionsConfig,
    inputs: dict[str, Artifact],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    facts = describe(config, inputs, tmp_path / "ray", num_workers=2)
    assert "captions  5/5 sequences" in capfd.readouterr().err
    broken = replace(config, source=str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"empty: the folder is not there any more"):
        describe(broken, inputs, tmp_path / "broken", num_workers=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"^captions: cannot read BLIP-2 model {tmp_path / 'empty'} "):
        describe(broken, inputs, tmp_path / "broken", num_workers=2)
    monkeypatch.setattr(stage, "run_actors", HereAndNow())
    assert describe(config, inputs, tmp_path / "here") == facts
    assert (tmp_path / "ray" / CAPTIONS_NAME).read_bytes() == (tmp_path / "here" / CAPTIONS_NAME).read_bytes()


def test_damaged_shards_are_named(
    config: CaptionsConfig, inputs: dict[str, Artifact], here: HereAndNow, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for path in inputs["shards"].folder.iterdir():
        (shards / path.name).write_bytes(path.read_bytes())
    damaged = shards / "shard-000001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(UserError, match=re.escape(str(damaged))):
        describe(config, {"shards": Shards("shards", shards)}, tmp_path / "captions")


@pytest.fixture
def captioned(inputs: dict[str, Artifact], tmp_path: Path) -> dict[str, Artifact]:
    """Shards with captions that are not stored with them."""
    captions = {key: [f"some striped thing {number}", "thing"] for number, key in enumerate(NUM_FRAMES)}
    folder = tmp_path / "captions"
    folder.mkdir()
    (folder / CAPTIONS_NAME).write_text(json.dumps(captions))
    return {**inputs, "captions": Captions("captions", folder)}


def test_the_base_model_and_the_latents_are_of_these_captions(captioned: dict[str, Artifact], tmp_path: Path) -> None:
    fit = FitConfig(num_steps=1, batch_size=2, learning_rate=1e-3)
    base, latents = BaseFolder("base", tmp_path / "base"), tmp_path / "latents"
    for folder in (base.folder, latents):
        folder.mkdir()
    runtime = RuntimeConfig(root=str(tmp_path))
    train_base(BaseConfig(tiny=BASE, vae_fit=fit, unet_fit=fit), captioned, base.folder, runtime)
    tokenizer = load_base(base.folder).tokenizer
    assert len(tokenizer.tokenize("striped thing")) == 2  # words that it knows whole
    assert len(tokenizer.tokenize("photo")) == 5  # as in none of them
    cache_latents(LatentsConfig(num_prior_images=1, prior_num_steps=1), captioned | {"base": base}, latents, runtime)
    cached = LatentCache(latents)
    texts = json.loads((latents / "captions.json").read_bytes())
    assert texts == ["", *(f"some striped thing {number}" for number in range(5)), "thing"]
    assert cached.text([cached.caption_number("thing")]).shape == (1, BASE.text_length, BASE.text_channels)


def test_an_index_takes_other_captions(inputs: dict[str, Artifact]) -> None:
    index = FrameIndex.open(inputs["shards"].folder)
    captions = {key: (f"one of {key}", "two") for key in NUM_FRAMES}
    other = index.with_captions(captions | {"unknown/x": ("more",)})
    assert {item.key: item.captions for item in other.sequences()} == captions
    assert {item.key: item.captions for item in index.sequences()} == STORED
    assert [item.rows for item in other.sequences()] == [item.rows for item in index.sequences()]
    del captions["hydrant/b"]
    with pytest.raises(UserError, match="none for sequence hydrant/b; run `viewdiff captions` again"):
        index.with_captions(captions)
