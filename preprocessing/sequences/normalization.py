"""Recentring: a similarity transform that puts a capture's object upright into the cube [-1, 1]³, or a reason why that
cannot be done.

z is the normal of the plane that the camera centres lie in, on the side to which the images' up points; x points to the
first camera, so that azimuth 0 is where the capture starts; the point cloud's box is centred at the origin and its
largest side is 2. The result does not depend on the frame, scale or orientation that the capture came in.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from plyfile import PlyData, PlyParseError

from infra.storage.files import StoragePath, num_bytes
from preprocessing.captures.capture import RejectionError

MINIMUM_POINTS = 16
MAX_HEADER_BYTES = 1 << 16
# Cameras along a line have no plane; arcs that a person walks have a second extent of more than a tenth of the first.
MINIMUM_PLANE_RATIO = 0.02
# Cosine between the images' mean up and the cameras' plane's normal below which up and down are a coin toss.
MINIMUM_UPRIGHTNESS = 0.05
# Camera centres this many times farther from the object than the median are reconstruction failures.
MAXIMUM_DISTANCE_RATIO = 10.0
# The box ignores points that lie farther outside the central 96 % of an axis than this share of its width: single
# points and small clusters that fly about change nothing, while the tips of real objects (a cone's last 2 % of surface
# is 14 % of its height) stay in.
TAIL_FRACTION = 0.02
TAIL_MARGIN = 0.2


@dataclass(frozen=True, eq=False)
class Normalization:
    """x_normalized = scale · rotation · (x − center), float64."""

    rotation: np.ndarray  # [3, 3], determinant +1
    center: np.ndarray  # [3], in the capture's world
    scale: float  # normalised units per unit of the capture
    scene_bounds: np.ndarray  # [2, 3] minimum and maximum corner of the object, in normalised units

    def matrix(self) -> np.ndarray:
        """[4, 4] from the capture's world to the normalised one."""
        matrix = np.eye(4)
        matrix[:3, :3] = self.scale * self.rotation
        matrix[:3, 3] = -self.scale * self.rotation @ self.center
        return matrix

    def points(self, points: np.ndarray) -> np.ndarray:
        """[N, 3] points of the capture in normalised coordinates."""
        return self.scale * (points - self.center) @ self.rotation.T

    def cameras(self, world_to_camera: np.ndarray) -> np.ndarray:
        """[N, 4, 4] cameras of the capture for the normalised world.

        They stay rigid: the scale goes into the translation (depths scale along), so intrinsics do not change.
        """
        rotation, translation = world_to_camera[:, :3, :3], world_to_camera[:, :3, 3]
        result = world_to_camera.copy()
        result[:, :3, :3] = rotation @ self.rotation.T
        result[:, :3, 3] = self.scale * (rotation @ self.center + translation)
        return result


def load_points(path: StoragePath) -> np.ndarray:
    """Finite points [N, 3] of a PLY file, float64.

    Raises:
        RejectionError: the file is missing, no PLY, or holds fewer than 16 finite points.
    """
    try:
        _check_counts(path)
        with path.open("rb") as file:
            vertices = PlyData.read(file)["vertex"]
        with np.errstate(invalid="ignore"):  # what is no number is left out below
            points = np.stack([np.asarray(vertices[axis], dtype=np.float64) for axis in "xyz"], axis=-1)
    except FileNotFoundError as error:
        raise RejectionError("point cloud file missing") from error
    except (PlyParseError, KeyError, ValueError, TypeError, IndexError) as error:
        raise RejectionError("point cloud file unreadable") from error
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) < MINIMUM_POINTS:
        raise RejectionError(f"point cloud has {len(points)} finite points, fewer than {MINIMUM_POINTS}")
    return points


def _check_counts(path: StoragePath) -> None:
    """Raise ValueError when a PLY file says that it holds more things than it has bytes: they would be allocated."""
    with path.open("rb") as file:
        header = file.read(MAX_HEADER_BYTES).partition(b"end_header")[0]
    for line in header.splitlines():
        words = line.split()
        if words[:1] == [b"element"] and len(words) == 3 and int(words[2]) > num_bytes(path):
            raise ValueError(f"{words[1]!r}: {words[2]!r} in a file of {num_bytes(path)} bytes")


def camera_centers(world_to_camera: np.ndarray) -> np.ndarray:
    """[N, 3] centres −Rᵀ t of cameras [N, 4, 4]."""
    return -np.einsum("nji,nj->ni", world_to_camera[:, :3, :3], world_to_camera[:, :3, 3])


def common_center(poses: np.ndarray) -> np.ndarray:
    """[3] the place nearest to the viewing axes of world-to-camera poses [N, 4, 4], by least squares."""
    centers, axes = camera_centers(poses), poses[:, 2, :3]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    return np.linalg.lstsq(across.sum(0), (across @ centers[..., None]).sum(0)[:, 0], rcond=None)[0]


def plausible(world_to_camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[N] whether each camera is at a distance from the object like the others' (at most ten times the median one)."""
    distances = np.linalg.norm(camera_centers(world_to_camera) - np.median(points, axis=0), axis=1)
    return distances <= MAXIMUM_DISTANCE_RATIO * np.median(distances)


def upright_rotation(world_to_camera: np.ndarray) -> np.ndarray:
    """Rotation [3, 3] to axes with z along the normal of the plane of the camera centres of [N, 4, 4], N ≥ 3, x towards
    the first camera.

    Raises:
        RejectionError: the centres lie on a line, or the images' up does not say which side of the plane is up.
    """
    centers = camera_centers(world_to_camera)
    _, extents, axes = np.linalg.svd(centers - centers.mean(axis=0), full_matrices=False)
    if not extents[1] > MINIMUM_PLANE_RATIO * extents[0]:
        raise RejectionError("camera centres lie on a line")
    image_up = -world_to_camera[:, 1, :3]
    uprightness = image_up.mean(axis=0) @ axes[2]
    if abs(uprightness) < MINIMUM_UPRIGHTNESS:
        raise RejectionError("up is undecided: cameras look along the normal of their plane")
    z = axes[2] * np.sign(uprightness)  # the sign that the decomposition gives is arbitrary
    backward = -world_to_camera[:, 2, :3]
    horizontal = backward - (backward @ z)[:, None] * z
    lengths = np.linalg.norm(horizontal, axis=1)
    # Some camera's up has at least the mean's share along z, hence its viewing direction as much across z: there is
    # always one.
    first = int(np.argmax(lengths > 0.9 * MINIMUM_UPRIGHTNESS))
    x = horizontal[first] / lengths[first]
    return np.stack([x, np.cross(z, x), z])


def coverage_degrees(world_to_camera: np.ndarray) -> float:
    """How much of the turn around the origin cameras [N, 4, 4] of the normalised world leave, in degrees: 360 less the
    largest angle about the z axis between two neighbours.
    """
    x, y, _ = camera_centers(world_to_camera).T
    azimuths = np.sort(np.degrees(np.arctan2(y, x)))
    return float(360 - np.diff(azimuths, append=azimuths[0] + 360).max())


def robust_box(points: np.ndarray) -> np.ndarray:
    """[2, 3] minimum and maximum corner of points [N, 3], without those that fly far outside."""
    low = np.quantile(points, TAIL_FRACTION, axis=0, method="higher")
    high = np.quantile(points, 1 - TAIL_FRACTION, axis=0, method="lower")
    margin = TAIL_MARGIN * (high - low)
    kept = points[((points >= low - margin) & (points <= high + margin)).all(axis=1)]
    return np.stack([kept.min(axis=0), kept.max(axis=0)])


def normalization(points: np.ndarray, world_to_camera: np.ndarray) -> Normalization:
    """The transform for an object with surface points [N, 3] seen by cameras [M, 4, 4], M ≥ 3.

    Raises:
        RejectionError: as `upright_rotation`, or the points have no extent.
    """
    rotation = upright_rotation(world_to_camera)
    box = robust_box(points @ rotation.T)
    sides = box[1] - box[0]
    if not sides.max() > 0:
        raise RejectionError("point cloud has no extent")
    scale = 2.0 / sides.max()
    half = scale * sides / 2
    return Normalization(rotation, rotation.T @ box.mean(axis=0), float(scale), np.stack([-half, half]))
