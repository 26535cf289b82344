"""Finds the cameras of photos that have none, and points of the scene: COLMAP's incremental structure from motion
(Schönberger and Frahm, CVPR 2016) on the CPU.

Everything refers to the pixels as the files store them: turning photos by their EXIF orientation is left to the reader
of the model. What is finished is not repeated: features and matches are kept in a database in the work folder, then the
model, and the same call goes on there. All random choices have one seed: the same photos give the same cameras, to the
rounding of sums that several threads make.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pycolmap

from infra.errors import UserError
from infra.log import Progress, format_count, get_logger
from infra.storage.files import atomic_write, digest_file, publish_folder
from preprocessing.importing.reconstructions import MINIMUM_PHOTOS, listed
from preprocessing.importing.solving.features import SEED, SILENT, add_features, add_matches, open_database
from preprocessing.importing.solving.unposed_photos import Lens, as_png, content_name, find_photos, read_lens
from preprocessing.importing.solving.video import take_frames

MINIMUM_FEATURES = 50  # a photo with fewer has nothing to hold on to; one of a textured thing has thousands
MOST_NAMED = 20  # photos in a message
WHAT_HELPS = (
    "What helps: more photos, each showing more than half of what the one before shows; sharp pictures; a textured "
    "ground under the object, which stays in its place while the camera moves"
)
# A second attempt takes photos that fewer points hold, when the first, with COLMAP's own thresholds (100 and 30), did
# not place all.
RELAXED = {"init_min_num_inliers": 50, "abs_pose_min_num_inliers": 15}
MODEL_NAME = "model"
_LINKS, _DATABASE = "photos", "features.db"
_FORMAT_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "TIFF": ".tif", "BMP": ".bmp"}


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Cameras that were found."""

    model: Path
    """Folder of a COLMAP model, binary."""
    photos: Path
    """Folder that the model's photo names are relative to."""
    work: Path
    """Folder of what was made on the way, the model among it."""

    def remove(self) -> None:
        """Remove the work, and the folder around it if no other is in there."""
        shutil.rmtree(self.work)
        with suppress(OSError):
            self.work.parent.rmdir()


def find_cameras(source: Path, below: Path, *, placed_share: float, num_frames: int, masks: Path | None) -> Solution:
    """Cameras of the photos in the folder `source`, without those below `masks`, or of `num_frames` frames of the video
    `source`. The work is kept in a folder below `below` that is named by the content of the photos or the video.

    Raises:
        UserError: as `solve_cameras` and `take_frames`.
    """
    if source.is_file():
        work = below / content_name([source], str(num_frames))
        photos = take_frames(source, work / "frames", count=num_frames)
        model = solve_cameras(photos, work, placed_share=placed_share, in_order=True)
        return Solution(model=model, photos=photos, work=work)
    found = find_photos(source, but=masks)
    if found.foreign:
        count = format_count(len(found.photos), "photo")
        get_logger("import").warning(f"{source}: only its {count} will be used; left out: {found.unread()}")
    names = found.photos
    work = below / content_name([source / name for name in names], *names)
    model = solve_cameras(source, work, placed_share=placed_share, masks=masks)
    return Solution(model=model, photos=source, work=work)


def solve_cameras(
    photos: Path, work: Path, *, placed_share: float, in_order: bool = False, masks: Path | None = None
) -> Path:
    """Folder of a COLMAP model (binary) below `work`, of the photos in the folder `photos` without those below `masks`;
    its photo names are relative to `photos`. With `in_order` the photos are the frames of a walk.

    Raises:
        UserError: there are fewer than 3 photos or all are the same, they have nothing to hold on to or do not overlap,
        or less than `placed_share` of them find their place; the message says what helps.
    """
    names = find_photos(photos, but=masks).photos
    model = work / MODEL_NAME
    with _quiet():
        if not model.is_dir():
            _check_different(photos, names)
            work.mkdir(parents=True, exist_ok=True)
            _write(_solve(photos, names, work, in_order=in_order), model)
        placed = {image.name for image in pycolmap.Reconstruction(model).images.values() if image.has_pose}
    share = len(placed) / len(names)
    unplaced = [name for name in names if name not in placed]
    summary = f"{len(placed)} of {format_count(len(names), 'photo')} found their place"
    if share < placed_share:
        raise UserError(
            f"{photos}: only {summary}, {share:.0%}; --placed-share {placed_share:g} asks for more. Not placed: "
            f"{listed(unplaced, shown=MOST_NAMED)}. {WHAT_HELPS}; or accept fewer with a smaller --placed-share"
        )
    get_logger("import").info(summary + (f"; left out: {listed(unplaced, shown=MOST_NAMED)}" if unplaced else ""))
    return model


def _solve(photos: Path, names: Sequence[str], work: Path, *, in_order: bool) -> pycolmap.Reconstruction:
    """The largest model of the photos, which it names as `names` does."""
    aliases, lenses = _link(photos, names, work / _LINKS)
    database = work / _DATABASE
    found = add_features(database, work / _LINKS, lenses)
    usable = [alias for alias in aliases if found.get(alias, 0) >= MINIMUM_FEATURES]
    if len(usable) < MINIMUM_PHOTOS:
        plain = [aliases[alias] for alias in aliases if alias not in usable]
        raise UserError(
            f"{photos}: {format_count(len(usable), 'photo')} of {len(names)} can be decoded and show enough texture to "
            f"find cameras from, {MINIMUM_PHOTOS} are needed; not so {listed(plain, shown=MOST_NAMED)}. {WHAT_HELPS}"
        )
    if add_matches(database, usable, in_order=in_order) == 0:
        raise UserError(f"{photos}: no two photos show the same thing from near enough. {WHAT_HELPS}")
    models = _map(database, len(usable))
    if not models:
        raise UserError(
            f"{photos}: photos show the same thing, but no two from places far enough apart to tell depth; walk around "
            f"the object instead of turning or zooming. {WHAT_HELPS}"
        )
    sizes = [model.num_reg_images() for model in models]
    if len(models) > 1:
        get_logger("import").info(
            f"the photos fall into {len(models)} groups that do not see each other's part, of "
            f"{', '.join(map(str, sizes))}; the largest is taken"
        )
    for image in models[0].images.values():
        image.name = aliases[image.name]
    return models[0]


def _link(photos: Path, names: Sequence[str], folder: Path) -> tuple[dict[str, str], dict[str, Lens]]:
    """Show the photos to pycolmap under plain names, since its lists of pairs are cut at spaces, and those in a format
    that it does not read as PNG. Returns the photos' names by these, and the lenses of those that are pictures.
    """
    folder.mkdir(exist_ok=True)
    aliases, lenses = {}, {}
    for number, name in enumerate(names, start=1):
        read = read_lens(photos / name)
        suffix = ".png" if read is None else _FORMAT_SUFFIXES.get(read[1], ".png")
        alias = f"{number:06d}{suffix}"
        aliases[alias] = name
        if read is None:
            continue
        lenses[alias] = read[0]
        if read[1] in _FORMAT_SUFFIXES:
            (folder / alias).unlink(missing_ok=True)  # of an earlier call: the photos may have moved since
            (folder / alias).symlink_to((photos / name).resolve())
        elif not (folder / alias).exists() and (data := as_png(photos / name)) is not None:
            atomic_write(folder / alias, data)
    return aliases, lenses


def _map(database: Path, total: int) -> list[pycolmap.Reconstruction]:
    """Models of the photos in the database, the largest first; none where no two photos start one."""
    best: list[pycolmap.Reconstruction] = []
    for thresholds in ({}, RELAXED):
        options = pycolmap.IncrementalPipelineOptions(
            random_seed=SEED, min_model_size=MINIMUM_PHOTOS, extract_colors=False
        )
        for name, value in thresholds.items():
            setattr(options.mapper, name, value)
        models = sorted(_models(database, options, total), key=_size, reverse=True)
        if models and (not best or _size(models[0]) > _size(best[0])):
            best = models
        if best and best[0].num_reg_images() == total:
            break
    return best


def _models(database: Path, options: pycolmap.IncrementalPipelineOptions, total: int) -> list[pycolmap.Reconstruction]:
    """All models of one attempt."""
    manager, most = pycolmap.ReconstructionManager(), 0

    def report() -> None:
        nonlocal most
        now = max(manager.get(number).num_reg_images() for number in range(manager.size()))
        if now > most:
            progress.advance(now - most)
            most = now

    with open_database(database) as content, Progress("cameras", total=total, unit="photos") as progress:
        pipeline = pycolmap.IncrementalPipeline(options, content, manager)
        for event in ("INITIAL_IMAGE_PAIR_REG_CALLBACK", "NEXT_IMAGE_REG_CALLBACK"):
            pipeline.add_callback(getattr(pycolmap.IncrementalPipelineCallback, event), report)
        pipeline.run()
    return [pycolmap.Reconstruction(manager.get(number)) for number in range(manager.size())]


def _size(model: pycolmap.Reconstruction) -> tuple[int, int]:
    return model.num_reg_images(), model.num_points3D()


def _write(model: pycolmap.Reconstruction, folder: Path) -> None:
    """Whole or not at all."""
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    model.write_binary(partial)
    publish_folder(partial, folder)


def _check_different(photos: Path, names: Sequence[str]) -> None:
    """Tell what would only be seen after all work."""
    if len(names) < MINIMUM_PHOTOS:
        raise UserError(
            f"{photos}: {format_count(len(names), 'photo')}, at least {MINIMUM_PHOTOS} are needed to find cameras, and "
            "30 or more around the object are good"
        )
    files = [photos / name for name in names]
    if len({file.stat().st_size for file in files}) == 1 and len(set(map(digest_file, files))) == 1:
        raise UserError(f"{photos}: all {len(names)} photos are the same picture; give photos from around the object")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the hundreds of lines that COLMAP logs to standard error; what goes wrong it raises."""
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = SILENT
    try:
        yield
    finally:
        pycolmap.logging.minloglevel = before
