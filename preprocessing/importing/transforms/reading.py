"""transforms.json, which nerfstudio, instant-ngp, Blender's scripts, Polycam, Record3D and others write, each with
fields of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from infra.errors import UserError
from preprocessing.captures.capture import RejectionError
from preprocessing.importing.photos.files import (
    copy_note,
    find_in_named_folder,
    find_masks,
    find_photo,
    inside,
    photo_folder,
    smaller_copy,
    with_files,
)
from preprocessing.importing.photos.pictures import PictureError, read_header
from preprocessing.importing.reconstructions import Photo, Reconstruction, listed, refuse_photos
from preprocessing.importing.transforms.camera import camera_of, overruled, unknown_fields, with_own_fields
from preprocessing.importing.transforms.json_fields import FieldError, said
from preprocessing.importing.transforms.poses import TOLERANCE, rigid_pose
from preprocessing.sequences.normalization import load_points

TRANSFORMS_NAMES = ("transforms.json", "transforms_train.json", "transforms_val.json", "transforms_test.json")
CONVENTION = (
    "transform_matrix must take points of the camera to the world, with OpenGL's axes: x right, y up, z backward"
)
# Fields that this file reads, at the top and in frames; those of cameras are in camera.py.
_OF_FILE = {"frames", "n_frames", "ply_file_path"}
_OF_FRAME = {"file_path", "transform_matrix", "mask_path", "time"}

_WITHOUT_FRAMES = (
    "it is no object, but perhaps the list that ns-export cameras or 3D Gaussian Splatting writes; name the capture's "
    "own file"
)


@dataclass(frozen=True)
class _File:
    """One file, and where it says that photos are."""

    path: Path
    content: Mapping[str, Any]
    images: Path | None  # the folder that the person named
    notes: set[str] = field(default_factory=set)

    def photo(self, frame: Mapping[str, Any]) -> Photo:
        """Raises FieldError or UserError."""
        name = frame["file_path"]
        if "transform_matrix" not in frame:
            raise FieldError(f"has no transform_matrix; its fields are {', '.join(sorted(frame))}")
        pose, scale = rigid_pose(frame["transform_matrix"])
        if abs(scale - 1) > TOLERANCE:
            self.notes.add(f"{self.path}: transform_matrix scaled by {scale:.4g}, which is divided out")
        path = find_in_named_folder(self.images, name, self.path) if self.images else self.below(name)
        camera = self.camera(frame, path)
        mask = frame.get("mask_path")
        if mask is not None and not isinstance(mask, str):
            raise FieldError(f"mask_path is {str(mask)[:40]!r}, which is no name of a file")
        return Photo(name, path, None if mask is None else self.below(mask), pose, camera)

    def camera(self, frame: Mapping[str, Any], path: Path) -> pycolmap.Camera:
        """The camera of the photo `path`; any, if only the photo could say its size and does not: then it is left out
        later, with its reason.
        """
        try:
            return camera_of(with_own_fields(self.content, frame), lambda: read_header(path).size)
        except PictureError:
            return pycolmap.Camera(model="PINHOLE", width=1, height=1, params=[1, 1, 0.5, 0.5])

    def below(self, name: str) -> Path:
        """The file `name` beside this one, or in a smaller copy of its folder."""
        path = find_photo(self.path.parent, name, self.path)
        copy = None if path.parent.is_dir() else smaller_copy(path.parent)
        if copy is None:
            return path
        self.notes.add(copy_note(path.parent, copy))
        return find_photo(copy, path.name, self.path)


def find_transforms(source: Path) -> list[Path]:
    """The file itself, or of a folder transforms.json, or else those for training, validation and test."""
    if source.is_file():
        return [source] if source.suffix.lower() == ".json" else []
    there = [path for name in TRANSFORMS_NAMES if (path := source / name).is_file()]
    return there[:1] if there and there[0].name == TRANSFORMS_NAMES[0] else there


def read_transforms(paths: list[Path], images: Path | None, masks: Path | None) -> Reconstruction:
    """The photos of all the files together.

    Raises:
        UserError: a file is damaged or holds what cannot be used (the message names the photo, the field and its
        value); photos, masks or points are missing.
    """
    folder, note = photo_folder(images) if images else (None, None)
    files = [_File(path, _content(path), folder) for path in paths]
    photos = [photo for file in files for photo in _photos(file)]
    there, left_out = with_files(photos, paths[0])
    notes = [note] if note else []
    if len(paths) > 1:
        notes.append(f"{paths[0].parent}: the photos of {', '.join(path.name for path in paths)} are taken together")
    notes += sorted(note for file in files for note in {*file.notes, *_remarks(file)})
    if masks is not None:
        if any(photo.mask_path for photo in there):
            notes.append(f"the masks in {masks} are taken, not those that {paths[0].name} names")
        found = find_masks(masks, [(photo.name, photo.path) for photo in there], paths[0])
        there = [replace(photo, mask_path=found[photo.name]) for photo in there]
    lost = [photo for photo in there if photo.mask_path and not photo.mask_path.is_file()]
    refuse_photos(paths[0], ((photo.name, f"its mask {photo.mask_path} is missing") for photo in lost))
    return Reconstruction(paths[0], tuple(there), _points(files), CONVENTION, left_out, tuple(notes))


def _content(path: Path) -> Mapping[str, Any]:
    """The JSON object, checked to have frames with names."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: no JSON ({error}); export it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list):
        found = f"its fields are {listed(sorted(content))}" if isinstance(content, dict) else _WITHOUT_FRAMES
        raise UserError(f"{path}: not the transforms of posed photos: it has no list named frames; {found}")
    frames = content["frames"]
    for number, frame in enumerate(frames, start=1):
        name = frame.get("file_path") if isinstance(frame, dict) else None
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}: frame {number} of {len(frames)} has no file_path; write the photo's name there")
    if content.get("n_frames") not in (None, len(frames)):
        raise UserError(
            f"{path}: n_frames is {str(content['n_frames'])[:40]}, but it has {len(frames)} frames; remove n_frames, "
            "or the frames that should not be taken"
        )
    return content


def _photos(file: _File) -> Iterator[Photo]:
    """Raises UserError for all frames that cannot be used."""
    problems = []
    for frame in file.content["frames"]:
        try:
            yield file.photo(frame)
        except FieldError as error:
            problems.append((frame["file_path"], str(error)))
    refuse_photos(file.path, problems)


def _remarks(file: _File) -> Iterator[str]:
    """What a person should know about fields that are not used."""
    frames = file.content["frames"]
    at_top, in_frames = set(said(file.content)), set[str]().union(*(said(frame) for frame in frames))
    for keys, what in (
        (unknown_fields(at_top | in_frames) - _OF_FILE - _OF_FRAME, "fields that are not known here"),
        (at_top & _OF_FRAME, "fields at the top that belong in the frames"),
        (in_frames & _OF_FILE, "fields in the frames that belong at the top"),
    ):
        if keys:
            yield f"{file.path}: {what} were not used: {listed(sorted(keys))}"
    if lost := set[str]().union(*(overruled(file.content, frame) for frame in frames)):
        yield f"{file.path}: the frames' own cameras are taken, not the file's {listed(sorted(lost))}"
    if len({str(frame.get("time")) for frame in frames}) > 1:
        yield f"{file.path}: its frames have different times; the object must not have moved between them"


def _points(files: list[_File]) -> np.ndarray:
    """[N, 3] the points of the first file that has some; they are in the same world as its matrices."""
    for file in files:
        cloud = file.content.get("ply_file_path")
        if cloud is None:
            continue
        if not isinstance(cloud, str):
            raise UserError(
                f"{file.path}: ply_file_path is {str(cloud)[:40]!r}, which is no name of a file; correct it"
            )
        try:
            return load_points(inside(file.path.parent, cloud, file.path))
        except RejectionError as reason:
            raise UserError(
                f"{file.path}: ply_file_path {cloud}: {reason}; export the points again, or remove ply_file_path to "
                "have the object's size found without points"
            ) from reason
    return np.empty((0, 3))
