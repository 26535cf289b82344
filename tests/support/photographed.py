"""Photos of a textured cube on a textured ground, with the cameras that took them: what cameras can be found from."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from tests.support.captures import orbit

SIZE = (240, 320)  # (height, width)
FOCAL = 330.0
ORIENTATION = 0x0112  # of EXIF
_TEXTURE_SIDE, _FINER = 512, 3
# Origin and two edges of each square: the ground, then the cube's sides. Seen from outside, edges go right and down.
_SQUARES = [
    ((-4, 4, -1), (8, 0, 0), (0, -8, 0)),
    ((-1, -1, 1), (2, 0, 0), (0, 0, -2)),
    ((1, -1, 1), (0, 2, 0), (0, 0, -2)),
    ((1, 1, 1), (-2, 0, 0), (0, 0, -2)),
    ((-1, 1, 1), (0, -2, 0), (0, 0, -2)),
    ((-1, 1, 1), (2, 0, 0), (0, -2, 0)),
]


def intrinsics() -> np.ndarray:
    """[3, 3] of every photo, pixels."""
    return np.array([[FOCAL, 0, SIZE[1] / 2], [0, FOCAL, SIZE[0] / 2], [0, 0, 1]])


def poses(count: int) -> np.ndarray:
    """[count, 4, 4] world_to_camera, three quarters of a circle around the cube, 14 degrees apart at least."""
    return orbit(round(count / 0.75), elevation=0.6, distance=6.0)[:count]


def picture(pose: np.ndarray) -> np.ndarray:
    """What a camera sees, uint8 [H, W, 3]: drawn three times finer, so that edges are averaged as a lens does."""
    height, width = (side * _FINER for side in SIZE)
    canvas = np.full((height, width, 3), 200, np.uint8)
    # From pixels whose centres are at half-integers to those of OpenCV, at whole numbers.
    to_canvas = np.array([[_FINER, 0, -0.5], [0, _FINER, -0.5], [0, 0, 1]]) @ intrinsics()
    center = -pose[:3, :3].T @ pose[:3, 3]
    for number, (corner, right, down) in enumerate(np.array(_SQUARES, dtype=float)):
        if np.dot(np.cross(down, right), center - corner) <= 0:
            continue  # seen from behind
        on_square = np.stack([right, down, corner], axis=1)  # (s, t, 1) in [0, 1]² to the world
        to_picture = to_canvas @ (pose[:3, :3] @ on_square + np.outer(pose[:3, 3], [0, 0, 1]))
        from_texture = (
            to_picture @ np.diag([1 / _TEXTURE_SIDE, 1 / _TEXTURE_SIDE, 1]) @ [[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]]
        )
        cv2.warpPerspective(
            _texture(number),
            from_texture,
            (width, height),
            dst=canvas,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_TRANSPARENT,
        )
    return cv2.resize(canvas, SIZE[::-1], interpolation=cv2.INTER_AREA)


def _texture(number: int) -> np.ndarray:
    """Spots of many sizes, the same for each number."""
    random = np.random.default_rng(number)
    layers = [
        cv2.resize(random.random((side, side, 3), np.float32), (_TEXTURE_SIDE,) * 2, interpolation=cv2.INTER_CUBIC)
        for side in (12, 32, 90)
    ]
    return (np.clip(np.mean(layers, axis=0) * 1.8 - 0.4, 0, 1) * 255).astype(np.uint8)


def write_photo(path: Path, image: np.ndarray, *, orientation: int = 1) -> None:
    """An image as it is, with an EXIF orientation that a viewer would turn it by."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    quality = {"lossless": True} if path.suffix == ".webp" else {"quality": 95}
    Image.fromarray(image).save(path, exif=exif, **quality)


def pose_errors(found: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of cameras [N, 4, 4], after the similarity that fits their centres best (Umeyama 1991): angles in degrees [N] and
    distances of the centres [N] in mean distances of the true ones from their middle.
    """
    centers = [-np.einsum("nji,nj->ni", poses[:, :3, :3], poses[:, :3, 3]) for poses in (found, truth)]
    a, b = (each - each.mean(0) for each in centers)
    left, values, right = np.linalg.svd(b.T @ a)
    signs = np.array([1, 1, np.linalg.det(left @ right)])
    rotation, scale = left * signs @ right, (values * signs).sum() / (a**2).sum()
    turned = found[:, :3, :3] @ rotation.T @ truth[:, :3, :3].mT
    cosine = (np.trace(turned, axis1=1, axis2=2) - 1) / 2
    distance = np.linalg.norm(scale * a @ rotation.T - b, axis=1) / np.linalg.norm(b, axis=1).mean()
    return np.degrees(np.arccos(np.clip(cosine, -1, 1))), distance
