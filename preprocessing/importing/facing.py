"""Do the cameras look at the object? Poses in another convention than the source's put it behind them or out of sight,
and say nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from infra.errors import UserError
from preprocessing.importing.reconstructions import Reconstruction, listed
from preprocessing.sequences.normalization import MINIMUM_PLANE_RATIO, camera_centers, common_center, robust_box

_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
# Other things that a tool could mean by the same numbers, and the poses [N, 4, 4] that these would be.
READINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "with the camera's y and z axes turned round": lambda poses: _FLIP @ poses,
    "inverted": np.linalg.inv,
    "inverted, with those axes turned round": lambda poses: _FLIP @ np.linalg.inv(poses) @ _FLIP,
    "inverted, with the world's y and z turned round": lambda poses: np.linalg.inv(poses) @ _FLIP,
}
# Of poses that are read as they are meant nearly all cameras look at one place, give or take this angle; read
# otherwise, those of a ring of cameras become parallel.
LOOKING_COSINE = np.cos(np.radians(30))
LOOKING_SHARE = 0.9
PARALLEL_SPREAD = 0.05


def share_looking_at_one_place(poses: np.ndarray) -> float:
    """Share of the cameras [N, 4, 4] that look at one place; 0 if their axes are so nearly parallel that they meet
    nowhere.
    """
    axes = poses[:, 2, :3]
    spread = np.linalg.eigvalsh(np.eye(3) - axes.T @ axes / len(axes))[0]  # mean squared sine of the axes' angles
    if spread < PARALLEL_SPREAD:
        return 0.0
    seen = poses[:, :3, :3] @ common_center(poses) + poses[:, :3, 3]
    return float((seen[:, 2] > LOOKING_COSINE * np.linalg.norm(seen, axis=1)).mean())


def check_places(source: Path, poses: np.ndarray) -> None:
    """Raise UserError if the cameras [N, 4, 4] stand on a line."""
    centers = camera_centers(poses)
    extents = np.linalg.svd(centers - centers.mean(axis=0), compute_uv=False)
    if not extents[1] > MINIMUM_PLANE_RATIO * extents[0]:
        raise UserError(
            f"{source}: its {len(poses)} cameras stand on one line or in one place, which does not say where up is; "
            "take photos from around the object"
        )


def check_poses(capture: Reconstruction) -> None:
    """Raise UserError if the cameras look at one place when the numbers of their poses are read in another way, and not
    as this kind of source means them.
    """
    poses = np.stack([photo.world_to_camera for photo in capture.photos])
    if share_looking_at_one_place(poses) >= LOOKING_SHARE:
        return
    shares = {name: share_looking_at_one_place(read(poses)) for name, read in READINGS.items()}
    best = max(shares, key=lambda name: shares[name])
    if shares[best] >= LOOKING_SHARE:
        raise UserError(
            f"{capture.source}: its cameras do not look at one place, but do when their poses are read {best}; "
            f"{capture.convention}"
        )


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
            f"of {hidden.sum()}; {capture.convention}"
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
