"""Photos of dots at known 3D points, drawn without any of the project's code, and where the dots of a picture are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap

from preprocessing.captures.capture import Sequence
from preprocessing.captures.co3d import read_category
from preprocessing.importing.reconstructions import Photo, Reconstruction
from preprocessing.sequences.normalization import load_points

NUM_PHOTOS = 6
DISTANCE = 4.0
SIZE = (180, 240)  # (height, width)
FOCAL = (180.0, 189.0)
CENTER = (126.0, 85.5)
DOT_SIGMA = 1.2
_REACH = 4  # pixels around a dot that its place is measured in

Lens = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def dot_points() -> np.ndarray:
    """[20, 3] spread over a sphere of radius 1.5, in no symmetry."""
    directions = np.random.default_rng(5).normal(size=(20, 3))
    return 1.5 * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def poses() -> np.ndarray:
    """[N, 4, 4] world to camera, OpenCV's axes: an orbit that looks down at the origin, each camera rolled a little."""
    result = []
    for number in range(NUM_PHOTOS):
        angle, roll = 2 * np.pi * number / NUM_PHOTOS, 0.1 * np.sin(5 * number)
        eye = DISTANCE * np.array([np.cos(angle) * 0.8, np.sin(angle) * 0.8, 0.6])
        forward = -eye / DISTANCE
        right = np.cross(forward, [0, 0, 1]) / np.linalg.norm(np.cross(forward, [0, 0, 1]))
        down = np.cross(forward, right)
        rolled = np.cos(roll) * right + np.sin(roll) * down
        pose = np.eye(4)
        pose[:3, :3] = np.stack([rolled, np.cross(forward, rolled), forward])
        pose[:3, 3] = -pose[:3, :3] @ eye
        result.append(pose)
    return np.stack(result)


def pinhole(size: tuple[int, int] = SIZE, scale: float = 1.0) -> pycolmap.Camera:
    """The camera of `draw` without a lens, for pictures of `size` times `scale`."""
    params = np.array([*FOCAL, *CENTER]) * scale
    return pycolmap.Camera(model="PINHOLE", width=int(size[1] * scale), height=int(size[0] * scale), params=params)


def pixels_of(pose: np.ndarray, lens: Lens = lambda x, y: (x, y)) -> np.ndarray:
    """[N, 2] where a lens shows the dots; without one `pinhole` does."""
    seen = dot_points() @ pose[:3, :3].T + pose[:3, 3]
    x, y = lens(seen[:, 0] / seen[:, 2], seen[:, 1] / seen[:, 2])
    return np.stack([FOCAL[0] * x + CENTER[0], FOCAL[1] * y + CENTER[1]], axis=1)


def draw(pixels: np.ndarray, size: tuple[int, int] = SIZE) -> np.ndarray:
    """[H, W, 3] uint8: bright dots at pixels [N, 2] on grey."""
    v, u = np.mgrid[: size[0], : size[1]] + 0.5
    dots = sum(np.exp(-((u - x) ** 2 + (v - y) ** 2) / 2 / DOT_SIGMA**2) for x, y in pixels)
    return np.repeat(np.clip(60 + 180 * dots, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def reconstruction(paths: list[Path], camera: pycolmap.Camera | None = None, **fields: Any) -> Reconstruction:
    """Of photos in the order of `poses`, whose points are the dots."""
    photos = [
        Photo(path.name, path, None, pose, camera or pinhole()) for path, pose in zip(paths, poses(), strict=True)
    ]
    content = {"source": Path("model"), "photos": tuple(photos), "points": dot_points(), "convention": "as the test's"}
    return Reconstruction(**(content | fields))


def written(root: Path, category: str = "thing", name: str = "mine") -> Sequence:
    """The sequence that an import wrote."""
    (sequence,) = (item for item in read_category(root, category) if item.name == name)
    return sequence


def dot_offsets(root: Path, sequence: Sequence) -> np.ndarray:
    """[K] distances in pixels between the dots in the written pictures and where the written cameras put the written
    points; of dots that stand alone.
    """
    assert sequence.point_cloud_path is not None
    points, offsets = load_points(root / sequence.point_cloud_path), []
    for frame in sequence.frames:
        assert frame.viewpoint is not None
        assert frame.image_size is not None
        pose, matrix = frame.viewpoint.to_opencv(frame.image_size)
        assert np.linalg.det(pose[:3, :3]) > 0
        seen = points @ pose[:3, :3].T + pose[:3, 3]
        pixels = (seen @ matrix.T)[:, :2] / seen[:, 2:]
        flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
        image = cv2.imread(str(root / str(frame.image_path)), flags)
        assert image.shape == frame.image_size
        offsets += [
            np.linalg.norm(_middle(image, pixel) - pixel)
            for number, pixel in enumerate(pixels)
            if _stands_alone(pixels, number, image.shape)
        ]
    assert len(offsets) > 10
    return np.array(offsets)


def _stands_alone(pixels: np.ndarray, number: int, size: tuple[int, ...]) -> bool:
    distances = np.linalg.norm(pixels - pixels[number], axis=1)
    distances[number] = np.inf
    edge = _REACH + 2
    inside = (pixels[number] > edge).all() and (pixels[number] < np.array(size[::-1]) - edge).all()
    return bool(inside and distances.min() > 2.5 * _REACH)


def _middle(image: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    left, top = (pixel - _REACH).astype(int)
    part = np.s_[top : top + 2 * _REACH + 1, left : left + 2 * _REACH + 1]
    weights = np.maximum(image[part].astype(float) - 75, 0)
    assert weights.sum() > 100, f"no dot near {pixel}"
    rows, columns = np.mgrid[part] + 0.5
    return np.array([(weights * columns).sum(), (weights * rows).sum()]) / weights.sum()
