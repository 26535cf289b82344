"""What is in a root of captures, told from its annotations alone; and a picture of some of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from infra.errors import UserError
from infra.storage.files import StoragePath
from model.cameras import Cameras
from model.framing import Framing, framing
from preprocessing.captures.capture import Frame, RejectionError, Sequence
from preprocessing.captures.co3d import read_category
from preprocessing.captures.set_lists import listed_splits, read_eval_batches, read_set_lists, require_listed
from preprocessing.config import PreprocessConfig
from preprocessing.picking import evenly
from preprocessing.sequences.images import DefectError, read_image
from preprocessing.sequences.normalization import common_center, load_points
from preprocessing.sequences.screening import screen

SHEET_SEQUENCES, SHEET_FRAMES = 8, 6
SHEET_ROWS = 4  # of frames, where a sheet is of one sequence
TILE_SIDE = 192  # pixels
TITLE_HEIGHT, PLATE_HEIGHT = 22, 16  # of a sequence's title, of a frame's number
MOST_POINTS = 600  # of a point cloud, drawn: more would hide the object
FEWEST_CAMERAS = 3  # whose axes say where they look together
_WHITE, _DARK = 255, (40, 40, 40)


@dataclass(frozen=True)
class CategorySummary:
    """What the annotations of one category say."""

    category: str
    num_sequences: int
    num_frames: int
    num_usable: int  # sequences that pass every check of annotations; their files are not looked at
    reasons: Mapping[str, int]  # why the others do not, with the number of sequences
    examples: Mapping[str, str]  # of each reason, the name of the first sequence
    intrinsics_formats: Mapping[str, int]  # frames with a camera
    subsets: Mapping[str, Mapping[str, int]]  # set lists: sequences of each split
    eval_batches: Mapping[str, int]  # of each subset that has some
    framing: Framing  # cameras of usable sequences that do not show the place that most of a sequence's cameras look at
    unframed: tuple[str, ...]  # names of the sequences that have such cameras


def summarize_category(root: StoragePath, category: str, config: PreprocessConfig) -> CategorySummary:
    """Read a category's annotations and apply the checks of `config` that need nothing else.

    Raises:
        UserError: an annotation file or a set list is missing, damaged or not what CO3Dv2 defines.
    """
    sequences, reasons, examples = read_category(root, category), Counter[str](), dict[str, str]()
    listed, usable = listed_splits(root, category, config.subset), list[Sequence]()
    for sequence in sequences:
        reason = _rejection(sequence, listed, config)
        if reason is None:
            usable.append(sequence)
        else:
            reasons[reason] += 1
            examples.setdefault(reason, sequence.name)
    framings = {item.name: _framing(item) for item in usable}
    viewpoints = (frame.viewpoint for sequence in sequences for frame in sequence.frames)
    return CategorySummary(
        category=category,
        num_sequences=len(sequences),
        num_frames=sum(len(sequence.frames) for sequence in sequences),
        num_usable=len(usable),
        reasons=dict(reasons.most_common()),
        examples=examples,
        intrinsics_formats=Counter(viewpoint.intrinsics_format for viewpoint in viewpoints if viewpoint is not None),
        subsets={
            subset: Counter(split for splits in named.values() for split in splits)
            for subset, named in read_set_lists(root, category).items()
        },
        eval_batches={subset: len(batches) for subset, batches in read_eval_batches(root, category).items()},
        framing=sum(framings.values(), Framing()),
        unframed=tuple(name for name, cameras in framings.items() if cameras.missed),
    )


def contact_sheet(root: StoragePath, category: str, config: PreprocessConfig) -> np.ndarray:
    """Some usable sequences of a category, a row each: evenly spaced frames with the point cloud projected into them,
    uint8 [H, W, 3] RGB. Nearer points are brighter. A picture that cannot be read is a tile that says why.

    Raises:
        UserError: as `summarize_category`, or no sequence passes the checks.
    """
    listed = listed_splits(root, category, config.subset)
    usable = [item for item in read_category(root, category) if _rejection(item, listed, config) is None]
    if not usable:
        raise UserError(f"contact sheet of {category}: no sequence passes the checks of preprocess; relax them")
    chosen = [usable[place] for place in evenly(len(usable), SHEET_SEQUENCES)]
    return np.concatenate([_row(root, sequence) for sequence in chosen])


def sequence_sheet(root: StoragePath, sequence: Sequence) -> np.ndarray:
    """The same of one sequence, with up to SHEET_ROWS rows of its frames."""
    return _row(root, sequence, SHEET_FRAMES * SHEET_ROWS)


def _rejection(sequence: Sequence, listed: Container[str], config: PreprocessConfig) -> str | None:
    """Why a sequence does not pass the checks of its annotations; None if it does."""
    try:
        require_listed(sequence, listed, config)
        screen(sequence, config)
    except RejectionError as reason:
        return str(reason)
    return None


def _framing(sequence: Sequence) -> Framing:
    """What the sequence's cameras show of the place that they look at together, without a look at its points."""
    poses, intrinsics = [], []
    for frame in sequence.frames:
        if frame.viewpoint is not None and frame.viewpoint.is_finite() and frame.image_size is not None:
            height, width = frame.image_size
            pose, matrix = frame.viewpoint.to_opencv(frame.image_size)
            poses.append(pose)
            intrinsics.append(np.diag([1 / width, 1 / height, 1]) @ matrix)  # of pictures of 1 × 1
    if len(poses) < FEWEST_CAMERAS:
        return Framing()
    place = torch.from_numpy(common_center(np.stack(poses)))
    cameras = Cameras(torch.from_numpy(np.stack(poses)), torch.from_numpy(np.stack(intrinsics)), (1, 1))
    return framing(cameras, torch.stack([place, place]))


def _row(root: StoragePath, sequence: Sequence, most_frames: int = SHEET_FRAMES) -> np.ndarray:
    title = np.full((TITLE_HEIGHT, TILE_SIDE * SHEET_FRAMES, 3), _WHITE, np.uint8)
    try:
        assert sequence.point_cloud_path is not None, "screened before"
        points = load_points(root / sequence.point_cloud_path)
        points, remark = points[:: max(1, len(points) // MOST_POINTS)], ""
    except RejectionError as reason:
        points, remark = np.empty((0, 3)), f"  {reason}"
    _write(
        title,
        f"{sequence.category}/{sequence.name}  {len(sequence.frames)} frames; nearer points are brighter{remark}",
        (4, 15),
    )
    frames = [sequence.frames[place] for place in evenly(len(sequence.frames), most_frames)]
    tiles = [_tile(root, frame, points) for frame in frames]
    tiles += [np.full((TILE_SIDE, TILE_SIDE, 3), _WHITE, np.uint8)] * (-len(tiles) % SHEET_FRAMES)
    rows = [np.concatenate(tiles[first : first + SHEET_FRAMES], axis=1) for first in range(0, len(tiles), SHEET_FRAMES)]
    return np.concatenate([title, *rows])


def _tile(root: StoragePath, frame: Frame, points: np.ndarray) -> np.ndarray:
    """A whole picture in the middle of a square, with the points on it."""
    tile = np.full((TILE_SIDE, TILE_SIDE, 3), _WHITE, np.uint8)
    try:
        if frame.image_path is None or frame.image_size is None:
            raise DefectError("no image in the annotation")
        image = read_image(root / frame.image_path, frame.image_size)
    except DefectError as reason:
        _write(tile, f"{frame.number}: {reason}", (4, TILE_SIDE // 2))
        return tile
    scale = TILE_SIDE / max(frame.image_size)
    width, height = round(frame.image_size[1] * scale), round(frame.image_size[0] * scale)
    top, left = (TILE_SIDE - height) // 2, (TILE_SIDE - width) // 2
    part = tile[top : top + height, left : left + width]
    part[:] = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    if frame.viewpoint is not None and frame.viewpoint.is_finite():
        _draw_points(part, points, *frame.viewpoint.to_opencv(frame.image_size), scale=scale)
    number = str(frame.number)
    tile[-PLATE_HEIGHT:, : 8 * len(number) + 8] = _WHITE
    _write(tile, number, (4, TILE_SIDE - 4))
    return tile


def _draw_points(image: np.ndarray, points: np.ndarray, pose: np.ndarray, matrix: np.ndarray, *, scale: float) -> None:
    """Put points [N, 3] onto `image`, which shows what the camera sees, scaled; far ones first."""
    seen = points @ pose[:3, :3].T + pose[:3, 3]
    seen = seen[seen[:, 2] > 0]
    seen = seen[np.argsort(-seen[:, 2])]
    pixels = scale * (seen @ matrix.T)[:, :2] / seen[:, 2:]
    nearness = np.linspace(0, 255, len(pixels)).astype(np.uint8).reshape(-1, 1)
    colors = cv2.applyColorMap(nearness, cv2.COLORMAP_VIRIDIS).reshape(-1, 3)[:, ::-1] if len(pixels) else []
    inside = ((pixels >= 0) & (pixels < (image.shape[1], image.shape[0]))).all(axis=1)
    for (u, v), color, is_inside in zip(pixels, colors, inside, strict=True):
        if is_inside:
            image[int(v), int(u)] = color


def _write(image: np.ndarray, text: str, place: tuple[int, int]) -> None:
    """Dark letters on a light edge, which can be read on any picture."""
    for color, thickness in (((_WHITE,) * 3, 3), (_DARK, 1)):
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, color, thickness, cv2.LINE_AA)
