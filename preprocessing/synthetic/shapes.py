"""Analytic solids and their exact intersection with rays that share one origin.

All arrays are component-first, float32: points and directions are [3, N]. A ray is origin + t · direction. Directions
need not be normalised, so a direction parameterised by camera depth gives t = camera depth. Each solid lives in its own
local frame: object = frame @ local + center.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preprocessing.synthetic.textures import Material

Array = NDArray[np.float32]

# After each round of steps only the rays that still move go on; the last ones graze one side and then hit another.
SPHERE_TRACING_ROUNDS, SPHERE_TRACING_STEPS = 16, 5
SPHERE_TRACING_TOLERANCE = 2e-3  # of a local unit: far below a pixel at any size the data is rendered in


@dataclass(frozen=True, kw_only=True)
class Solid(ABC):
    """A solid in a local frame, with what is painted on it.

    frame: [3, 3] float32, local -> object (any invertible matrix). center: [3] float32, object frame.
    """

    frame: Array
    center: Array
    material: Material

    @cached_property
    def inverse(self) -> Array:
        """[3, 3] float32: object directions -> local directions."""
        return np.linalg.inv(self.frame)

    def to_local(self, points: Array) -> Array:
        """Object points [3, N] -> local points [3, N]."""
        return self.inverse @ (points - self.center[:, None])

    def intersect(self, origin: Array, directions: Array) -> Array:
        """First hit of each ray: t [N], inf where the ray misses.

        origin [3] and directions [3, N] are in the object frame; the origin is outside the solid.
        """
        return self._intersect_local(self.inverse @ (origin - self.center), self.inverse @ directions)

    def normals(self, points: Array) -> Array:
        """Outward unit normals [3, N] at surface points [3, N], object frame."""
        gradient = self.inverse.T @ self._gradient_local(self.to_local(points))
        return gradient / np.maximum(np.sqrt(np.einsum("cn,cn->n", gradient, gradient)), 1e-12)

    def moved(self, offset: ArrayLike, scale: float = 1.0) -> Self:
        """The same solid scaled about the object's origin, then shifted by `offset` [3]."""
        center = (scale * self.center + np.asarray(offset)).astype(np.float32)
        return replace(self, frame=(scale * self.frame).astype(np.float32), center=center)

    def rotated(self, rotation: Array) -> Self:
        """The same solid turned about the object's origin by `rotation` [3, 3]."""
        return replace(self, frame=rotation @ self.frame, center=rotation @ self.center)

    @cached_property
    def bounding_radius(self) -> float:
        """Radius of a sphere around `center` that holds the whole solid."""
        return float(np.linalg.norm(self.frame, ord=2)) * self.local_radius()

    @abstractmethod
    def lowest(self) -> float:
        """The smallest z the solid reaches (object frame)."""

    @abstractmethod
    def local_radius(self) -> float:
        """Radius of the same sphere in the local frame."""

    @abstractmethod
    def _intersect_local(self, origin: Array, directions: Array) -> Array:
        """First hit of rays in the local frame."""

    @abstractmethod
    def _gradient_local(self, points: Array) -> Array:
        """Outward, of any length, at local surface points."""


@dataclass(frozen=True, kw_only=True)
class Ellipsoid(Solid):
    """The unit ball of the local frame."""

    def lowest(self) -> float:
        return float(self.center[2] - np.linalg.norm(self.frame[2]))

    def local_radius(self) -> float:
        return 1.0

    def _intersect_local(self, origin: Array, directions: Array) -> Array:
        nearest, squared = _nearest_to_center(origin, directions)
        closest = origin[:, None] + directions * nearest
        room = 1.0 - np.einsum("cn,cn->n", closest, closest)
        return np.where(room > 0, nearest - np.sqrt(np.maximum(room, 0) / squared), np.inf).astype(np.float32)

    def _gradient_local(self, points: Array) -> Array:
        return points


@dataclass(frozen=True, kw_only=True)
class CappedCone(Solid):
    """x² + y² <= r(z)² for z in [-1, 1] of the local frame; r goes linearly from `bottom` to `top`.

    Equal radii make a cylinder. The frame's third column is at right angles to the others.
    """

    bottom: float = 1.0
    top: float = 1.0

    def lowest(self) -> float:
        spread = np.hypot(self.frame[2, 0], self.frame[2, 1])
        return float(
            self.center[2] + min(-self.frame[2, 2] - self.bottom * spread, self.frame[2, 2] - self.top * spread)
        )

    @cached_property
    def bounding_radius(self) -> float:
        width = max(self.bottom, self.top) * np.linalg.norm(self.frame[:, :2], ord=2)
        return float(np.hypot(np.linalg.norm(self.frame[:, 2]), width))

    def local_radius(self) -> float:
        return float(np.hypot(1.0, max(self.bottom, self.top)))

    def _intersect_local(self, origin: Array, directions: Array) -> Array:
        nearest, _ = _nearest_to_center(origin, directions)
        x, y, z = (
            origin[:, None] + directions * nearest
        )  # restart beside the solid: differences of large squares lose float32 digits
        dx, dy, dz = directions
        slope = (self.top - self.bottom) / 2
        radius = self.bottom + slope * (z + 1)
        a = dx * dx + dy * dy - slope * slope * dz * dz
        b = x * dx + y * dy - slope * dz * radius
        discriminant = b * b - a * (x * x + y * y - radius * radius)
        a = np.where(np.abs(a) < 1e-9, 1e-9, a)
        root = np.sqrt(np.maximum(discriminant, 0))
        best = np.full_like(nearest, np.inf)
        for step in ((-b - root) / a, (-b + root) / a):
            hit = (discriminant > 0) & (np.abs(z + step * dz) <= 1)
            best = np.where(hit & (step < best), step, best)
        dz = np.where(np.abs(dz) < 1e-9, 1e-9, dz)
        for height, cap in ((-1.0, self.bottom), (1.0, self.top)):
            step = (height - z) / dz
            hit = (x + step * dx) ** 2 + (y + step * dy) ** 2 <= cap * cap
            best = np.where(hit & (step < best), step, best)
        return (nearest + best).astype(np.float32)

    def _gradient_local(self, points: Array) -> Array:
        x, y, z = points
        slope = (self.top - self.bottom) / 2
        radius = self.bottom + slope * (z + 1)
        on_cap = np.hypot(x, y) - radius < np.abs(z) - 1  # deeper below the side than below the cap
        side = np.stack([x, y, -slope * radius])
        cap = np.stack([np.zeros_like(z), np.zeros_like(z), np.sign(z)])
        return np.where(on_cap, cap, side)


@dataclass(frozen=True, kw_only=True)
class Torus(Solid):
    """Points within `tube` of the circle of radius `ring` around local z.

    A tube wider than the ring closes the hole and leaves two dimples: an apple. `taper` widens the upper half and
    narrows the lower one.
    """

    ring: float
    tube: float
    taper: float = 0.0

    def lowest(self) -> float:
        return float(
            self.center[2] - np.linalg.norm(self.frame[2]) * self.tube - self.ring * np.hypot(*self.frame[2, :2])
        )

    def local_radius(self) -> float:
        return (self.ring + self.tube) * (1 + abs(self.taper) * self.tube)

    def _distance(self, x: Array, y: Array, z: Array) -> Array:
        return np.hypot(np.hypot(x, y) / (1 + self.taper * z) - self.ring, z) - np.float32(self.tube)

    def _intersect_local(self, origin: Array, directions: Array) -> Array:
        nearest, squared = _nearest_to_center(origin, directions)
        closest = origin[:, None] + directions * nearest
        speed = np.sqrt(squared)
        room = self.local_radius() ** 2 - np.einsum("cn,cn->n", closest, closest)
        half = np.sqrt(np.maximum(room, 0)) / speed
        alive = np.flatnonzero(room > 0)
        result = np.full_like(nearest, np.inf)
        ray, start, end = directions[:, alive], closest[:, alive], half[alive]
        shrink = 1 - abs(self.taper) * (self.ring + self.tube)  # keeps a step below the true distance when tapered
        relax = shrink / speed[alive]
        step = -end
        moving = np.arange(len(alive))
        for _ in range(SPHERE_TRACING_ROUNDS):
            position, far = step[moving], relax[moving]
            base, along = start[:, moving], ray[:, moving]
            for _ in range(SPHERE_TRACING_STEPS):
                position = position + self._distance(*(base + along * position)) * far
            unfinished = (position < end[moving]) & (position - step[moving] > SPHERE_TRACING_TOLERANCE * far)
            step[moving] = position
            moving = moving[unfinished]
        inside = step < end
        inside &= self._distance(*(start + ray * np.where(inside, step, 0))) < SPHERE_TRACING_TOLERANCE
        alive, ray, start, step = alive[inside], ray[:, inside], start[:, inside], step[inside]
        result[alive] = nearest[alive] + self._newton(start, ray, step)
        return result.astype(np.float32)

    def _newton(self, start: Array, ray: Array, step: Array) -> Array:
        """Two Newton steps onto the surface; none where the ray grazes it, since the slope vanishes there."""
        steep = -0.2 * np.sqrt(np.einsum("cn,cn->n", ray, ray))
        for _ in range(2):
            points = start + ray * step
            slope = np.einsum("cn,cn->n", self._gradient_local(points), ray)
            step = step - np.where(slope < steep, self._distance(*points) / np.minimum(slope, steep), 0)
        return step

    def _gradient_local(self, points: Array) -> Array:
        x, y, z = points
        radial = np.maximum(np.hypot(x, y), 1e-9)
        widening = 1 + self.taper * z
        across = radial / widening - self.ring
        length = np.maximum(np.hypot(across, z), 1e-9)
        outward = across / length / widening
        upward = z / length - across / length * radial * self.taper / widening**2
        return np.stack([outward * x / radial, outward * y / radial, upward])


def _nearest_to_center(origin: Array, directions: Array) -> tuple[Array, Array]:
    """Ray parameter [N] of the point nearest to the local origin, and squared lengths [N] of the directions."""
    squared = np.einsum("cn,cn->n", directions, directions)
    return -(origin @ directions) / squared, squared
