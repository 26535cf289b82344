"""Import of 6-megapixel photos taken through a lens: `python -m benchmarks.bench_import`.

Seconds a photo to read, straighten and write it, with the places of its pixels kept per camera, against computing them
anew for each photo, which is what one writes first. Places are kept in steps of 1/32 pixel: the straight pictures may
differ by a fraction of a level.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from PIL import Image

from benchmarks.record import median_seconds_side_by_side, table, write
from preprocessing.importing.checking import check_photos
from preprocessing.importing.developing import develop
from preprocessing.importing.photos.lenses import lens_of
from preprocessing.importing.reconstructions import Photo, Reconstruction
from preprocessing.sequences.images import encode_image, read_image

SIZE = (2000, 3000)  # (height, width)
LENSES = {
    "OPENCV": [2200.0, 2210.0, 1505.0, 990.0, -0.1, 0.02, 1e-3, -1e-3],
    "FULL_OPENCV": [2200.0, 2210.0, 1505.0, 990.0, 0.08, -0.15, 1e-3, 0.0, 0.12, 0.01, 0.0, 0.0],
    "OPENCV_FISHEYE": [1900.0, 1900.0, 1505.0, 990.0, 0.02, -0.01, 0.001, 0.0],
}
TARGET = 0.15  # seconds a photo
LARGEST_DIFFERENCE = 0.5  # levels of 255, on average
REPETITIONS = 5


def make_photo(path: Path) -> None:
    """Texture and sensor noise."""
    random = np.random.default_rng(0)
    texture = cv2.resize(random.integers(0, 256, (40, 60, 3), np.uint8), SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    noisy = np.clip(texture + random.normal(0, 6, texture.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path, quality=90)


def straightforward(path: Path, camera: pycolmap.Camera) -> np.ndarray:
    """Decode, compute where every pixel of the straight picture lies in the photo, look it up, encode."""
    picture = read_image(path, SIZE)
    pinhole = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
    v, u = np.mgrid[: pinhole.height, : pinhole.width] + 0.5
    rays = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3) @ np.linalg.inv(pinhole.calibration_matrix()).T
    places = (camera.img_from_cam(rays) - 0.5).astype(np.float32).reshape(pinhole.height, pinhole.width, 2)
    straight = cv2.remap(picture, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    encode_image(straight)
    return straight


def compare(path: Path) -> list[list[object]]:
    """A row for each lens."""
    rows: list[list[object]] = []
    for model, params in LENSES.items():
        camera = pycolmap.Camera(model=model, width=SIZE[1], height=SIZE[0], params=params)
        photos = tuple(Photo(f"{number}", path, None, np.eye(4), camera) for number in range(3))
        capture = Reconstruction(Path("model"), photos, np.empty((0, 3)), "as ours")
        plan = check_photos(capture).plans[0]
        plain, kept = median_seconds_side_by_side(
            [lambda camera=camera: straightforward(path, camera), lambda plan=plan: develop(plan)],  # type: ignore[misc]
            repetitions=REPETITIONS,
        )
        kept_pixels = lens_of(camera, SIZE).straighten(read_image(path, SIZE))
        difference = np.abs(straightforward(path, camera).astype(int) - kept_pixels).mean()
        assert difference < LARGEST_DIFFERENCE, f"pixels differ by {difference} levels"
        rows.append([model, f"{plain:.2f}", f"{kept:.3f}", f"{plain / kept:.1f}", TARGET, f"{difference:.2f}"])
    return rows


def main() -> None:
    """Measure, print, write docs/benchmarks/<date>-import.{json,md}."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "photo.jpg"
        make_photo(path)
        rows = compare(path)
    header = ["lens", "places anew, s", "places kept, s", "times faster", "target, s", "mean difference, levels"]
    text = f"{SIZE[1]} × {SIZE[0]} photos, decoded, straightened and encoded, seconds a photo:\n\n{table(header, rows)}"
    write("import", title="Import", text=text, results={"rows": rows})


if __name__ == "__main__":
    main()
