"""Decoding, crop and resize, intensity, encoding."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.cameras import Cameras
from preprocessing.sequences.images import (
    DefectError,
    crop_and_resize,
    decode_image,
    decode_mask,
    encode_image,
    encode_mask,
    intensity,
    mask_center,
    read_image,
    read_mask,
    square_corner,
)

ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # orientation: turn by 90 degrees


def camera(size: tuple[int, int]) -> Cameras:
    """Looks along z at the world's origin, 2 in front of it."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = 2.0
    matrix = torch.tensor([[80.0, 0, size[1] / 2], [0, 90.0, size[0] / 2], [0, 0, 1]], dtype=torch.float64)
    return Cameras(pose, matrix, size)


@pytest.mark.parametrize("target", [16, 40, 64, 100])
@pytest.mark.parametrize("size", [(64, 96), (97, 64), (64, 64)])
def test_image_mask_and_camera_move_together(size: tuple[int, int], target: int) -> None:
    """Red and green rise linearly along u and v. A pixel of the result, shot back through the new camera and into the
    old one, must land where its colour says. A shift by half a pixel or a wrong side would be off by 0.5 · 64/target
    and more.
    """
    height, width = size
    v, u = np.mgrid[:height, :width] + 0.5
    image = np.stack([2 * u, 2 * v, 0 * u], axis=-1).round().astype(np.uint8)  # two grey levels a pixel
    mask = np.zeros(size, np.uint8)
    mask[20:50, 25:60] = 255
    view = crop_and_resize(image, mask, camera(size), target)
    assert view.image.shape == (target, target, 3)
    assert view.mask is not None
    assert view.mask.shape == (target, target)
    assert view.camera.image_size == (target, target)
    directions = view.camera.ray_directions().reshape(-1, 3)
    pixels, _ = camera(size).project(view.camera.centers() + 2 * directions)
    found = view.image[..., :2].reshape(-1, 2) / 2
    inner = np.zeros((target, target), bool)
    border = 1 + 64 // target  # a linear ramp bends where enlarging meets the edge
    inner[border:-border, border:-border] = True
    # Half a grey level when drawn and half when averaged: 0.5 pixels at most, and no bias.
    error = (found - pixels.numpy())[inner.ravel()]
    assert np.abs(error).max() < 0.51
    assert np.abs(error.mean(axis=0)).max() < 0.1
    rows, columns = np.nonzero(view.mask >= 128)
    corners = view.camera.project(
        (camera(size).ray_directions()[[20, 49], [25, 59]] * 2)[None] - torch.tensor([0, 0, 2.0])
    )[0][0]
    found_box = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]])
    np.testing.assert_allclose(found_box, corners, atol=0.5 + target / 64)


def test_crop_centres_on_the_mask_and_stays_inside() -> None:
    assert square_corner((100, 300), (150, 50)) == (0, 100)
    assert square_corner((100, 300), (10, 50)) == (0, 0)
    assert square_corner((100, 300), (299, 50)) == (0, 200)
    assert square_corner((300, 100), (50, 170.4)) == (120, 0)


def test_crop_without_mask_centres_on_the_projected_object() -> None:
    image = np.zeros((50, 150, 3), np.uint8)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor([0.5, 0.0, 2.0])  # the origin is seen 20 pixels right of the middle
    view = crop_and_resize(image, None, Cameras(pose, camera((50, 150)).intrinsics, (50, 150)), 50)
    assert view.mask is None
    pixel, _ = view.camera.project(torch.zeros(1, 3, dtype=torch.float64))
    np.testing.assert_allclose(pixel[0], [25, 25], atol=0.5)  # crops start at whole pixels


def test_stray_mask_pixels_do_not_move_the_crop() -> None:
    mask = np.zeros((100, 200), np.uint8)
    mask[30:60, 100:150] = 255
    assert mask_center(mask) == (125, 45)
    mask[0, 0] = mask[99, 10] = 255
    assert np.abs(np.subtract(mask_center(mask), (125, 45))).max() <= 0.5


def test_intensity_is_over_pixels_and_channels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mean, variance = intensity(image)
    assert mean == pytest.approx((image / 255).mean())
    assert variance == pytest.approx((image / 255).var())
    assert intensity(np.full((4, 4, 3), 255, np.uint8)) == (1.0, 0.0)


def test_encoding_keeps_colour_resolution() -> None:
    """Red and blue columns of one pixel: with halved colour (4:2:0) they would mix to violet, an error above 50."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, ::2, 0] = image[:, 1::2, 2] = 200
    data = encode_image(image)
    with Image.open(io.BytesIO(data)) as picture:
        assert [layer[1:3] for layer in picture.layer] == [(1, 1)] * 3
    assert np.abs(decode_image(data, (32, 32)).astype(int) - image).mean() < 5  # quality 95
    mask = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    np.testing.assert_array_equal(decode_mask(encode_mask(mask), (32, 32)), mask)


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    image = np.random.default_rng(0).integers(40, 220, (48, 64, 3), dtype=np.uint8)
    path = tmp_path / "image.jpg"
    path.write_bytes(encode_image(image))
    return path


def test_pictures_are_read(jpeg: Path) -> None:
    assert read_image(jpeg, (48, 64)).shape == (48, 64, 3)
    Image.open(jpeg).convert("L").save(jpeg.with_suffix(".png"))
    grey = read_image(jpeg.with_suffix(".png"), (48, 64))
    assert grey.shape == (48, 64, 3)


@pytest.mark.parametrize("options", [{}, {"subsampling": 2}, {"progressive": True}, {"quality": 30}, {"exif": ROTATED}])
def test_pixels_are_those_that_are_stored(tmp_path: Path, options: dict[str, Any]) -> None:
    """Also where the file says that it should be turned: annotations are those of the pixels as they are stored."""
    noise = np.random.default_rng(0).integers(40, 220, (31, 45, 3), dtype=np.uint8)
    path = tmp_path / "image.jpg"
    Image.fromarray(noise).save(path, **options)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(read_image(path, (31, 45)), np.asarray(picture))
    path.write_bytes(path.read_bytes() + b"more")  # cameras put other things behind a picture
    with Image.open(path) as picture:
        np.testing.assert_array_equal(read_image(path, (31, 45)), np.asarray(picture))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_colours_of_other_kinds_are_read(tmp_path: Path, mode: str) -> None:
    noise = np.random.default_rng(0).integers(40, 220, (31, 45, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(tmp_path / "image.jpg")
    with Image.open(tmp_path / "image.jpg") as picture:
        np.testing.assert_array_equal(read_image(tmp_path / "image.jpg", (31, 45)), np.asarray(picture.convert("RGB")))


def test_truncated_pictures_are_refused(jpeg: Path) -> None:
    data = jpeg.read_bytes()
    for length in range(0, len(data) - 2, 97):
        jpeg.write_bytes(data[:length])
        with pytest.raises(DefectError, match="undecodable or truncated"):
            read_image(jpeg, (48, 64))


def test_damaged_pictures_are_refused(jpeg: Path) -> None:
    """Cut out of the middle, as a lost block of a disk does: most decoders warn, and give half of a picture."""
    data = jpeg.read_bytes()
    jpeg.write_bytes(data[: len(data) // 2] + data[len(data) // 2 + 400 :])
    with Image.open(jpeg) as picture:
        picture.load()  # such a decoder
    with pytest.raises(DefectError, match="undecodable or truncated"):
        read_image(jpeg, (48, 64))


def test_truncated_masks_are_refused(tmp_path: Path) -> None:
    data = encode_mask(np.random.default_rng(0).integers(0, 256, (48, 64), dtype=np.uint8))
    path = tmp_path / "mask.png"
    for length in range(0, len(data) - 20, 97):
        path.write_bytes(data[:length])
        with pytest.raises(DefectError, match="mask undecodable"):
            read_mask(path, (48, 64))


def test_other_defects_have_their_names(jpeg: Path, tmp_path: Path) -> None:
    with pytest.raises(DefectError, match="image size differs"):
        read_image(jpeg, (64, 48))
    with pytest.raises(DefectError, match="image file missing"):
        read_image(tmp_path / "none.jpg", (48, 64))
    with pytest.raises(DefectError, match="image file missing"):
        read_image(tmp_path, (48, 64))
    Image.fromarray(np.full((48, 64, 3), 1, np.uint8)).save(jpeg)
    with pytest.raises(DefectError, match="image black"):
        read_image(jpeg, (48, 64))
    Image.fromarray(np.full((48, 64), 100, np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(DefectError, match="mask empty"):
        read_mask(tmp_path / "mask.png", (48, 64))
    with pytest.raises(DefectError, match="mask file missing"):
        read_mask(tmp_path / "none.png", (48, 64))


def test_a_picture_that_claims_to_be_huge_is_not_decoded(tmp_path: Path) -> None:
    """A PNG header of 60,000 × 60,000 pixels would take 11 GB."""
    header = (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path = tmp_path / "bomb.png"
    path.write_bytes(data)
    with pytest.raises(DefectError, match="undecodable"):
        read_image(path, (60_000, 60_000))
