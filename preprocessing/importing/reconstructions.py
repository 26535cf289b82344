"""What a reader of other tools' files hands on: posed photos and points, in the conventions of `model.cameras`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pycolmap

from infra.errors import UserError

# Cameras on a line have no plane that says what is upright (see normalization.py): two photos are never enough.
MINIMUM_PHOTOS = 3
# Beyond this a number is no length and no angle, and its square is infinite.
MAX_VALUE = 1e100
# Larger pictures than any sensor's are a damaged file.
MAX_SIDE = 100_000
# Focal lengths of lenses, as shares of the picture's longer side.
MINIMUM_FOCAL_SHARE, MAXIMUM_FOCAL_SHARE = 0.09, 60.0
# Names that a message lists before it only counts.
NAMES_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Photo:
    """One posed photo, as its source describes it: neither the picture nor the mask was opened yet."""

    name: str  # as the source calls it, such as images/one.jpg
    path: Path
    mask_path: Path | None
    world_to_camera: np.ndarray  # [4, 4], rigid, axes as OpenCV's
    camera: pycolmap.Camera  # intrinsics and lens at the source's size; pixel centres at half-integers
    # Numbers [M] of points that were found in this photo, and where [M, 2] in the camera's pixels.
    observations: tuple[np.ndarray, np.ndarray] | None = None

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where points [N, 3] are in the picture, [N, 2] as shares of its width and height from its upper left corner,
        and whether they are in it [N].
        """
        seen = points @ self.world_to_camera[:3, :3].T + self.world_to_camera[:3, 3]
        places = np.nan_to_num(self.camera.img_from_cam(seen), nan=-1.0) / (self.camera.width, self.camera.height)
        return places, (places >= 0).all(1) & (places < 1).all(1) & (seen[:, 2] > 0)

    def reprojection_errors(self, points: np.ndarray) -> np.ndarray:
        """[M] distances in the camera's pixels from where points of [N, 3] were found to where the camera puts them;
        infinite for one behind the camera.
        """
        if self.observations is None:
            return np.empty(0)
        numbers, pixels = self.observations
        places, _ = self.project(points[numbers])
        depths = points[numbers] @ self.world_to_camera[2, :3] + self.world_to_camera[2, 3]
        errors = np.linalg.norm(places * (self.camera.width, self.camera.height) - pixels, axis=1)
        return np.where(depths > 0, errors, np.inf)


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Photos by name, and points of the whole scene, in any world."""

    source: Path  # the folder or file that it was read from
    photos: tuple[Photo, ...]  # at least MINIMUM_PHOTOS
    points: np.ndarray  # [N, 3] finite; none where the source has none
    convention: str  # how this kind of source means its camera poses, for messages about poses that cannot be meant so
    left_out: tuple[tuple[str, str], ...] = ()  # photos that the source names and that cannot be used, with the reason
    notes: tuple[str, ...] = ()  # sentences for the person: what was changed, and which of several things was taken


def focal_doubt(focal: float, width: int, height: int) -> str | None:
    """Why a focal length cannot be one in pixels, if it cannot: lenses see between 1 and 160 degrees."""
    share = focal / max(width, height)
    if MINIMUM_FOCAL_SHARE <= share <= MAXIMUM_FOCAL_SHARE:
        return None
    seen = f" (it would see {2 * math.degrees(math.atan(0.5 / share)):.3g} degrees)" if share > 0 else ""
    return f"{focal:g} for pictures of {width} × {height}{seen}; a focal length must be above 0 and in pixels"


def refuse_photos(source: Path, problems: Iterable[tuple[str, str]]) -> None:
    """Raise one UserError for all photos (name, what is wrong with it), if there are any: the first cause in full, and
    the names of the other photos.
    """
    found = list(problems)
    if found:
        name, text = found[0]
        others = [other for other, _ in found[1:]]
        raise UserError(f"{source}: {name}: {text}" + (f"; also {listed(others)}" if others else ""))


def refuse_value(source: Path, place: str, what: str) -> NoReturn:
    """Raise a UserError about a value of a file that no reconstruction can have."""
    raise UserError(f"{source}: {place}: {what}; export the reconstruction again, or correct the file")


def listed(names: Sequence[str], *, shown: int = NAMES_SHOWN) -> str:
    """The first names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
