"""The dataset card's pictures: some stored frames, each with the object's box and its mask's outline drawn on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import product

import cv2
import numpy as np
import torch

from infra.log import format_count
from model.cameras import Cameras
from pipelines.pages.page import data_url
from preprocessing.picking import evenly_on_turn
from preprocessing.shards.reading import FrameIndex, SequenceRecord, ShardReader

MOST_FRAMES = 12  # on the whole card
MOST_PER_CATEGORY, MOST_PER_SEQUENCE = 3, 6  # sequences, frames
LARGEST_SIDE = 320  # pixels; larger pictures are scaled down to it
MOST_CAPTIONS = 2  # of a sequence
SHOT_WIDTH = 210  # of a picture on the page, pixels, at least
NEAR = 0.01  # world units: what is nearer to the camera cannot be drawn and is cut off
OUTLINE_TOLERANCE = 0.5  # pixels
_HALF = 128  # of a mask: foreground is at least this probable, · 255


def choose_frames(sequences: Sequence[SequenceRecord]) -> list[tuple[SequenceRecord, list[int]]]:
    """Up to three sequences of each category with rows of frames all around them, `MOST_FRAMES` rows in all.

    Evenly spaced among the categories, the sequences and the frames; the same for the same index.
    """
    grouped: dict[str, list[SequenceRecord]] = {}
    for item in sequences:
        grouped.setdefault(item.category, []).append(item)
    names = sorted(grouped)
    categories = [grouped[names[place]] for place in evenly_on_turn(len(names), MOST_FRAMES)]
    wanted = min(MOST_PER_CATEGORY, max(1, MOST_FRAMES // (2 * len(categories))))
    chosen = [items[place] for items in categories for place in evenly_on_turn(len(items), wanted)]
    num_frames = min(MOST_PER_SEQUENCE, MOST_FRAMES // len(chosen))
    return [(item, [item.rows[place] for place in evenly_on_turn(len(item.rows), num_frames)]) for item in chosen]


def sample_figures(index: FrameIndex, reader: ShardReader) -> str:
    """The chosen sequences, as HTML.

    Raises:
        UserError: a shard is missing or damaged.
    """
    chosen = choose_frames(index.sequences())
    figures = [_sequence_figure(index, reader, item, rows) for item, rows in chosen]
    width = SHOT_WIDTH * max(_columns(len(rows)) for _, rows in chosen)
    return f'<div class="objects samples" style="--width:{width}px">{"".join(figures)}</div>'


def _columns(num_frames: int) -> int:
    """Pictures beside each other: more than four would be small, and go in two rows."""
    return num_frames if num_frames <= 4 else math.ceil(num_frames / 2)


def _sequence_figure(index: FrameIndex, reader: ShardReader, item: SequenceRecord, rows: list[int]) -> str:
    name = f"{item.category} / {item.sequence}"
    captions = " · ".join(f"“{caption}”" for caption in item.captions[:MOST_CAPTIONS])
    if len(item.captions) > MOST_CAPTIONS:
        captions += f" and {len(item.captions) - MOST_CAPTIONS} more"
    shots = [
        frame_figure(
            reader.image(row),
            reader.mask(row),
            index.cameras([row])[0],
            item.scene_bounds,
            title=f"frame {index.frame_numbers[row]}",
            of=name,
        )
        for row in rows
    ]
    return (
        f'<figure class="object"><header><h3>{escape(name)}</h3>'
        f'<p class="scores">{escape(item.split)} · {format_count(len(item.rows), "frame")}</p></header>'
        f'<p class="caption">{escape(captions)}</p>'
        f'<div class="shots" style="--panes:{_columns(len(rows))}">{"".join(shots)}</div></figure>'
    )


def frame_figure(
    image: np.ndarray, mask: np.ndarray | None, camera: Cameras, bounds: np.ndarray, *, title: str, of: str
) -> str:
    """A picture [H, W, 3] uint8 with the box `bounds` [2, 3] as its camera sees it and the outline of its mask [H, W],
    if it has one; below it, where the camera stands.
    """
    (height, width), (azimuth, elevation, radius) = image.shape[:2], _place(camera)
    outline = "" if mask is None else f'<path class="outline" d="{mask_outline(mask)}"/>'
    lines = "".join(
        f'<path class="{kind}" d="M{start[0]:.1f} {start[1]:.1f}L{end[0]:.1f} {end[1]:.1f}"/>'
        for kind, start, end in box_lines(camera, bounds)
    )
    return (
        f'<figure class="shot"><div class="window" style="--aspect:{width}/{height}">'
        f'<img class="one" src="{data_url(_shrink(image))}" alt="{escape(f"{title} of {of}")}">'
        f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">{outline}{lines}</svg></div>'
        f"<figcaption>{escape(title)} · radius {radius:.1f}<br>azimuth {azimuth}° · elevation {elevation}°</figcaption>"
        "</figure>"
    )


def box_lines(camera: Cameras, bounds: np.ndarray) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The edges of the box `bounds` [2, 3] (minimum and maximum corner) that lie in front of one camera: (CSS classes,
    pixels [2] of one end, of the other).

    "base" are the four of the bottom face; "hidden" those behind the box itself, seen from there.
    """
    center = camera.centers().double().numpy()
    faces = np.stack([center < bounds[0], center > bounds[1]])  # [2, 3] whether the camera sees the face
    lines = []
    for axis, (first, second) in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1))):
        for i, j in product((0, 1), repeat=2):
            ends = bounds.astype(np.float32).copy()
            ends[:, first], ends[:, second] = bounds[i, first], bounds[j, second]
            pixels = _project_line(camera, torch.from_numpy(ends))
            if pixels is None:
                continue
            is_base = axis != 2 and j == 0
            is_hidden = faces.any() and not (faces[i, first] or faces[j, second])
            kinds = ["edge", *(["base"] if is_base else []), *(["hidden"] if is_hidden else [])]
            lines.append((" ".join(kinds), *pixels))
    return lines


def _project_line(camera: Cameras, ends: torch.Tensor) -> np.ndarray | None:
    """Pixels [2, 2] of the part of a line between world points [2, 3] that lies before the camera, if there is any."""
    depth = camera.project(ends)[1]
    if (depth < NEAR).all():
        return None
    if (depth < NEAR).any():
        share = (NEAR - depth[0]) / (depth[1] - depth[0])
        ends = ends.clone()
        ends[int(depth[1] < NEAR)] = ends[0] + share * (ends[1] - ends[0])
    return camera.project(ends)[0].numpy()


def mask_outline(mask: np.ndarray) -> str:
    """SVG path around the foreground of a mask [H, W] uint8, its holes included, in pixels."""
    contours, _ = cv2.findContours((mask >= _HALF).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, OUTLINE_TOLERANCE, closed=True)[:, 0] + 0.5  # the middles of pixels
        parts.append("M" + "L".join(f"{u:g} {v:g}" for u, v in points) + "Z")
    return "".join(parts)


def _place(camera: Cameras) -> tuple[int, int, float]:
    """Azimuth and elevation of a camera in whole degrees, its distance from the origin in world units."""
    x, y, z = camera.centers().tolist()
    azimuth, elevation = math.degrees(math.atan2(y, x)), math.degrees(math.atan2(z, math.hypot(x, y)))
    return round(azimuth) % 360, round(elevation), math.sqrt(x * x + y * y + z * z)


def _shrink(image: np.ndarray) -> np.ndarray:
    side = max(image.shape[:2])
    if side <= LARGEST_SIDE:
        return image
    height, width = (max(1, round(length * LARGEST_SIDE / side)) for length in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
