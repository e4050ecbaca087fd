"""The planes of an image, turned as a radiologist reads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.image import Geometry

_COARSE = 2.0  # a spacing so many times another one is too coarse to look along
_FEWEST_SLICES = 16  # below, another plane would show stripes

# Planes of a volume whose axes lead to the head, to the back and to the left: name, the axes of slices, rows
# and columns, which of them run backwards on the screen, and what lies left, right, above and below.
_PLANES = (
    ("axial", (0, 1, 2), (False, False, False), "RLAP"),
    ("coronal", (1, 0, 2), (False, True, False), "RLSI"),
    ("sagittal", (2, 0, 1), (False, True, False), "APSI"),
)


@dataclass(frozen=True)
class Plane:
    """How the array of a file (Z, Y, X) is turned to show one plane."""

    name: str
    """axial, coronal or sagittal; "slice" where the file does not say how the patient lay."""
    axes: tuple[int, int, int]
    """The file's axes of slices, rows and columns; slices are never reversed."""
    is_reversed: tuple[bool, bool, bool]
    """Which of them run backwards."""
    sides: str
    """Letters of what lies left, right, above and below; empty where it is not known."""

    def view(self, array: NDArray[Any]) -> NDArray[Any]:
        """The array as (slices, rows, columns), nothing copied."""
        steps = tuple(slice(None, None, -1 if back else 1) for back in self.is_reversed)
        return np.transpose(array, self.axes)[steps]

    def to_file(self, place: Sequence[int], shape_zyx: Sequence[int]) -> tuple[int, ...]:
        """The file's index (z, y, x) of a place (slice, row, column)."""
        index = [0, 0, 0]
        for axis, back, value in zip(self.axes, self.is_reversed, place, strict=True):
            index[axis] = shape_zyx[axis] - 1 - value if back else value
        return tuple(index)

    def from_file(self, index_zyx: Sequence[int], shape_zyx: Sequence[int]) -> tuple[int, ...]:
        """The place (slice, row, column) of an index of the file."""
        values = zip(self.axes, self.is_reversed, strict=True)
        return tuple(shape_zyx[a] - 1 - index_zyx[a] if back else index_zyx[a] for a, back in values)


def planes_of(geometry: Geometry) -> tuple[Plane, ...]:
    """The planes to look at, the main one first: all three where no axis is coarse or short, else one."""
    known = geometry.is_placed
    axes, is_reversed = _towards_head_back_left(geometry) if known else ((0, 1, 2), (False,) * 3)
    planes = []
    for name, order, back, sides in _PLANES:
        planes.append(
            Plane(
                name if known else "slice",
                (axes[order[0]], axes[order[1]], axes[order[2]]),
                (False, is_reversed[order[1]] != back[1], is_reversed[order[2]] != back[2]),
                sides if known else "",
            )
        )
    spacing, shape = geometry.spacing_zyx_mm, geometry.shape_zyx
    if max(spacing) >= _COARSE * min(spacing):
        return tuple(plane for plane in planes if plane.axes[0] == int(np.argmax(spacing)))
    if min(shape) < _FEWEST_SLICES:
        return tuple(plane for plane in planes if plane.axes[0] == int(np.argmin(shape)))
    return tuple(planes) if known else tuple(planes[:1])


def _towards_head_back_left(geometry: Geometry) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """The file's axis that is nearest to each of these directions, and whether it runs the other way."""
    # rows: axes z, y, x of the array; columns: directions z (head), y (back), x (left) of the patient
    cosines = np.reshape(geometry.direction_xyz, (3, 3)).T[::-1, ::-1]
    axes = max(permutations(range(3)), key=lambda order: sum(abs(cosines[a, i]) for i, a in enumerate(order)))
    return axes, tuple(bool(cosines[a, i] < 0) for i, a in enumerate(axes))
