"""`viewdiff import`: one's own capture, reconstructed elsewhere or here, as a sequence of a CO3Dv2 dataset."""

from __future__ import annotations

from pathlib import Path

from infra.errors import UserError
from infra.storage import atomic_write
from pipelines.inspection import check_sheet_path
from pipelines.pictures import encode_png
from pipelines.requests import ImportConfig
from preprocessing.co3d import read_category
from preprocessing.importing.reading import read_reconstruction
from preprocessing.importing.solving import find_cameras
from preprocessing.importing.writing import check_place, import_capture
from preprocessing.inspection import sequence_sheet

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
    if masks is not None and not masks.is_dir():
        raise UserError(f"--masks {masks}: no such folder; name the folder that holds the masks")
    solution = None
    if config.solve_cameras:
        share, count = config.placed_share, config.video_frames
        solution = find_cameras(source, root / WORK_NAME, placed_share=share, num_frames=count, masks=masks)
        source, images = solution.model, solution.photos
    capture = read_reconstruction(source, images, masks)
    summary = import_capture(capture, root, category=config.category, name=config.name, radius=config.object_radius)
    if solution is not None:  # kept until now, so that a refused import does not begin again
        solution.remove()
    print("\n".join(summary.lines()))
    if sheet is None:
        print(
            f"look at it: viewdiff inspect {root} --preprocess.categories {config.category} --contact-sheet sheet.png"
        )
        return
    (sequence,) = (item for item in read_category(root, config.category) if item.name == config.name)
    atomic_write(sheet, encode_png(sequence_sheet(root, sequence)))
    print(f"written: {sheet}")
