"""Writes one synthetic sequence as CO3Dv2 does: images, masks, depths, point cloud, and the annotation entries.

<category>/<sequence>/images/frame000001.jpg        quality 95
<category>/<sequence>/masks/frame000001.png         8 bit, foreground probability · 255
<category>/<sequence>/depths/frame000001.jpg.geometric.png    16 bit: a float16 · scale_adjustment = depth
<category>/<sequence>/depth_masks/frame000001.png   1 bit, where depth can be trusted
<category>/<sequence>/pointcloud.ply                binary, x y z float32 in the world frame, red green blue uint8
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from preprocessing.captures.capture import Viewpoint
from preprocessing.synthetic.camera_paths import FrameCamera, look_at
from preprocessing.synthetic.objects import bounding_sphere
from preprocessing.synthetic.raytrace import Picture, Scene, render, trace
from preprocessing.synthetic.scenes import SequencePlan, sequence_random

FRAMES_PER_SECOND = 10.0
JPEG_QUALITY = 95
NUM_CLOUD_EYES, RAYS_PER_EYE, NUM_CLOUD_POINTS = 14, 500, 2000


def write_frames(plan: SequencePlan, folder: Path) -> list[dict[str, Any]]:
    """Render and write every frame below `folder`; returns their entries for frame_annotations."""
    for name in ("images", "masks", "depths", "depth_masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    entries = []
    for number, (camera, gain) in enumerate(zip(plan.path.cameras, plan.path.gains, strict=True)):
        picture = render(plan.scene, camera)
        stem = f"frame{number + 1:06d}"
        scale = plan.path.world.scale
        coverage = np.round(picture.coverage * 255).astype(np.uint8)
        _write_image(folder / "images" / f"{stem}.jpg", _exposed(picture, gain), cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY)
        _write_image(folder / "masks" / f"{stem}.png", coverage)
        _write_image(folder / "depths" / f"{stem}.jpg.geometric.png", picture.depth.astype(np.float16).view(np.uint16))
        trusted = (picture.depth > 0) & ((coverage == 0) | (coverage == 255))
        _write_image(folder / "depth_masks" / f"{stem}.png", trusted.astype(np.uint8) * 255, cv2.IMWRITE_PNG_BILEVEL, 1)
        root = f"{plan.category}/{plan.name}"
        entries.append(
            {
                "sequence_name": plan.name,
                "frame_number": number,
                "frame_timestamp": number / FRAMES_PER_SECOND,
                "image": {"path": f"{root}/images/{stem}.jpg", "size": list(plan.image_size)},
                "depth": {
                    "path": f"{root}/depths/{stem}.jpg.geometric.png",
                    "scale_adjustment": scale,
                    "mask_path": f"{root}/depth_masks/{stem}.png",
                },
                "mask": {"path": f"{root}/masks/{stem}.png", "mass": float(coverage.sum() / 255)},
                "viewpoint": _viewpoint(plan.path.world.camera(camera), plan.intrinsics_format),
                "meta": None,
            }
        )
    return entries


def _viewpoint(camera: FrameCamera, intrinsics_format: str) -> dict[str, object]:
    """A camera as CO3D stores it."""
    pose, matrix = np.eye(4), np.eye(3)
    pose[:3, :3], pose[:3, 3] = camera.rotation, camera.translation
    matrix[(0, 1), (0, 1)], matrix[:2, 2] = camera.focal, camera.center
    return Viewpoint.from_opencv(pose, matrix, (camera.height, camera.width), intrinsics_format).entry()


def write_point_cloud(plan: SequencePlan, seed: int, index: int, folder: Path) -> dict[str, Any]:
    """Sample the object's surface and write pointcloud.ply in the world frame.

    Returns the sequence's entry `point_cloud`.
    """
    random = sequence_random(seed, plan.category, index, 3)
    points, colors = sample_surface(plan.scene, random)
    vertices = np.empty(len(points), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    vertices["xyz"], vertices["rgb"] = plan.path.world.points(points), colors
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {name}" for name in ("red", "green", "blue")
    ]
    (folder / "pointcloud.ply").write_bytes(("\n".join([*header, "end_header"]) + "\n").encode() + vertices.tobytes())
    path = f"{plan.category}/{plan.name}/pointcloud.ply"
    return {"path": path, "quality_score": float(random.uniform(0.8, 2.0)), "n_points": len(points)}


def sample_surface(scene: Scene, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Points [N, 3] float64 on what can be seen of the object from a dome around it, and colours [N, 3] uint8.

    N is at most NUM_CLOUD_POINTS, coordinates are the object frame's. The dome's eyes have nothing to do with the
    capture's cameras, so the cloud is a check on those.
    """
    center, radius = bounding_sphere(scene.solids)
    found, colors = [], []
    for k in range(NUM_CLOUD_EYES):
        azimuth, height = 2 * np.pi * (k + random.uniform()) / NUM_CLOUD_EYES, random.uniform(0.02, 0.95)
        flat = np.sqrt(1 - height**2)
        eye = center + 4 * radius * np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), height])
        rotation = look_at(eye, center, roll=0.0)
        focal = 4 / 1.04  # the bounding sphere just fills [-1, 1]
        camera = FrameCamera(
            rotation=rotation,
            translation=-rotation @ eye,
            focal=np.full(2, focal),
            center=np.zeros(2),
            height=1,
            width=1,
        )
        columns, rows = random.uniform(-1, 1, (2, RAYS_PER_EYE)).astype(np.float32)
        color, hit, depth = trace(scene, camera, columns, rows)
        seen = hit >= 0
        rays = np.stack([columns[seen] / focal, rows[seen] / focal, np.ones(seen.sum())])
        found.append((rays * depth[seen]).T @ rotation + eye)
        colors.append((np.clip(color[:, seen], 0, 1).T * 255).astype(np.uint8))
    points, shades = np.concatenate(found), np.concatenate(colors)
    kept = np.sort(random.permutation(len(points))[:NUM_CLOUD_POINTS])
    return points[kept], shades[kept]


def _exposed(picture: Picture, gain: float) -> np.ndarray:
    image = np.clip(picture.color * np.float32(gain), 0, 1) * np.float32(255) + np.float32(0.5)
    return np.ascontiguousarray(image.astype(np.uint8)[..., ::-1])  # OpenCV writes BGR


def _write_image(path: Path, image: np.ndarray, *parameters: int) -> None:
    encoded, data = cv2.imencode(path.suffix, image, list(parameters))
    if not encoded:
        raise ValueError(f"image for {path}: {image.dtype} {image.shape} could not be encoded")
    path.write_bytes(data.tobytes())
