"""Camera poses as other tools write them, made rigid or refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from preprocessing.importing.transforms.json_fields import FieldError, matrix

# Files hold six digits or more; a matrix that is less of a rotation than this is not one that was rounded.
TOLERANCE = 1e-3
_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])  # x right, y up, z backward


def rigid_pose(value: Any) -> tuple[np.ndarray, float]:
    """World-to-camera [4, 4] in OpenCV's axes of a transform_matrix, which takes points of the camera to the world, in
    OpenGL's axes; and the scale that was divided out of its rotation part. 3 × 4 matrices have no last row.

    Raises:
        FieldError: it is no matrix, no rotation (stretched, sheared, mirrored), or its last row is not 0 0 0 1.
    """
    found = matrix(value, 4, 4) if isinstance(value, list) and len(value) in (4, 16) else matrix(value, 3, 4)
    if found is None:
        raise FieldError("transform_matrix is no 4 × 4 or 3 × 4 matrix of numbers; export the cameras again")
    camera_to_world = np.eye(4)
    camera_to_world[: len(found)] = found
    if not np.allclose(camera_to_world[3], [0, 0, 0, 1], atol=TOLERANCE):
        raise FieldError(
            f"the last row of transform_matrix is {camera_to_world[3].tolist()}, but should be 0 0 0 1; its columns "
            "must be the camera's axes and centre"
        )
    left, stretches, right = np.linalg.svd(camera_to_world[:3, :3])
    scale = float(np.prod(stretches) ** (1 / 3))
    if not scale > 0:
        raise FieldError("the rotation part of transform_matrix has no inverse; export the cameras again")
    if np.abs(stretches / scale - 1).max() > TOLERANCE:
        raise FieldError(
            "the rotation part of transform_matrix stretches by different factors ("
            f"{', '.join(f'{stretch:.4g}' for stretch in stretches)}); apply the camera's scale before the export"
        )
    rotation = left @ right  # the nearest to what is written
    if np.linalg.det(rotation) < 0:
        raise FieldError(
            "the rotation part of transform_matrix mirrors (its determinant is negative); x must point right, y up, z "
            "backward, in a right-handed world"
        )
    camera_to_world[:3, :3] = rotation
    return np.linalg.inv(camera_to_world @ _OPENGL), scale
