"""The cameras that the fields of a transforms.json describe: which fields come first, every lens, no term dropped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import UserError
from preprocessing.importing.photos.lenses import lens_of
from preprocessing.importing.reading import read_reconstruction
from preprocessing.importing.reconstructions import Reconstruction
from preprocessing.importing.transforms.camera import CAMERA_FIELDS, IRRELEVANT, MARKS, REFUSED
from tests.support.foreign_captures import FOCAL, HEIGHT, NAMES, WIDTH, frames, write_transforms
from tests.support.paths import CHECKOUT

IMAGES = [f"images/{name}" for name in NAMES]


def read(source: Path) -> Reconstruction:
    return read_reconstruction(source, None, None)


def framed(**fields: Any) -> list[dict[str, Any]]:
    """Frames with fields of their own."""
    return [{**frame, **fields} for frame in frames(IMAGES)]


ANGLE = 2 * math.atan(WIDTH / 2 / 120)  # of a focal length of 120
MATRIX = [[90.0, 0, 31], [0, 91.0, 25], [0, 0, 1]]


@pytest.mark.parametrize(
    ("file", "frame", "params", "lost"),
    [
        ({"fl_x": 80}, {"camera_angle_x": ANGLE}, [120, 120, 32, 24], "fl_x"),
        ({"fl_x": 80, "fl_y": 80}, {"fl_x": 100}, [100, 100, 32, 24], "fl_x, fl_y"),
        ({"fl_x": 80, "fl_y": 81}, {"fl_x": 80, "fl_y": 81}, [80, 81, 32, 24], None),
        ({"camera_angle_x": ANGLE, "cx": 30}, {"fl_y": 100}, [100, 100, 30, 24], "camera_angle_x"),
        ({"fl_x": 80, "cx": 30, "cy": 20}, {"K": MATRIX}, [90, 91, 31, 25], "cx, cy, fl_x"),
        ({"K": [[80, 0, 30], [0, 80, 20], [0, 0, 1]]}, {"intrinsics": MATRIX}, [90, 91, 31, 25], "K"),
        ({"fl_x": 80}, {"fl_x": None, "camera_angle_x": None}, [80, 80, 32, 24], None),
        ({"fl_x": 80, "k1": 0.1}, {"k1": 0.2}, [80, 80, 32, 24, 0.2, 0, 0, 0], "k1"),
        ({"fl_x": 80}, {"k1": 0.2}, [80, 80, 32, 24, 0.2, 0, 0, 0], None),
    ],
)
def test_a_frames_own_camera_replaces_the_files(
    tmp_path: Path, file: dict[str, Any], frame: dict[str, Any], params: list[float], lost: str | None
) -> None:
    """Whatever form the focal length has in either place; the file's fields that were not used are told."""
    write_transforms(tmp_path, **{"fl_x": None, **file}, frames=framed(**frame))
    capture = read(tmp_path)
    np.testing.assert_allclose(capture.photos[0].camera.params, params)
    told = [note.split("not the file's ")[1] for note in capture.notes]
    assert told == ([] if lost is None else [lost])


def test_a_whole_matrix_of_intrinsics(tmp_path: Path) -> None:
    write_transforms(tmp_path, fl_x=None, intrinsic_matrix=MATRIX)
    assert read(tmp_path).photos[0].camera.params.tolist() == [90, 91, 31, 25]
    write_transforms(tmp_path, fl_x=90.0, fl_y=91.0, cx=31.0, cy=25.0, K=np.ravel(MATRIX).tolist())
    assert read(tmp_path).photos[0].camera.params.tolist() == [90, 91, 31, 25]
    write_transforms(tmp_path, K=MATRIX)
    with pytest.raises(UserError, match=r"000\.jpg: K has \[90.*, but fl_x, fl_y, cx and cy say \[80.*; also imag"):
        read(tmp_path)
    write_transforms(tmp_path, fl_x=None, intrinsics={"fx": 3})
    with pytest.raises(UserError, match=r"intrinsics is no 3 × 3 matrix .*; write fl_x, fl_y, cx and cy instead"):
        read(tmp_path)


def distorted(x: float, y: float, k: list[float], p: tuple[float, float]) -> tuple[float, float]:
    """Brown's model, by hand."""
    r2 = x * x + y * y
    radial = 1 + sum(term * r2 ** (power + 1) for power, term in enumerate(k))
    return (
        x * radial + 2 * p[0] * x * y + p[1] * (r2 + 2 * x * x),
        y * radial + p[0] * (r2 + 2 * y * y) + 2 * p[1] * x * y,
    )


@pytest.mark.parametrize("name", [None, "OPENCV", "PINHOLE", "SIMPLE_RADIAL"])
@pytest.mark.parametrize("k3", [0.0, 0.12])
def test_no_lens_term_is_dropped_whatever_the_model_is_called(tmp_path: Path, name: str | None, k3: float) -> None:
    write_transforms(tmp_path, camera_model=name, k1=0.08, k2=-0.15, k3=k3, k4=0, p1=0.01, p2=-0.02)
    camera = read(tmp_path).photos[0].camera
    x, y = distorted(0.3, -0.2, [0.08, -0.15, k3], (0.01, -0.02))
    found = camera.img_from_cam(np.array([[0.3, -0.2, 1.0]]))[0]
    np.testing.assert_allclose(found, [FOCAL * x + 32, FOCAL * y + 24], atol=1e-9)


@pytest.mark.parametrize("fields", [{"camera_model": "OPENCV_FISHEYE"}, {"is_fisheye": 1}, {"camera_model": "FISHEYE"}])
def test_fisheye_lenses(tmp_path: Path, fields: dict[str, Any]) -> None:
    """Kannala and Brandt's polynomial of the angle; without terms it still bends lines."""
    terms = [0.05, -0.02, 0.01, 0.003]
    write_transforms(tmp_path, **fields, **{f"k{number}": term for number, term in enumerate(terms, start=1)})
    angle = math.atan(0.5)
    radius = angle * (1 + sum(term * angle ** (2 * number) for number, term in enumerate(terms, start=1)))
    found = read(tmp_path).photos[0].camera.img_from_cam(np.array([[0.3, 0.4, 1.0]]))[0]
    np.testing.assert_allclose(found, [FOCAL * radius * 0.6 + 32, FOCAL * radius * 0.8 + 24], atol=1e-9)
    write_transforms(tmp_path, **fields)
    assert not lens_of(read(tmp_path).photos[0].camera, (HEIGHT, WIDTH)).is_pinhole


def test_the_page_names_every_field() -> None:
    page = (CHECKOUT / "docs/own-captures.md").read_text()
    fields = (
        CAMERA_FIELDS
        | REFUSED.keys()
        | MARKS.keys()
        | IRRELEVANT
        | {"k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2", "mask_path"}
    )
    assert sorted(field for field in fields if f"`{field}`" not in page) == []


@pytest.mark.parametrize("nothing", [None, False, 0, 0.0, "", [], {}, [0, 0, 0, 0], {"p0": 0}])
def test_fields_that_say_nothing_are_no_reason(tmp_path: Path, nothing: Any) -> None:
    keys = ("rolling_shutter", "k", "k4", "k5", "skew", "distortion_params", "ftheta_p1", "latlong", "from_na")
    write_transforms(
        tmp_path, frames=framed(**dict.fromkeys(keys, nothing)), is_fisheye=False, camera_model="PERSPECTIVE"
    )
    capture = read(tmp_path)
    assert lens_of(capture.photos[0].camera, (HEIGHT, WIDTH)).is_pinhole
    assert capture.notes == ()
