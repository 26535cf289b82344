"""Samples a second of the loader in fully random order: `python -m benchmarks.bench_loader`.

On a cache of Stable Diffusion's size in the page cache, one process: five views' moments with cameras, bounds and
intensity; the same with caption embeddings and a prior image; against WebDataset reading the same content from a tar,
and against reading as many bytes of the same files in order. And the time from nothing to the first batch at a late
position.
"""

from __future__ import annotations

import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset

from benchmarks.record import table, write
from infra.storage.files import digest_file
from preprocessing.batches.batches import TrainBatches
from preprocessing.latents.chunks import StoredFile, store_array
from preprocessing.latents.reading import CHUNKED, CROPS_NAME, MANIFEST_NAME, LatentCache
from preprocessing.latents.reading import SCHEMA_VERSION as LATENTS_VERSION
from preprocessing.shards.reading import FrameIndex, ShardReader
from preprocessing.shards.schema import DATASET_NAME, INDEX_NAME, INDEX_SCHEMA, SCHEMA_VERSION, write_manifest
from tests.support.captures import orbit

NUM_SEQUENCES, NUM_FRAMES, NUM_VIEWS = 400, 100, 5
MOMENTS, TEXT, LATENT = (8, 32, 32), (77, 1024), (4, 32, 32)
NUM_PRIOR, IMAGE_SIZE, BATCH_SIZE = 256, 256, 64
SECONDS, TURNS = 1.5, 5  # of one measurement, and how often all take their turn
LATE_POSITION = 10_000_000
TARGET_WEBDATASET, TARGET_RAW, TARGET_RESUME_MS = 40, 0.9, 50


def write_shards(folder: Path) -> None:
    """An index of sequences without pictures, which cached moments stand for."""
    poses = orbit(NUM_FRAMES).astype(np.float32).reshape(NUM_FRAMES, 16).tolist()
    numbers = np.arange(NUM_SEQUENCES * NUM_FRAMES)
    names = [f"sequence_{number:05d}" for number in range(NUM_SEQUENCES)]
    count = len(numbers)
    columns = {
        "category": ["apple"] * count,
        "sequence": np.repeat(names, NUM_FRAMES),
        "frame_number": numbers % NUM_FRAMES,
        "split": ["train"] * count,
        "shard": ["shard-000000.tar"] * count,
        **{name: np.zeros(count) for kind in ("image", "mask") for name in (f"{kind}_offset", f"{kind}_length")},
        **{name: np.zeros(count) for name in ("image_crc32", "mask_crc32")},
        "world_to_camera": poses * NUM_SEQUENCES,
        "intrinsics": [[300.0, 0, 128, 0, 300, 128, 0, 0, 1]] * count,
        "height": np.full(count, IMAGE_SIZE),
        "width": np.full(count, IMAGE_SIZE),
        "intensity_mean": np.full(count, 0.5),
        "intensity_variance": np.full(count, 0.1),
        "caption": [[f"a photo of apple {number}"] for number in range(NUM_SEQUENCES) for _ in range(NUM_FRAMES)],
        "scene_bounds": [[-1.0, -1, -1, 1, 1, 1]] * count,
    }
    arrays = [
        pa.array(columns[field.name], field.type)
        if not pa.types.is_dictionary(field.type)
        else pa.array(columns[field.name]).cast(field.type)
        for field in INDEX_SCHEMA
    ]
    path = folder / INDEX_NAME
    pq.write_table(pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA), path)
    manifest = {"index_sha256": digest_file(path), "index_bytes": path.stat().st_size, "shards": []}
    write_manifest(folder / DATASET_NAME, manifest | {"schema_version": SCHEMA_VERSION})


def write_cache(folder: Path) -> None:
    """Random numbers in the place of what a base model gives."""
    random = np.random.default_rng(0)
    files: list[StoredFile] = []
    totals = {"moments": NUM_SEQUENCES * NUM_FRAMES, "text": NUM_SEQUENCES + 1, "prior": NUM_PRIOR}
    for kind, shape in (("moments", MOMENTS), ("text", TEXT), ("prior", LATENT)):
        chunk = random.standard_normal((CHUNKED[kind], *shape), dtype=np.float32).astype(np.float16)
        for number, first in enumerate(range(0, totals[kind], CHUNKED[kind])):
            rows = chunk[: totals[kind] - first]
            files.append(store_array(folder, f"{kind}-{number:06d}.npy", rows))
    crops = np.tile(np.array([0, 0, IMAGE_SIZE, 0.5, 0.1], np.float32), (totals["moments"], 1))
    files.append(store_array(folder, CROPS_NAME, crops))
    captions = folder / "captions.json"
    captions.write_text(json.dumps(["", *(f"a photo of apple {number}" for number in range(NUM_SEQUENCES))]))
    files.append(StoredFile(captions.name, captions.stat().st_size, digest_file(captions)))
    settings = {"num_crops": 1, "smallest_crop": 1.0, "seed": 0, "num_prior_images": NUM_PRIOR}
    manifest = {
        "latent_shape": LATENT,
        "scaling_factor": 0.18215,
        "shift_factor": 0.0,
        "files": [list(file) for file in files],
    }
    write_manifest(folder / MANIFEST_NAME, manifest | settings | {"schema_version": LATENTS_VERSION})


def write_tar(path: Path, num_samples: int, *, text: bool) -> None:
    """The same content as WebDataset stores it: one sample after the other."""
    random = np.random.default_rng(0)
    arrays = {"moments": random.standard_normal((NUM_VIEWS, *MOMENTS)).astype(np.float16)}
    if text:
        for name in ("text", "prior_text"):
            arrays[name] = random.standard_normal(TEXT).astype(np.float16)
        arrays["prior"] = random.standard_normal(LATENT).astype(np.float16)
    cameras = io.BytesIO()
    np.savez(
        cameras,
        world_to_camera=np.zeros((NUM_VIEWS, 4, 4), np.float32),
        intrinsics=np.zeros((NUM_VIEWS, 3, 3), np.float32),
        intensity=np.zeros((NUM_VIEWS, 2), np.float32),
        scene_bounds=np.zeros((2, 3), np.float32),
    )
    with webdataset.TarWriter(str(path)) as tar:
        for number in range(num_samples):
            members = {f"{name}.npy": array for name, array in arrays.items()}
            tar.write({"__key__": f"{number:08d}", **members, "cameras.npz": cameras.getvalue()})


def rate(batches: Iterator[int]) -> float:
    """Units a second of an iterator that yields how many each step had."""
    next(batches)
    total, started = 0, time.perf_counter()
    while time.perf_counter() - started < SECONDS:
        total += next(batches)
    return total / (time.perf_counter() - started)


def with_webdataset(path: Path) -> Iterator[int]:
    """Its usual pipeline: shuffled in a buffer of 1,000, decoded by its defaults."""
    while True:
        for _ in webdataset.WebDataset(str(path), shardshuffle=False).shuffle(1000).decode():
            yield 1


def gathered(batches: TrainBatches) -> Iterator[int]:
    for start in range(0, 1 << 40, BATCH_SIZE):
        batches.gather(batches.order.choose(np.arange(start, start + BATCH_SIZE)))
        yield BATCH_SIZE


def loaded(batches: TrainBatches) -> Iterator[int]:
    for start in range(0, 1 << 40, BATCH_SIZE):
        batches.load(range(start, start + BATCH_SIZE))
        yield BATCH_SIZE


def read_in_order(folder: Path) -> Iterator[int]:
    """The cache's files one after the other, each into a new buffer as batches are; yields bytes."""
    while True:
        for path in sorted(folder.glob("moments-*.npy")):
            with path.open("rb", buffering=0) as file:
                yield len(file.read())


def seconds_to_resume(folder: Path) -> tuple[float, float]:
    """Seconds to open everything and load the first batch, at the run's start and late in it."""
    taken: list[list[float]] = [[], []]
    for _ in range(TURNS):
        for which, position in enumerate((0, LATE_POSITION)):
            batches = open_batches(folder)
            started = time.perf_counter()
            batches.load(range(position, position + BATCH_SIZE))
            taken[which].append(time.perf_counter() - started)
    return statistics.median(taken[0]), statistics.median(taken[1])


def open_batches(folder: Path) -> TrainBatches:
    index = FrameIndex.open(folder / "shards")
    reader = ShardReader(folder / "shards", index)
    return TrainBatches(index, reader, LatentCache(folder / "latents"), seed=0, num_views=NUM_VIEWS)


def compare(folder: Path) -> list[list[object]]:
    """Rows of the table: medians of measurements that take turns."""
    batches, rows = open_batches(folder), []
    view_bytes = NUM_VIEWS * int(np.prod(MOMENTS)) * 2
    for name, text, ours, sample_bytes in (
        ("five views", False, gathered, view_bytes),
        ("with two embeddings and a prior image", True, loaded, view_bytes + 2 * (2 * TEXT[0] * TEXT[1] + 4096)),
    ):
        tar = folder / f"samples-{text}.tar"
        write_tar(tar, 2500, text=text)
        calls: list[Callable[[], float]] = [
            lambda ours=ours: rate(ours(batches)),  # type: ignore[misc]
            lambda tar=tar: rate(with_webdataset(tar)),  # type: ignore[misc]
            lambda size=sample_bytes: rate(read_in_order(folder / "latents")) / size,  # type: ignore[misc]
        ]
        measured = [[call() for call in calls] for _ in range(TURNS)]
        mine, theirs, raw = (statistics.median(column) for column in zip(*measured, strict=True))
        numbers = [f"{value:,.0f}" for value in (sample_bytes / 1024, mine, theirs, raw)]
        rows.append([name, *numbers, f"{mine / theirs:.1f}×", f"{mine / raw:.2f}"])
        tar.unlink()
    return rows


@contextmanager
def written_data() -> Iterator[Path]:
    """A folder with shards/ and latents/, for the body of a `with`."""
    folder = Path(tempfile.mkdtemp())
    try:
        for name in ("shards", "latents"):
            (folder / name).mkdir()
        write_shards(folder / "shards")
        write_cache(folder / "latents")
        yield folder
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Measure, print, write docs/benchmarks/<date>-loader.{json,md}."""
    torch.set_num_threads(1)
    with written_data() as folder:
        rows = compare(folder)
        first, late = seconds_to_resume(folder)
    header = ["sample", "kB", "ours", "WebDataset", "raw read in order", "of WebDataset", "of raw"]
    text = (
        f"Samples a second of one process, batches of {BATCH_SIZE} in fully random order "
        f"(targets {TARGET_WEBDATASET}× and {TARGET_RAW}):\n\n{table(header, rows)}\n"
        f"First batch of a loader that was just opened: {1e3 * first:.1f} ms at the start, {1e3 * late:.1f} ms at "
        f"position {LATE_POSITION:,} (target {TARGET_RESUME_MS} ms, no later than at the start)."
    )
    write("loader", title="Loader", text=text, results={"rows": rows, "resume_seconds": [first, late]})


if __name__ == "__main__":
    main()
