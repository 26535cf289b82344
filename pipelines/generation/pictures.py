"""What was generated for one object, kept as one .npz file; and how it is made into pictures for people."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np

from infra.errors import UserError
from infra.storage.files import atomic_write

GRID_GAP = 4  # pixels between the pictures of a grid
WHITE = 255
# What a file raises that is cut off, has a flipped bit, also where it says how it is packed, or holds other arrays.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError)
_LOAD_ERRORS = (*_ZIP_ERRORS, OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, eq=False, kw_only=True)
class ObjectPictures:
    """Generated views of one object, and what they are compared with. None: there is no such thing for this object."""

    caption: str
    generated: np.ndarray  # uint8 [V, H, W, 3]
    azimuth: np.ndarray  # float32 [V] radians, counter-clockwise around the vertical axis
    elevation: np.ndarray  # float32 [V] radians above the horizontal plane
    depth: np.ndarray | None = None  # float32 [V, h, w] world units
    opacity: np.ndarray | None = None  # float32 [V, h, w] in [0, 1]
    known: np.ndarray | None = None  # uint8 [H, W, 3] the given view
    known_angles: np.ndarray | None = None  # float32 [2] azimuth and elevation of the given view, radians
    truth: np.ndarray | None = None  # uint8 [V, H, W, 3]
    reconstructed: np.ndarray | None = None  # uint8 [V, H, W, 3] the truth through the autoencoder and back

    def save(self, path: Path) -> None:
        """Write `path` atomically."""
        buffer = io.BytesIO()
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(buffer, **{name: value for name, value in values.items() if value is not None})
        atomic_write(path, buffer.getvalue())

    @staticmethod
    def load(path: Path) -> ObjectPictures:
        """Read what `save` wrote. Nothing is unpickled.

        Raises UserError when the file is missing, truncated, or anything else than what `save` writes.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            pictures = ObjectPictures(caption=str(arrays.pop("caption")), **arrays)
        except _LOAD_ERRORS as error:
            raise UserError(
                f"{path} cannot be read ({error}); delete {path.parent.parent} and evaluate again"
            ) from error
        return pictures


def pictures_path(folder: Path, *name: str) -> Path:
    """The file of an object in a folder of pictures: `<category>--<sequence>.npz`, or `<name>.npz`."""
    return folder / ("--".join(quote(part, safe="") for part in name) + ".npz")


def color_depth(depth: np.ndarray) -> np.ndarray:
    """Depth [V, h, w] as colours uint8 [V, h, w, 3]: near is bright, far is dark, one scale for all views.

    The scale is linear in 1/depth, which leaves most of the colours to the object and few to the background.
    """
    nearness = 1 / np.maximum(depth, 1e-3)
    low, high = np.percentile(nearness, [1, 99])
    levels = np.clip((nearness - low) / max(high - low, 1e-9), 0, 1)
    colors = cv2.applyColorMap((levels * 255).astype(np.uint8).reshape(-1, 1), cv2.COLORMAP_MAGMA)
    return colors[..., ::-1].reshape(*depth.shape, 3)


def encode_png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as the bytes of a PNG file."""
    _, data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return data.tobytes()


def grid(pictures: ObjectPictures) -> np.ndarray:
    """One picture uint8 [H', W', 3] in rows: the given view and the generated ones, the truth, the depth."""
    height, width = pictures.generated.shape[1:3]
    blank = np.full((height, width, 3), WHITE, np.uint8)
    rows = [[blank if pictures.known is None else pictures.known, *pictures.generated]]
    if pictures.truth is not None:
        rows.append([blank, *pictures.truth])
    if pictures.depth is not None:
        depth = [cv2.resize(view, (width, height)) for view in color_depth(pictures.depth)]
        rows.append([blank, *depth])
    return np.concatenate([_row(images) for images in rows])


def _row(images: list[np.ndarray]) -> np.ndarray:
    padding = ((0, GRID_GAP), (0, GRID_GAP), (0, 0))
    return np.concatenate([np.pad(image, padding, constant_values=WHITE) for image in images], axis=1)
