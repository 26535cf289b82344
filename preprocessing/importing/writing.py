"""Writes a reconstruction from elsewhere down as one sequence of a CO3Dv2 dataset, from which everything else goes on.

All headers are checked before anything is written. Then everything is written into a hidden folder beside the final
one, looked at once more (agreement.py), and becomes the sequence by one rename and two annotation files, of which the
sequence's comes last: whatever is interrupted before that leaves nothing that counts, and the same command works again.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
from plyfile import PlyData, PlyElement

from infra.errors import UserError
from infra.log import Progress
from infra.storage.files import atomic_write, folder_for, replace_folder
from infra.storage.locks import alone, take_lock
from preprocessing.captures.capture import Viewpoint
from preprocessing.captures.co3d import FRAMES_NAME, SEQUENCES_NAME, encode_jgz, read_jgz
from preprocessing.importing.agreement import WrittenPhoto, measure_agreement, require_agreement
from preprocessing.importing.checking import Checked, LeftOut, Plan, check_photos, require_enough
from preprocessing.importing.developing import develop
from preprocessing.importing.facing import check_places
from preprocessing.importing.object_points import object_points
from preprocessing.importing.photos.orientation import MIRROR, mirrors
from preprocessing.importing.photos.pictures import PictureError
from preprocessing.importing.reconstructions import Photo, Reconstruction
from preprocessing.importing.summary import ImportSummary
from preprocessing.sequences.screening import SAFE_NAME

FORMAT = "ndc_isotropic"
_LOCK_REMEDY = "name a folder on another one with --output"
_LOCK_NAME = ".import.lock"  # in a category's folder: imports that end at once annotate one after the other
# What an import makes in a sequence's folder.
_OWN = frozenset({"images", "masks", "pointcloud.ply"})


@dataclass(frozen=True, eq=False)
class _Written:
    """Photos that were written, as a reconstruction of pinhole cameras with their files, and what was done to them."""

    capture: Reconstruction
    left_out: tuple[LeftOut, ...]
    changes: Counter[str]


def import_capture(
    capture: Reconstruction, root: Path, *, category: str, name: str, radius: float | None = None
) -> ImportSummary:
    """Add the capture to the dataset at `root`, which need not exist. The object's points lie within `radius` of where
    the cameras look. Photos that cannot be used are left out.

    Raises:
        UserError: a name with other characters than letters, digits, - and _; a sequence of that name exists, or is
        being written; too few photos can be used, or their cameras stand on a line; pictures and cameras disagree; or
        as `object_points`.
    """
    check_place(root, category, name)
    _check_sources(capture, root / category / name)
    checked = check_photos(capture)
    require_enough(capture, len(checked.plans), checked.left_out)
    # Once more when all are written (object_points): photos that turn out to be damaged may leave a line.
    check_places(capture.source, np.stack([plan.photo.world_to_camera for plan in checked.plans]))
    with _staging(root / category, name) as staging:
        written = _write_photos(capture, checked, staging)
        photos = written.capture.photos
        agreement = measure_agreement([_as_written(photo) for photo in photos])
        errors = np.concatenate([photo.reprojection_errors(written.capture.points) for photo in photos])
        require_agreement(capture.source, agreement, errors, max(photos[0].camera.width, photos[0].camera.height))
        found = object_points(written.capture, _mask_of, radius=radius)
        vertices = np.array([tuple(point) for point in found.points], dtype=[(axis, "f4") for axis in "xyz"])
        PlyData([PlyElement.describe(vertices, "vertex")]).write(staging / "pointcloud.ply")
        replace_folder(staging, root / category / name)
        _annotate(root, category, name, photos, len(found.points))
    names = {photo.name for photo in photos}
    return ImportSummary(
        key=f"{category}/{name}",
        num_photos=len(capture.photos) + len(capture.left_out),
        left_out=(*(LeftOut(*item) for item in capture.left_out), *written.left_out),
        lenses=Counter(plan.photo.camera.model_name for plan in checked.plans if plan.photo.name in names),
        sizes=Counter((photo.camera.height, photo.camera.width) for photo in photos),
        num_masks=sum(photo.mask_path is not None for photo in photos),
        changes=written.changes,
        reprojection_errors=errors,
        agreement=agreement,
        seeing=sum(bool(photo.project(found.points)[1].mean() >= 0.5) for photo in photos),
        points=found.how,
        notes=(*capture.notes, *checked.notes, *found.notes),
    )


def check_place(root: Path, category: str, name: str) -> None:
    """Check that a sequence of that name can be added to the dataset at `root`.

    Raises:
        UserError: other characters than letters, digits, - and _; the name is taken; an annotation file is damaged.
    """
    for what, text in (("category", category), ("name", name)):
        if not SAFE_NAME.fullmatch(text):
            raise UserError(f"{what} {text!r}: use letters, digits, - and _, at most 80")
    folder = root / category / name
    if any(entry.get("sequence_name") == name for entry in _entries(root / category / SEQUENCES_NAME)):
        raise UserError(f"{root / category}: has a sequence {name!r} already; choose another name")
    _entries(root / category / FRAMES_NAME)  # a damaged file is told now
    if folder.is_dir() and (others := sorted(path.name for path in folder.iterdir() if path.name not in _OWN)):
        raise UserError(f"{folder}: holds other files, such as {others[0]}; choose another name or output")


def _check_sources(capture: Reconstruction, folder: Path) -> None:
    """Check that nothing is read from the folder that is written."""
    final = folder.resolve()
    for path in (path for photo in capture.photos for path in (photo.path, photo.mask_path) if path is not None):
        if path.resolve().is_relative_to(final):
            raise UserError(f"{path}: lies where the import is written to, {folder}; choose another name or output")


@contextmanager
def _staging(folder: Path, name: str) -> Iterator[Path]:
    """A folder beside the final one, of which nothing is left if the block fails.

    Raises UserError if another import uses it.
    """
    staging = folder / f".{name}-importing"
    busy = f"{folder}: another import writes {name!r} at this moment; wait until it is over, or choose another name"
    with folder_for(folder), alone(folder / f".{name}.lock", busy=busy, remedy=_LOCK_REMEDY):
        check_place(folder.parent, folder.name, name)  # once more: another import may have ended meanwhile
        shutil.rmtree(staging, ignore_errors=True)  # of an import that was killed
        for part in ("images", "masks"):
            (staging / part).mkdir(parents=True)
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _write_photos(capture: Reconstruction, checked: Checked, staging: Path) -> _Written:
    """Develop and write all photos. Raises UserError if too many turn out to be damaged."""
    photos: list[Photo] = []
    left_out, changes = list(checked.left_out), Counter[str]()
    with Progress("import", total=len(checked.plans), unit="photos") as progress:
        for plan in checked.plans:
            try:
                photos.append(_write_photo(plan, staging, len(photos) + 1, changes))
            except PictureError as error:
                left_out.append(LeftOut(plan.photo.name, error.reason, error.remedy))
            progress.advance()
    require_enough(capture, len(photos), left_out)
    mirrored = any(mirrors(plan.to_turn) for plan in checked.plans)
    points = capture.points @ MIRROR[:3, :3] if mirrored else capture.points
    return _Written(replace(capture, photos=tuple(photos), points=points), tuple(left_out), changes)


def _write_photo(plan: Plan, staging: Path, number: int, changes: Counter[str]) -> Photo:
    developed = develop(plan)
    image, mask = (staging / part / f"frame{number:06d}" for part in ("images", "masks"))
    image = image.with_suffix(developed.suffix)
    image.write_bytes(developed.image)
    if developed.mask is not None:
        mask = mask.with_suffix(".png")
        mask.write_bytes(developed.mask)
    changes.update(developed.changes)
    height, width = developed.size
    params = developed.intrinsics[(0, 1, 0, 1), (0, 1, 2, 2)]
    return Photo(
        name=plan.photo.name,
        path=image,
        mask_path=None if developed.mask is None else mask,
        world_to_camera=developed.world_to_camera,
        camera=pycolmap.Camera(model="PINHOLE", width=width, height=height, params=params),
        observations=None if developed.observed is None else (_numbers(plan.photo), developed.observed),
    )


def _numbers(photo: Photo) -> np.ndarray:
    assert photo.observations is not None
    return photo.observations[0]


def _as_written(photo: Photo) -> WrittenPhoto:
    return WrittenPhoto(photo.path, photo.mask_path, photo.world_to_camera, photo.camera.calibration_matrix())


def _mask_of(photo: Photo) -> np.ndarray | None:
    return None if photo.mask_path is None else cv2.imread(str(photo.mask_path), cv2.IMREAD_GRAYSCALE)


def _annotate(root: Path, category: str, name: str, photos: Sequence[Photo], num_points: int) -> None:
    """Add the sequence to the category's annotations, which another import may have changed meanwhile."""
    key, folder = f"{category}/{name}", root / category
    own = [_frame(photo, number, key) for number, photo in enumerate(photos)]
    sequence = {
        "sequence_name": name,
        "category": category,
        "video": None,
        "point_cloud": {"path": f"{key}/pointcloud.ply", "quality_score": None, "n_points": num_points},
        "viewpoint_quality_score": None,
    }
    with (folder / _LOCK_NAME).open("w") as lock:
        take_lock(lock, wait=True, remedy=_LOCK_REMEDY)
        others = [entry for entry in _entries(folder / FRAMES_NAME) if entry.get("sequence_name") != name]
        _write_entries(folder / FRAMES_NAME, [*others, *own])
        _write_entries(folder / SEQUENCES_NAME, [*_entries(folder / SEQUENCES_NAME), sequence])


def _frame(photo: Photo, number: int, key: str) -> dict[str, Any]:
    """A photo's entry in frame_annotations."""
    size = (photo.camera.height, photo.camera.width)
    matrix = photo.camera.calibration_matrix()
    mask = None if photo.mask_path is None else {"path": f"{key}/masks/{photo.mask_path.name}", "mass": None}
    return {
        "sequence_name": key.split("/")[1],
        "frame_number": number,
        "frame_timestamp": float(number),
        "image": {"path": f"{key}/images/{photo.path.name}", "size": list(size)},
        "depth": None,
        "mask": mask,
        "viewpoint": Viewpoint.from_opencv(photo.world_to_camera, matrix, size, FORMAT).entry(),
        "meta": {"source": photo.name},
    }


def _entries(path: Path) -> list[dict[str, Any]]:
    return read_jgz(path) if path.is_file() else []


def _write_entries(path: Path, entries: list[dict[str, Any]]) -> None:
    atomic_write(path, encode_jgz(entries))
