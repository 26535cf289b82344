"""The front door for captures from elsewhere: finds out what a folder or file is, and hands it to its reader."""

from __future__ import annotations

from pathlib import Path

from infra.errors import UserError
from infra.log import format_count
from preprocessing.importing.colmap.model import find_models, read_colmap
from preprocessing.importing.reconstructions import Reconstruction
from preprocessing.importing.solving.unposed_photos import look_through
from preprocessing.importing.transforms.reading import TRANSFORMS_NAMES, find_transforms, read_transforms

# What else people have, told by a file below the folder, and how to go on.
OTHERS = {
    "metadata.sqlite": "a uCO3D dataset (metadata.sqlite), which is not supported; CO3Dv2's annotations are",
    "*/frame_annotations.jgz": "a CO3Dv2 dataset already: give it to preprocess as --co3d-root",
    "frame_annotations.jgz": "a category of a CO3Dv2 dataset already: give preprocess the folder above as --co3d-root",
    "keyframes/*cameras/*.json": "Polycam's raw export; ns-process-data polycam makes a transforms.json of it",
    "EXR_RGBD": "Record3D's raw export; ns-process-data record3d makes a transforms.json of it",
    "poses_bounds.npy": "a capture in LLFF's format, which is not supported; export transforms.json or a COLMAP model",
    "cameras.sfm": "a Meshroom project, which is not supported; export a COLMAP model of it",
    "bundle.out": "a Bundler model, which is not supported; export a COLMAP model of it",
    "*.nvm": "a VisualSFM model, which is not supported; export a COLMAP model of it",
    "database.db": "a COLMAP project without a model; run its reconstruction first, or name the folder of the model",
    "*.rcproj": "a RealityScan project; export a COLMAP model of it (its alignment, not its mesh)",
    "cameras.json": "what 3D Gaussian Splatting trained, without photos; name the reconstruction that it was given",
    "*.psx": "a Metashape project; export a COLMAP model of it",
}


def read_reconstruction(source: Path, images: Path | None, masks: Path | None) -> Reconstruction:
    """What is in `source`: a COLMAP model, whose photos are in the folder `images`; or transforms.json, as nerfstudio
    and others write it, whose photos are where it says, or in `images`. `masks` is a folder of masks with the photos'
    names.

    Raises:
        UserError: nothing known is there, or what is there is damaged or cannot be used; the message names the file,
        the value and what to do.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; name the reconstruction's")
    if transforms := find_transforms(source):
        return read_transforms(transforms, images, masks)
    if source.is_file():
        raise UserError(
            f"{source}: is a file, but not JSON; name a transforms.json or the folder of a COLMAP model; of a video or "
            "a folder of photos --solve-cameras finds the cameras"
        )
    if models := find_models(source):
        return read_colmap(source, models, images, masks)
    for pattern, what in OTHERS.items():
        if next(source.glob(pattern), None) is not None:
            raise UserError(f"{source}: is {what}")
    found = look_through(source, but=masks)
    if found.photos:
        also = f", also {found.unread()}" if found.foreign else ""
        raise UserError(
            f"{source}: holds {format_count(len(found.photos), 'photo')} without cameras{also}; --solve-cameras finds "
            "these, or name the folder or file of a reconstruction, with --images for the photos of a COLMAP model"
        )
    if found.foreign:
        raise UserError(f"{source}: holds neither a reconstruction nor photos that can be read, but {found.unread()}")
    raise UserError(
        f"{source}: neither {' nor '.join(TRANSFORMS_NAMES)} is there, nor a COLMAP model (cameras.bin and "
        "images.bin, or both with the ending .txt); name the folder or file of a reconstruction"
    )
