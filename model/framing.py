"""Whether cameras show the object: what wrong conventions, units and paths have in common is that they do not."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.cameras import Cameras

_AXES_EXPECTED = "world_to_camera in OpenCV axes (x right, y down, z forward) is expected"
_OUTSIDE_EXPECTED = (
    "the cameras' centres must lie outside the box: give their positions and the box in the same units, or a box that "
    "holds the object alone"
)
_OPENGL = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


@dataclass(frozen=True)
class Framing:
    """How many of `total` cameras do not show the object; each is counted once, under the first that is true of it."""

    total: int = 0
    inside: int = 0  # the camera lies inside the object's box
    away: int = 0  # the box's centre is behind it
    outside: int = 0  # the box's centre is beside its picture

    @property
    def missed(self) -> int:
        """Cameras that do not show the object."""
        return self.inside + self.away + self.outside

    @property
    def expected(self) -> str:
        """What cameras have to be like that those which miss the object are not."""
        return _OUTSIDE_EXPECTED if self.missed == self.inside else _AXES_EXPECTED

    def __add__(self, other: Framing) -> Framing:
        return Framing(
            self.total + other.total, self.inside + other.inside, self.away + other.away, self.outside + other.outside
        )

    def __str__(self) -> str:
        """`the object is out of the picture in 3 of 4 cameras (1 looks away, 1 lies inside it)`, or `3 of 4 cameras
        lie inside the object's box`; empty when all show it.
        """
        if not self.missed:
            return ""
        if self.missed == self.inside:
            return f"{self.inside} of {self.total} cameras lie inside the object's box"
        counts = ((self.away, "look away", "looks away"), (self.inside, "lie inside it", "lies inside it"))
        parts = [f"{count} {one if count == 1 else many}" for count, many, one in counts if count]
        return f"the object is out of the picture in {self.missed} of {self.total} cameras" + (
            f" ({', '.join(parts)})" if parts else ""
        )


def framing(cameras: Cameras, scene_bounds: Tensor) -> Framing:
    """What cameras [V] show of the object whose box has the corners scene_bounds [2, 3], world units."""
    cameras, bounds = cameras.to(torch.float64), scene_bounds.to(torch.float64)
    centers, middle = cameras.centers(), bounds.mean(dim=0)
    inside = ((centers > bounds[0]) & (centers < bounds[1])).all(dim=-1)
    pixels, depth = cameras.project(middle[None])
    pixels, depth = pixels[..., 0, :], depth[..., 0]
    away = ~inside & (depth <= 0)
    height, width = cameras.image_size
    shown = ((pixels >= 0) & (pixels <= pixels.new_tensor([width, height]))).all(dim=-1)
    return Framing(
        total=len(centers),
        inside=int(inside.sum()),
        away=int(away.sum()),
        outside=int((~inside & ~away & ~shown).sum()),
    )


def other_convention(cameras: Cameras, scene_bounds: Tensor) -> str | None:
    """The convention in which the matrices [V, 4, 4] would be cameras that all show the object, if there is another:
    the commonest confusions are tried.
    """
    given = cameras.world_to_camera.to(torch.float64)
    meanings = {
        "camera-to-world matrices; invert each": torch.linalg.inv(given),
        "camera-to-world matrices in OpenGL axes (x right, y up, z backward); negate their second and third column, "
        "then invert each": _OPENGL @ torch.linalg.inv(given),
        "world-to-camera matrices in OpenGL axes (x right, y up, z backward); negate their second and third row": (
            _OPENGL @ given
        ),
    }
    for name, matrices in meanings.items():
        meant = Cameras(matrices, cameras.intrinsics.to(torch.float64), cameras.image_size)
        if framing(meant, scene_bounds).missed == 0:
            return name
    return None
