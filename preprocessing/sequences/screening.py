"""From one captured sequence to one stored sample, or to the reason why there is none.

A sequence is rejected for: an odd name, two frames of one number, too few frames, the quality scores of its cameras or
its point cloud, no usable point cloud, cameras without a plane or an up, cameras that do not go around the object,
pictures that disagree with their cameras. A frame is dropped for: no or broken camera, a camera far from all others, an
image that is missing, undecodable, truncated, black, blurred, small or of another size than annotated, an object that
is small in it. Which of these apply, and their limits, are settings (`PreprocessConfig`).

A missing, empty or broken mask drops nothing: the frame is stored without one and cropped around the object's projected
centre, since a mask serves only the crop and the evaluation.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model.cameras import ROTATION_TOLERANCE, Cameras
from preprocessing.captures.capture import Frame, RejectionError, Sequence
from preprocessing.config import PreprocessConfig
from preprocessing.sequences import images
from preprocessing.sequences.epipolar import PosedPhoto, sequence_distance
from preprocessing.sequences.normalization import Normalization, coverage_degrees, load_points, normalization, plausible

KEPT_MARK = " (frame kept)"
# Names become tar member names and webdataset keys, in which a dot would end the key and a slash would make a folder.
SAFE_NAME = re.compile(r"[A-Za-z0-9_\-]{1,80}")


@dataclass(frozen=True, eq=False)
class StoredFrame:
    """One frame, encoded."""

    number: int
    image: bytes  # JPEG
    mask: bytes | None  # PNG
    world_to_camera: np.ndarray  # [4, 4] float32, normalised world
    intrinsics: np.ndarray  # [3, 3] float32, pixels of the stored image
    intensity: tuple[float, float]  # mean, variance


@dataclass(frozen=True, eq=False)
class StoredSequence:
    """One sequence's frames and transform, and the defects met on the way as (frame number, reason)."""

    frames: list[StoredFrame]
    normalization: Normalization
    defects: list[tuple[int, str]]


def screen(sequence: Sequence, config: PreprocessConfig) -> None:
    """Check what the annotations alone tell.

    Raises:
        RejectionError: with the reason.
    """
    if not SAFE_NAME.fullmatch(sequence.name):
        raise RejectionError("name has other characters than letters, digits, - and _ (or over 80)")
    if sequence.point_cloud_path is None:
        raise RejectionError("no point cloud")
    numbers = [frame.number for frame in sequence.frames]
    if len(set(numbers)) < len(numbers):
        raise RejectionError("a frame number occurs twice")
    defects = [(frame.number, _annotated_defect(frame, config)) for frame in sequence.frames]
    found = [(number, defect) for number, defect in defects if defect is not None]
    _require_frames(len(numbers) - len(found), config, found)
    for name, quality, least in (
        ("viewpoint", sequence.viewpoint_quality, config.minimum_viewpoint_quality),
        ("point cloud", sequence.point_cloud_quality, config.minimum_point_cloud_quality),
    ):
        if least is not None and (quality is None or quality < least):
            raise RejectionError(f"{name} quality below {least:g} or unknown")


def needed_files(sequence: Sequence) -> list[str]:
    """Files below the root that `store_sequence` reads."""
    paths = [path for frame in sequence.frames for path in (frame.image_path, frame.mask_path)]
    return [path for path in (sequence.point_cloud_path, *paths) if path is not None]


def store_sequence(root: Path, sequence: Sequence, config: PreprocessConfig) -> StoredSequence:
    """Read, check, normalise, crop, resize and encode a sequence that passed `screen`.

    Raises:
        RejectionError: with the reason.
    """
    assert sequence.point_cloud_path is not None, "screened before"
    points = load_points(root / sequence.point_cloud_path)
    defects: list[tuple[int, str]] = []
    frames, world_to_camera, intrinsics = _usable_cameras(sequence.frames, points, config, defects)
    _require_frames(len(frames), config, defects)
    transform = normalization(points, world_to_camera)
    cameras = transform.cameras(world_to_camera)
    _require_coverage(cameras, config)  # before any picture is decoded; frames that are dropped then only take from it
    poses = torch.from_numpy(cameras)
    stored = []
    for frame, pose, matrix in zip(frames, poses, torch.from_numpy(intrinsics), strict=True):
        assert frame.image_size is not None, "frames without are not usable"
        try:
            stored.append(_store_frame(root, frame, Cameras(pose, matrix, frame.image_size), config, defects))
        except images.DefectError as error:
            defects.append((frame.number, str(error)))
    _require_frames(len(stored), config, defects)
    _require_agreement(stored, config)
    return StoredSequence(stored, transform, sorted(defects))


def _require_coverage(world_to_camera: np.ndarray, config: PreprocessConfig) -> None:
    """Check that cameras [N, 4, 4] go around the object."""
    if coverage_degrees(world_to_camera) < config.minimum_coverage_degrees:
        raise RejectionError(f"cameras cover less than {config.minimum_coverage_degrees:g} degrees")


def _require_agreement(frames: list[StoredFrame], config: PreprocessConfig) -> None:
    """Check that the cameras that are left go around the object, and that the pictures agree with them."""
    _require_coverage(np.stack([frame.world_to_camera for frame in frames]), config)
    limit, size = config.maximum_epipolar_pixels, (config.image_size, config.image_size)
    if limit is None:
        return
    distance = sequence_distance(
        PosedPhoto(images.decode_image(f.image, size), f.world_to_camera, f.intrinsics) for f in frames
    )
    if distance is None:
        raise RejectionError("neighbouring pictures have nothing in common")
    if distance > limit:
        raise RejectionError(f"pictures are more than {limit:g} pixels off their cameras")


def _require_frames(count: int, config: PreprocessConfig, defects: list[tuple[int, str]]) -> None:
    needed = max(config.minimum_frames, 3)  # three camera centres make a plane
    if count >= needed:
        return
    reason = f"fewer than {needed} usable frames"
    counts = Counter(defect for _, defect in defects if not defect.endswith(KEPT_MARK))
    raise RejectionError(
        f"{reason}, mostly: {min(counts, key=lambda defect: (-counts[defect], defect))}" if counts else reason
    )


def _usable_cameras(
    frames: tuple[Frame, ...], points: np.ndarray, config: PreprocessConfig, defects: list[tuple[int, str]]
) -> tuple[list[Frame], np.ndarray, np.ndarray]:
    """Frames with a picture and a sane camera, their world_to_camera [N, 4, 4] and intrinsics [N, 3, 3]; appends the
    others to `defects`.
    """
    kept, poses, matrices = [], [np.empty((0, 4, 4))], [np.empty((0, 3, 3))]
    for frame, pose, matrix in _cameras(frames, config, defects):
        kept.append(frame)
        poses.append(pose[None])
        matrices.append(matrix[None])
    world_to_camera, intrinsics = np.concatenate(poses), np.concatenate(matrices)
    if not kept:
        return kept, world_to_camera, intrinsics
    near = plausible(world_to_camera, points)
    defects += [(frame.number, "camera far from all others") for frame, ok in zip(kept, near, strict=True) if not ok]
    return [frame for frame, ok in zip(kept, near, strict=True) if ok], world_to_camera[near], intrinsics[near]


def _cameras(
    frames: tuple[Frame, ...], config: PreprocessConfig, defects: list[tuple[int, str]]
) -> Iterator[tuple[Frame, np.ndarray, np.ndarray]]:
    for frame in frames:
        reason = _annotated_defect(frame, config)
        if reason is None:
            assert frame.viewpoint is not None
            assert frame.image_size is not None
            pose, matrix = frame.viewpoint.to_opencv(frame.image_size)
            reason = _camera_defect(pose, matrix)
        if reason is None:
            yield frame, pose, matrix
        else:
            defects.append((frame.number, reason))


def _annotated_defect(frame: Frame, config: PreprocessConfig) -> str | None:
    """What makes a frame useless, as far as its annotation tells without any arithmetic."""
    if frame.image_path is None or frame.image_size is None:
        return "no image in the annotation"
    if min(frame.image_size) < config.minimum_image_side:
        return f"image side below {config.minimum_image_side} pixels"
    if frame.viewpoint is None:
        return "no camera in the annotation"
    return None if frame.viewpoint.is_finite() else "camera not finite"


def _camera_defect(pose: np.ndarray, matrix: np.ndarray) -> str | None:
    rotation = pose[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
        return "camera rotation is none"
    if not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
        return "focal length not positive"
    return None


def _store_frame(
    root: Path, frame: Frame, camera: Cameras, config: PreprocessConfig, defects: list[tuple[int, str]]
) -> StoredFrame:
    assert frame.image_path is not None, "frames without are not usable"
    image = images.read_image(root / frame.image_path, camera.image_size)
    mask = None
    try:
        if frame.mask_path is not None:
            mask = images.read_mask(root / frame.mask_path, camera.image_size)
    except images.DefectError as error:
        defects.append((frame.number, f"{error}{KEPT_MARK}"))
    view = images.crop_and_resize(image, mask, camera, config.image_size)
    if view.mask is not None and images.mask_share(view.mask) < config.minimum_mask_share:
        raise images.DefectError(f"mask covers less than {config.minimum_mask_share:g} of the picture")
    if config.minimum_sharpness and images.sharpness(view.image) < config.minimum_sharpness:
        raise images.DefectError("image blurred")
    return StoredFrame(
        number=frame.number,
        image=images.encode_image(view.image),
        mask=None if view.mask is None else images.encode_mask(view.mask),
        world_to_camera=view.camera.world_to_camera.numpy().astype(np.float32),
        intrinsics=view.camera.intrinsics.numpy().astype(np.float32),
        intensity=images.intensity(view.image),
    )
