"""Everything large in an object store, end to end: captures, shards and latents in a bucket whose server is restarted
in the middle of each stage, and a training that is interrupted and goes on.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.fetch import CACHE_VARIABLE
from infra.s3 import S3Path
from infra.storage import digest_folder, open_path
from model.base import save_base
from model.tiny_base import build_tiny_base
from pipelines.artifacts import Artifact, BaseFolder, Captions, Checkpoint, Latents, Shards, external_dataset
from pipelines.captions import write_captions
from pipelines.latents import cache_latents
from pipelines.preprocess import preprocess
from pipelines.runtime import RuntimeConfig
from pipelines.stage import Stage, run_stage
from pipelines.train import train
from preprocessing.config import CaptionsConfig, LatentsConfig, PreprocessConfig
from tests.captures import make_capture, write_dataset
from tests.s3_server import BUCKET, S3Server
from tests.training_inputs import BASE, train_config

pytestmark = pytest.mark.timeout(600)

NUM_CAPTURES = 6
PREPROCESS = PreprocessConfig(
    image_size=BASE.image_size, sequences_per_shard=1, minimum_frames=5, split_fractions=(1.0, 0.0, 0.0)
)
LATENTS = LatentsConfig(num_crops=2, batch_size=4, num_prior_images=3, prior_num_steps=2)
TRAIN = train_config(num_steps=8, checkpoint_every_steps=2, preview_every_steps=100)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    folder = tmp_path_factory.mktemp("s3")
    server = S3Server(folder)
    server.start()
    with pytest.MonkeyPatch.context() as patch:  # before Ray starts, whose workers inherit it
        for name, value in (server.environment | {CACHE_VARIABLE: str(folder / "cache")}).items():
            patch.setenv(name, value)
        yield server
    server.stop()


@contextmanager
def restarted_when(server: S3Server, condition: Callable[[], bool]) -> Iterator[None]:
    """Stop the server once as soon as the condition holds, and start it again a second later."""
    restarts: list[float] = []

    def restart() -> None:
        while not condition():
            time.sleep(0.02)
        server.stop()
        time.sleep(1.0)
        server.start()
        restarts.append(time.monotonic())

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    yield
    thread.join(timeout=60)
    assert restarts, "the server was not restarted"


def upload(source: Path, target: S3Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            (target / path.relative_to(source).as_posix()).upload(path)


def stages(raw: Artifact, base: Artifact, runtime: RuntimeConfig) -> dict[str, Artifact]:
    """What `viewdiff train` runs, with a small base model."""
    results: dict[str, Artifact] = {"raw": raw, "base": base}
    for name, function, kind, config, needed in (
        ("shards", preprocess, Shards, PREPROCESS, ("raw",)),
        ("captions", write_captions, Captions, CaptionsConfig(), ("shards",)),
        ("latents", cache_latents, Latents, LATENTS, ("shards", "captions", "base")),
        ("train", train, Checkpoint, TRAIN, ("shards", "captions", "latents", "base")),
    ):
        inputs = {role: results[role] for role in needed}
        results[name] = run_stage(Stage(name=name, run=function, kind=kind, config=config, inputs=inputs), runtime)
    return results


def test_a_run_in_an_object_store_is_the_run_on_a_disk(server: S3Server, tmp_path: Path) -> None:
    write_dataset(tmp_path / "raw", [make_capture(name=f"s{i}", seed=i) for i in range(NUM_CAPTURES)])
    save_base(build_tiny_base(BASE, words=["photo", "apple"], seed=0).frozen(), tmp_path / "base")
    base = BaseFolder("base", tmp_path / "base")
    local = stages(external_dataset(tmp_path / "raw"), base, RuntimeConfig(root=str(tmp_path / "local"), num_workers=2))

    bucket = open_path(f"s3://{BUCKET}")
    assert isinstance(bucket, S3Path)
    upload(tmp_path / "raw", bucket / "co3d")
    raw = external_dataset(bucket / "co3d")
    assert raw.fingerprint == external_dataset(tmp_path / "raw").fingerprint
    runtime = RuntimeConfig(
        root=str(tmp_path / "remote"), data_root=f"s3://{BUCKET}/data", num_workers=2, num_loaders=1
    )

    def busy() -> bool:
        """The second shard is committed, so others are in work."""
        return len(list(bucket.glob("data/shards/*/*.rows.parquet"))) >= 2

    with restarted_when(server, busy):
        remote = stages(raw, base, runtime)
    for name in ("shards", "latents"):
        folder = remote[name].data
        assert isinstance(folder, S3Path)
        (tmp_path / name).mkdir()
        for path in folder.iterdir():
            path.download(tmp_path / name / path.name)
        written = {key: value for key, value in digest_folder(local[name].folder).items() if key != "artifact.json"}
        assert digest_folder(tmp_path / name) == written

    def losses(artifact: Artifact) -> list[float]:
        assert isinstance(artifact, Checkpoint)
        return [json.loads(line)["loss"] for line in artifact.metrics_path.read_text().splitlines()]

    assert losses(remote["train"]) == losses(local["train"])
    assert len(losses(remote["train"])) == TRAIN.num_steps
