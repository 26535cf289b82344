"""`viewdiff generate`: from a frame, from text, and what it says to wrong names."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
import torch

from infra.errors import UserError
from infra.log import get_logger
from model.base.stable_diffusion import save_base
from model.base.stand_in import build_tiny_base
from model.cameras import Cameras
from model.config import SamplingConfig
from model.trajectories import orbit
from pipelines.commands.generate import generate
from pipelines.generation.inputs import _model_dir
from pipelines.generation.pictures import ObjectPictures
from pipelines.settings.commands import GenerateRequest
from pipelines.spine.artifacts import RECORD_NAME, Artifact
from pipelines.spine.runtime import RuntimeConfig
from tests.support.evaluation_inputs import open_shards, write_evaluation_inputs
from tests.support.training_inputs import BASE, CAPTIONS, IMAGE_SIZE, NUM_FRAMES


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return write_evaluation_inputs(tmp_path_factory.mktemp("root"))


@pytest.fixture
def runtime(inputs: dict[str, Artifact]) -> RuntimeConfig:
    return RuntimeConfig(root=str(inputs["checkpoint"].folder.parents[1]))


@pytest.fixture
def request_(tmp_path: Path) -> GenerateRequest:
    sampling = SamplingConfig(num_steps=2, guidance_scale=2.0)
    return GenerateRequest(output=str(tmp_path / "out"), sampling=sampling)


def test_all_other_frames_in_windows(
    inputs: dict[str, Artifact], runtime: RuntimeConfig, request_: GenerateRequest, tmp_path: Path
) -> None:
    asked = replace(request_, sequence="apple/sequence_2", known_frame=1, views_at_once=3, context_views=2)
    page = generate(asked, runtime)
    assert page == tmp_path / "out" / "report.html"
    names = sorted(path.name for path in page.parent.glob("view-*.png"))
    assert names == [f"view-{number:06d}.png" for number in (0, 2, 3, 4)]
    pictures = ObjectPictures.load(page.parent / "pictures.npz")
    assert pictures.generated.shape == (NUM_FRAMES - 1, IMAGE_SIZE, IMAGE_SIZE, 3)
    index, reader = open_shards(inputs)
    rows = next(item.rows for item in index.sequences() if item.sequence == "sequence_2")
    assert pictures.caption == CAPTIONS["apple/sequence_2"][0]  # as it was trained on
    assert pictures.truth is not None
    assert (pictures.truth[1] == reader.image(rows[2])).all()
    written = cv2.imread(str(page.parent / "view-000003.png"))[..., ::-1]
    assert (written == pictures.generated[2]).all()
    assert "apple / sequence_2" in page.read_text()
    assert not list(tmp_path.glob(".partial*"))


def test_shards_alone_bring_their_captions(
    inputs: dict[str, Artifact], runtime: RuntimeConfig, request_: GenerateRequest, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(inputs["shards"].folder, shards)
    asked = replace(request_, shards=str(shards), sequence="apple/sequence_2", num_views=1)
    pictures = ObjectPictures.load(generate(asked, runtime).parent / "pictures.npz")
    assert pictures.caption == "stored with the shards 2"


@pytest.mark.parametrize("path", ["orbit", "spiral"])
def test_from_text_alone(runtime: RuntimeConfig, request_: GenerateRequest, path: str) -> None:
    page = generate(replace(request_, text="a red <apple>", path=path, num_views=3), runtime)
    pictures = ObjectPictures.load(page.parent / "pictures.npz")
    assert pictures.generated.shape == (3, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert pictures.known is None
    assert "<apple>" not in page.read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing to generate"),
        ({"sequence": "apple/sequence_3"}, "unknown sequence 'apple/sequence_3'; did you mean 'apple/sequence_2'"),
        ({"sequence": "apple/sequence_2", "known_frame": 77}, "no frame 77; choose from 0, 1, 2, 3, 4"),
        ({"shards": "/nowhere"}, "no such folder"),
        ({"model": "/nowhere", "text": "x"}, "no such folder"),
        ({"text": "x", "known_frame": 3}, "--known-frame 3: of no capture"),
        ({"text": "x", "path": "/nowhere.json"}, "neither orbit nor spiral"),
        ({"text": "x", "sampling": SamplingConfig(num_steps=1001)}, "noise schedule has only 1000 steps; take fewer"),
    ],
)
def test_wrong_names_are_told_and_nothing_is_written(
    runtime: RuntimeConfig, request_: GenerateRequest, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(replace(request_, **changes), runtime)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_challenger_is_not_taken_for_the_champion(inputs: dict[str, Artifact], tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(inputs["checkpoint"].folder.parents[1], root)
    champion = root / "train" / inputs["checkpoint"].fingerprint
    shutil.copytree(champion, root / "train" / "later")
    record = json.loads((champion / RECORD_NAME).read_text())
    publish(root, "train", "later", record | {"fingerprint": "later", "created": "2026-02-01"})
    assert _model_dir(GenerateRequest(), RuntimeConfig(root=str(root))) == root / "train" / "later" / "model"
    for number, (training, alias) in enumerate(((champion.name, "champion"), ("later", "challenger"))):
        name = f"version-{number}"
        source = {"checkpoint": {"kind": "Checkpoint", "fingerprint": training}}
        version = {"kind": "ModelVersion", "fingerprint": name, "inputs": source, "facts": {"alias": alias}}
        publish(root, "register", name, version | {"created": f"2026-02-0{number + 2}"})
    assert _model_dir(GenerateRequest(), RuntimeConfig(root=str(root))) == champion / "model"


def publish(root: Path, stage: str, name: str, record: dict[str, object]) -> None:
    (root / stage / name).mkdir(parents=True, exist_ok=True)
    (root / stage / name / RECORD_NAME).write_text(json.dumps(record))


def write_path(file: Path, cameras: Cameras) -> str:
    pairs = zip(cameras.world_to_camera.tolist(), cameras.intrinsics.tolist(), strict=True)
    entries = [{"world_to_camera": pose, "intrinsics": intrinsics} for pose, intrinsics in pairs]
    file.write_text(json.dumps({"image_size": list(cameras.image_size), "cameras": entries}))
    return str(file)


def test_a_path_that_shows_no_object_is_refused_with_what_it_may_mean(
    runtime: RuntimeConfig,
    request_: GenerateRequest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    get_logger("generate")
    monkeypatch.setattr(logging.getLogger("viewdiff"), "propagate", True)
    right = orbit(4, image_size=(IMAGE_SIZE, IMAGE_SIZE))
    wrong = replace(right, world_to_camera=torch.linalg.inv(right.world_to_camera))
    path = write_path(tmp_path / "path.json", wrong)
    with pytest.raises(UserError, match=r"path.json: the object is out of the picture in 4 of 4 .* invert each"):
        generate(replace(request_, text="x", path=path), runtime)
    wrong.world_to_camera[:3] = right.world_to_camera[:3]
    generate(replace(request_, text="x", path=write_path(tmp_path / "path.json", wrong)), runtime)
    assert "out of the picture in 1 of 4 cameras" in caplog.text


def test_a_path_of_another_size_is_told_with_one_that_works(
    runtime: RuntimeConfig, request_: GenerateRequest, tmp_path: Path
) -> None:
    path = write_path(tmp_path / "path.json", orbit(2, image_size=(1081, 1921)))
    with pytest.raises(UserError, match=r"path.json: image_size \[1081, 1921\]: .*; \[1080, 1920\] would work"):
        generate(replace(request_, text="x", path=path), runtime)


def test_what_exists_is_not_overwritten(runtime: RuntimeConfig, request_: GenerateRequest, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="exists already"):
        generate(replace(request_, text="x"), runtime)


def test_a_root_without_a_model_says_so(request_: GenerateRequest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no trained model"):
        generate(replace(request_, text="x"), RuntimeConfig(root=str(tmp_path / "empty")))


def test_a_base_model_of_another_architecture_is_refused(
    runtime: RuntimeConfig, request_: GenerateRequest, tmp_path: Path
) -> None:
    other = tmp_path / "base"
    save_base(build_tiny_base(replace(BASE, text_channels=64), image_size=IMAGE_SIZE, words=["red"], seed=0), other)
    with pytest.raises(UserError, match="takes 32 text channels"):
        generate(replace(request_, text="x", base=str(other)), runtime)
