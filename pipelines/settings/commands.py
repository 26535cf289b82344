"""Settings of the commands that are not stages: what a person asks for once. Nothing of it enters a fingerprint."""

from __future__ import annotations

from dataclasses import dataclass, field

from infra.errors import UserError
from model.config import SamplingConfig
from preprocessing.config import PreprocessConfig


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Where a capture goes, and what comes with it."""

    output: str
    """Folder of a CO3Dv2 dataset to add the capture to; it is made if it does not exist."""
    category: str
    """Category of the object, such as teddybear."""
    name: str
    """Name of the sequence."""
    images: str | None = None
    """Folder of the photos. A COLMAP model needs it. A transforms.json names its photos; with this option photos of the
    same names are taken from here."""
    masks: str | None = None
    """Folder of masks, white where the object is. The mask of photo.jpg is photo.png or photo.jpg.png. Without masks
    the object is where the cameras look."""
    object_radius: float | None = None
    """Radius of the object in the source's units, around the point that the cameras look at. Without it the size
    follows from the points, the masks or the pictures."""
    contact_sheet: str | None = None
    """PNG file to write: pictures of the imported sequence with its points projected into them."""
    solve_cameras: bool = False
    """The source is a folder of photos, or a video, without cameras: find them. This takes minutes."""
    placed_share: float = 0.6
    """With --solve-cameras: share of the photos, in (0, 1], whose cameras must be found."""
    video_frames: int = 100
    """With --solve-cameras: frames to take from a video. It is cut into as many equal parts, and the sharpest frame of
    each is taken."""

    def __post_init__(self) -> None:
        if self.object_radius is not None and not 0 < self.object_radius < float("inf"):
            raise UserError(f"--object-radius {self.object_radius:g}: must be above 0, in the source's units")
        if not 0 < self.placed_share <= 1:
            raise UserError(f"--placed-share {self.placed_share:g}: must lie above 0 and be at most 1")
        if self.video_frames < 3:
            raise UserError(f"--video-frames {self.video_frames}: must be at least 3")
        if self.solve_cameras and self.images is not None:
            raise UserError(
                f"--images {self.images}: goes with a COLMAP model; with --solve-cameras the source itself is the "
                "folder of the photos"
            )


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What to look at in a folder of captures."""

    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    """The checks that captures must pass, and the categories."""
    contact_sheet: str | None = None
    """PNG file to write: pictures of one category with their point clouds projected into them."""


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Where the record of trainings is, and where the page about them goes."""

    root: str = "runs/demo"
    """Folder whose MLflow database is read."""
    tracking_uri: str | None = None
    """MLflow server or database; without it the SQLite database below the root."""
    output: str = "comparison"
    """Folder to write the page into."""


@dataclass(frozen=True, kw_only=True)
class SizingConfig:
    """The GPUs that a training is planned for."""

    gpus: int = 8
    """Number of GPUs, one for each worker."""
    gpu_memory: float = 80.0
    """Memory of each GPU, GB."""
    gpu: str | None = None
    """Kind of GPU, for its speed: rtx3090, rtx4090, a100, h100, h200; without it the slowest kind of about that
    memory."""
    utilisation: float = 0.3
    """Share of the GPU's peak that is reached, in (0, 1]. It is a guess until a training has measured
    time/utilisation."""
    network_gigabits: float = 400.0
    """Gb/s between machines of 8 GPUs; all network adapters of a machine together."""

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise UserError(f"--gpus {self.gpus}: must be at least 1")
        if not 0 < self.gpu_memory < float("inf"):
            raise UserError(f"--gpu-memory {self.gpu_memory:g}: must be above 0, in GB")
        if not 0 < self.utilisation <= 1:
            raise UserError(f"--utilisation {self.utilisation:g}: must lie above 0 and be at most 1")
        if not 0 < self.network_gigabits < float("inf"):
            raise UserError(f"--network-gigabits {self.network_gigabits:g}: must be above 0, in Gb/s")


@dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """What to profile of a training, and where to."""

    output: str = "profile"
    """Folder to write; must not exist yet."""
    warmup_steps: int = 1
    """Steps before the recorded steps."""
    profiled_steps: int = 3
    """Steps to record."""

    def __post_init__(self) -> None:
        for name, least in (("warmup_steps", 0), ("profiled_steps", 1)):
            if getattr(self, name) < least:
                raise UserError(f"profile: {name} is {getattr(self, name)}, must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What to generate: a sequence of --shards from one of its frames, or an object from --text alone."""

    model: str | None = None
    """Folder of a trained model; without it the newest champion below --root, or the newest model if there is no
    champion."""
    base: str | None = None
    """Diffusers folder or hub id of the base model; without it the base model that the model was trained with."""
    shards: str | None = None
    """Folder of shards, of captures that the model need not know."""
    sequence: str | None = None
    """CATEGORY/NAME of a sequence in the shards; may be left out when there is only one."""
    known_frame: int | None = None
    """Number of the frame that the model is given; without it the first frame of the sequence."""
    text: str | None = None
    """Caption. Without --shards the model is given nothing else. With --shards it replaces the sequence's caption: the
    caption of the model's training if the model was trained on these shards, else the caption stored with them."""
    path: str = "orbit"
    """Cameras of an object from text: orbit, spiral, or a JSON file whose form model/trajectories.py describes."""
    num_views: int | None = None
    """Number of views; without it all other frames of the sequence, or 12."""
    views_at_once: int = 10
    """Views of one denoising call. More views are generated in windows, each of which sees views of the windows
    before."""
    context_views: int = 4
    """Most given or earlier views that a window sees."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Denoising steps, and guidance for an object from text alone; with a given frame there is no guidance."""
    seed: int = 0
    """Seed of the noise."""
    output: str = "generated"
    """Folder to write; must not exist yet."""

    def __post_init__(self) -> None:
        if self.num_views is not None and self.num_views < 1:
            raise UserError(f"generate: num_views is {self.num_views}, must be at least 1")
        if not 1 <= self.context_views < self.views_at_once:
            raise UserError(
                f"generate: context_views is {self.context_views}, must lie between 1 and views_at_once - 1 = "
                f"{self.views_at_once - 1}"
            )
