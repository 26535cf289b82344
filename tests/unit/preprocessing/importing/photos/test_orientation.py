"""Photos with an EXIF orientation become upright ones, and their cameras go along."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from infra.errors import UserError
from preprocessing.importing.photos.orientation import turn_intrinsics, turn_picture, turn_pixels
from preprocessing.importing.photos.pictures import read_header, read_picture, read_values
from preprocessing.importing.reconstructions import Photo, Reconstruction
from preprocessing.importing.writing import import_capture
from tests.support.posed_dots import SIZE, dot_offsets, draw, pinhole, pixels_of, poses, reconstruction, written

# How a picture is stored that is upright once a reader follows its tag, as Pillow names it.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
ORIENTATIONS = range(1, 9)
OFFSET = 0.3  # pixels; a JPEG's noise moves a dot by less than 0.1


def save(path: Path, stored: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path, exif=exif, **({"quality": 98, "subsampling": 0} if path.suffix == ".jpg" else {}))


def imported(folder: Path, capture: Reconstruction) -> np.ndarray:
    """Import; returns the offsets of the dots, and checks that each picture is the photo as a viewer shows it."""
    import_capture(capture, folder / "root", category="thing", name="mine")
    sequence = written(folder / "root")
    assert [frame.number for frame in sequence.frames] == list(range(len(capture.photos)))
    for frame, photo in zip(sequence.frames, capture.photos, strict=True):
        with Image.open(folder / "root" / str(frame.image_path)) as found, Image.open(photo.path) as source:
            assert found.getexif().get(0x0112, 1) == 1
            shown = np.asarray(ImageOps.exif_transpose(source), dtype=int)
            assert np.abs(np.asarray(found, dtype=int) - shown).mean() < 1.5
    return dot_offsets(folder / "root", sequence)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_model_of_stored_pixels_is_turned(tmp_path: Path, orientation: int) -> None:
    """The photos are drawn as the model's cameras see its points; a mirrored one shows a mirrored world."""
    paths = [tmp_path / f"{number}.jpg" for number in range(len(poses()))]
    for path, pose in zip(paths, poses(), strict=True):
        save(path, Image.fromarray(draw(pixels_of(pose))), orientation)
    assert imported(tmp_path, reconstruction(paths)).max() < OFFSET


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_model_of_turned_pictures_stays(tmp_path: Path, orientation: int) -> None:
    """Sizes tell for 5 to 8. For the others one photo of another orientation, which a phone takes too, does."""
    paths = [tmp_path / f"{number}.jpg" for number in range(len(poses()))]
    for number, (path, pose) in enumerate(zip(paths, poses(), strict=True)):
        upright, tag = Image.fromarray(draw(pixels_of(pose))), 6 if number == 0 else orientation
        save(path, upright.transpose(STORED[tag]) if tag in STORED else upright, tag)
    capture = reconstruction(paths)
    assert imported(tmp_path, capture).max() < OFFSET
    for frame, photo in zip(written(tmp_path / "root").frames, capture.photos, strict=True):
        assert frame.viewpoint is not None
        np.testing.assert_allclose(frame.viewpoint.to_opencv(SIZE)[0], photo.world_to_camera, atol=1e-12)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_other_files_have_orientations_too(tmp_path: Path, suffix: str) -> None:
    paths = [tmp_path / f"{number}{suffix}" for number in range(len(poses()))]
    for path, pose in zip(paths, poses(), strict=True):
        save(path, Image.fromarray(draw(pixels_of(pose))), 6)
    assert imported(tmp_path, reconstruction(paths)).max() < OFFSET
    assert written(tmp_path / "root").frames[0].image_size == SIZE[::-1]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_sixteen_bits_come_out_as_they_are_stored(
    tmp_path: Path, suffix: str, orientation: int, channels: int
) -> None:
    """Photos and masks alike; OpenCV follows the tag of a TIFF, but not that of a PNG."""
    values = np.random.default_rng(0).integers(1, 255, (30, 40, 4), np.uint8)[..., [*range(channels)]].squeeze()
    path = tmp_path / f"a{suffix}"
    path.write_bytes(sixteen_bits(values, suffix, orientation))
    header, picture = read_header(path), read_picture(path)
    assert (header.size, header.orientation, header.bits) == ((30, 40), orientation, 16)
    shown = values[..., :3] if channels > 1 else np.repeat(values[..., None], 3, axis=2)
    np.testing.assert_array_equal(picture.colors, shown)
    if channels == 1:
        np.testing.assert_array_equal(read_values(path), values)
    if channels == 4:
        np.testing.assert_array_equal(picture.alpha, values[..., 3])
        np.testing.assert_array_equal(read_values(path), values[..., 3])


def test_sixteen_bit_photos_are_turned_with_their_cameras(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.tif" for number in range(len(poses()))]
    for path, pose in zip(paths, poses(), strict=True):
        path.write_bytes(sixteen_bits(draw(pixels_of(pose)), ".tif", 6))
    import_capture(reconstruction(paths), tmp_path / "root", category="thing", name="mine")
    sequence = written(tmp_path / "root")
    assert dot_offsets(tmp_path / "root", sequence).max() < OFFSET
    assert sequence.frames[0].image_size == SIZE[::-1]


def sixteen_bits(values: np.ndarray, suffix: str, orientation: int) -> bytes:
    """A file of values [H, W] or [H, W, 3 or 4] uint8, stored in 16 bits a channel with a tag of orientation."""
    deep = values.astype(np.uint16) * 257
    deep = deep if deep.ndim == 2 else deep[..., [2, 1, 0, 3][: deep.shape[2]]]
    data = cv2.imencode(suffix, deep, [cv2.IMWRITE_TIFF_COMPRESSION, 1] if suffix == ".tif" else [])[1].tobytes()
    if suffix == ".tif":
        return with_tag(data, 274, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    body = exif.tobytes().removeprefix(b"Exif\x00\x00")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    return data[:33] + chunk + data[33:]  # behind the first chunk


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF file with a tag of one short number, set or added; its directory moves to the end."""
    (start,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[start : start + 2])
    entries = [data[place : place + 12] for place in range(start + 2, start + 2 + 12 * count, 12)]
    others = [entry for entry in entries if struct.unpack("<H", entry[:2])[0] != tag]
    entries = sorted([*others, struct.pack("<HHIHH", tag, 3, 1, value, 0)], key=lambda e: struct.unpack("<H", e[:2]))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    padded = data + bytes(len(data) % 2)
    return padded[:4] + struct.pack("<I", len(padded)) + padded[8:] + directory


def masked_photos(folder: Path, orientations: list[int], *, mask_is_upright: bool) -> Reconstruction:
    """Photos whose model is of the stored pixels, each with a mask of where it is bright."""
    photos = []
    for number, (pose, orientation) in enumerate(zip(poses(), orientations, strict=True)):
        path, mask_path = folder / f"{number}.jpg", folder / f"{number}.png"
        stored = draw(pixels_of(pose))
        save(path, Image.fromarray(stored), orientation)
        mask = np.where(stored[..., 0] > 100, 255, 0).astype(np.uint8)
        Image.fromarray(turn_picture(mask, orientation) if mask_is_upright else mask).save(mask_path)
        photos.append(Photo(path.name, path, mask_path, pose, pinhole()))
    return replace(reconstruction([photo.path for photo in photos]), photos=tuple(photos))


def assert_masked(root: Path) -> None:
    """Each written mask is of its picture."""
    for frame in written(root).frames:
        image = np.asarray(Image.open(root / str(frame.image_path)).convert("L"))
        mask = np.asarray(Image.open(root / str(frame.mask_path)))
        assert ((mask >= 128) == (image > 100)).mean() > 0.995


@pytest.mark.parametrize("mask_is_upright", [True, False])
@pytest.mark.parametrize("orientations", [[6] * 6, [3] * 5 + [6], [3, 1, 3, 1, 3, 8]])
def test_masks_are_turned_with_their_photo(tmp_path: Path, orientations: list[int], mask_is_upright: bool) -> None:
    """A mask may be of the stored pixels or, as tools that follow the tag make them, of the upright picture. A photo
    that is upside down does not say which; another photo's mask does.
    """
    capture = masked_photos(tmp_path, orientations, mask_is_upright=mask_is_upright)
    summary = import_capture(capture, tmp_path / "root", category="thing", name="mine")
    assert_masked(tmp_path / "root")
    assert not any("EXIF orientation, of which" in note for note in summary.notes)


def test_what_no_size_says_of_cameras_and_masks_is_told(tmp_path: Path) -> None:
    capture = masked_photos(tmp_path, [3, 1, 1, 1, 1, 1], mask_is_upright=False)
    summary = import_capture(capture, tmp_path / "root", category="thing", name="mine")
    assert_masked(tmp_path / "root")
    start = "1 photo with an EXIF orientation, of which no size says whether the"
    assert [note.split(": ")[0] for note in summary.notes if note.startswith(start)] == [
        f"{start} camera is of the turned picture",
        f"{start} mask is of the turned picture",
    ]


def test_mirrored_photos_among_others_are_left_out(tmp_path: Path) -> None:
    """One model cannot be of a world and its mirror image."""
    paths = [tmp_path / f"{number}.jpg" for number in range(len(poses()))]
    for number, (path, pose) in enumerate(zip(paths, poses(), strict=True)):
        save(path, Image.fromarray(draw(pixels_of(pose))), 2 if number < 2 else 1)
    summary = import_capture(reconstruction(paths), tmp_path / "root", category="thing", name="mine")
    assert [item.name for item in summary.left_out] == ["0.jpg", "1.jpg"]
    assert "mirrored, says its EXIF orientation, and others are not" in "\n".join(summary.lines())


def test_photos_that_lie_beside_their_cameras_are_refused(tmp_path: Path) -> None:
    """An editor that turned the pixels and kept no tag: the message says that turning would fit."""
    paths = [tmp_path / f"{number}.jpg" for number in range(len(poses()))]
    for path, pose in zip(paths, poses(), strict=True):
        Image.fromarray(draw(pixels_of(pose))).transpose(Image.Transpose.ROTATE_90).save(path)
    message = (
        r"0 of 6 photos can be used; 6 photos, 180 × 240 pixels, but its camera is of 240 × 180: of another shape; "
        r"turned by 90 degrees it would fit \(0\.jpg, .* and 1 more\): give the photos that the cameras were made from"
    )
    with pytest.raises(UserError, match=message):
        import_capture(reconstruction(paths), tmp_path / "root", category="thing", name="mine")
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pixels_go_where_their_colours_go(orientation: int) -> None:
    picture = np.arange(6 * 4).reshape(4, 6)
    turned = turn_picture(picture, orientation)
    rows, columns = np.mgrid[:4, :6] + 0.5
    u, v = turn_pixels(np.stack([columns.ravel(), rows.ravel()], axis=1), (4, 6), orientation).T
    np.testing.assert_array_equal(turned[v.astype(int), u.astype(int)], picture.ravel())
    matrix = turn_intrinsics(np.array([[5.0, 0, 2.5], [0, 7.0, 1.0], [0, 0, 1]]), (4, 6), orientation)
    assert sorted(np.diag(matrix)) == [1, 5, 7]
