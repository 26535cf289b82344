"""`viewdiff import`: one's own capture, reconstructed elsewhere or here, as a sequence of a CO3Dv2 dataset."""

from __future__ import annotations

from pathlib import Path

from infra.storage.files import atomic_write, folder_for
from infra.storage.locks import alone
from pipelines.commands.inspect_captures import check_sheet_path
from pipelines.generation.pictures import encode_png
from pipelines.settings.commands import ImportConfig
from preprocessing.captures.co3d import read_category
from preprocessing.importing.photos.files import check_mask_folder
from preprocessing.importing.reading import read_reconstruction
from preprocessing.importing.solving.cameras import find_cameras
from preprocessing.importing.summary import ImportSummary
from preprocessing.importing.writing import check_place, import_capture
from preprocessing.sequences.inspection import sequence_sheet

WORK_NAME = ".solving"  # below the output: what is found on the way to the cameras, until the capture is imported


def run_import(source: Path, config: ImportConfig) -> None:
    """Find the cameras if asked to; read, write, tell how it went and, if asked for, draw a contact sheet.

    Raises:
        UserError: see `find_cameras`, `read_reconstruction` and `import_capture`; or the contact sheet cannot be
        written.
    """
    sheet = None if config.contact_sheet is None else check_sheet_path(config.contact_sheet)
    images, masks = (None if folder is None else Path(folder) for folder in (config.images, config.masks))
    root = Path(config.output)
    check_place(root, config.category, config.name)
    if masks is not None:
        check_mask_folder(masks)
    if config.solve_cameras:
        summary = _solve_and_import(source, masks, config)
    else:
        summary = _import(source, images, masks, config)
    print("\n".join(summary.lines()))
    if sheet is None:
        print(
            f"look at it: viewdiff inspect {root} --preprocess.categories {config.category} --contact-sheet sheet.png"
        )
        return
    (sequence,) = (item for item in read_category(root, config.category) if item.name == config.name)
    atomic_write(sheet, encode_png(sequence_sheet(root, sequence)))
    print(f"written: {sheet}")


def _import(source: Path, images: Path | None, masks: Path | None, config: ImportConfig) -> ImportSummary:
    capture = read_reconstruction(source, images, masks)
    place = {"category": config.category, "name": config.name}
    return import_capture(capture, Path(config.output), radius=config.object_radius, **place)


def _solve_and_import(source: Path, masks: Path | None, config: ImportConfig) -> ImportSummary:
    """The work on the cameras is kept until all is written, so that a refused import does not begin again."""
    root = Path(config.output)
    busy = f"{root}: another import finds cameras at this moment; wait until it is over, or name another --output"
    remedy = "name a folder on another one with --output"
    with folder_for(root), alone(root / f"{WORK_NAME}.lock", busy=busy, remedy=remedy):
        share, count = config.placed_share, config.video_frames
        solution = find_cameras(source, root / WORK_NAME, placed_share=share, num_frames=count, masks=masks)
        summary = _import(solution.model, solution.photos, masks, config)
        solution.remove()
    return summary
