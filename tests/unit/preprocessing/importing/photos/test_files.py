"""Where the masks of photos are: by which names they are found, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import UserError
from preprocessing.importing.reading import read_reconstruction
from preprocessing.importing.reconstructions import Reconstruction
from tests.support.foreign_captures import NAMES, write_colmap, write_photos


def read(model: Path, masks: Path) -> Reconstruction:
    return read_reconstruction(model, model.parent / "images", masks)


def test_masks_are_found_by_either_name_or_all_missing_ones_are_named(tmp_path: Path) -> None:
    model = write_colmap(tmp_path, [f"rig/{name}" for name in NAMES])
    for number, name in enumerate(NAMES):
        mask = (f"rig/{name}.png", f"{name}.png", f"rig/{Path(name).stem}.png", f"{Path(name).stem}.png")[number % 4]
        write_photos(tmp_path / "masks", [mask], "L", 255)
    capture = read(model, tmp_path / "masks")
    assert [photo.mask_path and photo.mask_path.name.split(".")[0] for photo in capture.photos] == [
        name.split(".")[0] for name in NAMES
    ]
    for path in (tmp_path / "masks").glob("00*"):
        path.unlink()
    tried = r"for rig/001\.jpg these names were tried: rig/001\.png, rig/001\.jpg\.png, rig/001\.jpg, 001\.png, "
    with pytest.raises(UserError, match=rf"4 of 8 photos have no mask there, as rig/001\.jpg, rig/003\.jpg, .*{tried}"):
        read(model, tmp_path / "masks")
    with pytest.raises(UserError, match=r"--masks .*nowhere: no such folder"):
        read(model, tmp_path / "nowhere")


def test_masks_among_the_photos_are_told_from_them(tmp_path: Path) -> None:
    """The mask of one.png is one.png.png there; of a photo whose mask is missing, it is not the photo itself."""
    names = [f"{number}.png" for number in range(len(NAMES))]
    model = write_colmap(tmp_path, names)
    write_photos(tmp_path / "images", [f"{name}.png" for name in names], "L", 255)
    (tmp_path / "link").symlink_to(tmp_path / "images")
    for folder in ("images", "link"):
        masks = [photo.mask_path for photo in read(model, tmp_path / folder).photos]
        assert masks == [tmp_path / folder / f"{name}.png" for name in names]
    (tmp_path / "images/3.png.png").unlink()
    with pytest.raises(UserError, match=r"1 of 8 photos have no mask there, as 3\.png; .* tried: 3\.png\.png$"):
        read(model, tmp_path / "images")
