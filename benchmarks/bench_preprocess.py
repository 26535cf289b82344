"""Preprocessing of 2-megapixel photos to 256 × 256: `python -m benchmarks.bench_preprocess`.

Frames per second and core of the loop that a shard's task runs, with and without masks, against a straightforward one
(Pillow, whole-picture arithmetic), whose pixels must be equal; and of Ray Data over all cores against as many times the
bare loop. Reading the files is included.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.record import median_seconds_side_by_side, table, write
from infra.cluster.malloc import keep_freed_memory
from model.cameras import Cameras
from pipelines.stages.preprocess import run_writers
from preprocessing.config import PreprocessConfig
from preprocessing.sequences import images
from preprocessing.shards.planning import ShardTask, plan_shards
from preprocessing.shards.writing import write_shard
from tests.support.captures import Capture, make_capture, write_annotations, write_point_cloud

SIZE = (1920, 1080)  # (height, width)
IMAGE_SIZE = 256
NUM_FRAMES = 24  # of a sequence
SEQUENCES_PER_SHARD = 25  # as presets have; Ray takes 0.2 to 0.3 s from the end of a task to the start of the next
TASKS_PER_CORE = 3
JPEG_QUALITY = 80  # 0.3 MB a photo
TARGET = 80.0  # photos per second and core
TARGET_RAY = 0.9  # of cores times the bare loop


def make_photos(folder: Path) -> tuple[bytes, bytes]:
    """One photo with texture and sensor noise as JPEG, and its mask as PNG."""
    random = np.random.default_rng(0)
    height, width = SIZE
    texture = cv2.resize(random.integers(0, 256, (60, 34, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    photo = np.clip(texture + random.normal(0, 6, texture.shape), 0, 255).astype(np.uint8)
    mask = np.zeros(SIZE, np.uint8)
    cv2.ellipse(mask, (width // 2, height // 2), (300, 400), 0, 0, 360, 255, -1)
    _, jpeg = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    _, png = cv2.imencode(".png", mask)
    return jpeg.tobytes(), png.tobytes()


def straightforward(jpeg: bytes, png: bytes | None, camera: Cameras) -> images.View:
    """Pillow and numpy: what one writes first."""
    image = np.array(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    if image.mean() < images.BLACK_MEAN * 255:
        raise ValueError("black")
    mask = None if png is None else np.array(Image.open(io.BytesIO(png)).convert("L"))
    view = images.crop_and_resize(image, mask, camera, IMAGE_SIZE)
    _store(view)
    return view


def ours(image: Path, mask: Path | None, camera: Cameras) -> images.View:
    """What preprocessing does with a frame."""
    pixels = images.read_image(image, SIZE)
    view = images.crop_and_resize(pixels, None if mask is None else images.read_mask(mask, SIZE), camera, IMAGE_SIZE)
    _store(view)
    return view


def _store(view: images.View) -> None:
    images.encode_image(view.image)
    images.intensity(view.image)
    if view.mask is not None:
        images.encode_mask(view.mask)


def compare_loops(folder: Path) -> list[list[object]]:
    """Photos per second of both, on one core."""
    jpeg, png = make_photos(folder)
    image, mask = folder / "photo.jpg", folder / "mask.png"
    image.write_bytes(jpeg)
    mask.write_bytes(png)
    matrix = torch.tensor([[1500.0, 0, SIZE[1] / 2], [0, 1500.0, SIZE[0] / 2], [0, 0, 1]], dtype=torch.float64)
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = 4.0
    camera, rows = Cameras(pose, matrix, SIZE), []
    for with_mask in (False, True):
        known = mask if with_mask else None
        first = straightforward(image.read_bytes(), None if known is None else known.read_bytes(), camera)
        second = ours(image, known, camera)
        equal = np.array_equal(first.image, second.image) and (known is None or np.array_equal(first.mask, second.mask))
        assert equal, "pixels differ"
        seconds = median_seconds_side_by_side(
            [
                lambda known=known: straightforward(  # type: ignore[misc]
                    image.read_bytes(), None if known is None else known.read_bytes(), camera
                ),
                lambda known=known: ours(image, known, camera),  # type: ignore[misc]
                lambda: cv2.imdecode(np.fromfile(image, np.uint8), cv2.IMREAD_COLOR_RGB),
            ],
            repetitions=25,
        )
        rates = [f"{1 / value:.0f}" for value in seconds]
        rows.append(["with mask" if with_mask else "photo alone", *rates, "equal"])
    return rows


def make_captures(root: Path, num_sequences: int, *, num_frames: int = NUM_FRAMES) -> None:
    """Sequences of full-size photos, which are one file under many names."""
    jpeg, png = make_photos(root)
    (root / "photo.jpg").write_bytes(jpeg)
    (root / "mask.png").write_bytes(png)
    captures = [make_capture(name=f"s{number}", num_frames=num_frames) for number in range(num_sequences)]
    for capture in captures:
        _enlarge(root, capture)
    write_annotations(root, captures)
    for capture in captures:
        write_point_cloud(root, capture)


def _enlarge(root: Path, capture: Capture) -> None:
    for entry in capture.frames:
        entry["image"]["size"] = list(SIZE)
        for kind, source in (("image", "photo.jpg"), ("mask", "mask.png")):
            path = root / entry[kind]["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.hardlink_to(root / source)


def compare_ray(folder: Path) -> list[list[object]]:
    """Frames per second of whole shards: one process, and Ray Data with a task per core, start-up apart."""
    cores = os.cpu_count() or 1
    config = PreprocessConfig(image_size=IMAGE_SIZE, sequences_per_shard=SEQUENCES_PER_SHARD)
    root = folder / "raw"
    root.mkdir()
    make_captures(root, num_sequences=SEQUENCES_PER_SHARD * (1 + TASKS_PER_CORE) * cores)
    tasks = plan_shards(root, config).tasks
    first, tasks = tasks[:cores], tasks[cores:]
    bare = _bare(tasks[:2], root, folder / "bare", config)
    out = folder / "ray"
    out.mkdir()
    list(run_writers(first, root, out, config, num_workers=cores))  # starts Ray and its workers
    started = time.perf_counter()
    frames = sum(result["frames"] for result in run_writers(tasks, root, out, config, num_workers=cores))
    ray = frames / (time.perf_counter() - started)
    return [[f"{bare:.1f}", cores, f"{ray:.1f}", f"{ray / (cores * bare):.2f}", TARGET_RAY]]


def _bare(tasks: Sequence[ShardTask], root: Path, out: Path, config: PreprocessConfig) -> float:
    out.mkdir()
    write_shard(tasks[0], root, out, config)
    started = time.perf_counter()
    frames = sum(write_shard(task, root, out, config).num_frames for task in tasks)
    return frames / (time.perf_counter() - started)


def main() -> None:
    """Measure, print, write docs/benchmarks/<date>-preprocess.{json,md}."""
    keep_freed_memory()  # as a shard's task does
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        loops, ray = compare_loops(folder), compare_ray(folder)
    finally:
        shutil.rmtree(folder)
    text = "\n".join(
        [
            f"{SIZE[0]} × {SIZE[1]} photos to {IMAGE_SIZE}², a second and core (target {TARGET:g} for a photo):\n",
            table(["frames", "straightforward", "ours", "decoding alone", "pixels"], loops),
            f"Whole shards of {SEQUENCES_PER_SHARD} sequences of {NUM_FRAMES} frames with masks, frames a second:\n",
            table(["bare loop, one core", "cores", "Ray Data", "of cores × bare loop", "target"], ray),
        ]
    )
    write("preprocess", title="Preprocessing", text=text, results={"loops": loops, "ray": ray})


if __name__ == "__main__":
    main()
