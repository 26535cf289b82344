"""Straight pictures: dots that a lens shows are where the pinhole camera projects them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from preprocessing.importing.photos.lenses import lens_of
from preprocessing.importing.photos.pictures import PictureError
from preprocessing.importing.writing import import_capture
from tests.support.posed_dots import (
    CENTER,
    FOCAL,
    SIZE,
    Lens,
    dot_offsets,
    draw,
    pinhole,
    pixels_of,
    poses,
    reconstruction,
    written,
)


def brown(k: tuple[float, ...], p: tuple[float, float] = (0.0, 0.0), below: tuple[float, ...] = ()) -> Lens:
    """Radial terms over radial terms and tangential ones (Brown 1966; OpenCV's rational model)."""

    def lens(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        square = x * x + y * y
        above, under = (
            1 + sum(term * square ** (power + 1) for power, term in enumerate(terms)) for terms in (k, below)
        )
        return (
            x * above / under + 2 * p[0] * x * y + p[1] * (square + 2 * x * x),
            y * above / under + p[0] * (square + 2 * y * y) + 2 * p[1] * x * y,
        )

    return lens


def fisheye(*k: float) -> Lens:
    """Polynomial of the angle (Kannala and Brandt 2006)."""

    def lens(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        radius = np.hypot(x, y)
        angle = np.arctan(radius)
        bent = angle * (1 + sum(term * angle ** (2 * power + 2) for power, term in enumerate(k)))
        return x * bent / radius, y * bent / radius

    return lens


LENSES: dict[str, tuple[str, list[float], Lens]] = {
    "k1 k2 p1 p2": ("OPENCV", [-0.4, 0.2, 0.01, -0.02], brown((-0.4, 0.2), (0.01, -0.02))),
    "k3": ("FULL_OPENCV", [0.3, -0.5, 0, 0, 0.6, 0, 0, 0], brown((0.3, -0.5, 0.6))),
    "k1 to k6": (
        "FULL_OPENCV",
        [0.4, 0.3, 0.005, -0.01, 0.2, 0.6, 0.2, 0.1],
        brown((0.4, 0.3, 0.2), (0.005, -0.01), (0.6, 0.2, 0.1)),
    ),
    "fisheye": ("OPENCV_FISHEYE", [0.1, -0.2, 0.1, -0.05], fisheye(0.1, -0.2, 0.1, -0.05)),
    "fisheye without terms": ("OPENCV_FISHEYE", [0.0, 0.0, 0.0, 0.0], fisheye()),
}


def save(folder: Path, lens: Lens, *, scale: float = 1.0) -> list[Path]:
    """Photos of the dots, larger than the cameras say."""
    paths = [folder / f"{number}.png" for number in range(len(poses()))]
    size = (round(SIZE[0] * scale), round(SIZE[1] * scale))
    for path, pose in zip(paths, poses(), strict=True):
        Image.fromarray(draw(pixels_of(pose, lens) * (size[1] / SIZE[1], size[0] / SIZE[0]), size)).save(path)
    return paths


@pytest.mark.parametrize("name", LENSES)
def test_dots_are_where_the_camera_says(tmp_path: Path, name: str) -> None:
    model, terms, lens = LENSES[name]
    straight, bent = (np.concatenate([pixels_of(pose, *args) for pose in poses()]) for args in ((), (lens,)))
    assert np.linalg.norm(straight - bent, axis=1).max() > 1.5  # forgotten, it would be seen
    camera = pycolmap.Camera(model=model, width=SIZE[1], height=SIZE[0], params=[*FOCAL, *CENTER, *terms])
    import_capture(reconstruction(save(tmp_path, lens), camera), tmp_path / "root", category="thing", name="mine")
    assert dot_offsets(tmp_path / "root", written(tmp_path / "root")).max() < 0.3


@pytest.mark.parametrize("scale", [0.5, 2.0, 0.7031])
@pytest.mark.parametrize("bent", [True, False])
def test_photos_of_another_size_have_scaled_cameras(tmp_path: Path, scale: float, bent: bool) -> None:
    """Each axis by itself: 0.7031 makes 169 × 127 of 240 × 180, each side rounded."""
    model, terms, lens = LENSES["k1 k2 p1 p2"] if bent else ("PINHOLE", [], brown(()))
    camera = pycolmap.Camera(model=model, width=SIZE[1], height=SIZE[0], params=[*FOCAL, *CENTER, *terms])
    capture = reconstruction(save(tmp_path, lens, scale=scale), camera)
    summary = import_capture(capture, tmp_path / "root", category="thing", name="mine")
    assert dot_offsets(tmp_path / "root", written(tmp_path / "root")).max() < 0.3
    size = f"{round(240 * scale)} × {round(180 * scale)} pixels"
    assert f"  6 photos {size}, cameras of 240 × 180: the cameras are scaled" in summary.lines()


def test_observations_move_with_the_pixels() -> None:
    """A point seen in the photo is seen in the straight picture where the pinhole camera has it."""
    model, terms, lens = LENSES["k1 to k6"]
    camera = pycolmap.Camera(model=model, width=SIZE[1], height=SIZE[0], params=[*FOCAL, *CENTER, *terms])
    straight = lens_of(camera, (SIZE[0] * 2, SIZE[1] * 2))
    x, y = np.meshgrid(np.linspace(-0.4, 0.4, 7), np.linspace(-0.3, 0.3, 5))
    places = np.stack([x.ravel() + 1e-3, y.ravel()], axis=1)
    bent = np.stack(lens(*places.T), axis=1) * FOCAL + CENTER
    expected = places * np.diag(straight.intrinsics)[:2] + straight.intrinsics[:2, 2]
    np.testing.assert_allclose(straight.move(bent), expected, atol=1e-5)
    flat = lens_of(pinhole(), (90, 120))
    np.testing.assert_allclose(flat.move(np.array([[10.0, 20.0]])), [[5, 10]])


@pytest.mark.parametrize("terms", [[-0.9, 0, 0, 0], [-5, 0, 0, 0], [0, 0, 0.5, 0.5]])
def test_lenses_that_fold_the_picture_are_refused(terms: list[float]) -> None:
    camera = pycolmap.Camera(model="OPENCV", width=300, height=200, params=[220, 221, 150, 100, *terms])
    with pytest.raises(PictureError, match=r"no straight picture can be made of \(OPENCV 220, 221, 150, 100, "):
        lens_of(camera, (200, 300))
