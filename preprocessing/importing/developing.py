"""From a photo as a camera or an editor stored it to one as it is kept: upright, of a pinhole camera, with its mask."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from preprocessing.importing.checking import Plan
from preprocessing.importing.photos import orientation as turning
from preprocessing.importing.photos.lenses import lens_of
from preprocessing.importing.photos.masks import foreground, read_mask_values
from preprocessing.importing.photos.orientation import UPRIGHT
from preprocessing.importing.photos.pictures import PictureError, on_white, read_picture
from preprocessing.sequences.images import encode_image, encode_mask


@dataclass(frozen=True, eq=False)
class Developed:
    """A photo as it is kept, and its camera, in the conventions of `model.cameras`."""

    image: bytes  # JPEG, or the photo's own file if nothing had to be done to it
    suffix: str  # of the image's name
    mask: bytes | None  # PNG
    size: tuple[int, int]  # (height, width)
    world_to_camera: np.ndarray  # [4, 4]; in the mirrored world if the stored pixels were mirrored
    intrinsics: np.ndarray  # [3, 3]
    observed: np.ndarray | None  # [M, 2] where the source's observations are in this picture
    changes: tuple[str, ...]  # what was done, in words that several photos may share


def develop(plan: Plan) -> Developed:
    """Decode, turn, straighten and encode a photo and its mask.

    Raises:
        PictureError: damaged, black or transparent; its mask is damaged, or shows nothing.
    """
    assert plan.seen_as is not None, "decided before"
    photo, stored, turn = plan.photo, plan.header.size, plan.to_turn
    picture = read_picture(photo.path)
    changes = list(picture.changes)
    colors, mask = picture.colors, _mask(plan)
    if picture.alpha is not None:
        colors = on_white(colors, picture.alpha)
        changes.append("put on white where they are transparent")
        if mask is None:
            mask = turning.turn_picture(_visible(picture.alpha), plan.seen_as)
            changes.append("masked by their alpha")
    if mask is not None and mask.min() >= 128:
        changes.append("with a mask that is white everywhere")
    lens = lens_of(photo.camera, turning.turned_size(stored, plan.seen_as))
    colors = lens.straighten(turning.turn_picture(colors, plan.seen_as))
    if lens.photo_size != (photo.camera.height, photo.camera.width):
        changes.append(_scaled(plan, lens.photo_size))
    if not lens.is_pinhole:
        changes.append(f"straightened ({photo.camera.model_name})")
    if plan.header.orientation != UPRIGHT:
        done = "turned upright" if not turning.mirrors(plan.header.orientation) else "turned upright and mirrored back"
        changes.append(f"{done} (EXIF orientation {plan.header.orientation})")
    as_it_is = plan.header.is_plain and lens.is_pinhole and plan.header.orientation == UPRIGHT and not picture.changes
    observed = None if photo.observations is None else lens.move(photo.observations[1])
    return Developed(
        image=photo.path.read_bytes() if as_it_is else encode_image(turning.turn_picture(colors, turn)),
        suffix={"PNG": ".png"}.get(plan.header.kind, ".jpg") if as_it_is else ".jpg",
        mask=None if mask is None else encode_mask(turning.turn_picture(lens.straighten(mask), turn)),
        size=turning.turned_size(lens.size, turn),
        world_to_camera=turning.turn_pose(photo.world_to_camera, turn),
        intrinsics=turning.turn_intrinsics(lens.intrinsics, lens.size, turn),
        observed=None if observed is None else turning.turn_pixels(observed, lens.size, turn),
        changes=tuple(changes),
    )


def _mask(plan: Plan) -> np.ndarray | None:
    """[H, W] uint8, of the picture that the camera is of."""
    if plan.photo.mask_path is None:
        return None
    assert plan.seen_as is not None
    try:
        values = read_mask_values(plan.photo.mask_path)
    except PictureError as error:
        raise PictureError(f"its mask is {error.reason}", error.remedy) from error
    height, width = turning.turned_size(plan.header.size, plan.seen_as)
    if plan.mask_seen_as is None:  # as the photo's pixels that the camera is of
        turned = values
    else:
        turned = turning.turn_picture(turning.turn_picture(values, plan.mask_seen_as), turning.inverse(plan.to_turn))
    if turned.shape == (height, width):
        return turned
    method = cv2.INTER_AREA if turned.shape[0] > height else cv2.INTER_LINEAR
    return cv2.resize(turned, (width, height), interpolation=method)


def _visible(alpha: np.ndarray) -> np.ndarray:
    try:
        return foreground(alpha)
    except PictureError as error:
        raise PictureError(f"its alpha is {error.reason}", error.remedy) from error


def _scaled(plan: Plan, size: tuple[int, int]) -> str:
    camera = plan.photo.camera
    return f"{size[1]} × {size[0]} pixels, cameras of {camera.width} × {camera.height}: the cameras are scaled"
