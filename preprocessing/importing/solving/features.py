"""What photos have in common: SIFT features and matches between pairs of photos, in a database of COLMAP's.

Features (Lowe 2004) lie in the pixels as the file stores them: what EXIF says of its orientation is not applied. Each
call goes on where an earlier one was interrupted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import pycolmap

from infra.log import Progress
from infra.system.processes import process_pool
from preprocessing.importing.solving.unposed_photos import Lens
from preprocessing.picking import evenly

SEED = 0
SILENT = 4  # above all of glog's levels
# Larger photos are scaled down for the search of features: four times the pixels take four times as long, and the
# training's pictures are smaller still.
LONGEST_SIDE = 1600
# One focal length and one coefficient of radial distortion: the photos of one object determine these two well, and not
# the eight values of a larger model.
CAMERA_MODEL = "SIMPLE_RADIAL"
PAIRS_AT_ONCE = 64  # what an interruption costs
# Up to here every photo is compared with every other; beyond, the time for that would grow with the square.
MOST_EXHAUSTIVE = 200
NEIGHBOURS = 10  # photos in order are compared with as many that follow, and with those 16, 32, 64, ... later
MOST_KEY_PHOTOS = 40  # evenly spaced photos that are compared with each other, since a walk may come back to its start

_Item = TypeVar("_Item")


def photo_pairs(count: int, *, in_order: bool) -> list[tuple[int, int]]:
    """Places of the photos that are compared, (earlier, later), sorted. With `in_order`, and of more than 200 photos,
    each is expected to show what its neighbours show.
    """
    if not in_order and count <= MOST_EXHAUSTIVE:
        return list(combinations(range(count), 2))
    steps = [*range(1, NEIGHBOURS + 1), *(2**power for power in range(4, count.bit_length()))]
    pairs = {(place, place + step) for step in steps for place in range(count - step)}
    return sorted(pairs | set(combinations(evenly(count, MOST_KEY_PHOTOS).tolist(), 2)))


def add_features(database: Path, folder: Path, lenses: Mapping[str, Lens]) -> dict[str, int]:
    """Find the features of the photos in `folder`, named by `lenses`; photos of equal lenses share one camera. Returns
    the number of features of each photo; photos that cannot be decoded have no entry.
    """
    kinds = sorted(set(lenses.values()), key=lambda lens: (lens.size, lens.exif))
    with open_database(database) as content:
        for lens in kinds[content.num_cameras() :]:  # numbered from 1 on, in this order
            first = next(name for name, other in lenses.items() if other == lens)
            content.write_camera(pycolmap.infer_camera_from_image(folder / first, _reader()))
    for number, lens in enumerate(kinds, start=1):
        # Numbers the photos in their order. The search below would do so in the order in which its threads end.
        names = [name for name, other in lenses.items() if other == lens]
        pycolmap.import_images(database, folder, image_names=names, options=_reader(existing_camera_id=number))
    with open_database(database) as content:
        found = _num_features(content)
    done = [name for name in lenses if name in found]
    with Progress("features", total=len(lenses), unit="photos", done=len(done)) as progress:
        for number, lens in enumerate(kinds, start=1):
            names = [name for name, other in lenses.items() if other == lens and name not in found]
            for chunk in _chunks(names, os.cpu_count() or 1):
                pycolmap.extract_features(
                    database,
                    folder,
                    chunk,
                    reader_options=_reader(existing_camera_id=number),
                    extraction_options=pycolmap.FeatureExtractionOptions(max_image_size=LONGEST_SIDE),
                    device=pycolmap.Device.cpu,
                )
                progress.advance(len(chunk))
    with open_database(database) as content:
        return _num_features(content)


def add_matches(database: Path, names: Sequence[str], *, in_order: bool) -> int:
    """Match the photos of these names, in their order, and keep what agrees with one motion of the camera. Returns the
    number of pairs that do.
    """
    pairs = [(names[i], names[j]) for i, j in photo_pairs(len(names), in_order=in_order)]
    with open_database(database) as content:
        numbers = {image.name: image.image_id for image in content.read_all_images()}
        todo = [(a, b) for a, b in pairs if not content.exists_two_view_geometry(numbers[a], numbers[b])]
    with Progress("matches", total=len(pairs), unit="pairs", done=len(pairs) - len(todo)) as progress:
        for chunk in _chunks(todo, PAIRS_AT_ONCE):
            _match_apart(database, chunk)
            progress.advance(len(chunk))
    with open_database(database) as content:
        pairs_that_agree, _ = content.read_two_view_geometry_num_inliers()
        return len(pairs_that_agree)


def _match_apart(database: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """Match pairs in a process of their own, since on some pairs of few features COLMAP's search for the camera's
    motion crashes (pycolmap 4.2). Such a pair is kept as one that has nothing in common.
    """
    waiting = [list(pairs)]
    while waiting:
        chunk = waiting.pop()
        try:
            with process_pool(1, __name__) as pool:
                pool.submit(_match, database, chunk).result()
        except BrokenProcessPool:
            if len(chunk) > 1:
                waiting += [chunk[len(chunk) // 2 :], chunk[: len(chunk) // 2]]
                continue
            with open_database(database) as content:
                numbers = {image.name: image.image_id for image in content.read_all_images()}
                content.write_two_view_geometry(*(numbers[name] for name in chunk[0]), pycolmap.TwoViewGeometry())


def _match(database: Path, pairs: Sequence[tuple[str, str]]) -> None:
    pycolmap.logging.minloglevel = SILENT
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed = SEED
    listed = database.with_name("pairs.txt")
    listed.write_text("".join(f"{a} {b}\n" for a, b in pairs))
    pycolmap.match_image_pairs(
        database,
        pairing_options=pycolmap.ImportedPairingOptions(match_list_path=listed),
        verification_options=options,
        device=pycolmap.Device.cpu,
    )


@contextmanager
def open_database(path: Path) -> Iterator[pycolmap.Database]:
    """A database of features and matches, made if it does not exist."""
    with closing(pycolmap.Database.open(path)) as content:
        yield content


def _reader(**options: object) -> pycolmap.ImageReaderOptions:
    return pycolmap.ImageReaderOptions(camera_model=CAMERA_MODEL, **options)


def _num_features(content: pycolmap.Database) -> dict[str, int]:
    images = content.read_all_images()
    return {
        image.name: content.num_keypoints_for_image(image.image_id)
        for image in images
        if content.exists_descriptors(image.image_id)
    }


def _chunks(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
