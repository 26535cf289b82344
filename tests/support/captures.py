"""Small captures in CO3Dv2's layout, written by hand in milliseconds: an ellipsoid seen by cameras around it."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from plyfile import PlyData, PlyElement

RADII = np.array([0.5, 0.7, 1.0])  # of the ellipsoid, half its height being 1: already in the unit cube
SIZE = (48, 64)  # (height, width) of the pictures, unless a capture says otherwise


@dataclass
class Capture:
    """One sequence: exact cameras and points in its own world, and its annotations, which a test may spoil."""

    category: str
    name: str
    world_to_camera: np.ndarray  # [N, 4, 4] OpenCV, the capture's world
    intrinsics: np.ndarray  # [N, 3, 3] pixels
    points: np.ndarray  # [M, 3]
    size: tuple[int, int] = SIZE  # (height, width) of the pictures
    frames: list[dict[str, Any]] = field(default_factory=list)
    sequence: dict[str, Any] = field(default_factory=dict)


def random_rotation(random: np.random.Generator) -> np.ndarray:
    """[3, 3], uniform, determinant +1."""
    matrix, triangle = np.linalg.qr(random.normal(size=(3, 3)))
    matrix = matrix * np.sign(np.diag(triangle))
    return matrix * np.linalg.det(matrix)


def orbit(num_frames: int, *, elevation: float = 0.4, distance: float = 4.0) -> np.ndarray:
    """[N, 4, 4] cameras on a circle, looking at the origin, z up."""
    poses = []
    for azimuth in np.linspace(0, 2 * np.pi, num_frames, endpoint=False):
        center = distance * np.array(
            [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
        )
        forward = -center / distance
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, -rotation @ center
        poses.append(pose)
    return np.stack(poses)


def ellipsoid(count: int, random: np.random.Generator) -> np.ndarray:
    """[count, 3] points on its surface, the six extreme ones among them."""
    directions = random.normal(size=(count - 6, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return np.concatenate([directions, np.eye(3), -np.eye(3)]) * RADII


def make_capture(
    category: str = "apple",
    name: str = "seq_1",
    *,
    num_frames: int = 12,
    seed: int = 0,
    intrinsics_format: str = "ndc_isotropic",
    moved: bool = True,
) -> Capture:
    """A capture; `moved` puts it into a random frame of another scale, as reconstructions come."""
    random = np.random.default_rng(seed)
    height, width = SIZE
    intrinsics = np.array([[70.0, 0, width / 2 + 1.5], [0, 72.0, height / 2 - 0.5], [0, 0, 1]])
    capture = Capture(category, name, orbit(num_frames), np.stack([intrinsics] * num_frames), ellipsoid(400, random))
    if moved:
        move(capture, random_rotation(random), random.normal(size=3), float(np.exp(random.normal())))
    for number in range(num_frames):
        capture.frames.append(frame_entry(capture, number, intrinsics_format))
    capture.sequence = {
        "sequence_name": name,
        "category": category,
        "video": None,
        "point_cloud": {"path": f"{category}/{name}/pointcloud.ply", "quality_score": 1.0, "n_points": 400},
        "viewpoint_quality_score": 1.0,
    }
    return capture


def move(capture: Capture, rotation: np.ndarray, shift: np.ndarray, scale: float) -> None:
    """Express the capture in the world scale · rotation · x + shift."""
    capture.points = scale * capture.points @ rotation.T + shift
    poses = capture.world_to_camera.copy()
    poses[:, :3, :3] = poses[:, :3, :3] @ rotation.T
    poses[:, :3, 3] = scale * poses[:, :3, 3] - poses[:, :3, :3] @ shift
    capture.world_to_camera = poses


def frame_entry(capture: Capture, number: int, intrinsics_format: str) -> dict[str, Any]:
    """A frame's annotation, its camera in PyTorch3D's way: row vectors, x to the left, y up, NDC."""
    height, width = capture.size
    x_unit, y_unit = (min(height, width) / 2,) * 2 if intrinsics_format == "ndc_isotropic" else (width / 2, height / 2)
    pose, matrix = capture.world_to_camera[number], capture.intrinsics[number]
    flipped = np.diag([-1.0, -1.0, 1.0]) @ pose[:3]
    stem = f"{capture.category}/{capture.name}/{{}}/frame{number:06d}"
    return {
        "sequence_name": capture.name,
        "frame_number": number,
        "frame_timestamp": number / 10,
        "image": {"path": stem.format("images") + ".jpg", "size": list(capture.size)},
        "depth": None,
        "mask": {"path": stem.format("masks") + ".png", "mass": 100.0},
        "viewpoint": {
            "R": flipped[:, :3].T.tolist(),
            "T": flipped[:, 3].tolist(),
            "focal_length": [matrix[0, 0] / x_unit, matrix[1, 1] / y_unit],
            "principal_point": [(width / 2 - matrix[0, 2]) / x_unit, (height / 2 - matrix[1, 2]) / y_unit],
            "intrinsics_format": intrinsics_format,
        },
        "meta": None,
    }


def write_files(root: Path, capture: Capture) -> None:
    """Pictures, masks and the point cloud."""
    random = np.random.default_rng(list(f"{capture.category}/{capture.name}".encode()))
    folder = root / capture.category / capture.name
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    height, width = capture.size
    v, u = np.mgrid[:height, :width]
    for number, (pose, matrix) in enumerate(zip(capture.world_to_camera, capture.intrinsics, strict=True)):
        center = matrix @ (pose[:3, :3] @ capture.points.mean(axis=0) + pose[:3, 3])
        distance = np.hypot(u + 0.5 - center[0] / center[2], v + 0.5 - center[1] / center[2])
        image = random.integers(60, 200, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        cv2.imwrite(str(folder / "images" / f"frame{number:06d}.jpg"), image)
        cv2.imwrite(str(folder / "masks" / f"frame{number:06d}.png"), np.where(distance < 12, 255, 0).astype(np.uint8))
    write_point_cloud(root, capture)


def write_point_cloud(root: Path, capture: Capture) -> None:
    """The capture's points as its PLY file."""
    vertices = np.array([tuple(point) for point in capture.points], dtype=[(axis, "f4") for axis in "xyz"])
    path = root / capture.category / capture.name / "pointcloud.ply"
    PlyData([PlyElement.describe(vertices, "vertex")]).write(path)


def write_annotations(
    root: Path, captures: list[Capture], set_lists: dict[str, dict[str, list[Any]]] | None = None
) -> None:
    """The annotation files of one category; `set_lists` by subset name."""
    folder = root / captures[0].category
    folder.mkdir(parents=True, exist_ok=True)
    frames = [entry for capture in captures for entry in capture.frames]
    write_jgz(folder / "frame_annotations.jgz", frames)
    write_jgz(folder / "sequence_annotations.jgz", [capture.sequence for capture in captures])
    (folder / "set_lists").mkdir(exist_ok=True)
    for subset, lists in (set_lists or {}).items():
        (folder / "set_lists" / f"set_lists_{subset}.json").write_text(json.dumps(lists))


def write_jgz(path: Path, value: object) -> None:
    """gzip of JSON, NaN as a bare literal."""
    path.write_bytes(gzip.compress(json.dumps(value).encode(), mtime=0))


def write_dataset(root: Path, captures: list[Capture]) -> None:
    """Files and annotations of captures of any categories."""
    for category in sorted({capture.category for capture in captures}):
        write_annotations(root, [capture for capture in captures if capture.category == category])
    for capture in captures:
        write_files(root, capture)
