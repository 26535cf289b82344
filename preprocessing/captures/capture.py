"""What a capture is, whichever files it was read from: sequences of frames with cameras."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_FLIP = np.diag([-1.0, -1.0, 1.0])  # OpenCV's right and down <-> PyTorch3D's left and up
FORMATS = ("ndc_norm_image_bounds", "ndc_isotropic")  # the first is what a file without the field means


@dataclass(frozen=True, slots=True)
class Viewpoint:
    """A camera as CO3D stores it: PyTorch3D's row vectors, x_camera = x_world R + T, x to the left, y up. Values may be
    NaN.
    """

    rotation: tuple[float, ...]  # R, 9 values, row by row
    translation: tuple[float, ...]  # T, 3 values
    focal_length: tuple[float, ...]  # (x, y), in units of the format
    principal_point: tuple[float, ...]  # (x, y), in units of the format, from the image's centre to the left and up
    intrinsics_format: str

    @classmethod
    def from_opencv(
        cls, world_to_camera: np.ndarray, intrinsics: np.ndarray, image_size: tuple[int, int], intrinsics_format: str
    ) -> Viewpoint:
        """The inverse of `to_opencv`."""
        size, units = np.array(image_size[::-1], dtype=np.float64), _ndc_units(image_size, intrinsics_format)
        return cls(
            rotation=tuple((_FLIP @ world_to_camera[:3, :3]).T.ravel().tolist()),
            translation=tuple((_FLIP @ world_to_camera[:3, 3]).tolist()),
            focal_length=tuple((np.diag(intrinsics)[:2] / units).tolist()),
            principal_point=tuple(((size / 2 - intrinsics[:2, 2]) / units).tolist()),
            intrinsics_format=intrinsics_format,
        )

    def entry(self) -> dict[str, object]:
        """As it stands in frame_annotations."""
        return {
            "R": [list(self.rotation[row : row + 3]) for row in (0, 3, 6)],
            "T": list(self.translation),
            "focal_length": list(self.focal_length),
            "principal_point": list(self.principal_point),
            "intrinsics_format": self.intrinsics_format,
        }

    def is_finite(self) -> bool:
        """Whether all values are numbers."""
        values = (*self.rotation, *self.translation, *self.focal_length, *self.principal_point)
        return all(map(math.isfinite, values))

    def to_opencv(self, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """world_to_camera [4, 4] and intrinsics [3, 3] in pixels, float64, in the conventions of `model.cameras`.

        `image_size` is (height, width). One NDC unit is half the shorter side (ndc_isotropic) or half of each side
        (ndc_norm_image_bounds). (0, 0) is the corner of the top-left pixel in both conventions, so pixel centres need
        no shift.
        """
        height, width = image_size
        units = _ndc_units(image_size, self.intrinsics_format)
        intrinsics = np.eye(3)
        intrinsics[(0, 1), (0, 1)] = np.array(self.focal_length) * units
        intrinsics[:2, 2] = np.array([width, height]) / 2 - np.array(self.principal_point) * units
        world_to_camera = np.eye(4)
        world_to_camera[:3, :3] = _FLIP @ np.array(self.rotation).reshape(3, 3).T
        world_to_camera[:3, 3] = _FLIP @ np.array(self.translation)
        return world_to_camera, intrinsics


def _ndc_units(image_size: tuple[int, int], intrinsics_format: str) -> np.ndarray:
    """Pixels of one NDC unit along x and y."""
    height, width = image_size
    isotropic = intrinsics_format == "ndc_isotropic"
    return np.array([min(height, width)] * 2 if isotropic else [width, height], dtype=np.float64) / 2


@dataclass(frozen=True, slots=True)
class Frame:
    """One raw image of a sequence. Paths are relative to the root."""

    number: int
    image_path: str | None
    image_size: tuple[int, int] | None  # (height, width) as annotated
    mask_path: str | None
    viewpoint: Viewpoint | None


@dataclass(frozen=True, slots=True)
class Sequence:
    """One capture of one object; `frames` by rising number."""

    category: str
    name: str
    frames: tuple[Frame, ...]
    point_cloud_path: str | None
    viewpoint_quality: float | None  # higher is better; None where the file says null or NaN
    point_cloud_quality: float | None = None  # likewise


class RejectionError(Exception):
    """A sequence that cannot be used; the message is the reason as it appears in the table of rejected sequences."""
