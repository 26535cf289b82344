"""Random square crops of stored pictures, with the camera and the intensity that belong to each."""

from __future__ import annotations

import numpy as np

from model.chance import uniform
from preprocessing.sequences.images import intensity, resize_square


def draw_crops(keys: np.ndarray, *, image_size: int, smallest_share: float, seed: int) -> np.ndarray:
    """[B, 3] int64 (top, left, side) in pixels of a picture of `image_size`², one for each of the integers `keys` [B]:
    squares with a side between `smallest_share` of the picture's and all of it, anywhere inside.
    """
    chances = uniform("crops", seed, keys, 3)
    smallest = max(1, round(smallest_share * image_size))
    side = smallest + (chances[:, 0] * (image_size - smallest + 1)).astype(np.int64)
    corner = (chances[:, 1:] * (image_size - side + 1)[:, None]).astype(np.int64)
    return np.column_stack([corner, side])


def cut(image: np.ndarray, crop: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """The crop of a picture [S, S, 3] uint8, scaled to the picture's size, and the mean and variance of its values in
    [0, 1].
    """
    top, left, side = (int(value) for value in crop)
    part = resize_square(image[top : top + side, left : left + side], image.shape[0])
    return part, intensity(part)


def crop_intrinsics(intrinsics: np.ndarray, crops: np.ndarray, image_size: int) -> np.ndarray:
    """[..., 3, 3] intrinsics of crops [..., 3] of the pictures of `intrinsics`, scaled back to `image_size`: the corner
    is subtracted from the principal point, then both rows are scaled.
    """
    result = intrinsics.copy()
    result[..., :2, 2] -= crops[..., 1::-1]  # (left, top)
    result[..., :2, :] *= (image_size / crops[..., 2])[..., None, None]
    return result
