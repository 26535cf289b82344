"""Reader of a folder of shards: which sequences there are, cameras and pictures of any frames."""

from __future__ import annotations

import copy
import mmap
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from infra.errors import UserError
from infra.storage.cache import local_copy
from infra.storage.files import StoragePath, digest_file
from infra.storage.tables import read_table
from model.cameras import Cameras
from preprocessing.captures.set_lists import SPLITS
from preprocessing.sequences.images import DefectError, decode_image, decode_mask
from preprocessing.shards.schema import INDEX_NAME, INDEX_SCHEMA, check_names, read_manifest

Rows = Sequence[int] | np.ndarray
Decoder = Callable[[bytes, tuple[int, int]], np.ndarray]  # (file, expected (height, width)) -> pixels


@dataclass(frozen=True, eq=False)
class SequenceRecord:
    """One capture of one object."""

    category: str
    sequence: str
    split: str
    captions: tuple[str, ...]
    scene_bounds: np.ndarray  # [2, 3] float32, minimum and maximum corner
    rows: range  # its frames' rows in the index, by rising frame number

    @property
    def key(self) -> str:
        """Its name among all categories' sequences."""
        return f"{self.category}/{self.sequence}"


class FrameIndex:
    """index.parquet in memory: one row per frame; the row number is the frame's id. N rows."""

    def __init__(self, table: pa.Table, manifest: dict[str, Any]) -> None:
        self.manifest = manifest  # dataset.json
        self.frame_numbers: np.ndarray = table["frame_number"].to_numpy()  # [N] int32
        self.shards: tuple[str, ...]
        self.shards, self.shard_numbers = _codes(table["shard"])  # names; [N] position of each frame's shard among them
        self.image_spans = _pairs(table, "image_offset", "image_length")  # [N, 2] bytes: offset and length in the shard
        self.image_sums: np.ndarray = table["image_crc32"].to_numpy()  # [N] CRC-32 of those bytes
        self.mask_sums: np.ndarray = table["mask_crc32"].to_numpy()
        self.mask_spans = _pairs(table, "mask_offset", "mask_length")  # [N, 2]; length 0 where there is no mask
        self.sizes = _pairs(table, "height", "width")  # [N, 2] pixels
        self._world_to_camera = _matrices(table["world_to_camera"], (4, 4))
        self._intrinsics = _matrices(table["intrinsics"], (3, 3))
        self._intensity = _pairs(table, "intensity_mean", "intensity_variance")
        self._sequences = _sequences(table)

    @staticmethod
    def open(folder: StoragePath) -> FrameIndex:
        """Read the index of a complete folder of shards.

        Raises:
            UserError: the folder is missing, incomplete, damaged or of another format version.
        """
        manifest = read_manifest(folder)
        check_names(folder, (shard["name"] for shard in manifest["shards"]))
        path = local_copy(folder / INDEX_NAME, sha256=manifest["index_sha256"], size=manifest["index_bytes"])
        # By its digest, since a flipped bit often gives another number instead of an error.
        if digest_file(path) != manifest["index_sha256"]:
            raise UserError(f"shards {folder}: {INDEX_NAME} is damaged; restore it or preprocess again")
        table = read_table(
            path,
            INDEX_SCHEMA,
            name=f"shards {folder}: {INDEX_NAME}",
            remedy="use only folders that this project wrote, or preprocess again",
        )
        return FrameIndex(table, manifest)

    def __len__(self) -> int:
        return len(self.frame_numbers)

    def sequences(self, split: str | None = None) -> tuple[SequenceRecord, ...]:
        """The sequences of a split ("train", "val" or "test"), or all, sorted by category and name. Raises ValueError
        for any other split.
        """
        if split is not None and split not in SPLITS:
            raise ValueError(f"split {split!r}: choose from {', '.join(SPLITS)}")
        return tuple(item for item in self._sequences if split in (None, item.split))

    def with_captions(self, captions: Mapping[str, tuple[str, ...]]) -> FrameIndex:
        """The same frames, of sequences that have these captions, by key. Raises UserError when one has none."""
        missing = [item.key for item in self._sequences if item.key not in captions]
        if missing:
            raise UserError(f"captions of other shards: none for sequence {missing[0]}; run `viewdiff captions` again")
        other = copy.copy(self)
        other._sequences = tuple(replace(item, captions=captions[item.key]) for item in self._sequences)
        return other

    def cameras(self, rows: Rows) -> Cameras:
        """Cameras [n] of frames in the normalised world, float32, for the stored images. Raises ValueError when these
        differ in size.
        """
        positions = np.asarray(rows)
        sizes = np.unique(self.sizes[positions], axis=0)
        if len(sizes) != 1:
            raise ValueError(
                f"frames {positions.tolist()} have images of sizes {sizes.tolist()}, they must be one size"
            )
        return Cameras(
            torch.from_numpy(self._world_to_camera[positions]),
            torch.from_numpy(self._intrinsics[positions]),
            (int(sizes[0, 0]), int(sizes[0, 1])),
        )

    @property
    def image_size(self) -> int:
        """Side of the stored pictures, pixels."""
        return int(self.sizes[0, 0])

    def matrices(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """world_to_camera [..., 4, 4] and intrinsics [..., 3, 3] of frames [...], as `cameras`."""
        positions = np.asarray(rows)
        return self._world_to_camera[positions], self._intrinsics[positions]

    def intensity(self, rows: Rows) -> Tensor:
        """[n, 2] mean and variance of each frame's RGB values in [0, 1]."""
        return torch.from_numpy(self._intensity[np.asarray(rows)])


class ShardReader:
    """Pictures of frames, each one slice of a memory-mapped shard. Shards are opened at first use, also after a move to
    another process.
    """

    def __init__(self, folder: StoragePath, index: FrameIndex) -> None:
        self._folder, self._index = folder, index
        self._shards = {shard["name"]: shard for shard in index.manifest["shards"]}
        self._maps: dict[str, mmap.mmap] = {}

    def image(self, row: int) -> np.ndarray:
        """RGB [H, W, 3] uint8. Raises UserError when the shard is missing or damaged."""
        return self._decode(decode_image, row, self._index.image_spans[row], self._index.image_sums[row])

    def mask(self, row: int) -> np.ndarray | None:
        """Foreground probability · 255, [H, W] uint8; None for a frame without mask. Raises as `image`."""
        if self._index.mask_spans[row, 1] == 0:
            return None
        return self._decode(decode_mask, row, self._index.mask_spans[row], self._index.mask_sums[row])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def _decode(self, decode: Decoder, row: int, span: np.ndarray, crc32: np.uint32) -> np.ndarray:
        name = self._index.shards[self._index.shard_numbers[row]]
        if name not in self._maps:
            self._maps[name] = self._open(name)
        height, width = self._index.sizes[row]
        data = self._maps[name][int(span[0]) : int(span[0] + span[1])]
        try:
            if zlib.crc32(data) != crc32:
                raise DefectError("its checksum is another")
            return decode(data, (int(height), int(width)))
        except DefectError as error:
            path = self._folder / name
            raise UserError(
                f"shard {path}: frame in row {row} is damaged ({error}); restore it or preprocess again"
            ) from error

    def _open(self, name: str) -> mmap.mmap:
        shard = self._shards[name]
        path = local_copy(self._folder / name, sha256=shard["sha256"], size=shard["bytes"])
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _codes(column: pa.ChunkedArray) -> tuple[tuple[str, ...], np.ndarray]:
    """The distinct values of a dictionary column, and each row's position among them."""
    encoded = column.unify_dictionaries().combine_chunks()
    return tuple(encoded.dictionary.to_pylist()), encoded.indices.to_numpy()


def _pairs(table: pa.Table, first: str, second: str) -> np.ndarray:
    return np.stack([table[first].to_numpy(), table[second].to_numpy()], axis=1)


def _matrices(column: pa.ChunkedArray, shape: tuple[int, int]) -> np.ndarray:
    """[N, *shape] of a column of lists."""
    return column.combine_chunks().flatten().to_numpy().reshape(-1, *shape)


def _sequences(table: pa.Table) -> tuple[SequenceRecord, ...]:
    names = [_codes(table[key]) for key in ("category", "sequence", "split")]
    keys = np.stack([codes for _, codes in names[:2]], axis=1)
    changes = np.flatnonzero((keys[1:] != keys[:-1]).any(axis=1)) + 1
    starts, ends = [0, *changes.tolist()], [*changes.tolist(), len(keys)]
    heads = table.select(["caption", "scene_bounds"]).take(pa.array(starts)).to_pylist()
    records = []
    for start, end, head in zip(starts, ends, heads, strict=True):
        category, sequence, split = (values[codes[start]] for values, codes in names)
        bounds = np.array(head["scene_bounds"], dtype=np.float32).reshape(2, 3)
        records.append(SequenceRecord(category, sequence, split, tuple(head["caption"]), bounds, range(start, end)))
    return tuple(records)
