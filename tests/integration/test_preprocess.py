"""The stage preprocess on small data sets: through Ray, killed, repeated, with defects, and on input that it must
refuse.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.cluster.connection import CHECKOUT
from infra.errors import UserError
from infra.provenance.code_version import git_commit
from infra.provenance.fingerprint import plain
from infra.storage.files import digest_folder
from pipelines.spine.artifacts import RawDataset
from pipelines.spine.runtime import RuntimeConfig
from pipelines.stages.preprocess import preprocess
from preprocessing.config import PreprocessConfig
from preprocessing.shards.reading import FrameIndex, ShardReader
from preprocessing.shards.schema import read_manifest
from preprocessing.synthetic.config import SyntheticConfig
from preprocessing.synthetic.dataset import write_dataset
from preprocessing.synthetic.scenes import plan_sequence
from tests.support.captures import make_capture, write_annotations
from tests.support.captures import write_dataset as write_captures

pytestmark = pytest.mark.timeout(600)  # starting Ray takes seconds, on a busy machine minutes

CONFIG = PreprocessConfig(image_size=32, sequences_per_shard=1, minimum_frames=5)
SYNTHETIC = SyntheticConfig(
    categories=("hydrant", "teddybear"), objects_per_category=2, frames_per_sequence=8, image_size=48
)
NUM_CAPTURES = 6
WAIT_SECONDS = 300.0  # for Ray to start on a busy machine
# What a terminal does, without the command line: a driver of its own, with a Ray of its own.
DRIVER = """
import sys
from pathlib import Path
from tests.integration.test_preprocess import run
if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), num_workers=1)
"""


def run(root: Path, folder: Path, *, num_workers: int = 2, config: PreprocessConfig = CONFIG) -> dict[str, object]:
    folder.mkdir(exist_ok=True)
    runtime = RuntimeConfig(num_workers=num_workers)
    return preprocess(config, {"raw": RawDataset(fingerprint="raw", folder=root)}, folder, runtime)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("raw")
    write_captures(root, [make_capture(name=f"s{number}", seed=number) for number in range(NUM_CAPTURES)])
    return root


@pytest.fixture(scope="module")
def clean(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run with two workers."""
    folder = tmp_path_factory.mktemp("shards") / "clean"
    run(root, folder)
    return folder


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    write_dataset(SYNTHETIC, root, num_processes=1)
    return root


@pytest.fixture
def blocked(root: Path) -> Iterator[Path]:
    """A picture of the last sequence but one that whoever reads it waits for: a pipe that nobody fills."""
    picture = root / f"apple/s{NUM_CAPTURES - 2}/images/frame000003.jpg"
    kept = picture.with_suffix(".kept")
    picture.rename(kept)
    os.mkfifo(picture)
    yield picture
    kept.replace(picture)


def states(folder: Path, pattern: str = "*") -> dict[str, tuple[int, int, int]]:
    """What a file that is written again cannot keep."""
    found = {path.name: path.stat() for path in folder.glob(pattern)}
    return {name: (state.st_ino, state.st_mtime_ns, state.st_size) for name, state in found.items()}


def unblock(picture: Path) -> None:
    """Put the picture where the pipe is, at once. Who has the pipe open goes on waiting."""
    whole = picture.with_suffix(".whole")
    shutil.copy(picture.with_suffix(".kept"), whole)
    whole.replace(picture)


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, f"waited {WAIT_SECONDS:.0f} s for {what}"
        time.sleep(0.1)


def test_nothing_is_lost_or_doubled(clean: Path) -> None:
    index = FrameIndex.open(clean)
    assert [item.sequence for item in index.sequences()] == [f"s{number}" for number in range(NUM_CAPTURES)]
    assert index.frame_numbers.reshape(NUM_CAPTURES, -1).tolist() == [list(range(12))] * NUM_CAPTURES
    names = {
        "dataset.json",
        "index.parquet",
        "card.html",
        *(f"shard-{number:06d}.tar" for number in range(NUM_CAPTURES)),
    }
    assert {path.name for path in clean.iterdir()} == names


def test_number_of_workers_changes_no_byte(root: Path, clean: Path, tmp_path: Path) -> None:
    run(root, tmp_path / "out", num_workers=1)
    assert digest_folder(tmp_path / "out") == digest_folder(clean)


def test_a_second_run_writes_nothing(root: Path, clean: Path) -> None:
    before = states(clean)
    facts = run(root, clean)
    assert states(clean) == before
    assert (facts["num_sequences"], facts["num_frames"], facts["num_shards"]) == (6, 72, 6)


def test_a_card_that_is_missing_is_written(root: Path, clean: Path, tmp_path: Path) -> None:
    """As after a kill while it was written, when all the rest was complete."""
    shutil.copytree(clean, tmp_path / "out")
    (tmp_path / "out" / "card.html").rename(tmp_path / "out" / ".card.html.x.tmp")
    before = states(tmp_path / "out", "[!.]*")
    run(root, tmp_path / "out")
    assert before.items() <= states(tmp_path / "out").items()
    assert digest_folder(tmp_path / "out") == digest_folder(clean)
    manifest = read_manifest(clean)
    assert manifest["config"] == plain(CONFIG)
    assert manifest["git_commit"] == git_commit()


def test_killed_driver_resumes_where_it_was(root: Path, clean: Path, blocked: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    environment.pop("RAY_ADDRESS", None)  # the driver must not join this test's Ray
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(root), str(folder)], env=environment, start_new_session=True
    )
    try:
        wait_for(
            lambda: len(list(folder.glob("*.rows.parquet"))) >= NUM_CAPTURES - 2 or driver.poll() is not None, "shards"
        )
        wait_for(lambda: list(folder.glob(".shard-*.tmp")) or driver.poll() is not None, "the shard that blocks")
        assert driver.poll() is None, "the driver ended by itself"
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert not (folder / "dataset.json").exists()
    committed = states(folder, "*.tar")
    assert NUM_CAPTURES - 2 <= len(committed) < NUM_CAPTURES
    unblock(blocked)
    run(root, folder)
    assert committed.items() <= states(folder).items(), "committed shards were written again"
    assert digest_folder(folder) == digest_folder(clean)


def test_killed_worker_is_replaced(root: Path, clean: Path, blocked: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_the_reader() -> None:
        with os.fdopen(os.open(blocked, os.O_RDWR)):  # lets a reader in, gives it nothing
            wait_for(lambda: readers(blocked), "a worker at the blocked picture")
            unblock(blocked)  # for the worker that comes after
            for process in readers(blocked, deleted=True):
                killed.append(process)
                os.kill(process, signal.SIGKILL)

    killer = threading.Thread(target=kill_the_reader)
    killer.start()
    run(root, tmp_path / "out", num_workers=1)
    killer.join()
    assert len(killed) == 1
    assert digest_folder(tmp_path / "out") == digest_folder(clean)


def readers(path: Path, *, deleted: bool = False) -> list[int]:
    """Other processes that have the file open."""
    target = f"{path} (deleted)" if deleted else str(path)
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()) == target:
                found.append(int(link.parts[2]))
        except OSError:  # the process or the descriptor is gone
            continue
    return [process for process in found if process != os.getpid()]


def test_synthetic_objects_stand_upright_in_the_unit_cube(synthetic: Path, tmp_path: Path) -> None:
    facts = run(synthetic, tmp_path / "out")
    assert facts["categories"] == {"hydrant": 2, "teddybear": 2}
    assert facts["rejected"] == {}
    index = FrameIndex.open(tmp_path / "out")
    reader = ShardReader(tmp_path / "out", index)
    for number, sequence in enumerate(index.sequences()):
        assert sequence.scene_bounds[1].max() == 1
        cameras = index.cameras(sequence.rows)
        plan = plan_sequence(
            seed=SYNTHETIC.seed, category=sequence.category, index=number % 2, num_frames=8, short_side=48
        )
        # The generator has z up. Both cameras see the same, so one rotation after the other takes its up to ours.
        for camera, true in zip(cameras.rotation.numpy(), plan.path.cameras, strict=True):
            up = camera.T @ true.rotation @ [0.0, 0.0, 1.0]
            # The path wobbles by some degrees, and the plane of the cameras with it.
            assert up[2] > np.cos(np.radians(15))
        box = np.array(np.meshgrid(*sequence.scene_bounds.T)).reshape(3, -1).T.astype(np.float32)
        pixels, depth = cameras.project(cameras.world_to_camera.new_tensor(box))
        assert (depth > 0).all()
        for row, corners in zip(sequence.rows, pixels.numpy(), strict=True):
            mask = reader.mask(row)
            assert mask is not None
            v, u = np.nonzero(mask >= 128)
            # The object is inside its box, and the box is not much larger than what is seen of it.
            # Two pixels of leeway: the box is that of sampled surface points.
            assert u.min() + 1 >= corners[:, 0].min() - 2
            assert u.max() <= corners[:, 0].max() + 2
            assert v.min() + 1 >= corners[:, 1].min() - 2
            assert v.max() <= corners[:, 1].max() + 2
            assert (np.ptp(v) + 1) > 0.4 * min(np.ptp(corners[:, 1]), 32)


def test_each_defect_is_handled_as_documented(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    config = SyntheticConfig(
        categories=("donut",), objects_per_category=22, frames_per_sequence=7, image_size=32, defects=True
    )
    write_dataset(config, root, num_processes=1)
    facts = run(root, tmp_path / "out", config=PreprocessConfig(image_size=32, sequences_per_shard=8, minimum_frames=5))
    defects = json.loads((root / "defects.json").read_bytes())
    assert len(defects) == 11
    assert facts["rejected"] == {"no point cloud": 1, "point cloud file missing": 1}
    assert facts["frame_defects"] == {
        "no camera in the annotation": 2,
        "camera not finite": 2,
        "mask file missing (frame kept)": 2,
        "image black": 2,
        "image undecodable or truncated": 2,
        "image size differs from the annotation's": 2,
    }
    dropping = {"null_viewpoint", "nan_camera", "black_frame", "truncated_jpeg", "wrong_size"}
    maskless = {"null_fields", "lost_mask"}
    index = FrameIndex.open(tmp_path / "out")
    for sequence in index.sequences():
        found = set(defects.get(f"donut/{sequence.sequence}", ()))
        assert len(sequence.rows) == (5 if found & dropping else 7)
        without_mask = (index.mask_spans[sequence.rows, 1] == 0).sum()
        assert without_mask == (2 if found & maskless else 0)


def test_no_usable_sequence_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    captures = [make_capture(name=f"s{number}") for number in range(3)]
    captures[2].sequence["point_cloud"] = None
    write_captures(root, captures)
    for picture in root.glob("apple/*/images/*.jpg"):
        picture.write_bytes(b"not a picture")
    with pytest.raises(UserError, match="none of 3 sequences is usable") as caught:
        run(root, tmp_path / "out")
    _, _, *table = str(caught.value).splitlines()
    assert [line.split(maxsplit=1) for line in table] == [
        ["2", "fewer than 5 usable frames, mostly: image undecodable or truncated (as apple/s0)"],
        ["1", "no point cloud (as apple/s2)"],
    ]
    assert not list((tmp_path / "out").iterdir())


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    write_annotations(root, [make_capture()])
    with pytest.raises(UserError, match="'aple' is not in"):
        run(root, tmp_path / "out", config=PreprocessConfig(categories=("aple",)))
    with pytest.raises(UserError, match="no CO3Dv2 dataset"):
        run(tmp_path / "out", tmp_path / "out")
    (root / "apple" / "frame_annotations.jgz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(UserError, match=r"frame_annotations.jgz: damaged"):
        run(root, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
