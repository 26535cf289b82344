"""Where the files of photos and masks are: sources name them from other machines, in other folders and endings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from unicodedata import normalize

import numpy as np
import pycolmap

from infra.errors import UserError
from infra.log import format_count
from preprocessing.importing.photos.formats import PHOTO_SUFFIXES
from preprocessing.importing.reconstructions import MINIMUM_PHOTOS, Photo, listed

# Endings that are tried for a photo whose name has none, as Blender's scripts write it.
ENDINGS = (*PHOTO_SUFFIXES, ".PNG", ".JPG", ".JPEG")
# Longer ones are refused by file systems, once an ending is added.
MAX_NAME_BYTES = 240
MAX_PATH = 2000


def smaller_copy(folder: Path) -> Path | None:
    """The largest of the smaller copies of a folder of pictures beside it: images_2, images_4 ... for images."""
    beside = folder.parent.iterdir() if folder.parent.is_dir() else iter(())
    name = re.compile(re.escape(folder.name) + r"_(\d{1,3})")
    copies = [(int(match[1]), path) for path in beside if (match := name.fullmatch(path.name)) and path.is_dir()]
    return min(copies)[1] if copies else None


def photo_folder(folder: Path) -> tuple[Path, str | None]:
    """The folder that a person named, or a smaller copy beside where it is missing, and then a note.

    Raises:
        UserError: neither is there.
    """
    if folder.is_dir():
        return folder, None
    copy = smaller_copy(folder)
    if copy is None:
        raise UserError(f"--images {folder}: no such folder; name the folder that holds the photos")
    return copy, copy_note(folder, copy)


def copy_note(folder: Path, copy: Path) -> str:
    """Says that a smaller copy is taken."""
    return f"{folder} is not there: {copy.name} beside it is taken"


def find_photo(folder: Path, name: str, source: Path) -> Path:
    """The file below `folder` that is called `name`, with an ending where the name has none; whether or not there is
    such a file.
    """
    path = inside(folder, name, source)
    if path.is_file():
        return path
    if not name.isascii() and path.parent.is_dir():
        wanted = normalize("NFC", path.name)  # macOS writes ü as two letters
        path = next((file for file in path.parent.iterdir() if normalize("NFC", file.name) == wanted), path)
    if path.suffix.lower() not in ENDINGS:
        return next((found for ending in ENDINGS if (found := path.with_name(path.name + ending)).is_file()), path)
    return path


def find_in_named_folder(folder: Path, name: str, source: Path) -> Path:
    """The same where the person named the folder: folders in front of the photo's own name may be missing there."""
    paths = [find_photo(folder, shorter, source) for shorter in _shorter(name)]
    return next((path for path in paths if path.is_file()), paths[-1])


def check_mask_folder(folder: Path) -> None:
    """Raise UserError if there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"--masks {folder}: no such folder; name the folder that holds the masks")


def find_masks(folder: Path, photos: Iterable[tuple[str, Path]], source: Path) -> dict[str, Path]:
    """The mask of each photo (name, file) by its name: the same folders and name with the ending .png, in COLMAP's way
    photo.jpg.png, or the photo's own name; folders in front may be missing. Masks may lie among the photos; a photo is
    no mask.

    Raises:
        UserError: the folder or a photo's mask is missing.
    """
    check_mask_folder(folder)
    photos = list(photos)
    no_masks = {path.resolve() for _, path in photos}
    found: dict[str, Path] = {}
    missing: list[str] = []
    tried: list[str] = []
    for name, path in photos:
        named = {candidate: inside(folder, candidate, source) for candidate in _mask_names(name, path)}
        candidates = {candidate: mask for candidate, mask in named.items() if mask.resolve() not in no_masks}
        mask = next((mask for mask in candidates.values() if mask.is_file()), None)
        if mask is None:
            missing.append(name)
            tried = tried or list(candidates)
        else:
            found[name] = mask
    if missing:
        raise UserError(
            f"--masks {folder}: {len(missing)} of {len(missing) + len(found)} photos have no mask there, as "
            f"{listed(missing)}; for {missing[0]} these names were tried: {', '.join(tried)}"
        )
    _each_once(found.items(), "--masks", folder)
    return found


def with_files(photos: list[Photo], source: Path) -> tuple[list[Photo], tuple[tuple[str, str], ...]]:
    """Those photos whose files are there, by name, and the names of the others with the reason.

    Raises:
        UserError: too few are there, or two names are one file.
    """
    missing = [photo for photo in photos if not photo.path.is_file()]
    there: list[Photo] = []
    for photo in sorted((photo for photo in photos if photo.path.is_file()), key=lambda photo: photo.name):
        if not any(_is_same(photo, other) for other in there[-1:]):  # files for validation and test may share photos
            there.append(photo)
    if photos and not there:
        raise UserError(
            f"{source}: none of its {len(photos)} photos is there; the first was looked for as {photos[0].path}: name "
            "the folder that holds the photos with --images"
        )
    if len(there) < MINIMUM_PHOTOS:
        why = f", as {listed([photo.name for photo in missing])} {_is(missing)} missing" if missing else ""
        count = format_count(len(there), "posed photo")
        raise UserError(f"{source}: has {count}{why}; at least {MINIMUM_PHOTOS} are needed")
    _each_once(((photo.name, photo.path) for photo in there), "photos", source)
    return there, tuple((photo.name, "no such file") for photo in missing)


def inside(folder: Path, name: str, source: Path) -> Path:
    """A path below `folder`, checked not to lead out of it. Windows' separators are taken for what they are.

    Raises:
        UserError: it leads out, or is no path at all.
    """
    relative = PurePosixPath(name.replace("\\", "/"))
    if ".." in relative.parts or any(_is_root(part) for part in relative.parts):
        raise UserError(
            f"{source}: the path {name!r} leads out of {folder}; write paths relative to that folder, or name the "
            "folder of the photos with --images"
        )
    try:
        size = max((len(part.encode()) for part in relative.parts), default=0)
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= MAX_NAME_BYTES or len(name) > MAX_PATH or "\0" in name:
        raise UserError(f"{source}: {name[:40]!r} is no name of a file; correct it")
    return folder / relative


def _is_root(part: str) -> bool:
    return part == "/" or part.endswith(":")


def _shorter(name: str) -> Iterator[str]:
    """The name, and it without its first, its first two ... folders. A path of another machine loses its root."""
    parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part != ".." and not _is_root(part)]
    return ("/".join(parts[start:]) for start in range(max(1, len(parts))))


def _mask_names(name: str, path: Path) -> Iterator[str]:
    """What the mask of the photo `name`, which is the file `path`, may be called."""
    for shorter in _shorter(name):
        own = PurePosixPath(shorter).with_name(path.name)
        yield from (str(own.with_suffix(".png")), f"{own}.png", str(own))


def _each_once(files: Iterable[tuple[str, Path]], what: str, source: Path) -> None:
    files = list(files)
    path, times = Counter(path for _, path in files).most_common(1)[0]
    if times > 1:
        names = [name for name, other in files if other == path]
        raise UserError(f"{what} {source}: {listed(names)} are all the file {path}; keep them in folders of their own")


def _is_same(photo: Photo, other: Photo) -> bool:
    same_files = (photo.path, photo.mask_path) == (other.path, other.mask_path)
    same_pose = np.array_equal(photo.world_to_camera, other.world_to_camera)
    return same_files and same_pose and _numbers(photo.camera) == _numbers(other.camera)


def _numbers(camera: pycolmap.Camera) -> list[float]:
    return [int(camera.model.value), camera.width, camera.height, *camera.params]


def _is(missing: list[Photo]) -> str:
    return "is" if len(missing) == 1 else "are"
