"""The stage latents through Ray: resumed, with another number of workers, and on what it must refuse."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from infra.errors import UserError
from infra.storage.files import digest_folder
from model.base.stable_diffusion import load_base
from pipelines.spine.artifacts import Artifact
from pipelines.spine.runtime import RuntimeConfig
from pipelines.stages.latents import cache_latents
from preprocessing.config import LatentsConfig
from preprocessing.latents import writing
from preprocessing.latents.writing import LatentsWriter, plan_units
from preprocessing.shards.reading import ShardReader
from tests.support.evaluation_inputs import write_evaluation_inputs
from tests.support.training_inputs import fill_latents, open_index

pytestmark = pytest.mark.timeout(300)

CONFIG = LatentsConfig(num_crops=3, batch_size=4, num_prior_images=5, prior_num_steps=2)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Shards with real pictures, captions and a base model."""
    return write_evaluation_inputs(tmp_path_factory.mktemp("inputs"))


def test_a_resumed_stage_does_the_rest(
    inputs: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHUNK_ROWS", "CHUNK_CAPTIONS", "CHUNK_PRIOR"):
        monkeypatch.setattr(writing, name, 2)  # many small units; they travel whole, so workers know
    index, base = open_index(inputs), load_base(inputs["base"].folder).frozen()
    reader = ShardReader(inputs["shards"].folder, index)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        folder.mkdir()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as workers do: sums depend on it in their last bits
    fill_latents(index, reader, base, whole, CONFIG)
    units = plan_units(index, CONFIG)
    assert [unit.kind for unit in units] == ["text"] * 3 + ["prior"] * 3 + ["moments"] * 8
    writer = LatentsWriter(base, index, reader, resumed, CONFIG)
    for unit in units[::3]:
        writer.write(unit)
    torch.set_num_threads(threads)
    kept = {path.name: path.stat().st_ino for path in resumed.glob("*.npy")}
    (resumed / ".moments-000004-0123.tmp").write_bytes(b"of a worker that was killed")
    (resumed / "moments-000001.npy").write_bytes(b"published, but its worker was killed before it recorded it")
    facts = cache_latents(CONFIG, inputs, resumed, RuntimeConfig(num_workers=2))
    assert facts == {"num_frames": 15, "num_crops": 3, "num_captions": 5, "num_prior_images": 5}
    assert digest_folder(resumed) == digest_folder(whole)
    assert {name: (resumed / name).stat().st_ino for name in kept if not name.startswith("crops-0")} == {
        name: number for name, number in kept.items() if not name.startswith("crops-0")
    }
    before = {path.name: path.stat().st_mtime_ns for path in resumed.iterdir()}
    assert cache_latents(CONFIG, inputs, resumed, RuntimeConfig(num_workers=1)) == facts
    assert {path.name: path.stat().st_mtime_ns for path in resumed.iterdir()} == before


def test_a_damaged_shard_is_named(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(inputs["shards"].folder, shards)
    shard = shards / "shard-000000.tar"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    (tmp_path / "out").mkdir()
    damaged = inputs | {"shards": type(inputs["shards"])("damaged", shards)}
    with pytest.raises(UserError, match=r"shard-000000.tar: frame in row 0 is damaged \(its checksum is another\)"):
        cache_latents(CONFIG, damaged, tmp_path / "out", RuntimeConfig(num_workers=1))
    assert not (tmp_path / "out" / "latents.json").exists()
