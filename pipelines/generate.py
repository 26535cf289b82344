"""Command generate: an object from one frame of its capture, or a new one from a text, as pictures and a page.

Heavy modules are imported when a command runs, because the command line reads `GenerateRequest` for every command.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import UserError
from infra.log import Progress
from infra.storage import atomic_write, publish_folder, require_space
from model.config import SamplingConfig
from model.windows import plan_windows
from pipelines.runtime import RuntimeConfig

if TYPE_CHECKING:
    from pipelines.generate_inputs import GenerateInputs
    from pipelines.pictures import ObjectPictures

SPACE_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What to generate: a sequence of --shards from one of its frames, or an object from --text alone."""

    model: str | None = None
    """Folder of a trained model; without it the newest below --root is used."""
    base: str | None = None
    """Diffusers folder or hub id of its base model; without it the one that the model was trained with."""
    shards: str | None = None
    """Folder of preprocessed captures; the model may never have seen them."""
    sequence: str | None = None
    """CATEGORY/NAME of a sequence in the shards; may be left out when there is only one."""
    known_frame: int | None = None
    """Number of the frame that the model is given; without it the sequence's first."""
    text: str | None = None
    """Caption. Without shards it is all that the model is given; with them it replaces the sequence's own."""
    path: str = "orbit"
    """Cameras of an object from text: orbit, spiral, or a JSON file (see model/trajectories.py)."""
    num_views: int | None = None
    """Views to make; without it all other frames of the sequence, or 12."""
    views_at_once: int = 10
    """Views of one denoising call; more are made in windows that see views made before."""
    context_views: int = 4
    """How many given or earlier views such a window sees, at most."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Denoising steps, and the guidance of an object from text alone; with a given frame there is none."""
    seed: int = 0
    """Seed of the noise."""
    output: str = "generated"
    """Folder to write; must not exist yet."""

    def __post_init__(self) -> None:
        if self.num_views is not None and self.num_views < 1:
            raise ValueError(f"generate: num_views is {self.num_views}, must be at least 1")
        if not 1 <= self.context_views < self.views_at_once:
            raise ValueError(
                f"generate: context_views is {self.context_views}, must lie between 1 and views_at_once - 1 = "
                f"{self.views_at_once - 1}"
            )


def generate(request: GenerateRequest, runtime: RuntimeConfig) -> Path:
    """Write view-*.png, depth-*.png, pictures.npz and report.html into the output folder; returns the page.

    Raises:
        UserError: the output exists or cannot be written, no model, an unknown sequence or frame, a model of another
            architecture, or pictures of a size that it cannot take. Nothing is written then.
    """
    from pipelines.generate_inputs import prepare

    output = Path(request.output).expanduser().absolute()
    if output.exists():
        raise UserError(f"output folder {output}: exists already; remove it or name another with --output")
    require_space(output, SPACE_BYTES)
    inputs = prepare(request, runtime)
    pictures = _run(inputs)
    partial = output.with_name(f".partial-{output.name}")
    if partial.exists():  # of a run that was killed
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    _write(inputs, pictures, partial)
    publish_folder(partial, output)
    print(f"generate  {len(pictures.generated)} views · {output / 'report.html'}", flush=True)
    return output / "report.html"


def _run(inputs: GenerateInputs) -> ObjectPictures:
    task, windows = inputs.task, inputs.task.windows
    num_views = len(task.cameras.world_to_camera)
    known = range(min(len(task.rows), 1))
    num_windows = 1 if windows is None else len(plan_windows(num_views, known=known, config=windows))
    total = num_windows * task.sampling.num_steps
    with Progress("generate", total=total, unit="steps") as progress:
        [sample] = inputs.generator.generate([task.request(inputs.reader)], progress=lambda *_: progress.advance())
    return task.pictures(sample, inputs.reader, reconstructed=None)


def _write(inputs: GenerateInputs, pictures: ObjectPictures, folder: Path) -> None:
    from pipelines.pictures import color_depth, encode_png
    from pipelines.report_page import ObjectCard, facts, objects, page, section

    pictures.save(folder / "pictures.npz")
    for name, image in zip(inputs.names, pictures.generated, strict=True):
        atomic_write(folder / f"view-{name}.png", encode_png(image))
    if pictures.depth is not None:
        for name, image in zip(inputs.names, color_depth(pictures.depth), strict=True):
            atomic_write(folder / f"depth-{name}.png", encode_png(image))
    view_facts = _view_facts(inputs, pictures)
    card = ObjectCard(title=inputs.title, subtitle=pictures.caption, pictures=pictures, view_facts=view_facts)
    given = "one picture and a caption" if inputs.task.rows else "a caption alone"
    html = page(
        title=inputs.title,
        eyebrow="viewdiff · generated",
        lead=f"{len(pictures.generated)} views from {given}. Drag a picture sideways to go around the object.",
        content=[facts(_numbers(inputs, pictures)), section("Views", objects([card]))],
        footer=f"Model <code>{escape(str(inputs.model_dir))}</code><br>Base <code>{escape(inputs.base)}</code>",
    )
    atomic_write(folder / "report.html", html.encode())


def _view_facts(inputs: GenerateInputs, pictures: ObjectPictures) -> list[str]:
    from pipelines.scoring import psnr_per_view

    if pictures.truth is None:
        return []
    scores = psnr_per_view(pictures)
    return [f"frame {int(name)} · {value:.1f} dB" for name, value in zip(inputs.names, scores, strict=True)]


def _numbers(inputs: GenerateInputs, pictures: ObjectPictures) -> Mapping[str, str]:
    from pipelines.scoring import psnr_per_view

    sampling = inputs.task.sampling
    numbers = {"views": str(len(pictures.generated)), "denoising steps": str(sampling.num_steps)}
    if pictures.truth is None:
        return numbers | {"guidance": f"{sampling.guidance_scale:g}"}
    scores = psnr_per_view(pictures)
    return numbers | {"PSNR": f"{sum(scores) / len(scores):.2f} <small>dB</small>"}
