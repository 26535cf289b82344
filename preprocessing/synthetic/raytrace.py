"""Renders one frame of a procedural scene: colours, coverage of the object, depth.

Rays are parameterised by camera depth, so t is depth.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.synthetic.camera_paths import FrameCamera
from preprocessing.synthetic.objects import bounding_sphere
from preprocessing.synthetic.shapes import Solid
from preprocessing.synthetic.textures import Background, Ground, paint, paint_background, paint_ground

Array = NDArray[np.float32]

GROUND, BACKGROUND = -1, -2  # what a ray hit, when it is not the index of a solid
EDGE_CONTRAST = 0.1  # pixels that differ more than this from a neighbour are rendered again with four rays
SUBPIXELS = np.array([[-0.375, -0.125], [0.125, -0.375], [0.375, 0.125], [-0.125, 0.375]], np.float32)  # rotated grid
NUM_SHADOW_CASTERS = 6


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Solids on a ground before a background.

    light: unit vector towards the light [3]; ambient in [0, 1] is the part of light from everywhere.
    """

    solids: tuple[Solid, ...]
    ground: Ground
    background: Background
    light: Array
    ambient: float


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What one frame shows."""

    color: Array  # [H, W, 3] in [0, 1] before exposure, highlights may exceed 1
    coverage: Array  # [H, W] share of the pixel that shows the object
    depth: Array  # [H, W] camera depth at the pixel's centre in object units, 0 for the background


def render(scene: Scene, camera: FrameCamera) -> Picture:
    """One ray per pixel centre, then four more for the pixels on edges."""
    height, width = camera.height, camera.width
    rows, columns = np.mgrid[0:height, 0:width].reshape(2, -1).astype(np.float32) + np.float32(0.5)
    color, hit, depth = trace(scene, camera, columns, rows)
    edges = np.flatnonzero(_edges(color.reshape(3, height, width), hit.reshape(height, width)))
    fine_columns = (columns[edges, None] + SUBPIXELS[:, 0]).ravel()
    fine_rows = (rows[edges, None] + SUBPIXELS[:, 1]).ravel()
    fine_color, _, _ = trace(scene, camera, fine_columns, fine_rows)
    num_rays = 1 + len(SUBPIXELS)  # with the one through the centre
    color[:, edges] = (color[:, edges] + fine_color.reshape(3, -1, len(SUBPIXELS)).sum(-1)) / num_rays
    return Picture(
        color=np.ascontiguousarray(color.T).reshape(height, width, 3),
        coverage=_coverage(scene, camera, (hit >= 0).reshape(height, width)),
        depth=depth.reshape(height, width),
    )


def _coverage(scene: Scene, camera: FrameCamera, shown: NDArray[np.bool_]) -> Array:
    """Share [H, W] of each pixel that shows the object, by 4×4 rays where `shown` (at pixel centres) changes nearby."""
    cross = np.ones((3, 3), np.uint8)
    rim = cv2.dilate(shown.view(np.uint8), cross) != cv2.erode(shown.view(np.uint8), cross)
    rows, columns = np.nonzero(rim)
    steps = (np.arange(4, dtype=np.float32) + np.float32(0.5)) / 4
    fine_rows = np.broadcast_to(rows[:, None, None] + steps[:, None], (len(rows), 4, 4)).astype(np.float32)
    fine_columns = np.broadcast_to(columns[:, None, None] + steps, (len(rows), 4, 4)).astype(np.float32)
    _, hit = intersect(scene.solids, *_rays(camera, fine_columns.ravel(), fine_rows.ravel()))
    coverage = shown.astype(np.float32)
    coverage[rim] = (hit.reshape(-1, 16) >= 0).mean(-1)
    return coverage


def trace(scene: Scene, camera: FrameCamera, columns: Array, rows: Array) -> tuple[Array, NDArray[np.int16], Array]:
    """Rays through pixel positions columns, rows [N] -> colour [3, N], what was hit [N], depth [N].

    What was hit is a solid's index, GROUND or BACKGROUND; the background's depth is 0.
    """
    origin, directions = _rays(camera, columns, rows)
    depth, hit = intersect(scene.solids, origin, directions)
    color = np.empty_like(directions)
    _shade_solids(scene, origin, directions, depth, hit, color)
    _shade_rest(scene, origin, directions, depth, hit, color)
    depth[hit == BACKGROUND] = 0
    return color, hit, depth


def _rays(camera: FrameCamera, columns: Array, rows: Array) -> tuple[Array, Array]:
    """The camera's centre [3] and, through pixel positions columns, rows [N], directions [3, N] of camera depth 1."""
    x, y = (columns - camera.center[0]) / camera.focal[0], (rows - camera.center[1]) / camera.focal[1]
    directions = camera.rotation.T.astype(np.float32) @ np.stack([x, y, np.ones_like(x)]).astype(np.float32)
    return (-camera.rotation.T @ camera.translation).astype(np.float32), directions


def intersect(solids: tuple[Solid, ...], origin: Array, directions: Array) -> tuple[Array, NDArray[np.int16]]:
    """Nearest solid along each ray: t [N] (inf: none) and its index [N] (BACKGROUND: none).

    Only rays near a solid are tested against it.
    """
    depth = np.full(directions.shape[1], np.inf, np.float32)
    hit = np.full(directions.shape[1], BACKGROUND, np.int16)
    center, radius = bounding_sphere(solids)
    near = np.flatnonzero(_towards(origin, directions, center, radius))
    close = np.ascontiguousarray(directions[:, near])
    for index, solid in enumerate(solids):
        selected = np.flatnonzero(_towards(origin, close, solid.center, solid.bounding_radius))
        if selected.size == 0:
            continue
        t = solid.intersect(origin, close[:, selected])
        rays = near[selected]
        nearer = t < depth[rays]
        depth[rays[nearer]], hit[rays[nearer]] = t[nearer], index
    return depth, hit


def _towards(origin: Array, directions: Array, center: NDArray[np.floating], radius: float) -> NDArray[np.bool_]:
    """Rays that pass through the sphere: angle to its centre below its angular radius."""
    offset = (center - origin).astype(np.float32)
    along = offset @ directions
    reach = np.float32(max(float(offset @ offset) - radius * radius, 0.0))
    return along * along >= reach * np.einsum("cn,cn->n", directions, directions)


def _shade_solids(
    scene: Scene, origin: Array, directions: Array, depth: Array, hit: NDArray[np.int16], color: Array
) -> None:
    for index, solid in enumerate(scene.solids):
        rays = np.flatnonzero(hit == index)
        if rays.size == 0:
            continue
        ray = directions[:, rays]
        points = origin[:, None] + ray * depth[rays]
        normals = solid.normals(points)
        facing = scene.light @ normals
        sky = 0.72 + 0.28 * normals[2]
        closeness = np.clip(0.55 + points[2] * 2.2, 0, 1)  # the ground takes away light from below
        light = scene.ambient * sky * closeness + (1.15 - scene.ambient) * np.maximum(facing, 0)
        color[:, rays] = paint(solid.material, solid.to_local(points)) * light
        if solid.material.gloss:
            half = scene.light[:, None] - ray / np.sqrt(np.einsum("cn,cn->n", ray, ray))
            shine = np.einsum("cn,cn->n", half, normals) / np.sqrt(np.einsum("cn,cn->n", half, half))
            shine = np.maximum(
                shine, 0.5
            )  # what is below vanishes; raised to a power it would be slow denormal numbers
            for _ in range(5):  # to the power of 32
                shine = shine * shine
            color[:, rays] += np.float32(solid.material.gloss * 0.6) * shine


def _shade_rest(
    scene: Scene, origin: Array, directions: Array, depth: Array, hit: NDArray[np.int16], color: Array
) -> None:
    open_rays = np.flatnonzero(hit == BACKGROUND)
    ray = directions[:, open_rays]
    t = np.where(ray[2] < -1e-6, -origin[2] / np.minimum(ray[2], -1e-6), np.inf).astype(np.float32)
    reach = np.where(np.isfinite(t), t, 0)
    x, y = origin[0] + ray[0] * reach, origin[1] + ray[1] * reach
    on_ground = np.isfinite(t) & (x * x + y * y < scene.ground.radius**2)
    lower, upper = open_rays[on_ground], open_rays[~on_ground]
    x, y = x[on_ground], y[on_ground]
    level = scene.ambient + (1.15 - scene.ambient) * scene.light[2]
    color[:, lower] = paint_ground(scene.ground, x, y) * (level * _shadow(scene, x, y))
    depth[lower], hit[lower] = t[on_ground], GROUND
    color[:, upper] = paint_background(scene.background, ray[:, ~on_ground])


def _shadow(scene: Scene, x: Array, y: Array) -> Array:
    """Factor [N] on the ground's light: a soft shadow along the light and a darker one where the object stands.

    The largest solids stand in as ellipsoids: in the frame where one is a unit sphere, the shadow is a matter of the
    distance between the origin and the ray towards the light.
    """
    factor = np.ones_like(x)
    near = np.flatnonzero(x * x + y * y < 9)
    ground = np.stack([x[near], y[near], np.zeros_like(x[near])])
    direct, contact = np.ones_like(x[near]), np.ones_like(x[near])
    casters = sorted(scene.solids, key=lambda solid: -solid.bounding_radius)[:NUM_SHADOW_CASTERS]
    for solid in casters:
        if solid.bounding_radius < 0.25 * casters[0].bounding_radius:
            break  # its shadow lies in that of the large ones, but for the error of taking those as ellipsoids
        inverse = solid.inverse / np.float32(0.85 * solid.local_radius())
        points = inverse @ (ground - solid.center[:, None])
        light = inverse @ scene.light
        squared = np.einsum("cn,cn->n", points, points)
        distance = np.sqrt(np.maximum(squared - (light @ points) ** 2 / (light @ light), 0))
        direct = np.minimum(direct, np.clip((distance - 0.75) * 2.2, 0, 1))
        contact *= 1 - 0.5 / np.maximum(squared, 1.0) ** 1.5
    share = np.float32((1.15 - scene.ambient) * scene.light[2])
    share /= share + np.float32(scene.ambient)
    factor[near] = (share * direct + 1 - share) * contact
    return factor


def _edges(color: Array, hit: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Pixels [H, W] that differ from a direct neighbour in colour or in what they show: color [3, H, W], hit [H, W]."""
    marked = np.zeros(hit.shape, bool)
    across = (np.abs(np.diff(color, axis=2)).max(0) > EDGE_CONTRAST) | (np.diff(hit, axis=1) != 0)
    down = (np.abs(np.diff(color, axis=1)).max(0) > EDGE_CONTRAST) | (np.diff(hit, axis=0) != 0)
    marked[:, 1:] |= across
    marked[:, :-1] |= across
    marked[1:] |= down
    marked[:-1] |= down
    return marked
