"""A real CO3D sequence: its photos must agree with its cameras, as read and as stored.

Their epipolar distance (preprocessing/sequences/epipolar.py) is small only if axes, intrinsics format, pixel
convention, crop, resize and recentring are all right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from preprocessing.captures.capture import FORMATS, Frame
from preprocessing.captures.co3d import read_category
from preprocessing.config import PreprocessConfig
from preprocessing.sequences import epipolar
from preprocessing.sequences.epipolar import Features
from preprocessing.sequences.images import mask_center, read_image, read_mask, square_corner
from preprocessing.shards.commit import commit_folder
from preprocessing.shards.planning import plan_shards
from preprocessing.shards.reading import FrameIndex, ShardReader
from preprocessing.shards.writing import write_shard

pytestmark = pytest.mark.timeout(600)  # SIFT on 20 photos: seconds, on a busy machine minutes

IMAGE_SIZE = 256
MAXIMUM_GAP = 20  # frame numbers apart, 0.7 s: further apart an apple shows another side


@dataclass(frozen=True)
class Photo:
    """One frame with its SIFT features inside the square that preprocessing cuts out."""

    frame: Frame
    corner: np.ndarray  # (left, top) of the square
    side: int
    features: Features  # pixels of the whole photo

    def stored(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of the whole photo -> pixels of the stored picture."""
        return (pixels - self.corner) * (IMAGE_SIZE / self.side)


@dataclass(frozen=True)
class Pair:
    """Two neighbouring frames and the pixels [M, 2] in both that show the same point."""

    first: Photo
    second: Photo
    pixels: tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def root(shared_dir: Path) -> Path:
    return shared_dir / "co3d_real"


@pytest.fixture(scope="module")
def index(root: Path, tmp_path_factory: pytest.TempPathFactory) -> FrameIndex:
    folder = tmp_path_factory.mktemp("shards")
    config = PreprocessConfig(image_size=IMAGE_SIZE)
    plan = plan_shards(root, config)
    records = [write_shard(task, root, folder, config) for task in plan.tasks]
    commit_folder(folder, records, plan.rejected, IMAGE_SIZE)
    index = FrameIndex.open(folder)
    reader = ShardReader(folder, index)
    assert reader.image(0).shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    return index


@pytest.fixture(scope="module")
def pairs(root: Path) -> list[Pair]:
    (sequence,) = read_category(root, "apple")
    photos = [detect(root, frame) for frame in sequence.frames]
    found = []
    for first, second in pairwise(photos):
        if second.frame.number - first.frame.number <= MAXIMUM_GAP:
            pixels = epipolar.match(first.features, second.features)
            if len(pixels[0]) >= epipolar.MINIMUM_MATCHES:
                found.append(Pair(first, second, pixels))
    assert len(found) >= 12, "too few neighbouring frames with matches to say anything"
    return found


def detect(root: Path, frame: Frame) -> Photo:
    assert frame.image_path is not None
    assert frame.mask_path is not None
    assert frame.image_size is not None
    image = read_image(root / frame.image_path, frame.image_size)
    mask = read_mask(root / frame.mask_path, frame.image_size)
    top, left = square_corner(frame.image_size, mask_center(mask))
    side, corner = min(frame.image_size), np.array([left, top])
    features = epipolar.detect(image[top : top + side, left : left + side])
    return Photo(frame, corner, side, features._replace(positions=features.positions + corner))


def median_as_read(pairs: list[Pair], intrinsics_format: str | None = None) -> float:
    """Median over pairs at full size; with another intrinsics format than the annotation's if one is given."""
    distances = []
    for pair in pairs:
        cameras = []
        for photo in (pair.first, pair.second):
            viewpoint = photo.frame.viewpoint
            assert viewpoint is not None
            assert photo.frame.image_size is not None
            if intrinsics_format is not None:
                viewpoint = replace(viewpoint, intrinsics_format=intrinsics_format)
            cameras.append(viewpoint.to_opencv(photo.frame.image_size))
        (pose_1, matrix_1), (pose_2, matrix_2) = cameras
        distances.append(epipolar.epipolar_distance(pair.pixels, (pose_1, pose_2), (matrix_1, matrix_2)))
    return float(np.median(distances))


def test_photos_agree_with_the_cameras_as_read(pairs: list[Pair]) -> None:
    distance = median_as_read(pairs)
    print(f"{len(pairs)} pairs, full size: {distance:.3f} px")
    assert distance <= 1.2  # 0.9 to 1.0 in other people's hands: the accuracy of the capture itself


def test_the_wrong_intrinsics_format_is_seen(pairs: list[Pair]) -> None:
    distance = median_as_read(pairs, FORMATS[0])
    print(f"{len(pairs)} pairs, full size, wrong format: {distance:.1f} px")
    assert distance >= 25


def test_photos_agree_with_the_cameras_as_stored(pairs: list[Pair], index: FrameIndex) -> None:
    rows = {int(number): row for row, number in enumerate(index.frame_numbers)}
    distances = []
    for pair in pairs:
        cameras = index.cameras([rows[photo.frame.number] for photo in (pair.first, pair.second)])
        poses, matrices = cameras.world_to_camera.double().numpy(), cameras.intrinsics.double().numpy()
        pixels = pair.first.stored(pair.pixels[0]), pair.second.stored(pair.pixels[1])
        distances.append(epipolar.epipolar_distance(pixels, (poses[0], poses[1]), (matrices[0], matrices[1])))
    distance = float(np.median(distances))
    print(f"{len(pairs)} pairs, {IMAGE_SIZE}×{IMAGE_SIZE}, stored cameras: {distance:.3f} px")
    assert distance <= 0.35  # a quarter of the full size's, as the pictures are 4.2 times smaller


def test_the_apple_is_upright_in_the_unit_cube(index: FrameIndex) -> None:
    (sequence,) = index.sequences()
    assert len(index) == 20
    np.testing.assert_allclose(sequence.scene_bounds[0], -sequence.scene_bounds[1])
    assert sequence.scene_bounds[1].max() == 1
    cameras = index.cameras(sequence.rows).check()
    # It was filmed from above, standing: image up has a share along +z in every frame, and every camera is above.
    assert (-cameras.rotation[:, 1, 2] > 0.3).all()
    assert (cameras.centers()[:, 2] > 0).all()
    pixels, depth = cameras.project(cameras.world_to_camera.new_zeros(1, 3))
    assert (depth > 1).all()
    # The photos are upright, so the square spans their width and follows the apple only up and down.
    assert (abs(pixels[..., 1] - IMAGE_SIZE / 2) < 0.05 * IMAGE_SIZE).all()
    assert ((pixels[..., 0] > 0.1 * IMAGE_SIZE) & (pixels[..., 0] < 0.9 * IMAGE_SIZE)).all()
