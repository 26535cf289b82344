"""Do the cameras look at the object? Poses in another convention than the source's put it behind them or out of sight,
and say nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from infra.errors import UserError
from preprocessing.importing.reconstructions import Reconstruction, listed
from preprocessing.normalize import camera_centers, robust_box

_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
# Other things that a tool could mean by the same numbers, and the poses [N, 4, 4] that these would be.
READINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "with the camera's y and z axes turned round": lambda poses: _FLIP @ poses,
    "inverted": np.linalg.inv,
    "inverted, with those axes turned round": lambda poses: _FLIP @ np.linalg.inv(poses) @ _FLIP,
    "inverted, with the world's y and z turned round": lambda poses: np.linalg.inv(poses) @ _FLIP,
}
# A camera looks at a place that it sees less than this far off its axis.
COSINE = np.cos(np.radians(45))
# Of a reading that is right nearly all cameras look at one place; of a wrong one some do by chance.
CLEAR_SHARE = 0.9


def common_center(poses: np.ndarray) -> np.ndarray:
    """[3] the place nearest to the viewing axes of world-to-camera poses [N, 4, 4], by least squares."""
    centers, axes = camera_centers(poses), poses[:, 2, :3]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    return np.linalg.lstsq(across.sum(0), (across @ centers[..., None]).sum(0)[:, 0], rcond=None)[0]


def looking_at(poses: np.ndarray, place: np.ndarray) -> np.ndarray:
    """[N] which cameras look at a place [3], more or less."""
    seen = poses[:, :3, :3] @ place + poses[:, :3, 3]
    return seen[:, 2] > COSINE * np.linalg.norm(seen, axis=1)


def check_facing(capture: Reconstruction, points: np.ndarray) -> tuple[str, ...]:
    """Notes about cameras that do not see the object's points [M, 3], or lie among them.

    Raises:
        UserError: most cameras do not; the message says how many, and how poses are meant.
    """
    poses = np.stack([photo.world_to_camera for photo in capture.photos])
    seen = poses[:, :3, :3] @ np.median(points, axis=0) + poses[:, :3, 3]
    behind = seen[:, 2] <= 0
    hidden = ~behind & ~np.array([photo.project(points)[1].any() for photo in capture.photos])
    if (behind | hidden).sum() * 2 > len(poses):
        raise UserError(
            f"{capture.source}: the object lies behind {behind.sum()} of {len(poses)} cameras and out of the pictures "
            f"of {hidden.sum()}; {capture.convention}{_other_reading(poses)}"
        )
    box, centers = robust_box(points), camera_centers(poses)
    among = ((centers > box[0]) & (centers < box[1])).all(axis=1)
    if among.sum() * 2 > len(poses):
        raise UserError(
            f"{capture.source}: {among.sum()} of {len(poses)} cameras lie within the object's points; give masks that "
            "show the object alone, or its --object-radius"
        )
    reasons = {"behind": behind, "out of the picture of": hidden, "around": among}
    return tuple(
        f"the object lies {what} {cameras.sum()} of {len(poses)} cameras: "
        + listed([photo.name for photo, is_so in zip(capture.photos, cameras, strict=True) if is_so])
        for what, cameras in reasons.items()
        if cameras.any()
    )


def _other_reading(poses: np.ndarray) -> str:
    """The reading under which nearly all cameras look at one place, if there is such."""
    for name, read in READINGS.items():
        other = read(poses)
        if looking_at(other, common_center(other)).mean() >= CLEAR_SHARE:
            return f"; these look at one place when they are read {name}"
    return ""
