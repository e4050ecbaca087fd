"""The frame in which places of different cases are compared: mm along slices, rows and columns from one middle."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.store import WayBack
from pwmlunet.planning.kernel_density import Points

Directions = tuple[str, str, str]
"""Where the frame's axes run in the patient."""

_OPPOSITE = {"left": "right", "back": "front", "up": "down"}
_OPPOSITE |= {there: here for here, there in _OPPOSITE.items()}


def can_be_laid(way_back: WayBack, directions: Directions) -> bool:
    """Whether a case's slices, rows and columns run along the frame's axes, either way."""
    pairs = zip(way_back.directions, directions, strict=True)
    return all(own in (there, _OPPOSITE[there]) for own, there in pairs)


def to_frame(
    way_back: WayBack, unit_yx_mm: tuple[float, float] | None, directions: Directions
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A matrix and a shift from an index (z, y, x) of a case's grid to mm in the frame.

    Its middle is that of each head, or of the reference that cases are registered to. An axis that runs the
    other way in the case is turned: files of one head may be stored to the left or to the right.
    """
    matrix = np.diag(_steps_mm(way_back, unit_yx_mm))
    middle = (np.array(way_back.grid_shape_zyx) - 1) / 2
    rigid = way_back.to_reference
    if rigid is None:
        ways = zip(way_back.directions, directions, strict=True)
        matrix = matrix @ np.diag([1.0 if own == there else -1.0 for own, there in ways])
        return matrix, -matrix @ (way_back.head_middle_zyx or middle)
    matrix = np.reshape(rigid.rotation_zyx, (3, 3)) @ matrix
    return matrix, np.array(rigid.translation_zyx_mm) - matrix @ middle


def _steps_mm(way_back: WayBack, unit_yx_mm: tuple[float, float] | None) -> tuple[float, float, float]:
    z, y, x = way_back.spacing_zyx_mm
    return (z, *unit_yx_mm) if unit_yx_mm else (z, y, x)


def grid_mm3(way_back: WayBack, unit_yx_mm: tuple[float, float] | None) -> float:
    """The volume of a case's grid, in the frame."""
    return float(np.prod(way_back.grid_shape_zyx) * np.prod(_steps_mm(way_back, unit_yx_mm)))


def lesion_voxels(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The indices (n, 3) of what is true, read slice by slice: the mask may be a file."""
    flat = [np.flatnonzero(piece) for piece in mask]
    slices = np.repeat(np.arange(len(mask)), [len(places) for places in flat])
    rows, columns = np.divmod(np.concatenate(flat), mask.shape[2])
    return np.stack([slices, rows, columns], 1)


def points_by_subject(
    found: Sequence[tuple[str, NDArray[np.int64], WayBack]],
    unit_yx_mm: tuple[float, float] | None,
    directions: Directions,
) -> dict[str, Points]:
    """Lesion voxels in mm from the middle, by the subjects that have some; sessions of one are put together."""
    points: dict[str, list[Points]] = {}
    for subject, voxels, way_back in sorted(found, key=lambda case: case[0]):
        if len(voxels):
            matrix, shift = to_frame(way_back, unit_yx_mm, directions)
            points.setdefault(subject, []).append(voxels @ matrix.T + shift)
    return {subject: np.concatenate(parts) for subject, parts in points.items()}
