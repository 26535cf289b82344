"""How somebody walks around an object with a phone: cameras, exposure, and the reconstruction's arbitrary world frame.

Object frame: object on z = 0, z up, about one unit large. Cameras have OpenCV axes and pixel centres at half-integers,
as in model/cameras.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Random = np.random.Generator
FloatArray = NDArray[np.float64]

ELEVATION_RANGE = (8.0, 55.0)  # degrees, after all jitter


@dataclass(frozen=True, kw_only=True)
class FrameCamera:
    """One pinhole camera: x_cam = rotation @ x + translation.

    pixel = focal · (x/z, y/z) + center, (0, 0) the image's outer corner.
    """

    rotation: FloatArray  # [3, 3]
    translation: FloatArray  # [3]
    focal: FloatArray  # [2] pixels
    center: FloatArray  # [2] pixels
    height: int
    width: int

    def project(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Points [N, 3] of the camera's world -> pixels [N, 2] and depth [N]."""
        x, y, z = self.rotation @ points.T + self.translation[:, None]
        return np.stack([x / z * self.focal[0] + self.center[0], y / z * self.focal[1] + self.center[1]], axis=1), z


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """x_world = scale · rotation @ x_object + translation."""

    scale: float
    rotation: FloatArray  # [3, 3], det +1
    translation: FloatArray  # [3]

    def points(self, points: FloatArray) -> FloatArray:
        """Object points [N, 3] -> world points [N, 3]."""
        return self.scale * points @ self.rotation.T + self.translation

    def camera(self, camera: FrameCamera) -> FrameCamera:
        """The same camera seen from the world frame; its depths are `scale` times the object frame's."""
        rotation = camera.rotation @ self.rotation.T
        return replace(
            camera,
            rotation=rotation,
            translation=self.scale * camera.translation - rotation @ self.translation,
        )


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """How the frames of one sequence are taken."""

    cameras: tuple[FrameCamera, ...]  # in the object frame
    gains: tuple[float, ...]  # exposure of each frame: factor on pixel values
    world: Similarity  # from the object frame to the reconstruction's


def plan_path(
    random: Random, *, num_frames: int, image_size: tuple[int, int], target: FloatArray, radius: float
) -> CameraPath:
    """An imperfect orbit around the sphere (target [3], radius), which stays inside the image.

    image_size is (height, width).
    """
    height, width = image_size
    short = min(height, width)
    focal = short * random.uniform(1.15, 1.9)
    # At the mean distance the bounding sphere fills 60-74 % of the short side; so it still fits at the smallest one.
    distance = radius * focal / (short / 2) / random.uniform(0.6, 0.74)
    center = np.array([width, height]) / 2 + short * random.uniform(-0.02, 0.02, 2)
    azimuth, elevation, stretch = _orbit(random, num_frames)
    cameras, gains = [], []
    for k in range(num_frames):
        flat = np.cos(elevation[k])
        away = np.array([flat * np.cos(azimuth[k]), flat * np.sin(azimuth[k]), np.sin(elevation[k])])
        eye = target + distance * stretch[k] * away
        rotation = look_at(eye, target + random.normal(0, 0.03, 3) * radius, roll=np.radians(random.normal(0, 2.5)))
        lens = np.full(2, focal * random.uniform(0.985, 1.015))
        cameras.append(
            FrameCamera(
                rotation=rotation, translation=-rotation @ eye, focal=lens, center=center, height=height, width=width
            )
        )
        gains.append(float(random.uniform(0.9, 1.1)))
    return CameraPath(cameras=tuple(cameras), gains=tuple(gains), world=_any_similarity(random))


def look_at(eye: FloatArray, target: FloatArray, *, roll: float) -> FloatArray:
    """Rotation [3, 3] world -> camera (OpenCV axes) with +z up in the image, then rolled about the view axis.

    eye, target [3]; roll in radians.
    """
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll), np.sin(roll)
    return np.stack([cos * right + sin * down, cos * down - sin * right, forward])


def _orbit(random: Random, num_frames: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Azimuth and elevation in radians, distance as a factor, [num_frames] each.

    Elevation swings two and three times a turn: one swing a turn would only tilt the circle, and the plane of the
    camera centres is all that a reader has to find out where up is.
    """
    turn = np.arange(num_frames) / num_frames + random.uniform(-0.2, 0.2, num_frames) / num_frames
    azimuth = random.uniform(-np.pi, np.pi) + random.choice([-1.0, 1.0]) * 2 * np.pi * turn
    swing = np.zeros(num_frames)
    for waves, size in ((2, 12.0), (3, 7.0)):
        swing += size * random.uniform(0.7, 1.2) * np.sin(waves * azimuth + random.uniform(0, 2 * np.pi))
    degrees = np.clip(random.uniform(24, 36) + swing + random.normal(0, 2, num_frames), *ELEVATION_RANGE)
    stretch = 1 + 0.13 * np.sin(2 * azimuth + random.uniform(0, 2 * np.pi)) + random.uniform(-0.06, 0.06, num_frames)
    return azimuth, np.radians(degrees), stretch


def _any_similarity(random: Random) -> Similarity:
    quaternion = random.normal(size=4)
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
    scale = float(10 ** random.uniform(-1, 1))
    return Similarity(scale=scale, rotation=rotation, translation=scale * random.uniform(-5, 5, 3))
