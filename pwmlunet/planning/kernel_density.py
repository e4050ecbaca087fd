"""Parzen–Rosenblatt estimates of where lesions lie: slabs of slices, a Gaussian kernel in their plane."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config

Points = NDArray[np.float64]
"""Places (n, 3) in mm: slices, rows, columns."""

DEFAULT_BANDWIDTH_MM = 1.5
"""Where the likelihood cannot choose."""

CANDIDATES_MM = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)
"""Bandwidths to choose among."""

UNIFORM_SHARE = 0.01
"""One lesion voxel in a hundred is thought to lie anywhere.

A lesion far from all others then costs log 100 = 4.6 more than chance would, and not everything; one where
others are loses a hundredth.
"""

_STEPS = 3  # of the lattice in a bandwidth: interpolated values are right to 3 % of the peak
_REACH = 4  # bandwidths after which a kernel ends: 0.03 % of it is lost


@dataclass(frozen=True)
class Lattice(Config):
    """The coarse grid that an estimate is kept on; its points are multiples of its steps from the middle."""

    origin_zyx_mm: tuple[float, float, float]
    """The centre of the first slab, the first row and the first column."""
    step_zyx_mm: tuple[float, float, float]
    """From slab to slab, row to row and column to column."""
    shape_zyx: tuple[int, int, int]
    """Slabs, rows and columns."""

    @classmethod
    def around(cls, points: Points, bandwidth_mm: float, slab_mm: float, spacing_yx_mm: Sequence[float]) -> "Lattice":  # fmt: skip
        """The lattice that holds the points' kernels; it is not finer than the pixels that they come from."""
        step = np.array([slab_mm, *(max(bandwidth_mm / _STEPS, spacing) for spacing in spacing_yx_mm)])
        # a Gaussian filter reaches a rounded number of steps, and half a point lies on the next one
        reach = np.array([0, *(_reach(bandwidth_mm / s) + 1 for s in step[1:])])
        first = np.floor(points.min(0) / step + [0.5, 0, 0]) - reach
        last = np.floor(points.max(0) / step + [0.5, 0, 0]) + reach
        z, y, x = (int(n) for n in last - first + 1)
        origin, steps = (first * step).tolist(), step.tolist()
        return cls((origin[0], origin[1], origin[2]), (steps[0], steps[1], steps[2]), (z, y, x))

    def coordinates(self, points: Points) -> Points:
        """Where points lie, counted in steps from the first of the lattice."""
        return np.asarray((points - self.origin_zyx_mm) / self.step_zyx_mm)


def _reach(steps: float) -> int:
    """How many steps a Gaussian filter of so many steps reaches, as SciPy rounds it."""
    return int(_REACH * steps + 0.5)


def parzen(points: Points, lattice: Lattice, bandwidth_mm: float) -> NDArray[np.float64]:
    """The sum of the points' kernels on a lattice (Q, H, W), per mm³.

    All points of a slab are one distribution in the plane, and a slab weighs as many points as it has.
    """
    from scipy.ndimage import gaussian_filter

    step = lattice.step_zyx_mm
    widths = (0, bandwidth_mm / step[1], bandwidth_mm / step[2])
    smooth = gaussian_filter(_counts(points, lattice), widths, mode="constant", truncate=_REACH)
    return np.asarray(smooth / prod(step))


def _counts(points: Points, lattice: Lattice) -> NDArray[np.float64]:
    """Points on each place of the lattice: of the nearest slab, shared out among the four places around."""
    place = lattice.coordinates(points)
    slab = np.floor(place[:, 0] + 0.5).astype(np.int64)
    low = np.floor(place[:, 1:]).astype(np.int64)
    share = place[:, 1:] - low
    counts = np.zeros(lattice.shape_zyx)
    for corner in product(
        (0, 1), repeat=2
    ):  # to the nearest alone would draw stripes where the steps are pixels
        weight = np.abs(1 - np.array(corner) - share).prod(1)
        flat = np.ravel_multi_index((slab, *(low + corner).T), lattice.shape_zyx)
        counts += np.bincount(flat, weight, counts.size).reshape(counts.shape)
    return counts


def interpolate(values: NDArray[np.float64], lattice: Lattice, points: Points) -> NDArray[np.float64]:
    """The values of a lattice at places, 0 outside; between slabs they go over into each other."""
    from scipy.ndimage import map_coordinates

    return np.asarray(map_coordinates(values, lattice.coordinates(points).T, order=1, mode="grid-constant"))


@dataclass(frozen=True)
class Bandwidth:
    """A bandwidth and how well it tells where the lesions of a subject are that was left out."""

    width_mm: float
    gain: float | None
    """Mean log-likelihood over the subjects less that of lesions anywhere; None for fewer than two."""


def choose_bandwidth(
    subjects: Sequence[Points],
    candidates_mm: Sequence[float],
    *,
    slab_mm: float,
    spacing_yx_mm: Sequence[float],
    volume_mm3: float,
) -> Bandwidth:
    """The candidate under which left-out subjects are likeliest; of equal ones that nearest to 1.5 mm.

    Args:
        subjects: the lesion voxels of each subject that has some.
        candidates_mm: bandwidths to choose among.
        slab_mm: thickness of a slab.
        spacing_yx_mm: of the pixels.
        volume_mm3: where lesions could lie, for those that lie anywhere.
    """
    ordered = sorted(candidates_mm, key=lambda width: abs(width - DEFAULT_BANDWIDTH_MM))
    if len(subjects) < 2:
        return Bandwidth(ordered[0], None)
    gains = {
        width: round(_gain(subjects, width, slab_mm, spacing_yx_mm, volume_mm3), 9)  # so that equal is equal
        for width in ordered
    }
    best = max(ordered, key=lambda width: gains[width])
    return Bandwidth(best, gains[best])


def _gain(
    subjects: Sequence[Points], width: float, slab_mm: float, spacing: Sequence[float], volume: float
) -> float:
    """Mean over the subjects of the mean log of density / uniform density at their own lesions."""
    everything = np.concatenate(subjects)
    lattice = Lattice.around(everything, width, slab_mm, spacing)
    together = parzen(everything, lattice, width)
    means = []
    for own in subjects:
        around = Lattice.around(own, width, slab_mm, spacing)
        others = interpolate(together, lattice, own) - interpolate(parzen(own, around, width), around, own)
        density = np.maximum(others, 0) / (len(everything) - len(own))
        means.append(np.log((1 - UNIFORM_SHARE) * density * volume + UNIFORM_SHARE).mean())
    return float(np.mean(means))
