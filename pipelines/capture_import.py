"""`viewdiff import`: one's own capture, reconstructed elsewhere, as a sequence of a CO3Dv2 dataset."""

from __future__ import annotations

from pathlib import Path

from pipelines.requests import ImportConfig
from preprocessing.importing.reading import read_reconstruction
from preprocessing.importing.writing import import_capture


def run_import(source: Path, config: ImportConfig) -> None:
    """Read, write, say what to do next.

    Raises:
        UserError: see `read_reconstruction` and `import_capture`.
    """
    images, masks = (None if folder is None else Path(folder) for folder in (config.images, config.masks))
    capture = read_reconstruction(source, images, masks)
    root = Path(config.output)
    found = import_capture(capture, root, category=config.category, name=config.name, radius=config.object_radius)
    for note in (*capture.notes, *found.notes):
        print(note)
    if capture.left_out:
        print(f"left out: {', '.join(f'{name} ({reason})' for name, reason in capture.left_out)}")
    print(f"{config.category}/{config.name}: {len(capture.photos)} photos; {found.how}")
    print(f"look at it: viewdiff inspect {root} --preprocess.categories {config.category} --contact-sheet sheet.png")
