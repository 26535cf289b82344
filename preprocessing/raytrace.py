"""Renders one frame of a procedural scene: colours, coverage of the object, depth. Rays are parameterised by camera depth, so t is depth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preprocessing.camera_paths import FrameCamera
from preprocessing.procedural import bounding_sphere
from preprocessing.shapes import Solid
from preprocessing.textures import Background, Ground, paint, paint_background, paint_ground

Array = NDArray[np.float32]

GROUND, BACKGROUND = -1, -2  # what a ray hit, when it is not the index of a solid
EDGE_CONTRAST = 0.07  # pixels that differ more than this from a neighbour are rendered again with four rays
SUBPIXELS = np.array([[-0.375, -0.125], [0.125, -0.375], [0.375, 0.125], [-0.125, 0.375]], np.float32)  # rotated grid
NUM_SHADOW_CASTERS = 6


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Solids on a ground before a background. light: unit vector towards the light [3]; ambient in [0, 1] is the part of light from everywhere."""

    solids: tuple[Solid, ...]
    ground: Ground
    background: Background
    light: Array
    ambient: float


@dataclass(frozen=True, kw_only=True)
class Picture:
    """color [H, W, 3] float32 in [0, 1]; coverage [H, W] float32: share of the pixel that shows the object; depth [H, W] float32: camera depth at
    the pixel's centre in object units, 0 for the background; is_object [H, W] bool: the pixel's centre shows the object."""

    color: Array
    coverage: Array
    depth: Array
    is_object: NDArray[np.bool_]


def render(scene: Scene, camera: FrameCamera) -> Picture:
    """One ray per pixel centre, then four more for the pixels on edges."""
    height, width = camera.height, camera.width
    rows, columns = np.mgrid[0:height, 0:width].reshape(2, -1).astype(np.float32) + np.float32(0.5)
    color, hit, depth = trace(scene, camera, columns, rows)
    edges = np.flatnonzero(_edges(color.reshape(3, height, width), hit.reshape(height, width)))
    coverage = (hit >= 0).astype(np.float32)
    fine_columns = (columns[edges, None] + SUBPIXELS[:, 0]).ravel()
    fine_rows = (rows[edges, None] + SUBPIXELS[:, 1]).ravel()
    fine_color, fine_hit, _ = trace(scene, camera, fine_columns, fine_rows)
    color[:, edges] = fine_color.reshape(3, -1, len(SUBPIXELS)).mean(-1)
    coverage[edges] = (fine_hit.reshape(-1, len(SUBPIXELS)) >= 0).mean(-1)
    return Picture(
        color=np.ascontiguousarray(color.T).reshape(height, width, 3),
        coverage=coverage.reshape(height, width),
        depth=depth.reshape(height, width),
        is_object=(hit >= 0).reshape(height, width),
    )


def trace(scene: Scene, camera: FrameCamera, columns: Array, rows: Array) -> tuple[Array, NDArray[np.int16], Array]:
    """Rays through pixel positions columns, rows [N] -> colour [3, N], what was hit [N] (a solid's index, GROUND, BACKGROUND), depth [N]."""
    inside = np.stack(
        [
            (columns - camera.center[0]) / camera.focal[0],
            (rows - camera.center[1]) / camera.focal[1],
            np.ones_like(rows),
        ]
    )
    inside = inside.astype(np.float32)
    directions = camera.rotation.T.astype(np.float32) @ inside
    origin = (-camera.rotation.T @ camera.translation).astype(np.float32)
    depth, hit = intersect(scene.solids, origin, directions)
    color = np.empty_like(directions)
    _shade_solids(scene, origin, directions, depth, hit, color)
    _shade_rest(scene, origin, directions, depth, hit, color)
    depth[hit == BACKGROUND] = 0
    return color, hit, depth


def intersect(solids: tuple[Solid, ...], origin: Array, directions: Array) -> tuple[Array, NDArray[np.int16]]:
    """Nearest solid along each ray: t [N] (inf: none) and its index [N] (BACKGROUND: none). Only rays near a solid are tested against it."""
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
            color[:, rays] += np.float32(solid.material.gloss * 0.6) * np.maximum(shine, 0) ** 40


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

    The largest solids stand in as ellipsoids: in their unit-sphere frame the shadow is a matter of the ray's distance from the origin.
    """
    factor = np.ones_like(x)
    near = np.flatnonzero(x * x + y * y < 9)
    ground = np.stack([x[near], y[near], np.zeros_like(x[near])])
    direct, contact = np.ones_like(x[near]), np.ones_like(x[near])
    casters = sorted(scene.solids, key=lambda solid: -abs(float(np.linalg.det(solid.frame))) * solid.bounding_radius)
    for solid in casters[:NUM_SHADOW_CASTERS]:
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
    """Pixels [H, W] that differ from their right or lower neighbour in colour or in what they show, and those neighbours."""
    marked = np.zeros(hit.shape, bool)
    across = (np.abs(np.diff(color, axis=2)).max(0) > EDGE_CONTRAST) | (np.diff(hit, axis=1) != 0)
    down = (np.abs(np.diff(color, axis=1)).max(0) > EDGE_CONTRAST) | (np.diff(hit, axis=0) != 0)
    marked[:, 1:] |= across
    marked[:, :-1] |= across
    marked[1:] |= down
    marked[:-1] |= down
    return marked
