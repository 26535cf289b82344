"""Photos of every kind are read to the right colours, or named as what they are."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from preprocessing.importing.photos.pictures import PictureError, on_white, read_header, read_picture, read_values

SIZE = (30, 40)


def ramp() -> np.ndarray:
    """[H, W, 3] uint8: smooth, each channel another way."""
    v, u = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.stack([40 + 4 * u, 50 + 5 * v, 200 - 2 * u - v], axis=-1).astype(np.uint8)


def disc() -> np.ndarray:
    """[H, W] uint8: 255 in the middle."""
    v, u = np.mgrid[: SIZE[0], : SIZE[1]]
    return np.where(np.hypot(u - 20, v - 15) < 10, 255, 0).astype(np.uint8)


def saved(path: Path, picture: Image.Image, **options: Any) -> Path:
    picture.save(path, **options)
    return path


def rgb() -> Image.Image:
    return Image.fromarray(ramp())


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.png", {}, 0),
        ("a.bmp", {}, 0),
        ("a.tif", {}, 0),
        ("a.tif", {"compression": "tiff_lzw"}, 0),
        ("a.webp", {"lossless": True}, 0),
        ("a.jpg", {"quality": 100, "subsampling": 0}, 4),
        ("a.jpg", {"quality": 100, "subsampling": 0, "progressive": True}, 4),
        ("photo without ending", {"format": "PNG"}, 0),
    ],
)
def test_colours_come_out(tmp_path: Path, name: str, options: dict[str, Any], tolerance: int) -> None:
    picture = read_picture(saved(tmp_path / name, rgb(), **options))
    assert np.abs(picture.colors.astype(int) - ramp()).max() <= tolerance
    assert picture.alpha is None
    assert read_header(tmp_path / name).size == SIZE


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_are_rounded_to_eight(tmp_path: Path, suffix: str) -> None:
    """65535 becomes 255, and 257 · n + 128 still n: half a level."""
    path, deep = tmp_path / f"a{suffix}", ramp().astype(np.uint16) * 257 + 128
    assert cv2.imwrite(str(path), deep[..., ::-1])
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.colors, ramp())
    assert picture.changes[0] == "from 16 bits a channel to 8"
    assert cv2.imwrite(str(path), deep[..., 0])
    np.testing.assert_array_equal(read_picture(path).colors[..., 1], ramp()[..., 0])
    assert not read_header(path).is_plain


def test_sixteen_bits_with_alpha(tmp_path: Path) -> None:
    values = np.concatenate([ramp()[..., ::-1], disc()[..., None]], axis=-1).astype(np.uint16) * 257
    assert cv2.imwrite(str(tmp_path / "a.png"), values)
    picture = read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(picture.colors, ramp())
    np.testing.assert_array_equal(picture.alpha, disc())


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_tiffs_whose_zero_is_white_are_no_negatives(tmp_path: Path, kind: type, compression: str) -> None:
    grey = ramp()[..., 0]
    values = (255 - grey).astype(np.uint16) * 257 if kind is np.uint16 else grey  # Pillow inverts 8 bits itself
    path = saved(tmp_path / "a.tif", Image.fromarray(values), tiffinfo={262: 0}, compression=compression)
    np.testing.assert_array_equal(read_picture(path).colors[..., 0], grey)
    np.testing.assert_array_equal(read_values(path), grey)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_few_colours_are_colours(tmp_path: Path, mode: str) -> None:
    picture = rgb().convert(mode)
    found = read_picture(saved(tmp_path / "a.png", picture))
    np.testing.assert_array_equal(found.colors, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_is_not_inverted(tmp_path: Path, adobe: bool) -> None:
    """Adobe's programs store 255 − ink, and say so in a segment that other programs do not write."""
    inks = np.zeros((*SIZE, 4), np.uint8)
    inks[..., 1] = 200  # magenta
    buffer = io.BytesIO()
    Image.fromarray(inks, "CMYK").save(buffer, "JPEG", quality=100)  # Pillow writes as Adobe does
    data = buffer.getvalue()
    marker = data.find(b"\xff\xee")
    assert marker > 0
    if not adobe:
        length = struct.unpack(">H", data[marker + 2 : marker + 4])[0]
        Image.fromarray(255 - inks, "CMYK").save(buffer := io.BytesIO(), "JPEG", quality=100)
        data = buffer.getvalue()
        data = data[:marker] + data[marker + 2 + length :]
    (tmp_path / "a.jpg").write_bytes(data)
    colors = read_picture(tmp_path / "a.jpg").colors
    np.testing.assert_allclose(colors[5, 5], [255, 55, 255], atol=3)


@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "RGBA"), ("a.png", "LA"), ("a.tif", "RGBA"), ("a.webp", "RGBA"), ("a.png", "PA")]
)
def test_alpha_is_read(tmp_path: Path, name: str, mode: str) -> None:
    picture = rgb().convert("L" if mode == "LA" else "RGB")
    picture.putalpha(Image.fromarray(disc()))
    if mode == "PA":  # a palette of which one colour is transparent
        paletted = rgb().quantize(16)
        index = int(np.asarray(paletted)[0, 0])
        found = read_picture(saved(tmp_path / name, paletted, transparency=index))
        np.testing.assert_array_equal(found.alpha == 0, np.asarray(paletted) == index)
        return
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    found = read_picture(saved(tmp_path / name, picture, **options))
    np.testing.assert_array_equal(found.alpha, disc())
    np.testing.assert_array_equal(found.colors, np.asarray(picture.convert("RGB")))
    assert not read_header(tmp_path / name).is_plain


def test_opaque_alpha_says_nothing(tmp_path: Path) -> None:
    picture = rgb()
    picture.putalpha(255)
    assert read_picture(saved(tmp_path / "a.png", picture)).alpha is None


def test_brightness_is_judged_where_something_is(tmp_path: Path) -> None:
    """A small dark object on transparent black is no black frame; a black object is."""
    values = np.zeros((*SIZE, 4), np.uint8)
    values[..., 3] = disc()
    values[disc() > 0, :3] = 9
    assert values[..., :3].mean() < 2.55
    assert read_picture(saved(tmp_path / "a.png", Image.fromarray(values))).alpha is not None
    values[disc() > 0, :3] = 1
    with pytest.raises(PictureError, match=r"^black; "):
        read_picture(saved(tmp_path / "a.png", Image.fromarray(values)))
    values[..., 3] = 0
    with pytest.raises(PictureError, match=r"^transparent everywhere; export it with the object opaque"):
        read_picture(saved(tmp_path / "a.png", Image.fromarray(values)))


def test_what_is_transparent_becomes_white() -> None:
    colors = np.full((1, 3, 3), 100, np.uint8)
    found = on_white(colors, np.array([[0, 51, 255]], np.uint8))
    np.testing.assert_array_equal(found[0, :, 0], [255, 224, 100])


def test_profiles_are_followed(tmp_path: Path) -> None:
    """A profile whose green and blue are swapped changes every colour; sRGB's own changes none."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = read_picture(saved(tmp_path / "a.png", rgb(), icc_profile=srgb))
    np.testing.assert_array_equal(picture.colors, ramp())
    assert picture.changes == ()
    swapped = srgb.replace(b"gXYZ", b"????").replace(b"bXYZ", b"gXYZ").replace(b"????", b"bXYZ")
    for name in ("a.png", "a.jpg"):
        picture = read_picture(saved(tmp_path / name, rgb(), icc_profile=swapped))
        assert np.abs(picture.colors.astype(int) - ramp()[..., [0, 2, 1]]).max() <= (3 if name == "a.png" else 30)
        assert picture.changes[0].endswith("to sRGB")
    picture = read_picture(saved(tmp_path / "a.png", rgb(), icc_profile=b"nothing"))
    np.testing.assert_array_equal(picture.colors, ramp())
    assert picture.changes == ("with a colour profile that cannot be used: taken as sRGB",)


def test_a_phones_jpeg_of_several_pictures_is_its_first(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", rgb(), format="MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert read_header(path).kind == "JPEG"
    assert read_picture(path).colors.shape == (*SIZE, 3)


def test_reduced_pages_of_a_tiff_are_no_other_pictures(tmp_path: Path) -> None:
    """Cameras and viewers keep smaller copies behind the first page; scanners keep other pages."""
    small = rgb().resize((20, 15))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    rgb().save(tmp_path / "a.tif", save_all=True, append_images=[small])
    np.testing.assert_array_equal(read_picture(tmp_path / "a.tif").colors, ramp())
    rgb().save(tmp_path / "b.tif", save_all=True, append_images=[rgb()])
    with pytest.raises(PictureError, match="a TIFF of several pages; export the picture that belongs to the camera"):
        read_header(tmp_path / "b.tif")


def _bytes(mode: str, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (rgb().convert(mode) if mode != "I" else Image.fromarray(np.full(SIZE, 70_000, np.int32))).save(
        buffer, form, **options
    )
    return buffer.getvalue()


def _animation(form: str) -> bytes:
    return _bytes("RGB", form, save_all=True, append_images=[Image.new("RGB", SIZE[::-1])])


HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.heic", HEIC, "^a HEIC picture; convert it to JPEG; on an iPhone, Settings"),
        ("a.jpg", HEIC, "^a HEIC picture; "),  # phones' exporters rename
        ("a.avif", _bytes("RGB", "AVIF"), "^an AVIF picture; convert it to JPEG"),
        ("a.jxl", b"\xff\x0a" + bytes(9), "^a JPEG XL picture; convert"),
        ("a.jp2", _bytes("RGB", "JPEG2000"), "^a JPEG 2000 picture; convert"),
        ("a.avi", b"RIFF\x00\x00\x00\x00AVI LIST", "^a video"),
        ("a.webm", b"\x1aE\xdf\xa3" + bytes(20), "^a video"),
        (
            "a.mp4",
            b"\x00\x00\x00\x18ftypisom" + bytes(9),
            "^a video; take photos out of it, or name it alone with --solve-cameras",
        ),
        ("a.gif", _bytes("P", "GIF"), "^a GIF picture; convert"),
        ("a.exr", b"v/1\x01" + bytes(99), "^an OpenEXR picture of light"),
        ("a.cr2", b"II*\x00\x10\x00\x00\x00CR\x02\x00" + bytes(99), "^a camera's raw file; develop it to JPEG"),
        ("a.NEF", _bytes("RGB", "TIFF"), "^a camera's raw file; "),
        ("a.tif", _bytes("RGB", "TIFF", tiffinfo={50706: b"\x01\x04\x00\x00"}), "^a camera's raw file; "),
        ("a.tif", _bytes("RGB", "TIFF", tiffinfo={254: 1}), "^a camera's raw file; "),
        ("a.tif", _bytes("F", "TIFF"), "^a picture of 32-bit floating-point values; export it with 8 or 16 bits"),
        ("a.tif", _bytes("I", "TIFF"), "^a picture of 32-bit whole numbers; "),
        ("a.tif", _bytes("LAB", "TIFF"), r"^a picture of L\*a\*b\* colours; "),
        ("a.webp", _animation("WEBP"), "^a WEBP of several pictures, an animation; "),
        ("a.png", _animation("PNG"), "^a PNG of several pictures, an animation; "),
        ("a.jpg", b"version https://git-lfs.github.com/spec/v1\n", "^a Git LFS pointer.*git lfs pull"),
        ("a.jpg", b"", "^empty: it has no bytes; copy"),
        ("a.jpg", b"nothing at all", "^no picture of a known kind; convert it to JPEG or PNG"),
        ("a.jpg", b"<html>not found</html>", "^no picture of a known kind; "),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    for read in (read_header, read_picture, read_values):
        with pytest.raises(PictureError, match=message):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp", "a.bmp"])
def test_only_damage_is_called_damage(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / name, rgb())
    path.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
    with pytest.raises(PictureError, match=r"^damaged: it cannot be decoded to its end; copy or export it again$"):
        read_picture(path)


def test_damaged_tags_are_damage(tmp_path: Path) -> None:
    """Every tag of a TIFF with another type of value: Pillow raises TypeError and more, no faults of this program."""
    data = saved(tmp_path / "a.tif", rgb()).read_bytes()
    start = struct.unpack("<I", data[4:8])[0]
    places = [start + 2 + 12 * number for number in range(struct.unpack("<H", data[start : start + 2])[0])]
    reasons = set()
    for place in places:
        for kind in range(14):
            (tmp_path / "a.tif").write_bytes(data[: place + 2] + struct.pack("<H", kind) + data[place + 4 :])
            try:
                read_picture(tmp_path / "a.tif")
            except PictureError as error:
                reasons.add(error.reason.split(":")[0])
    assert "damaged" in reasons


@pytest.mark.parametrize(("height", "refused"), [(10_000, False), (10_001, True), (30_000, True)])
@pytest.mark.filterwarnings("error")
def test_the_limit_of_pixels_is_what_the_message_says(tmp_path: Path, height: int, refused: bool) -> None:
    """Above a limit Pillow warns, above its double it refuses."""
    data = bytearray(_bytes("RGB", "PNG"))
    data[16:24] = struct.pack(">II", 10_000, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    if refused:
        with pytest.raises(PictureError, match=r"^larger than 100,000,000 pixels; scale it down$"):
            read_header(tmp_path / "a.png")
    else:
        assert read_header(tmp_path / "a.png").size == (height, 10_000)


def test_a_place_without_a_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"^missing; "):
        read_header(tmp_path / "a.jpg")
    with pytest.raises(PictureError, match=r"^a folder, no file; "):
        read_header(tmp_path)
