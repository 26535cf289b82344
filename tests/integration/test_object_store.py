"""Everything large in an object store: captures, shards and latents in a bucket whose server is restarted in the
middle, and the batches that a training reads from there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from infra.storage.cache import CACHE_VARIABLE
from infra.storage.files import StoragePath, digest_folder, open_path
from infra.storage.s3 import S3Path
from model.base.stable_diffusion import save_base
from model.base.stand_in import build_tiny_base
from pipelines.spine.artifacts import Artifact, BaseFolder, Captions, Latents, Shards, external_dataset
from pipelines.spine.runtime import RuntimeConfig
from pipelines.spine.stage import Stage, run_stage
from pipelines.stages.captions import write_captions
from pipelines.stages.latents import cache_latents
from pipelines.stages.preprocess import preprocess
from preprocessing.batches.batches import TrainBatches
from preprocessing.batches.loader import load_batches
from preprocessing.config import CaptionsConfig, LatentsConfig, PreprocessConfig
from preprocessing.latents.reading import LatentCache
from preprocessing.shards.reading import FrameIndex, ShardReader
from tests.support.captures import make_capture, write_dataset
from tests.support.s3_server import BUCKET, S3Server
from tests.support.training_inputs import BASE, IMAGE_SIZE

pytestmark = pytest.mark.timeout(600)

NUM_CAPTURES = 6
PREPROCESS = PreprocessConfig(
    image_size=IMAGE_SIZE, sequences_per_shard=1, minimum_frames=5, split_fractions=(1.0, 0.0, 0.0)
)
LATENTS = LatentsConfig(num_crops=2, batch_size=4, num_prior_images=3, prior_num_steps=2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("s3")
    server = S3Server(folder)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (server.environment | {CACHE_VARIABLE: str(folder / "cache")}).items():
            patch.setenv(name, value)
        ray.shutdown()  # an earlier test's: workers have the environment that their Ray was started in
        yield server
        ray.shutdown()
    server.stop()


@contextmanager
def restarted_when(server: S3Server, condition: Callable[[], bool]) -> Iterator[None]:
    """Stop the server once, as soon as the condition holds, and start it again a second later."""
    restarted = threading.Event()

    def restart() -> None:
        while not condition():
            time.sleep(0.02)
        server.stop()
        time.sleep(1.0)
        server.start()
        restarted.set()

    threading.Thread(target=restart, daemon=True).start()
    yield
    assert restarted.wait(timeout=60), "the server was not restarted"


def upload(source: Path, target: S3Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source).as_posix()).upload(path)


def stages(raw: Artifact, base: Artifact, runtime: RuntimeConfig) -> dict[str, Artifact]:
    """What comes before a training, with a small base model."""
    results: dict[str, Artifact] = {"raw": raw, "base": base}
    for name, function, kind, config, needed in (
        ("shards", preprocess, Shards, PREPROCESS, ("raw",)),
        ("captions", write_captions, Captions, CaptionsConfig(), ("shards",)),
        ("latents", cache_latents, Latents, LATENTS, ("shards", "captions", "base")),
    ):
        inputs = {role: results[role] for role in needed}
        results[name] = run_stage(Stage(name=name, run=function, kind=kind, config=config, inputs=inputs), runtime)
    return results


def open_batches(shards: StoragePath, latents: StoragePath) -> TrainBatches:
    index = FrameIndex.open(shards)
    return TrainBatches(index, ShardReader(shards, index), LatentCache(latents), seed=0, num_views=4)


def test_a_store_gives_what_a_disk_gives(server: S3Server, tmp_path: Path) -> None:
    write_dataset(tmp_path / "raw", [make_capture(name=f"s{i}", seed=i) for i in range(NUM_CAPTURES)])
    save_base(
        build_tiny_base(BASE, image_size=IMAGE_SIZE, words=["photo", "apple"], seed=0).frozen(), tmp_path / "base"
    )
    base = BaseFolder("base", tmp_path / "base")
    disk = RuntimeConfig(root=str(tmp_path / "disk"), num_workers=2)
    local = stages(external_dataset(tmp_path / "raw"), base, disk)

    bucket = open_path(f"s3://{BUCKET}")
    assert isinstance(bucket, S3Path)
    upload(tmp_path / "raw", bucket / "co3d")
    raw = external_dataset(bucket / "co3d")
    assert raw.fingerprint == external_dataset(tmp_path / "raw").fingerprint
    store = RuntimeConfig(root=str(tmp_path / "store"), data_root=f"{bucket}/data", num_workers=2)
    with restarted_when(server, lambda: len(list(bucket.glob("data/shards/*/*.rows.parquet"))) >= 2):
        remote = stages(raw, base, store)
    for name in ("shards", "latents"):
        folder = remote[name].data
        assert isinstance(folder, S3Path)
        (tmp_path / name).mkdir()
        for path in folder.iterdir():
            path.download(tmp_path / name / path.name)
        written = digest_folder(local[name].folder)
        del written["artifact.json"]
        assert digest_folder(tmp_path / name) == written

    there = open_batches(remote["shards"].data, remote["latents"].data)
    here = open_batches(local["shards"].folder, local["latents"].folder)
    readers = [ShardReader(results["shards"].data, here.index) for results in (local, remote)]
    for row in (0, 40, 71):
        one, other = (reader.image(row) for reader in readers)
        assert np.array_equal(one, other)
    positions = [range(start, start + 3) for start in (0, 3, 600)]
    for batch, each in zip(load_batches(there, positions, num_workers=0), positions, strict=True):
        expected = here.load(each)
        assert torch.equal(batch.frames, expected.frames)
        assert torch.equal(batch.text, expected.text)
        assert torch.equal(batch.prior, expected.prior)
        assert torch.equal(batch.scene.cameras.intrinsics, expected.scene.cameras.intrinsics)
