"""One object to generate: its cameras, its given frame, its text, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.cameras import Cameras
from model.config import SamplingConfig
from model.diffusion.windows import WindowConfig
from model.trajectories import angles
from pipelines.generation.generator import GeneratedSample, SampleRequest
from pipelines.generation.pictures import ObjectPictures, pictures_path
from preprocessing.picking import evenly
from preprocessing.shards.reading import FrameIndex, ShardReader

UNIT_CUBE = np.array([[-1, -1, -1], [1, 1, 1]], dtype=np.float32)  # scene bounds of an object that does not exist yet
MAX_ORBIT_FRAMES = 10_000  # frames whose cameras the orbit of text-only objects is taken from


@dataclass(frozen=True, eq=False)
class EvaluationTask:
    """One object to generate.

    With frames, the first is given and the others are wanted; without, it is made from its caption.
    """

    name: tuple[str, ...]
    """Of the pictures' file: (category, sequence), or ("text-0",)."""
    caption: str
    cameras: Cameras  # [V]
    scene_bounds: np.ndarray  # [2, 3]
    rows: tuple[int, ...]
    """Frames of the cameras, by row of the index; none for an object from text."""
    sampling: SamplingConfig
    seed: int
    windows: WindowConfig | None = None

    def path(self, folder: Path) -> Path:
        """Where its pictures are kept."""
        return pictures_path(folder, *self.name)

    def request(self, reader: ShardReader | None) -> SampleRequest:
        """What the model is asked. Only a task with frames needs a reader, here and below."""
        return SampleRequest(
            world_to_camera=self.cameras.world_to_camera.numpy(),
            intrinsics=self.cameras.intrinsics.numpy(),
            image_size=self.cameras.image_size,
            scene_bounds=self.scene_bounds,
            text=self.caption,
            known_images=self._images(self.rows[:1], reader),
            seed=self.seed,
            sampling=self.sampling,
            windows=self.windows,
        )

    def truth(self, reader: ShardReader | None) -> np.ndarray:
        """The wanted frames, uint8 [V-1, H, W, 3]; none for an object from text."""
        return self._images(self.rows[1:], reader)

    def pictures(
        self, sample: GeneratedSample, reader: ShardReader | None, *, reconstructed: np.ndarray | None
    ) -> ObjectPictures:
        """What is kept: the generated views, without the given one, beside the truth."""
        first = min(len(self.rows), 1)
        azimuth, elevation = (values.numpy() for values in angles(self.cameras))
        has_frames = bool(self.rows)
        return ObjectPictures(
            caption=self.caption,
            generated=sample.images[first:],
            azimuth=azimuth[first:],
            elevation=elevation[first:],
            depth=None if sample.depth is None else sample.depth[first:],
            opacity=None if sample.opacity is None else sample.opacity[first:],
            known=self._images(self.rows[:1], reader)[0] if has_frames else None,
            known_angles=np.array([azimuth[0], elevation[0]]) if has_frames else None,
            truth=self.truth(reader) if has_frames else None,
            reconstructed=reconstructed,
        )

    def _images(self, rows: tuple[int, ...], reader: ShardReader | None) -> np.ndarray:
        """uint8 [N, H, W, 3]."""
        images = np.zeros((len(rows), *self.cameras.image_size, 3), np.uint8)
        for number, row in enumerate(rows):
            assert reader is not None
            images[number] = reader.image(row)
        return images


def training_cameras(index: FrameIndex) -> Cameras:
    """Cameras [N] of the training frames, or of all frames where none is for training; evenly picked from very many."""
    sequences = index.sequences("train") or index.sequences()
    rows = np.array([row for sequence in sequences for row in sequence.rows])
    return index.cameras(rows[evenly(len(rows), MAX_ORBIT_FRAMES)])
