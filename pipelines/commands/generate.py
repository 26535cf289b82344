"""Command generate: an object from one frame of its capture, or a new one from a text, as pictures and a page."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from html import escape
from pathlib import Path

from infra.errors import UserError
from infra.log import Progress
from infra.storage.files import atomic_write, publish_folder, require_space
from model.diffusion.windows import plan_windows
from pipelines.evaluation.scoring import psnr_per_view
from pipelines.generation.inputs import GenerateInputs, prepare
from pipelines.generation.pictures import ObjectPictures, color_depth, encode_png
from pipelines.pages.page import ObjectCard, facts, objects, page, section
from pipelines.settings.commands import GenerateRequest
from pipelines.spine.runtime import RuntimeConfig

SPACE_BYTES = 100_000_000


def generate(request: GenerateRequest, runtime: RuntimeConfig) -> Path:
    """Write view-*.png, depth-*.png, pictures.npz and report.html into the output folder; returns the page.

    Raises:
        UserError: the output exists or cannot be written, no model, an unknown sequence or frame, a model of another
            architecture, or pictures of a size that it cannot take. Nothing is written then.
    """
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
    if pictures.truth is None:
        return []
    scores = psnr_per_view(pictures)
    return [f"frame {int(name)} · {value:.1f} dB" for name, value in zip(inputs.names, scores, strict=True)]


def _numbers(inputs: GenerateInputs, pictures: ObjectPictures) -> Mapping[str, str]:
    sampling = inputs.task.sampling
    numbers = {"views": str(len(pictures.generated)), "denoising steps": str(sampling.num_steps)}
    if pictures.truth is None:
        return numbers | {"guidance": f"{sampling.guidance_scale:g}"}
    scores = psnr_per_view(pictures)
    return numbers | {"PSNR": f"{sum(scores) / len(scores):.2f} <small>dB</small>"}
