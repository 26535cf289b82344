"""From what a person asks `viewdiff generate` for to a model, cameras and a given picture; every wrong name is told
here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from infra.errors import UserError
from infra.log import get_logger
from infra.storage.files import StoragePath, open_path
from model.cameras import Cameras
from model.config import SamplingConfig
from model.diffusion.windows import WindowConfig
from model.framing import framing, other_convention
from model.trajectories import from_file, orbit, orbit_like, spiral
from pipelines.generation.generator import SampleGenerator
from pipelines.generation.task import UNIT_CUBE, EvaluationTask, training_cameras
from pipelines.settings.commands import GenerateRequest
from pipelines.settings.names import nearest
from pipelines.spine.artifacts import RECORD_NAME, ModelVersion, Shards, load_artifact, newest, read_record
from pipelines.spine.runtime import RuntimeConfig, check_own_gpu
from preprocessing.captions.files import read_sequence_captions
from preprocessing.picking import evenly
from preprocessing.shards.reading import FrameIndex, SequenceRecord, ShardReader

DEFAULT_NUM_VIEWS = 12  # on a path
PATHS = ("orbit", "spiral")  # any other is a file
FAR_SIZE = 1.5  # pictures with sides this many times longer or shorter than the model's are worse


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerateInputs:
    """Everything that is needed, found and checked."""

    generator: SampleGenerator
    task: EvaluationTask
    reader: ShardReader | None
    """Of the shards; none for an object from text."""
    names: tuple[str, ...]
    """Of the generated views: frame numbers, or their place on the path."""
    title: str
    model_dir: Path
    base: str


# A task, the names of its generated views, and the shards that its frames are in.
Prepared = tuple[EvaluationTask, tuple[str, ...], ShardReader | None]


def prepare(request: GenerateRequest, runtime: RuntimeConfig) -> GenerateInputs:
    """Find model, base model, sequence and cameras. Raises UserError naming what is wrong and what there is instead."""
    if runtime.use_gpu:
        check_own_gpu()
    folder = _model_dir(request, runtime)
    base = request.base or _made_from(folder, "base")
    if base is None:
        raise UserError(f"model {folder}: no {RECORD_NAME} says which base model it belongs to; name it with --base")
    from_capture = request.shards is not None or request.sequence is not None
    if not from_capture and request.text is None:
        raise UserError("generate: nothing to generate; give --text TEXT, or --shards FOLDER and --sequence NAME")
    # Before the model is loaded, so that a wrong name is told at once.
    if request.known_frame is not None and not from_capture:
        raise UserError(
            f"--known-frame {request.known_frame}: of no capture; name its folder with --shards, or drop this option"
        )
    captured = _from_capture(request, folder) if from_capture else None
    generator = SampleGenerator.load(folder, base, device="cuda" if runtime.use_gpu else "cpu")
    if request.sampling.num_steps > generator.num_timesteps:
        raise UserError(
            f"--sampling.num-steps {request.sampling.num_steps}: the model's noise schedule has only "
            f"{generator.num_timesteps} steps; take fewer"
        )
    task, names, reader = captured or _from_text(request, generator, _trained_on(folder))
    is_file = not from_capture and request.path not in PATHS
    _check_size(task.cameras.image_size, generator, path=request.path if is_file else None)
    title = " / ".join(task.name)
    return GenerateInputs(
        generator=generator, task=task, reader=reader, names=names, title=title, model_dir=folder, base=str(base)
    )


def _from_capture(request: GenerateRequest, model_dir: Path) -> Prepared:
    shards_dir = _shards_dir(request, model_dir)
    index = FrameIndex.open(shards_dir)
    captions_dir = _made_from(model_dir, "captions")
    if captions_dir is not None and shards_dir == _trained_on(model_dir):
        index = index.with_captions(read_sequence_captions(captions_dir))
    sequence = _find_sequence(request, index, shards_dir)
    rows = _find_rows(request, index, sequence)
    task = EvaluationTask(
        name=(sequence.category, sequence.sequence),
        caption=sequence.captions[0] if request.text is None else request.text,
        cameras=index.cameras(rows),
        scene_bounds=sequence.scene_bounds,
        rows=rows,
        sampling=SamplingConfig(num_steps=request.sampling.num_steps, guidance_scale=1.0),
        seed=request.seed,
        windows=_windows(request, len(rows)),
    )
    names = tuple(f"{index.frame_numbers[row]:06d}" for row in rows[1:])
    return task, names, ShardReader(shards_dir, index)


def _from_text(request: GenerateRequest, generator: SampleGenerator, shards_dir: StoragePath | None) -> Prepared:
    assert request.text is not None
    cameras = _path(request, generator.image_size, shards_dir)
    num_views = len(cameras.world_to_camera)
    task = EvaluationTask(
        name=(f"“{request.text}”",),
        caption=request.text,
        cameras=cameras,
        scene_bounds=UNIT_CUBE,
        rows=(),
        sampling=request.sampling,
        seed=request.seed,
        windows=_windows(request, num_views),
    )
    return task, tuple(f"{number:03d}" for number in range(num_views)), None


def _path(request: GenerateRequest, image_size: tuple[int, int], shards_dir: StoragePath | None) -> Cameras:
    """Cameras [V]. An orbit is like the training cameras where these are still there."""
    num_views = request.num_views or DEFAULT_NUM_VIEWS
    if request.path == "spiral":
        return spiral(num_views, image_size=image_size)
    if request.path == "orbit":
        if shards_dir is None:
            return orbit(num_views, image_size=image_size)
        return orbit_like(training_cameras(FrameIndex.open(shards_dir)), num_views)
    try:
        cameras = from_file(Path(request.path).expanduser())
    except ValueError as error:
        raise UserError(f"--path is neither orbit nor spiral nor a file of cameras: {error}") from error
    cameras = cameras if request.num_views is None else cameras[: request.num_views]
    _check_framing(cameras, request.path)
    return cameras


def _check_framing(cameras: Cameras, path: str) -> None:
    """Refuse a path most of whose cameras do not show the object; tell of one some of whose do not."""
    bounds = torch.from_numpy(UNIT_CUBE)
    found = framing(cameras, bounds)
    if 2 * found.missed > found.total:
        meant = other_convention(cameras, bounds)
        remedy = (
            f"these look like {meant}" if meant else "the object fills the cube [-1, 1]³ around the origin, z is up"
        )
        raise UserError(f"camera path {path}: {found}; {found.expected}; {remedy}")
    if found.missed:
        get_logger("generate").warning(f"camera path {path}: {found}; {found.expected}")


def _windows(request: GenerateRequest, num_views: int) -> WindowConfig | None:
    if num_views <= request.views_at_once:
        return None
    return WindowConfig(num_views=request.views_at_once, num_context=request.context_views)


def _find_sequence(request: GenerateRequest, index: FrameIndex, shards_dir: StoragePath) -> SequenceRecord:
    by_name = {f"{item.category}/{item.sequence}": item for item in index.sequences()}
    if request.sequence is None:
        if len(by_name) > 1:
            some = ", ".join(list(by_name)[:5])
            raise UserError(f"shards {shards_dir}: {len(by_name)} sequences; name one with --sequence, as in {some}")
        return next(iter(by_name.values()))
    if request.sequence not in by_name:
        raise UserError(f"unknown sequence {request.sequence!r}{nearest(request.sequence, by_name)}")
    return by_name[request.sequence]


def _find_rows(request: GenerateRequest, index: FrameIndex, sequence: SequenceRecord) -> tuple[int, ...]:
    """Rows of the given frame, then of the wanted ones in their order, evenly picked when not all are wanted."""
    rows = list(sequence.rows)
    numbers = [int(index.frame_numbers[row]) for row in rows]
    name = f"{sequence.category}/{sequence.sequence}"
    if request.known_frame is not None and request.known_frame not in numbers:
        raise UserError(f"sequence {name}: no frame {request.known_frame}; choose from {', '.join(map(str, numbers))}")
    if len(rows) < 2:
        raise UserError(f"sequence {name}: only one frame, so there is no other camera to generate; use another one")
    known = 0 if request.known_frame is None else numbers.index(request.known_frame)
    others = rows[:known] + rows[known + 1 :]
    picks = evenly(len(others), request.num_views or len(others))
    return (rows[known], *(others[int(pick)] for pick in picks))


def _model_dir(request: GenerateRequest, runtime: RuntimeConfig) -> Path:
    """The named model, or the one in the named result of a training; without a name the newest champion's, else the
    newest.
    """
    if request.model is not None:
        folder = Path(request.model).expanduser().absolute()
        if not folder.is_dir():
            raise UserError(f"model {folder}: no such folder; name the folder that `viewdiff train` printed")
    elif found := _newest_champion(runtime.root_dir) or newest(runtime.root_dir, "train"):
        folder = found
    else:
        raise UserError(f"{runtime.root_dir} holds no trained model; run `viewdiff train` or name one with --model")
    print(f"generate  model {folder}", flush=True)
    return folder / "model" if (folder / "model").is_dir() else folder


def _newest_champion(root: Path) -> Path | None:
    """Training of the version that became champion last: not one that was tried since and did not."""
    version = newest(root, "register", lambda folder: load_artifact(folder, ModelVersion).became_champion)
    if version is None:
        return None
    folder = root / "train" / read_record(version)["inputs"]["checkpoint"]["fingerprint"]
    return folder if folder.is_dir() else None


def _made_from(model_dir: Path, role: str) -> Path | None:
    """Folder of an input of the training that made the model in <root>/train/<fingerprint>/model, if it is still
    there.
    """
    training = model_dir.parent
    if not (training / RECORD_NAME).is_file():
        return None
    source = read_record(training)["inputs"][role]
    found = training.parents[1].glob(f"*/{source['fingerprint']}/{RECORD_NAME}")
    return next((path.parent for path in found), None)


def _trained_on(model_dir: Path) -> StoragePath | None:
    """Where the shards are that a model was trained on, if that is known."""
    folder = _made_from(model_dir, "shards")
    return None if folder is None else load_artifact(folder, Shards).data


def _shards_dir(request: GenerateRequest, model_dir: Path) -> StoragePath:
    if request.shards is None:
        trained_on = _trained_on(model_dir)
        if trained_on is None:
            raise UserError(f"sequence {request.sequence!r}: name the folder of shards it is in with --shards")
        return trained_on
    address = open_path(request.shards).absolute()
    if isinstance(address, Path) and (address / RECORD_NAME).is_file():
        return load_artifact(address, Shards).data
    return address


def _check_size(image_size: tuple[int, int], generator: SampleGenerator, *, path: str | None) -> None:
    """Refuse pictures that the network cannot halve often enough; tell of such that are far from what it was made for.
    `path` is the file that the size stands in, if there is one.
    """
    source = "" if path is None else f"camera path {path}: image_size {list(image_size)}: "
    multiple, own = generator.side_multiple, generator.image_size
    if any(side % multiple for side in image_size):
        near = [max(multiple, round(side / multiple) * multiple) for side in image_size]
        remedy = f"preprocess with such an image_size, as {near[0]}" if path is None else f"{near} would work"
        raise UserError(
            f"{source}pictures of {image_size[0]}×{image_size[1]} pixels: this model needs sides that are multiples of "
            f"{multiple}; {remedy}"
        )
    ratio = math.sqrt(math.prod(image_size) / math.prod(own))
    if not 1 / FAR_SIZE <= ratio <= FAR_SIZE:
        get_logger("generate").warning(
            f"{source}pictures of {image_size[0]}×{image_size[1]} pixels: the model was made for {own[0]}×{own[1]}; "
            "far from that it repeats or blurs things"
        )
