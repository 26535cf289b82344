"""`viewdiff import`: one's own capture, reconstructed elsewhere, as a sequence of a CO3Dv2 dataset."""

from __future__ import annotations

from pathlib import Path

from pipelines.requests import ImportConfig
from preprocessing.importing.reconstructions import read_reconstruction
from preprocessing.importing.solving import find_cameras
from preprocessing.importing.writing import import_capture

WORK_NAME = ".solving"  # below the output: what is found on the way to the cameras, until the capture is imported


def run_import(source: Path, config: ImportConfig) -> None:
    """Read, write, say what to do next.

    Raises:
        UserError: see `find_cameras`, `read_reconstruction` and `import_capture`.
    """
    images, masks = (None if folder is None else Path(folder) for folder in (config.images, config.masks))
    root = Path(config.output)
    solution = None
    if config.solve_cameras:
        share, count = config.placed_share, config.video_frames
        solution = find_cameras(source, root / WORK_NAME, placed_share=share, num_frames=count, masks=masks)
        source, images = solution.model, solution.photos
    capture = read_reconstruction(source, images, masks)
    num_points = import_capture(capture, root, category=config.category, name=config.name)
    if solution is not None:  # kept until now, so that a refused import does not begin again
        solution.remove()
    print(
        f"{config.category}/{config.name}: {len(capture.photos)} photos, {num_points} of {len(capture.points)} points "
        f"are the object's\nlook at it: viewdiff inspect {root} --preprocess.categories {config.category} "
        f"--contact-sheet sheet.png"
    )
