"""Which way up a picture is: the EXIF orientation (CIPA DC-008, tag 274) as a turn of pixels, cameras and masks alike.

An orientation is a 2 × 2 matrix on pixels around the picture's middle. Four of the eight are rotations. The other four
mirror: what is stored then is no picture of the world, and a reconstruction of such pictures is one of a mirrored
world, which must be mirrored too.
"""

from __future__ import annotations

import numpy as np

UPRIGHT = 1
# From stored pixels to upright ones, u to the right and v down.
_TURNS = {
    1: [[1, 0], [0, 1]],
    2: [[-1, 0], [0, 1]],
    3: [[-1, 0], [0, -1]],
    4: [[1, 0], [0, -1]],
    5: [[0, 1], [1, 0]],
    6: [[0, -1], [1, 0]],
    7: [[0, -1], [-1, 0]],
    8: [[0, 1], [-1, 0]],
}
# Takes a world to its mirror image.
MIRROR = np.diag([-1.0, 1.0, 1.0, 1.0])


def swaps_sides(orientation: int) -> bool:
    """Whether a picture that lies becomes one that stands."""
    return _TURNS[orientation][0][0] == 0


def mirrors(orientation: int) -> bool:
    """Whether the stored pixels are a mirror image."""
    return bool(np.linalg.det(_TURNS[orientation]) < 0)


def inverse(orientation: int) -> int:
    """The orientation that undoes another."""
    return {6: 8, 8: 6}.get(orientation, orientation)


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) of the turned picture."""
    return (size[1], size[0]) if swaps_sides(orientation) else size


def turn_picture(picture: np.ndarray, orientation: int) -> np.ndarray:
    """The upright picture of a stored one, [H, W] or [H, W, 3]."""
    turn = np.array(_TURNS[orientation])
    turned = picture.swapaxes(0, 1) if swaps_sides(orientation) else picture
    return np.ascontiguousarray(turned[:: turn[1].sum(), :: turn[0].sum()])


def turn_pixels(pixels: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Where pixels [M, 2] of a stored picture of `size` (height, width) are in the upright one."""
    middle, turned = np.array(size[::-1]) / 2, np.array(turned_size(size, orientation)[::-1]) / 2
    return (pixels - middle) @ np.array(_TURNS[orientation]).T + turned


def turn_intrinsics(intrinsics: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Intrinsics [3, 3] of the upright picture."""
    turn, result = np.array(_TURNS[orientation]), np.eye(3)
    result[:2, :2] = turn @ intrinsics[:2, :2] @ turn.T
    result[:2, 2] = turn_pixels(intrinsics[None, :2, 2], size, orientation)[0]
    return result


def turn_pose(world_to_camera: np.ndarray, orientation: int) -> np.ndarray:
    """World to camera [4, 4] of the upright picture. If the orientation mirrors, this is the camera in the mirrored
    world: points x become `MIRROR` x.
    """
    turn = np.eye(4)
    turn[:2, :2] = _TURNS[orientation]
    return turn @ world_to_camera @ (MIRROR if mirrors(orientation) else np.eye(4))
