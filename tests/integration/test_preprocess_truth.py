"""What preprocessing stores against what a generator knows: cameras, pictures' statistics and the object's box, for
captures in any frame and scale, and with a point or a camera that is far off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from preprocessing.captures.capture import FORMATS
from preprocessing.config import PreprocessConfig
from preprocessing.shards.commit import commit_folder
from preprocessing.shards.planning import plan_shards
from preprocessing.shards.schema import INDEX_NAME
from preprocessing.shards.writing import write_shard
from tests.support.captures import (
    RADII,
    Capture,
    ellipsoid,
    frame_entry,
    move,
    orbit,
    random_rotation,
    write_annotations,
    write_point_cloud,
)

NUM_WORLDS, NUM_FRAMES = 50, 12
NUM_OUTLIERS = 10  # of the worlds are preprocessed again with something that is far off
SHORT_SIDE, LONG_SIDE, IMAGE_SIZE = 48, 64, 16
STORED = 1e-5  # relative: cameras are float32, and so are the points in a PLY file, here with a shift of some sizes
GROSS = 1e3  # times as far away as the object is large


@dataclass(frozen=True)
class Truth:
    """What is to be stored, computed from how the capture was made."""

    world_to_camera: np.ndarray  # [N, 4, 4]
    intrinsics: np.ndarray  # [N, 3, 3]
    scene_bounds: np.ndarray  # [2, 3]
    points: np.ndarray  # [M, 3] in the normalised world
    pixels: np.ndarray  # [N, M, 2] where they are in the stored pictures
    intensity: np.ndarray  # [N, 2] mean and variance


@dataclass(frozen=True)
class Stored:
    """What is stored, of frames by number."""

    numbers: np.ndarray
    world_to_camera: np.ndarray
    intrinsics: np.ndarray
    scene_bounds: np.ndarray
    intensity: np.ndarray


def make_world(root: Path, name: str, seed: int, *, outlier: str = "") -> tuple[Capture, Truth]:
    """A capture, its pictures below `root`, and the truth about it. It is made in a world whose z is up and whose x
    goes against the first camera's gaze, which are the axes of the normalised world, and then moved to any other.
    """
    random, far = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    size = (SHORT_SIDE, LONG_SIDE) if seed % 2 else (LONG_SIDE, SHORT_SIDE)
    poses = _elevated_orbit(random)
    radii, center = random.uniform(0.3, 1, 3), random.uniform(-0.2, 0.2, 3)
    points = ellipsoid(400, random) / RADII * radii + center
    capture = Capture("apple", name, poses, _intrinsics(random, size), points, size)
    crops, intensity = zip(*_write_pictures(root, capture, random), strict=True)
    truth = _truth(capture, radii, center, np.array(crops), np.array(intensity))
    scale = 10 ** random.uniform(-3, 3)
    if outlier == "point":
        capture.points = np.vstack([points, GROSS * far.normal(size=3)])
    move(capture, random_rotation(random), scale * random.normal(0, 3, 3), scale)
    if outlier == "camera":
        number = int(far.integers(1, NUM_FRAMES))  # the first decides where azimuth 0 is
        capture.world_to_camera[number, :3, 3] += GROSS * scale * far.normal(size=3)
    capture.frames = [frame_entry(capture, number, FORMATS[seed // 2 % 2]) for number in range(NUM_FRAMES)]
    for entry in capture.frames:
        entry["image"]["path"] = entry["image"]["path"].replace(".jpg", ".png")
    capture.sequence = {
        "sequence_name": name,
        "category": "apple",
        "point_cloud": {"path": f"apple/{name}/pointcloud.ply"},
    }
    write_point_cloud(root, capture)
    return capture, truth


def _elevated_orbit(random: np.random.Generator) -> np.ndarray:
    """Cameras on a circle above the object, by turns a little higher and lower, which leaves its plane level."""
    poses = orbit(NUM_FRAMES, elevation=random.uniform(0.2, 0.6), distance=random.uniform(3, 5))
    for number, pose in enumerate(poses):
        pose[:3, 3] -= pose[:3, :3] @ [0, 0, 0.1 * (-1) ** number]
    return poses


def _intrinsics(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Every frame has its own, with the principal point off the picture's centre."""
    matrices = np.tile(np.eye(3), (NUM_FRAMES, 1, 1))
    matrices[:, 0, 0], matrices[:, 1, 1] = random.uniform(60, 80, (2, NUM_FRAMES))
    matrices[:, :2, 2] = np.array(size[::-1]) / 2 + random.uniform(-6, 6, (NUM_FRAMES, 2))
    return matrices


def _write_pictures(
    root: Path, capture: Capture, random: np.random.Generator
) -> Iterator[tuple[list[int], tuple[float, float]]]:
    """Lossless noise with a rectangle for a mask. Yields each frame's crop (left, top) and intensity when stored."""
    folder, (height, width) = root / "apple" / capture.name, capture.size
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(NUM_FRAMES):
        image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        mask, corner = np.zeros(capture.size, np.uint8), []
        (left, right), (top, bottom) = (2 * np.sort(random.choice(np.arange(side // 2), 2)) for side in (width, height))
        mask[top : bottom + 2, left : right + 2] = 255
        for low, high, side in ((left, right + 2, width), (top, bottom + 2, height)):
            corner.append(int(min(max((low + high) // 2 - SHORT_SIDE // 2, 0), side - SHORT_SIDE)))
        cv2.imwrite(str(folder / "images" / f"frame{number:06d}.png"), image)
        cv2.imwrite(str(folder / "masks" / f"frame{number:06d}.png"), mask)
        part = image[corner[1] : corner[1] + SHORT_SIDE, corner[0] : corner[0] + SHORT_SIDE]
        step = SHORT_SIDE // IMAGE_SIZE  # whole, so that a stored pixel is the mean of a block of pixels
        blocks = part.reshape(IMAGE_SIZE, step, IMAGE_SIZE, step, 3).mean(axis=(1, 3)).round() / 255
        yield corner, (blocks.mean(), blocks.var())


def _truth(capture: Capture, radii: np.ndarray, center: np.ndarray, crops: np.ndarray, intensity: np.ndarray) -> Truth:
    """From the capture before it is moved."""
    scale = 1 / radii.max()
    poses, ratio = capture.world_to_camera.copy(), IMAGE_SIZE / SHORT_SIDE
    poses[:, :3, 3] = scale * (poses[:, :3, :3] @ center + poses[:, :3, 3])
    intrinsics = capture.intrinsics.copy()
    intrinsics[:, :2, 2] -= crops
    intrinsics[:, :2] *= ratio
    pixels = project(capture.points, capture.world_to_camera, capture.intrinsics)
    return Truth(
        world_to_camera=poses,
        intrinsics=intrinsics,
        scene_bounds=scale * np.stack([-radii, radii]),
        points=scale * (capture.points - center),
        pixels=(pixels - crops[:, None]) * ratio,
        intensity=intensity,
    )


def project(points: np.ndarray, poses: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """[N, M, 2] pixels of points [M, 3]."""
    camera_points = points @ poses[:, :3, :3].transpose(0, 2, 1) + poses[:, None, :3, 3]
    homogeneous = camera_points @ intrinsics.transpose(0, 2, 1)
    return homogeneous[..., :2] / homogeneous[..., 2:]


def preprocessed(root: Path, folder: Path, captures: list[Capture]) -> dict[str, Stored]:
    """By sequence, what the stage stores, without Ray."""
    write_annotations(root, captures)
    config = PreprocessConfig(image_size=IMAGE_SIZE, sequences_per_shard=16, minimum_frames=NUM_FRAMES - 1)
    plan = plan_shards(root, config)
    folder.mkdir()
    records = [write_shard(task, root, folder, config) for task in plan.tasks]
    assert [*plan.rejected, *(item for record in records for item in record.rejected)] == []
    commit_folder(folder, records, [], IMAGE_SIZE)
    table = pq.read_table(folder / INDEX_NAME)
    names = np.array(table["sequence"].to_pylist())
    columns = {
        name: np.array(table[name].to_pylist())
        for name in ("frame_number", "world_to_camera", "intrinsics", "scene_bounds")
    }
    intensity = np.stack([table["intensity_mean"].to_numpy(), table["intensity_variance"].to_numpy()], axis=1)
    return {
        name: Stored(
            numbers=columns["frame_number"][rows],
            world_to_camera=columns["world_to_camera"][rows].reshape(-1, 4, 4),
            intrinsics=columns["intrinsics"][rows].reshape(-1, 3, 3),
            scene_bounds=columns["scene_bounds"][rows][0].reshape(2, 3),
            intensity=intensity[rows],
        )
        for name in np.unique(names)
        if len(rows := np.flatnonzero(names == name))
    }


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Truth, Stored]]:
    root = tmp_path_factory.mktemp("raw")
    made = {f"world{seed}": make_world(root, f"world{seed}", seed) for seed in range(NUM_WORLDS)}
    for outlier in ("point", "camera"):
        for seed in range(NUM_OUTLIERS):
            made[f"{outlier}{seed}"] = make_world(root, f"{outlier}{seed}", seed, outlier=outlier)
    found = preprocessed(root, root.with_name("shards"), [capture for capture, _ in made.values()])
    return {name: (truth, found[name]) for name, (_, truth) in made.items()}


@pytest.mark.parametrize("seed", range(NUM_WORLDS))
def test_what_is_stored_is_the_truth(worlds: dict[str, tuple[Truth, Stored]], seed: int) -> None:
    truth, stored = worlds[f"world{seed}"]
    assert stored.numbers.tolist() == list(range(NUM_FRAMES))
    np.testing.assert_allclose(
        stored.world_to_camera, truth.world_to_camera, rtol=STORED, atol=STORED
    )  # values are of order 1, some are 0
    np.testing.assert_allclose(stored.intrinsics, truth.intrinsics, rtol=STORED)
    np.testing.assert_allclose(stored.intensity, truth.intensity, rtol=STORED)
    pixels = project(truth.points, stored.world_to_camera, stored.intrinsics)
    np.testing.assert_allclose(pixels, truth.pixels, rtol=STORED, atol=STORED)
    # The last six points are the object's extremes, +z and -z the third and the sixth of them.
    top, bottom = pixels[:, -4], pixels[:, -1]
    assert (top[:, 1] < bottom[:, 1]).all(), "up is not up"


@pytest.mark.parametrize("seed", range(NUM_WORLDS))
def test_the_object_fills_the_unit_cube(worlds: dict[str, tuple[Truth, Stored]], seed: int) -> None:
    truth, stored = worlds[f"world{seed}"]
    np.testing.assert_allclose(stored.scene_bounds, truth.scene_bounds, atol=STORED)
    np.testing.assert_allclose(stored.scene_bounds.sum(axis=0), 0, atol=STORED)
    assert np.ptp(stored.scene_bounds, axis=0).max() == pytest.approx(2, rel=STORED)


@pytest.mark.parametrize("seed", range(NUM_OUTLIERS))
def test_a_point_far_off_changes_nothing(worlds: dict[str, tuple[Truth, Stored]], seed: int) -> None:
    """The box leaves it out and keeps all others: nothing may change at all."""
    _, plain = worlds[f"world{seed}"]
    _, stored = worlds[f"point{seed}"]
    np.testing.assert_array_equal(stored.scene_bounds, plain.scene_bounds)
    np.testing.assert_array_equal(stored.world_to_camera, plain.world_to_camera)
    np.testing.assert_array_equal(stored.intrinsics, plain.intrinsics)


@pytest.mark.parametrize("seed", range(NUM_OUTLIERS))
def test_a_camera_far_off_changes_nothing_visible(worlds: dict[str, tuple[Truth, Stored]], seed: int) -> None:
    """Its frame is dropped. The other cameras, 0.1 above and below their plane by turns, tilt it by 0.4 degrees at
    most: 2 · 0.1 / (12 · 2.5), the smallest radius. A corner of the box is √3 from the middle and is seen at 13 pixels
    per unit, focal length 27 and depth 2: 0.15 pixels of 16.
    """
    _, plain = worlds[f"world{seed}"]
    truth, stored = worlds[f"camera{seed}"]
    assert len(stored.numbers) == NUM_FRAMES - 1
    np.testing.assert_allclose(stored.scene_bounds, plain.scene_bounds, atol=0.01 * 2)
    pixels = project(truth.points, stored.world_to_camera, stored.intrinsics)
    np.testing.assert_allclose(pixels, truth.pixels[stored.numbers], atol=0.15)
