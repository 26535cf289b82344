"""Captures as other tools write them: cameras around the origin, photos that hold nothing yet, points on a sphere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
from PIL import Image
from plyfile import PlyData, PlyElement

WIDTH, HEIGHT, FOCAL = 64, 48, 80.0
NUM_PHOTOS = 8
LENS = [FOCAL, FOCAL, WIDTH / 2, HEIGHT / 2, 0.05, -0.02, 0.001, 0.002]  # OPENCV
DISTANCE, RADIUS = 4.0, 0.8
NAMES = [f"{number:03d}.jpg" for number in range(NUM_PHOTOS)]
OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def poses() -> np.ndarray:
    """[N, 4, 4] world to camera, OpenCV's axes: a ring that looks down at the origin."""
    result = []
    for angle in 2 * np.pi * np.arange(NUM_PHOTOS) / NUM_PHOTOS:
        eye = DISTANCE * np.array([np.cos(angle) * 0.8, np.sin(angle) * 0.8, 0.6])
        forward = -eye / DISTANCE
        right = np.cross(forward, [0, 0, 1]) / np.linalg.norm(np.cross(forward, [0, 0, 1]))
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward])
        pose[:3, 3] = -pose[:3, :3] @ eye
        result.append(pose)
    return np.stack(result)


def points() -> np.ndarray:
    """[200, 3] on a sphere around the origin."""
    directions = np.random.default_rng(0).normal(size=(200, 3))
    return RADIUS * directions / np.linalg.norm(directions, axis=1, keepdims=True)


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """[4] w, x, y, z: the eigenvector of Bar-Itzhack's matrix (2000), whatever the rotation."""
    r = rotation
    matrix = np.array([
        [r[0, 0] - r[1, 1] - r[2, 2], r[1, 0] + r[0, 1], r[2, 0] + r[0, 2], r[2, 1] - r[1, 2]],
        [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], r[2, 1] + r[1, 2], r[0, 2] - r[2, 0]],
        [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]],
        [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
    ])  # fmt: skip
    x, y, z, w = np.linalg.eigh(matrix)[1][:, -1]
    return np.array([w, x, y, z])


def write_photos(folder: Path, names: list[str], mode: str = "RGB", shade: Any = (90, 90, 90)) -> None:
    """Pictures of one shade."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (WIDTH, HEIGHT), shade).save(path)


def write_cloud(path: Path, places: np.ndarray) -> None:
    """A PLY file of places [N, 3]."""
    vertices = np.array([tuple(place) for place in places], dtype=[(axis, "f8") for axis in "xyz"])
    PlyData([PlyElement.describe(vertices, "vertex")]).write(path)


def frames(names: list[str]) -> list[dict[str, Any]]:
    """Frames of a transforms.json, without fields of their cameras."""
    matrices = np.linalg.inv(poses()) @ OPENGL
    return [{"file_path": n, "transform_matrix": m.tolist()} for n, m in zip(names, matrices, strict=True)]


def write_transforms(folder: Path, **fields: Any) -> Path:
    """transforms.json with photos in images/ and points; a field of None is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"images/{name}" for name in NAMES]
    write_photos(folder, names)
    write_cloud(folder / "points.ply", points())
    content = {"w": WIDTH, "h": HEIGHT, "fl_x": FOCAL, "ply_file_path": "points.ply", "frames": frames(names)} | fields
    path = folder / "transforms.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def image_lines(names: list[str]) -> list[str]:
    """The first lines of images.txt."""
    lines = []
    for number, (name, pose) in enumerate(zip(names, poses(), strict=True), start=1):
        values = [*quaternion(pose[:3, :3]), *pose[:3, 3]]
        lines.append(f"{number} {' '.join(repr(float(value)) for value in values)} 1 {name}")
    return lines


def write_colmap(folder: Path, names: list[str] | None = None, *, camera: str = "", images: str = "") -> Path:
    """A COLMAP text model in sparse/, its photos in images/. Returns the model's folder."""
    names = names or NAMES
    write_photos(folder / "images", names)
    model = folder / "sparse"
    model.mkdir()
    (model / "cameras.txt").write_text(f"# cameras\n{camera or f'1 PINHOLE {WIDTH} {HEIGHT} {FOCAL} {FOCAL} 32 24'}\n")
    text = images or "\n\n".join(image_lines(names)) + "\n\n"
    (model / "images.txt").write_text(f"# images\n{text}", encoding="utf-8")
    lines = [f"{number} {x!r} {y!r} {z!r} 9 9 9 0.5" for number, (x, y, z) in enumerate(points().tolist(), start=1)]
    (model / "points3D.txt").write_text("\n".join(lines) + "\n")
    return model


def tracked_model() -> pycolmap.Reconstruction:
    """A model of COLMAP's own making in which every photo found the first 60 points where they are."""
    model, places = pycolmap.Reconstruction(), points()[:60]
    camera = pycolmap.Camera(camera_id=1, model="OPENCV", width=WIDTH, height=HEIGHT, params=LENS)
    model.add_camera_with_trivial_rig(camera)
    for number, (name, pose) in enumerate(zip(NAMES, poses(), strict=True), start=1):
        image = pycolmap.Image(image_id=number, camera_id=1, name=name)
        pixels = camera.img_from_cam(places @ pose[:3, :3].T + pose[:3, 3])
        image.points2D = [pycolmap.Point2D(pixel) for pixel in pixels]
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose[:3]))
    for place in places:
        model.add_point3D(place, pycolmap.Track())
    for number in range(1, NUM_PHOTOS + 1):
        for point in range(len(places)):
            model.add_observation(point + 1, pycolmap.TrackElement(number, point))
    return model
