"""Which points are the object's: they say where it is and how large.

Of a source with points those that the masks show, or without masks those near to where the cameras look. A source
without points (Blender, instant-ngp, Polycam, Record3D) gets some: on the visual hull of its masks (Laurentini 1994),
or without masks on a sphere where the cameras look.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from infra.errors import UserError
from preprocessing.importing.facing import check_facing, check_places, check_poses, common_center
from preprocessing.importing.reconstructions import Photo, Reconstruction
from preprocessing.picking import evenly
from preprocessing.sequences.normalization import MINIMUM_POINTS, camera_centers

# Gives the foreground [H, W] uint8 of a photo, of any size, or None where nothing says what is foreground.
MaskOf = Callable[[Photo], np.ndarray | None]

# A point is the object's if the masks of this share of the photos that show it say so.
MASK_AGREEMENT = 0.7
# And if so many do: what lies behind the object in one photo is often out of the picture in all others.
LEAST_MASKS = 2
# Masks that are white along so much of the picture's edges may be inverted.
EDGE_SHARE = 0.5
# A place is in the visual hull if nearly all masks say so: one bad mask must not cut the object.
HULL_AGREEMENT = 0.95
# Without masks: points this near to where the cameras look, in median camera distances.
OBJECT_RADIUS = 0.4
# Without masks and points: the object's diameter as a share of what a picture's shorter side shows.
OBJECT_SHARE = 2 / 3
# Places along each side of the grid that the hull is cut from, twice: the second grid lies close around the first's
# hull, so that its box is right to some 3 %.
GRID = 40
HULL_PHOTOS = 60
SPHERE_POINTS = 500
# Masks are kept while they are asked; finer ones say nothing more about points.
MASK_SIDE = 640

Silhouettes = list[tuple[Photo, np.ndarray]]


@dataclass(frozen=True, eq=False)
class ObjectPoints:
    """Points of the object, and a sentence about where they come from."""

    points: np.ndarray  # [M, 3], M ≥ MINIMUM_POINTS
    how: str
    notes: tuple[str, ...]  # what a person should know about the cameras' view of it


def object_points(capture: Reconstruction, mask_of: MaskOf, *, radius: float | None = None) -> ObjectPoints:
    """The object's points among the capture's, or made for it. `radius`, in the source's units, says that nothing
    farther from where the cameras look is the object.

    Raises:
        UserError: too few of the points are the object's; the cameras stand on a line, or most do not look at it.
    """
    silhouettes = [(photo, _smaller(mask)) for photo in capture.photos if (mask := mask_of(photo)) is not None]
    poses = np.stack([photo.world_to_camera for photo in capture.photos])
    check_places(capture.source, poses)
    center = common_center(poses)
    if silhouettes:
        _refuse_inverted(capture, silhouettes, center)
    else:
        check_poses(capture)
        check_facing(capture, center[None])
    found, how = _among_points(capture, silhouettes, center, radius)
    if len(found) < MINIMUM_POINTS and silhouettes:
        found = _visual_hull(silhouettes, center, radius or _reach(capture.photos, center))
        how = f"{how}; the object's size is that of its masks' visual hull, {_size(found)}"
    elif not len(capture.points):
        size = radius or OBJECT_SHARE * _reach(capture.photos, center, shorter=True)
        found = center + size * _sphere(SPHERE_POINTS)
        guess = "" if radius else ", two thirds of what the pictures show: --object-radius sets another"
        how = f"no points and no masks: the object is taken to be a sphere of radius {size:.4g}{guess}"
    if len(found) < MINIMUM_POINTS:
        check_poses(capture)
        raise UserError(
            f"{capture.source}: only {len(found)} of {len(capture.points)} points are the object's; give masks that "
            "show it, or its --object-radius"
        )
    return ObjectPoints(found, how, check_facing(capture, found))


def votes(silhouettes: Silhouettes, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For points [N, 3] the number [N] of photos that show each as foreground, and of those in whose picture it is."""
    shown, seen = np.zeros(len(points)), np.zeros(len(points))
    for photo, mask in silhouettes:
        places, inside = photo.project(points)
        seen += inside
        rows, columns = (places[inside, axis] * mask.shape[1 - axis] for axis in (1, 0))
        shown[inside] += mask[rows.astype(int), columns.astype(int)] >= 128
    return shown, seen


def _refuse_inverted(capture: Reconstruction, silhouettes: Silhouettes, center: np.ndarray) -> None:
    """Refuse masks that show most pictures' edges as the object and the place where all cameras look as none of it."""
    shown, _ = votes(silhouettes, center[None])
    edges = [np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]) >= 128 for _, mask in silhouettes]
    around = sum(edge.mean() > EDGE_SHARE for edge in edges)
    if min(around, len(silhouettes) - shown[0]) > MASK_AGREEMENT * len(silhouettes):
        raise UserError(
            f"{capture.source}: {around} of {len(silhouettes)} masks are white along the picture's edges and black "
            "where the cameras look, as if the background was the object; invert them: white (255) is the object"
        )


def _among_points(
    capture: Reconstruction, silhouettes: Silhouettes, center: np.ndarray, radius: float | None
) -> tuple[np.ndarray, str]:
    points = capture.points
    if not len(points):
        return points, "no points"
    distances = np.linalg.norm(points - center, axis=1)
    within = np.ones(len(points), dtype=bool) if radius is None else distances <= radius
    if silhouettes:
        shown, seen = votes(silhouettes, points)
        least = min(LEAST_MASKS, len(silhouettes))
        own = within & (shown >= least) & (shown >= MASK_AGREEMENT * seen)
        return points[own], f"{own.sum()} of {len(points)} points are the object's: those that the masks show"
    if radius is None:
        poses = np.stack([photo.world_to_camera for photo in capture.photos])
        radius = OBJECT_RADIUS * float(np.median(np.linalg.norm(camera_centers(poses) - center, axis=1)))
    own = distances <= radius
    how = f"{own.sum()} of {len(points)} points are the object's: those within {radius:.4g} of where the cameras look"
    return points[own], how


def _visual_hull(silhouettes: Silhouettes, center: np.ndarray, reach: float) -> np.ndarray:
    """[M, 3] places on the surface of what the masks leave of the cube around `center`; none if nothing is left."""
    chosen = evenly(len(silhouettes), HULL_PHOTOS)
    silhouettes = [silhouettes[number] for number in chosen]
    low, high = center - reach, center + reach
    places, kept = _carve(silhouettes, low, high)
    if kept.any():
        cell = (high - low) / (GRID - 1)
        low, high = places[kept].min(axis=0) - cell, places[kept].max(axis=0) + cell
        places, kept = _carve(silhouettes, low, high)
    around = np.pad(kept, 1)
    inner = kept.copy()
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(around, step, axis)[1:-1, 1:-1, 1:-1]
    return places[kept & ~inner]


def _carve(silhouettes: Silhouettes, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places [G, G, G, 3] of a grid between two corners, and which [G, G, G] the masks say are the object."""
    sides = [np.linspace(low[axis], high[axis], GRID) for axis in range(3)]
    places = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1)
    shown, seen = votes(silhouettes, places.reshape(-1, 3))
    kept = (seen >= len(silhouettes) / 2) & (shown >= HULL_AGREEMENT * seen)
    return places, kept.reshape(GRID, GRID, GRID)


def _reach(photos: tuple[Photo, ...], center: np.ndarray, *, shorter: bool = False) -> float:
    """Half of what the pictures show at the distance of the centre, along the longer or shorter side; the median."""
    reaches = []
    for photo in photos:
        sides = (photo.camera.width / photo.camera.focal_length_x, photo.camera.height / photo.camera.focal_length_y)
        distance = np.linalg.norm(photo.world_to_camera[:3, :3] @ center + photo.world_to_camera[:3, 3])
        reaches.append(distance * (min(sides) if shorter else max(sides)) / 2)
    return float(np.median(reaches))


def _sphere(count: int) -> np.ndarray:
    """[count, 3] places spread evenly over the unit sphere, along a spiral (Fibonacci lattice)."""
    steps = np.arange(count) + 0.5
    z, angle = 1 - 2 * steps / count, np.pi * (1 + 5**0.5) * steps
    return np.stack([np.sqrt(1 - z**2) * np.cos(angle), np.sqrt(1 - z**2) * np.sin(angle), z], axis=1)


def _smaller(mask: np.ndarray) -> np.ndarray:
    step = -(-max(mask.shape) // MASK_SIDE)
    return mask[step // 2 :: step, step // 2 :: step]


def _size(points: np.ndarray) -> str:
    return " × ".join(f"{side:.4g}" for side in np.ptp(points, axis=0)) if len(points) else "which is empty"
