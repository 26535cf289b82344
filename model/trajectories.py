"""Camera paths around an object, for trajectories as in the paper, section 3.3.

They lie in the normalised world of model/cameras.py: z up, object centred, largest side 2.

Angles are in radians. The azimuth goes counter-clockwise around z from the x axis, the elevation is the angle above
the horizontal plane.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.cameras import Cameras

WORLD_UP = (0.0, 0.0, 1.0)
# Camera files of other tools by a key that they have, and how to make a path of them. All are in a world of their own,
# which has to be turned, moved and scaled so that the object fills [-1, 1]³; so they are not read as they are.
_FROM_OPENGL = "world_to_camera = inverse of the matrix with its columns 1 and 2 (of 0 to 3) negated"
OTHER_FORMS = {
    "camera_path": ("a camera path of nerfstudio", f"camera_to_world is 16 numbers, row by row; {_FROM_OPENGL}"),
    "frames": ("a transforms.json of posed photos", f"from transform_matrix {_FROM_OPENGL}"),
    "path": ("a camera path of instant-ngp", "R is a quaternion and T the position, in its own cube from 0 to 1"),
    "keyframes": ("a list of keyframes of nerfstudio's viewer", f"export the camera path; {_FROM_OPENGL}"),
    "trajectory": (
        "a camera trajectory of Open3D",
        "from extrinsic, 16 numbers column by column, which is world_to_camera",
    ),
    "img_name": (
        "cameras.json of a trained 3D Gaussian Splatting",
        "world_to_camera = inverse of rotation and position, with OpenCV's axes as here",
    ),
}
MAX_SIDE = 2**16  # pixels, more than a picture has
MAX_ELEVATION = math.radians(89)  # straight above, "up" is no direction in the picture any more


@dataclass(frozen=True, kw_only=True)
class OrbitConfig:
    """A camera that looks at the world's origin. The defaults show the whole unit cube with a margin."""

    radius: float = 5.0
    """Distance of the camera's centre from the origin, world units."""
    elevation_degrees: float = 25.0
    """Angle above the horizontal plane, in (-90, 90)."""
    field_of_view_degrees: float = 40.0
    """Vertical field of view, in (0, 180)."""

    def __post_init__(self) -> None:
        if self.radius <= 0:
            raise ValueError(f"orbit: radius {self.radius} must be positive")
        if not 0 < self.field_of_view_degrees < 180:
            raise ValueError(f"orbit: field_of_view_degrees {self.field_of_view_degrees} must lie between 0 and 180")
        if abs(math.radians(self.elevation_degrees)) > MAX_ELEVATION:
            raise ValueError(f"orbit: elevation_degrees {self.elevation_degrees} must lie within 89 of the horizon")


def orbit(num_views: int, *, image_size: tuple[int, int], config: OrbitConfig | None = None) -> Cameras:
    """Cameras [V], evenly spaced on one horizontal circle, the first at azimuth 0."""
    config = config or OrbitConfig()
    azimuths = torch.arange(num_views) * (2 * math.pi / num_views)
    elevations = torch.full((num_views,), math.radians(config.elevation_degrees))
    return _looking_at_origin(azimuths, elevations, image_size=image_size, config=config)


def spiral(
    num_views: int, *, image_size: tuple[int, int], num_turns: float = 2.0, config: OrbitConfig | None = None
) -> Cameras:
    """Cameras [V] that climb from the horizon to twice the config's elevation (at most 89°) in `num_turns` turns."""
    config = config or OrbitConfig()
    progress = torch.linspace(0, 1, num_views)
    top = max(-MAX_ELEVATION, min(2 * math.radians(config.elevation_degrees), MAX_ELEVATION))
    return _looking_at_origin(progress * num_turns * 2 * math.pi, progress * top, image_size=image_size, config=config)


def orbit_like(cameras: Cameras, num_views: int) -> Cameras:
    """Cameras [V] on a circle at the median distance, elevation and field of view of the given ones [N]."""
    centers = cameras.centers()
    _, elevations = angles(cameras)
    focal_length = cameras.intrinsics[:, 1, 1].median().item()
    config = OrbitConfig(
        radius=centers.norm(dim=-1).median().item(),
        elevation_degrees=math.degrees(elevations.median().clamp(-MAX_ELEVATION, MAX_ELEVATION).item()),
        field_of_view_degrees=math.degrees(2 * math.atan(cameras.image_size[0] / 2 / focal_length)),
    )
    return orbit(num_views, image_size=cameras.image_size, config=config)


def angles(cameras: Cameras) -> tuple[Tensor, Tensor]:
    """Azimuth in (-π, π] and elevation in [-π/2, π/2] of the camera centres, each [...]."""
    x, y, z = cameras.centers().unbind(-1)
    return torch.atan2(y, x), torch.atan2(z, torch.hypot(x, y))


def from_file(path: Path) -> Cameras:
    """Cameras [V] from a JSON file:

        {"image_size": [height, width],
         "cameras": [{"world_to_camera": [[4 numbers] × 4], "intrinsics": [[3 numbers] × 3]}, ...]}

    in the conventions of model/cameras.py. Raises ValueError that names the file and the field.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"camera path {path}: cannot be read as JSON ({error})") from error
    first = content[0] if isinstance(content, list) and content else content
    for key, (tool, how) in OTHER_FORMS.items():
        if isinstance(first, dict) and key in first and "cameras" not in first:
            raise ValueError(
                f"camera path {path}: this is {tool} (it has {key!r}); write for each camera world_to_camera and "
                f"intrinsics, as model/trajectories.py says: {how}"
            )
    if not isinstance(content, dict) or not isinstance(content.get("cameras"), list) or not content["cameras"]:
        raise ValueError(f"camera path {path}: needs an object with a non-empty list `cameras`")
    size = content.get("image_size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and 0 < n <= MAX_SIDE for n in size)):
        raise ValueError(
            f"camera path {path}: image_size {size!r} must be [height, width] in whole pixels, each at most {MAX_SIDE}"
        )
    matrices = {
        name: torch.stack([_matrix(path, index, camera, name, side) for index, camera in enumerate(content["cameras"])])
        for name, side in (("world_to_camera", 4), ("intrinsics", 3))
    }
    try:
        return Cameras(matrices["world_to_camera"], matrices["intrinsics"], (size[0], size[1])).check()
    except ValueError as error:
        raise ValueError(f"camera path {path}: {error}") from error


def _matrix(path: Path, index: int, camera: Any, name: str, side: int) -> Tensor:
    """The matrix `name` [side, side] of the camera with this index, or ValueError."""
    rows = camera.get(name) if isinstance(camera, dict) else None
    if not (isinstance(rows, list) and len(rows) == side and all(_is_row(row, side) for row in rows)):
        raise ValueError(f"camera path {path}: cameras[{index}].{name} must be {side} rows of {side} numbers")
    try:
        return torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float32)
    except OverflowError:
        raise ValueError(
            f"camera path {path}: cameras[{index}].{name} holds a whole number that is too large for any camera"
        ) from None


def _is_row(row: Any, side: int) -> bool:
    return isinstance(row, Sequence) and len(row) == side and all(type(value) in (int, float) for value in row)


def _looking_at_origin(
    azimuths: Tensor, elevations: Tensor, *, image_size: tuple[int, int], config: OrbitConfig
) -> Cameras:
    """Cameras [V] at these angles [V] and the config's radius, upright, with square pixels."""
    outward = torch.stack(
        [azimuths.cos() * elevations.cos(), azimuths.sin() * elevations.cos(), elevations.sin()], dim=-1
    )
    forward = -outward
    right = torch.linalg.cross(forward, torch.tensor(WORLD_UP).expand_as(forward))
    right = right / right.norm(dim=-1, keepdim=True)
    down = torch.linalg.cross(forward, right)
    rotation = torch.stack([right, down, forward], dim=-2)  # rows: the camera's axes in the world
    world_to_camera = torch.eye(4).repeat(len(azimuths), 1, 1)
    world_to_camera[:, :3, :3] = rotation
    world_to_camera[:, :3, 3] = -(rotation @ (outward * config.radius)[..., None])[..., 0]
    height, width = image_size
    focal_length = height / 2 / math.tan(math.radians(config.field_of_view_degrees) / 2)
    intrinsics = torch.tensor([[focal_length, 0, width / 2], [0, focal_length, height / 2], [0, 0, 1]])
    return Cameras(world_to_camera, intrinsics.repeat(len(azimuths), 1, 1), image_size)
