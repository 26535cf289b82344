"""Cameras (the paper, section 3.1), and the conventions of the whole project.

Conventions
-----------
World      Right-handed, z up. After normalisation the object's bounding box is centred at the origin and its largest
           side is 2. `scene_bounds` [2, 3] holds its minimum and maximum corner, in world units.
Camera     OpenCV axes: x right, y down, z forward. `world_to_camera` [4, 4] takes column vectors:
           x_camera = R x_world + t; the camera's centre is c = -Rᵀ t.
Depth      The z coordinate in the camera's frame, in world units. It is not the distance along the ray.
Pixels     Continuous coordinates (u, v), u to the right and v down, in pixels. **Pixel centres lie at half-integers**:
           the pixel in column i and row j is centred at (i + 0.5, j + 0.5), and the image spans [0, W] × [0, H].
           (0, 0) is the outer corner of the top-left pixel.
Intrinsics [3, 3], in the same pixels: [u, v, 1]ᵀ · depth = K x_camera. Hence resizing an image multiplies rows 0 and 1
           of K by the two scales, and cropping subtracts the crop's corner from the principal point: nothing else.
Sizes      Always (height, width).
Rays       A pixel's ray direction is Rᵀ K⁻¹ [u, v, 1]ᵀ, *not* normalised, so that the point of a depth is
           centre + depth · direction.

Shape letters: ... any batch dimensions (mostly B samples, V views), N points, H × W pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Points nearer than this, or behind the camera, are divided by it instead of by their depth: pixels stay finite.
MIN_DEPTH = 1e-8
# Of intrinsics, in image areas: a focal length of a thousandth of the image's side sees 179.9 degrees.
MIN_DETERMINANT = 1e-6
# A rotation read from a file as rounded text or float32 is this orthonormal at least; a wrong one is off by far more.
ROTATION_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Cameras:
    """Pinhole cameras in the conventions of this module, float32 or float64.

    Raises ValueError when the shapes do not belong together. Values are checked only by `check`, which reads them back
    from the device.
    """

    world_to_camera: Tensor  # [..., 4, 4]
    intrinsics: Tensor  # [..., 3, 3] pixels
    image_size: tuple[int, int]  # (height, width) in pixels that the intrinsics refer to

    def __post_init__(self) -> None:
        pose, intrinsics = tuple(self.world_to_camera.shape), tuple(self.intrinsics.shape)
        if pose[-2:] != (4, 4) or intrinsics[-2:] != (3, 3) or pose[:-2] != intrinsics[:-2]:
            raise ValueError(
                f"cameras: world_to_camera {pose} and intrinsics {intrinsics} must be [..., 4, 4] and [..., 3, 3]"
            )
        for name, matrix in (("world_to_camera", self.world_to_camera), ("intrinsics", self.intrinsics)):
            if matrix.dtype not in (torch.float32, torch.float64):
                raise ValueError(f"cameras: {name} has dtype {matrix.dtype}, must be float32 or float64")
        if self.world_to_camera.dtype != self.intrinsics.dtype:
            raise ValueError(
                f"cameras: world_to_camera is {self.world_to_camera.dtype}, intrinsics are {self.intrinsics.dtype}; "
                "they must be alike"
            )
        if len(self.image_size) != 2 or not all(isinstance(side, int) and side > 0 for side in self.image_size):
            raise ValueError(f"cameras: image_size {self.image_size} must be whole numbers (height, width), from 1 on")

    @property
    def shape(self) -> torch.Size:
        """Batch shape, without the matrices' own two dimensions."""
        return self.world_to_camera.shape[:-2]

    @property
    def rotation(self) -> Tensor:
        """[..., 3, 3] world to camera."""
        return self.world_to_camera[..., :3, :3]

    @property
    def translation(self) -> Tensor:
        """[..., 3] the world's origin in the camera's frame, world units."""
        return self.world_to_camera[..., :3, 3]

    def centers(self) -> Tensor:
        """[..., 3] camera centres in the world: c = -Rᵀ t."""
        return -_apply(self.rotation.mT, self.translation[..., None, :])[..., 0, :]

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels [..., N, 2] and depths [..., N] of world points [..., N, 3] (batch dimensions broadcast).

        The pixel of a point that does not lie in front of the camera (depth ≤ 0) is finite but means nothing.
        """
        camera_points = _apply(self.rotation, points) + self.translation[..., None, :]
        depth = camera_points[..., 2]
        divisor = depth.clamp(min=MIN_DEPTH)
        return _apply(self.intrinsics[..., :2, :], camera_points / divisor[..., None]), depth

    def ray_matrices(self) -> Tensor:
        """[..., 3, 3] Rᵀ K⁻¹: from homogeneous pixels [u, v, 1] to ray directions of depth 1."""
        inverse = torch.linalg.inv_ex(self.intrinsics).inverse  # unlike inv, does not wait for the device to check it
        return _apply(self.rotation.mT, inverse.mT).mT

    def ray_directions(self) -> Tensor:
        """[..., H, W, 3] world directions through the pixels' centres, of depth 1 (see Rays above; not normalised)."""
        return self.ray_directions_at(self.image_size).unflatten(-2, self.image_size)

    def ray_directions_at(self, *image_sizes: tuple[int, int]) -> Tensor:
        """The same for images of other sizes, (height, width) each: [..., N, 3] row by row, one size after another."""
        pixels = [pixel_centers(size, self.image_size, like=self.intrinsics).flatten(1) for size in image_sizes]
        return _apply(self.ray_matrices(), torch.cat(pixels, dim=1).mT)

    def resize(self, image_size: tuple[int, int]) -> Cameras:
        """The same cameras for images resized to (height, width) pixels."""
        (height, width), K = image_size, self.intrinsics
        # Row by row: a tensor of the scales would have to be copied to the device first.
        rows = (K[..., 0, :] * (width / self.image_size[1]), K[..., 1, :] * (height / self.image_size[0]), K[..., 2, :])
        return Cameras(self.world_to_camera, torch.stack(rows, dim=-2), (height, width))

    def crop(self, top: float, left: float, image_size: tuple[int, int]) -> Cameras:
        """The same cameras for the part of (height, width) pixels whose top-left corner is at (left, top).

        The part may reach beyond the image (padding).
        """
        shift = self.intrinsics.new_zeros(3, 3)
        shift[0, 2], shift[1, 2] = left, top
        return Cameras(self.world_to_camera, self.intrinsics - shift, image_size)

    def to(self, *args: Any, **kwargs: Any) -> Cameras:
        """Like `Tensor.to`, on both matrices: device, dtype or both."""
        return dataclasses.replace(
            self,
            world_to_camera=self.world_to_camera.to(*args, **kwargs),
            intrinsics=self.intrinsics.to(*args, **kwargs),
        )

    def __getitem__(self, index: Any) -> Cameras:
        """Index the batch dimensions as a tensor's: `cameras[:, 0]`, `cameras[rows]`."""
        return Cameras(self.world_to_camera[index], self.intrinsics[index], self.image_size)

    @staticmethod
    def stack(cameras: Sequence[Cameras], dim: int = 0) -> Cameras:
        """Join cameras of equal batch shape and image size along a new batch dimension `dim` (≥ 0)."""
        return _join(torch.stack, cameras, dim)

    @staticmethod
    def cat(cameras: Sequence[Cameras], dim: int = 0) -> Cameras:
        """Join cameras of equal image size along the batch dimension `dim` (≥ 0)."""
        return _join(torch.cat, cameras, dim)

    def check(self) -> Cameras:
        """Return self if the values are those of real cameras, else raise ValueError that names what is wrong."""
        if not (torch.isfinite(self.world_to_camera).all() and torch.isfinite(self.intrinsics).all()):
            raise ValueError("cameras: world_to_camera and intrinsics must be finite; some value is NaN or infinite")
        identity = torch.eye(3, dtype=self.rotation.dtype, device=self.rotation.device)
        error = (_apply(self.rotation, self.rotation) - identity).abs().amax() if self.rotation.numel() else 0.0
        if error > ROTATION_TOLERANCE or bool((torch.linalg.det(self.rotation) < 0).any()):
            raise ValueError("cameras: world_to_camera must hold rotations: orthonormal, determinant +1")
        focal_lengths = self.intrinsics[..., (0, 1), (0, 1)]
        if not bool((focal_lengths > 0).all()):
            raise ValueError(f"cameras: focal lengths must be positive, the smallest is {focal_lengths.min().item()}")
        last_row = self.world_to_camera.new_tensor([0.0, 0.0, 0.0, 1.0])
        if not torch.equal(self.world_to_camera[..., 3, :], last_row.expand(*self.shape, 4)):
            raise ValueError("cameras: the last row of world_to_camera must be [0, 0, 0, 1]; is it transposed?")
        if not torch.equal(self.intrinsics[..., 2, :], last_row[1:].expand(*self.shape, 3)):
            raise ValueError(
                "cameras: the last row of intrinsics must be [0, 0, 1]; these would be singular or no pixels"
            )
        height, width = self.image_size
        determinants = torch.linalg.det(self.intrinsics) / (height * width)
        if not bool((determinants > MIN_DETERMINANT).all()):
            raise ValueError(
                f"cameras: intrinsics are singular; the smallest determinant is {determinants.min().item():.3g} of the "
                "image's area"
            )
        return self


def pixel_centers(size: tuple[int, int], image_size: tuple[int, int], *, like: Tensor) -> Tensor:
    """Where the centres of an image's pixels lie if it is resized to `image_size`: (u, v, 1), [3, height, width].

    Both sizes are (height, width); dtype and device are those of `like`.
    """
    v, u = (
        (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) * (of / side)
        for side, of in zip(size, image_size, strict=True)
    )
    v, u = torch.meshgrid(v, u, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)])


def _apply(matrix: Tensor, vectors: Tensor) -> Tensor:
    """matrix [..., M, 3] times each of vectors [..., N, 3] -> [..., N, M].

    Written out, because a matrix product would silently lose digits under autocast or TF32, and pixels need them.
    """
    columns = matrix[..., None, :, :]
    product = columns[..., 0] * vectors[..., 0:1]
    product = torch.addcmul(product, columns[..., 1], vectors[..., 1:2])
    return torch.addcmul(product, columns[..., 2], vectors[..., 2:3])


def _join(join: Any, cameras: Sequence[Cameras], dim: int) -> Cameras:
    sizes = {camera.image_size for camera in cameras}
    if len(sizes) != 1 or dim < 0:
        raise ValueError(f"cameras: can join only one image size, along dim ≥ 0; got sizes {sorted(sizes)}, dim {dim}")
    return Cameras(
        join([camera.world_to_camera for camera in cameras], dim),
        join([camera.intrinsics for camera in cameras], dim),
        sizes.pop(),
    )
