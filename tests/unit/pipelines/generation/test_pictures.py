"""The files that hold an object's pictures: whole, or noticed not to be."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from infra.errors import UserError
from pipelines.generation.pictures import ObjectPictures, pictures_path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    views = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    angles = np.zeros(2, np.float32)
    path = pictures_path(tmp_path, "apple", "1")
    ObjectPictures(caption="an apple", generated=views, azimuth=angles, elevation=angles).save(path)
    return path


def test_a_file_that_is_cut_off_is_noticed_wherever(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cannot be read"):
            ObjectPictures.load(path)


def test_a_flipped_bit_changes_nothing_or_is_noticed(path: Path) -> None:
    whole, expected = path.read_bytes(), ObjectPictures.load(path)
    for place in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = ObjectPictures.load(path)
        except UserError:
            continue
        assert (found.caption, found.generated.tobytes()) == (expected.caption, expected.generated.tobytes()), place


def test_other_files_are_refused(path: Path) -> None:
    np.savez(path.open("wb"), caption="an apple", generated=np.zeros(1), azimuth=np.zeros(1), other=np.zeros(1))
    with pytest.raises(UserError, match=r"cannot be read .*other"):
        ObjectPictures.load(path)
    np.savez(path.open("wb"), caption="an apple")
    with pytest.raises(UserError, match=r"cannot be read .*generated"):
        ObjectPictures.load(path)
    np.save(path.open("wb"), np.zeros(1))
    with pytest.raises(UserError, match="cannot be read"):
        ObjectPictures.load(path)
    np.savez(path.open("wb"), caption=np.array([{}], dtype=object))  # a pickle
    with pytest.raises(UserError, match="cannot be read"):
        ObjectPictures.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("caption.npy", b"no array")
    with pytest.raises(UserError, match="cannot be read"):
        ObjectPictures.load(path)
