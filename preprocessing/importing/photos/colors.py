"""Colour profiles: what a photo's numbers mean on a screen."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

# Levels of 255 by which a profile may change a colour and still be taken for sRGB.
SAME_LEVELS = 2


def to_srgb(picture: Image.Image, profile: bytes) -> tuple[Image.Image, str | None]:
    """The picture, of mode RGB, L or CMYK, in sRGB, and what was done: None if it is sRGB already.

    A profile that cannot be read, or is one of other channels than the picture's, is not used, as viewers do.
    """
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        transform = _transform(profile, picture.mode)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return picture, "with a colour profile that cannot be used: taken as sRGB"
    if transform is None:
        return picture, None
    name = " ".join(ImageCms.getProfileDescription(source).split()) or "its profile"
    return ImageCms.applyTransform(picture, transform), f"from {name} to sRGB"


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None if the profile says what sRGB says."""
    source = ImageCms.getOpenProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    channels = np.meshgrid(*[levels] * (3 if mode == "RGB" else 1), indexing="ij")
    colors = np.stack(channels, axis=-1).reshape(1, -1, len(channels))
    sample = Image.fromarray(colors if mode == "RGB" else colors[..., 0])
    converted = np.asarray(ImageCms.applyTransform(sample, transform), dtype=int)
    return None if np.abs(converted - np.asarray(sample.convert("RGB"), dtype=int)).max() <= SAME_LEVELS else transform
