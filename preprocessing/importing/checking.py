"""Looks at all photos' and masks' headers before anything is written: which can be used, and what must be done to them.

The size that the source gives a camera says which pixels it is of. Photos are often kept in half or quarter size, and
many tools apply a photo's EXIF orientation while others (COLMAP) take the pixels as they are stored.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from infra.errors import UserError
from infra.log import format_count
from preprocessing.importing.photos import orientation as turning
from preprocessing.importing.photos.lenses import lens_of
from preprocessing.importing.photos.orientation import UPRIGHT
from preprocessing.importing.photos.pictures import Header, PictureError, read_header
from preprocessing.importing.reconstructions import MINIMUM_PHOTOS, Photo, Reconstruction, listed

# With fewer of the photos something is wrong with all of them.
MINIMUM_SHARE = 0.5

Size = tuple[int, int]  # (height, width)


@dataclass(frozen=True, eq=False)
class Plan:
    """A photo that can be used, and how its camera saw it."""

    photo: Photo
    header: Header
    # Turns of the stored pixels before they are those that the camera is of: UPRIGHT none, the header's orientation if
    # the tool that made the camera applied it, None if the sizes do not say.
    seen_as: int | None
    mask: Header | None
    mask_seen_as: int | None = None  # the turn that brings the stored mask to the upright picture; None as the photo's

    @property
    def to_turn(self) -> int:
        """The orientation that the camera's picture still has."""
        return UPRIGHT if self.seen_as == self.header.orientation else self.header.orientation


@dataclass(frozen=True)
class LeftOut:
    """A photo that is not used."""

    name: str
    reason: str  # what counts together
    remedy: str | None = None


@dataclass(frozen=True, eq=False)
class Checked:
    """The photos of a reconstruction."""

    plans: tuple[Plan, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]


def check_photos(capture: Reconstruction) -> Checked:
    """Header checks of all photos and masks; opens every file, decodes none."""
    plans, left_out = [], []
    for photo in capture.photos:
        try:
            plans.append(_plan(photo))
        except PictureError as error:
            left_out.append(LeftOut(photo.name, error.reason, error.remedy))
    decided, notes = _decide(plans)
    return Checked(*_without_mixed_mirrors(decided, left_out), tuple(notes))


def require_enough(capture: Reconstruction, kept: int, left_out: Sequence[LeftOut]) -> None:
    """Raise UserError, with all reasons, if less than half of the photos that are there, or fewer than three, can be
    used: then something is wrong with all of them.
    """
    total = len(capture.photos)
    if kept >= MINIMUM_PHOTOS and kept >= MINIMUM_SHARE * total:
        return
    causes = [
        f"{format_count(len(names), 'photo')}, {reason} ({listed(names)}): {remedy}"
        for (reason, remedy), names in by_reason(left_out)
    ]
    raise UserError(f"{capture.source}: only {kept} of {total} photos can be used; {'; '.join(causes)}")


def by_reason(left_out: Iterable[LeftOut]) -> list[tuple[tuple[str, str | None], list[str]]]:
    """Each reason and remedy with the names of its photos, the commonest first."""
    names = defaultdict(list)
    for item in left_out:
        names[item.reason, item.remedy].append(item.name)
    return sorted(names.items(), key=lambda item: -len(item[1]))


def same_shape(first: Size, second: Size) -> bool:
    """Whether one size is the other scaled, to whole pixels."""
    small, large = sorted((first, second))
    return abs(small[0] * large[1] - small[1] * large[0]) <= max(large)


def _plan(photo: Photo) -> Plan:
    header = read_header(photo.path)
    camera_size = (photo.camera.height, photo.camera.width)
    views = [
        turn
        for turn in dict.fromkeys((UPRIGHT, header.orientation))
        if same_shape(camera_size, turning.turned_size(header.size, turn))
    ]
    if not views:
        raise _wrong_shape(camera_size, header)
    lens_of(photo.camera, turning.turned_size(header.size, views[0]))
    plan = Plan(photo, header, views[0] if len(views) == 1 or header.orientation == UPRIGHT else None, None)
    return plan if photo.mask_path is None else _with_mask(plan)


def _wrong_shape(camera_size: Size, header: Header) -> PictureError:
    turned = "; turned by 90 degrees it would fit" if same_shape(camera_size, header.size[::-1]) else ""
    return PictureError(
        f"{_text(header.size)} pixels, but its camera is of {_text(camera_size)}: of another shape{turned}",
        "give the photos that the cameras were made from, whole, or the same scaled evenly",
    )


def _with_mask(plan: Plan) -> Plan:
    assert plan.photo.mask_path is not None
    try:
        mask = read_header(plan.photo.mask_path)
    except PictureError as error:
        raise PictureError(f"its mask is {error.reason}", error.remedy) from error
    stored, upright = plan.header.size, turning.turned_size(plan.header.size, plan.header.orientation)
    shown = turning.turned_size(mask.size, mask.orientation)
    if mask.orientation != UPRIGHT and same_shape(upright, shown):
        return replace(plan, mask=mask, mask_seen_as=mask.orientation)
    if same_shape(stored, mask.size):
        turn = None if same_shape(upright, mask.size) else plan.header.orientation
        return replace(plan, mask=mask, mask_seen_as=turn)
    if same_shape(upright, mask.size):
        return replace(plan, mask=mask, mask_seen_as=UPRIGHT)
    raise PictureError(
        f"its mask has {_text(mask.size)} pixels, the photo {_text(stored)}: of another shape",
        "make masks of whole photos",
    )


def _decide(plans: list[Plan]) -> tuple[list[Plan], list[str]]:
    """One tool made all cameras, and one made all masks: where a photo's sizes do not say whether the tool applied the
    orientation, others' do.
    """
    turned = [plan for plan in plans if plan.header.orientation != UPRIGHT]
    cameras_upright = _majority(plan.seen_as != UPRIGHT for plan in turned if plan.seen_as is not None)
    masks_upright = _majority(
        plan.mask_seen_as == UPRIGHT
        for plan in turned
        if plan.mask is not None and plan.mask.orientation == UPRIGHT and plan.mask_seen_as is not None
    )
    notes = []
    open_cameras = sum(plan.seen_as is None for plan in turned)
    if open_cameras and cameras_upright is None:
        notes.append(
            f"{format_count(open_cameras, 'photo')} with an EXIF orientation, of which no size says whether the camera "
            "is of the turned picture: taken to be of the pixels as they are stored, as COLMAP does"
        )
    open_masks = sum(_has_open_mask(plan) for plan in turned)
    if open_masks and masks_upright is None:
        notes.append(
            f"{format_count(open_masks, 'photo')} with an EXIF orientation, of which no size says whether the mask is "
            "of the turned picture: taken to be of the pixels that the camera is of"
        )
    return [_decided(plan, cameras_upright, masks_upright) for plan in plans], notes


def _majority(votes: Iterable[bool]) -> bool | None:
    """None if as many are for it as against it, or there are none."""
    count = Counter(votes)
    return None if count[True] == count[False] else count[True] > count[False]


def _has_open_mask(plan: Plan) -> bool:
    return plan.mask is not None and plan.mask_seen_as is None and plan.header.orientation != UPRIGHT


def _decided(plan: Plan, cameras_upright: bool | None, masks_upright: bool | None) -> Plan:
    """The plan with what its sizes leave open as most others have it."""
    orientation = plan.header.orientation
    if plan.seen_as is None:
        plan = replace(plan, seen_as=orientation if cameras_upright else UPRIGHT)
    if _has_open_mask(plan) and masks_upright is not None:
        plan = replace(plan, mask_seen_as=UPRIGHT if masks_upright else orientation)
    return plan


def _without_mixed_mirrors(plans: list[Plan], left_out: list[LeftOut]) -> tuple[tuple[Plan, ...], tuple[LeftOut, ...]]:
    """Cameras of mirrored pixels are cameras in a mirrored world: they cannot stand in one world with others."""
    mirrored = [turning.mirrors(plan.to_turn) for plan in plans]
    fewer = sum(mirrored) * 2 <= len(plans)
    if all(mirrored):
        return tuple(plans), tuple(left_out)
    odd = [plan for plan, is_mirrored in zip(plans, mirrored, strict=True) if is_mirrored == fewer]
    if not any(mirrored):
        odd = []
    what = "mirrored, says its EXIF orientation, and others are not" if fewer else "not mirrored, and most others are"
    remedy = "save all photos as they should look, without EXIF orientation, and make the cameras of them"
    mixed = [LeftOut(plan.photo.name, what, remedy) for plan in odd]
    return tuple(plan for plan in plans if plan not in odd), (*left_out, *mixed)


def _text(size: Size) -> str:
    return f"{size[1]} × {size[0]}"
