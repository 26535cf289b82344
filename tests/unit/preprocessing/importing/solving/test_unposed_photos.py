"""What a photo's header says of its lens."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import pytest
from PIL import ExifTags, Image

from preprocessing.importing.photos.pictures import read_header
from preprocessing.importing.solving.unposed_photos import as_png, read_lens


@pytest.mark.parametrize("name", ["photo.jpg", "photo.tif"])
def test_damaged_exif_is_no_matter_and_warns_of_nothing(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = "Maker", "Phone 3"
    Image.new("RGB", (64, 48)).save(path, exif=exif)
    data = bytearray(path.read_bytes())
    order = ">" if b"MM\x00*" in data else "<"
    entry = struct.pack(f"{order}HH", ExifTags.Base.Make, 2)  # tag, kind: text; then its length
    place = data.index(entry) + len(entry)
    data[place : place + 4] = struct.pack(f"{order}I", 1 << 20)
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_lens(path)
        assert as_png(path) is not None
        assert read_header(path).size == (48, 64)
    assert found is not None
    assert found[0].size == (64, 48)
    assert found[0].exif[0] == "None"
