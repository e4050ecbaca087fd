"""Where lesions lie: a prior density from the training subjects of a fold, and its values on a case's grid."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config, join
from pwmlunet.data.store import WayBack
from pwmlunet.errors import PwmlError
from pwmlunet.files import reading_arrays, replacing
from pwmlunet.planning.frame import (
    Directions,
    can_be_laid,
    grid_mm3,
    lesion_voxels,
    points_by_subject,
    to_frame,
)
from pwmlunet.planning.kernel_density import CANDIDATES_MM, Lattice, choose_bandwidth, parzen

_SPACING_TOLERANCE = 0.05


@dataclass(frozen=True)
class DensityConfig(Config):
    """How a prior density is made (`documentation/methods.md`)."""

    slab_slices: int = 20
    """Slices of a slab, whose lesions are taken as one distribution in the plane."""
    bandwidth_mm: float | None = None
    """Standard deviation of the Gaussian kernel; null chooses it by the likelihood of left-out subjects."""
    floor: float = 0.0
    """Least value of the map, from 0 (the paper's: nothing is expected elsewhere) to below 1."""

    def problems(self) -> Iterator[str]:
        """Values outside their range."""
        if self.slab_slices < 1:
            yield f"slab_slices must be at least 1, not {self.slab_slices}"
        if self.bandwidth_mm is not None and self.bandwidth_mm <= 0:
            yield f"bandwidth_mm must be positive, not {self.bandwidth_mm:g}"
        if not 0 <= self.floor < 1:
            yield f"floor must be at least 0 and below 1, not {self.floor:g}"


@dataclass(frozen=True)
class DensityFacts(Config):
    """What a density was made from and which grids it belongs to."""

    bandwidth_mm: float
    """Standard deviation of the Gaussian kernel."""
    floor: float
    """Least value that is read from it."""
    lattice: Lattice
    """Where its values lie, from the middle of the cases' grids."""
    unit_yx_mm: tuple[float, float] | None
    """What a pixel counts where heads were enlarged to one size; null where each keeps its own spacing."""
    slice_shape_yx: tuple[int, int] | None
    """That size in pixels."""
    spacing_low_zyx_mm: tuple[float, float, float]
    """The smallest spacing of the training cases' grids."""
    spacing_high_zyx_mm: tuple[float, float, float]
    """The largest."""
    directions: tuple[str, str, str]
    """Where slices, rows and columns run in the patient; a case in which one runs the other way is turned."""
    subjects: tuple[str, ...]
    """Every subject that it was made from, with lesions or without."""
    n_subjects_with_lesions: int
    """How many of them have lesions."""
    n_lesion_voxels: int
    """Their lesion voxels."""
    gain: float | None
    """Mean log-likelihood of left-out subjects less that of lesions anywhere in the grid; null for one subject."""


@dataclass(frozen=True, eq=False)
class Density:
    """A prior density on its coarse lattice."""

    values: NDArray[np.float32]
    """(slabs, rows, columns), from 0 to 1."""
    facts: DensityFacts

    def place(self, way_back: WayBack) -> "PlacedDensity":
        """The density over a case's grid.

        Raises:
            PwmlError: the case's grid is not like those that the density was made from.
        """
        if difference := self._difference(way_back):
            raise PwmlError(f"the prior density was made for {difference}")
        matrix, shift = to_frame(way_back, self.facts.unit_yx_mm, self.facts.directions)
        step, origin = np.array(self.facts.lattice.step_zyx_mm), np.array(self.facts.lattice.origin_zyx_mm)
        return PlacedDensity(self.values, self.facts.floor, matrix / step[:, None], (shift - origin) / step)

    def _difference(self, way_back: WayBack) -> str:
        """In words, how a case's grid differs from the training cases' and what to do; empty where it does not."""
        facts, spacing = self.facts, np.array(way_back.spacing_zyx_mm)
        if not can_be_laid(way_back, facts.directions):
            return f"slices, rows and columns that run {join(facts.directions)} (or against it), this case's run {join(way_back.directions)}: give images like the training set's"  # fmt: skip
        if facts.slice_shape_yx is not None:
            if facts.slice_shape_yx == way_back.slice_shape_yx:
                return ""
            return f"slices of {join(facts.slice_shape_yx)} pixels, this case's have {join(way_back.slice_shape_yx)}: train the fold again on this preparation"  # fmt: skip
        low, high = np.array(facts.spacing_low_zyx_mm), np.array(facts.spacing_high_zyx_mm)
        if np.all((spacing > low * (1 - _SPACING_TOLERANCE)) & (spacing < high * (1 + _SPACING_TOLERANCE))):
            return ""
        usual = " to ".join(dict.fromkeys(_rounded(ends) for ends in (low, high)))
        return f"a grid of {usual} mm (slices, rows, columns), this case's grid has {_rounded(spacing)} mm: give images like the training set's"  # fmt: skip

    def write(self, path: Path) -> None:
        """Writes the density as .npz, whole or not at all."""
        facts = np.array(json.dumps(self.facts.to_dict()))
        with replacing(path) as temporary:
            np.savez_compressed(temporary, values=self.values, facts=facts)

    @classmethod
    def read(cls, path: Path) -> "Density":
        """The density in a file.

        Raises:
            PwmlError: the file is missing, damaged or holds something else.
        """
        with reading_arrays(path, "prior density: train the fold again") as arrays:
            values, text = arrays["values"], str(arrays["facts"])
            facts = DensityFacts.from_dict(json.loads(text), str(path))
        if values.dtype != np.float32 or values.shape != facts.lattice.shape_zyx or not _is_share(values):
            raise PwmlError(f"{path} is damaged (its values are not a density's): train the fold again")
        return cls(values, facts)


def _rounded(spacing: NDArray[np.float64]) -> str:
    return " × ".join(f"{s:.3g}" for s in spacing)


def _is_share(values: NDArray[np.float32]) -> bool:
    return bool(np.all((values >= 0) & (values <= 1)))  # false for NaN, too


@dataclass(frozen=True, eq=False)
class PlacedDensity:
    """A density over the grid of a case."""

    values: NDArray[np.float32]
    """The density's own."""
    floor: float
    """Least value that is read."""
    matrix: NDArray[np.float64]
    """(3, 3); with `shift`, from an index (z, y, x) of the case's grid to one of `values`."""
    shift: NDArray[np.float64]
    """(3,)."""

    def region(self, slices: Sequence[int], rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.float32]:  # fmt: skip
        """Values (n, Y, X) from the floor to 1: of any slices, in any order, and half-open ranges in the plane.

        All may reach beyond the grid.
        """
        indices = (np.asarray(slices), np.arange(*rows), np.arange(*columns))
        is_straight = np.array_equal(self.matrix, np.diag(np.diag(self.matrix)))
        values = self._straight(indices) if is_straight else self._turned(indices)
        return np.asarray(self.floor + (1 - self.floor) * values, np.float32)

    def _straight(self, indices: Sequence[NDArray[np.int_]]) -> NDArray[np.float32]:
        """Linear interpolation axis by axis, which is a product of three small matrices."""
        slabs, rows, columns = (
            _hats(index * self.matrix[axis, axis] + self.shift[axis], self.values.shape[axis])
            for axis, index in enumerate(indices)
        )
        near = slabs.any(0)
        blended = np.tensordot(slabs[:, near], self.values[near], 1)
        return np.asarray(rows @ blended @ columns.T)

    def _turned(self, indices: Sequence[NDArray[np.int_]]) -> NDArray[np.float32]:
        """The same at places that lie askew in the lattice."""
        import torch

        z, y, x = np.meshgrid(*indices, indexing="ij", sparse=True)
        # grid_sample counts from -1 at the first value's outer edge to 1 at the last one's, columns first
        places = np.stack(
            [
                (2 * (m[0] * z + m[1] * y + m[2] * x + s) + 1) / n - 1
                for m, s, n in zip(self.matrix[::-1], self.shift[::-1], self.values.shape[::-1], strict=True)
            ],
            -1,
        ).astype(np.float32)
        volume = torch.from_numpy(self.values)[None, None]
        sampled = torch.nn.functional.grid_sample(volume, torch.from_numpy(places)[None], align_corners=False)
        return np.asarray(sampled[0, 0].numpy())


def _hats(places: NDArray[np.float64], n: int) -> NDArray[np.float32]:
    """Weights (places, n) of linear interpolation between n values; beyond them it goes to 0 in one step."""
    return np.asarray(np.maximum(1 - np.abs(places[:, None] - np.arange(n)), 0), np.float32)


def fit_density(
    cases: Iterable[tuple[str, NDArray[np.bool_], WayBack]],
    config: DensityConfig,
    *,
    enlarged: bool = False,
) -> Density:
    """The density of the lesions of training subjects.

    Args:
        cases: subject, lesion mask (Z, Y, X) on the prepared grid and the way back of each case; read one by one.
        config: how it is made.
        enlarged: whether every head fills slices of one size, so that places are compared in pixels.

    Raises:
        PwmlError: no subject has a lesion, or slices of some cases run along another axis than those of others.
    """
    return _fit(_find(cases), config, enlarged=enlarged)


def fit_densities_of_others(
    cases: Iterable[tuple[str, NDArray[np.bool_], WayBack]], density: Density, config: DensityConfig
) -> dict[str, Density]:
    """For each training subject the density of all others, with the bandwidth of the density of all.

    It is what a network shall see of the subject while it learns: in the density of all, every lesion that it learns
    from lies on a peak that it made itself, and no lesion of a new subject will.
    A subject without whom there is no lesion gets the density of all.
    """
    found = _find(cases)
    config = replace(config, bandwidth_mm=density.facts.bandwidth_mm)
    enlarged = density.facts.unit_yx_mm is not None
    with_lesions = {subject for subject, voxels, _ in found if len(voxels)}
    densities = {}
    for left_out in density.facts.subjects:
        others = [case for case in found if case[0] != left_out]
        is_told = with_lesions - {left_out}
        densities[left_out] = _fit(others, config, enlarged=enlarged) if is_told else density
    return densities


_Found = Sequence[tuple[str, NDArray[np.int64], WayBack]]


def _find(cases: Iterable[tuple[str, NDArray[np.bool_], WayBack]]) -> _Found:
    return [(subject, lesion_voxels(mask), way_back) for subject, mask, way_back in cases]


def _fit(found: _Found, config: DensityConfig, *, enlarged: bool) -> Density:
    if not any(len(voxels) for _, voxels, _ in found):
        raise PwmlError("no training subject has a lesion: a prior density needs some; change splits.json")
    ways = [way_back for _, _, way_back in found]
    spacings = np.array([way_back.spacing_zyx_mm for way_back in ways])
    slice_mm, *spacing_yx = np.median(spacings, 0).tolist()
    unit = (spacing_yx[0], spacing_yx[1]) if enlarged else None
    directions = _common_directions(ways)
    points = points_by_subject(found, unit, directions)
    chosen = choose_bandwidth(
        list(points.values()),
        CANDIDATES_MM if config.bandwidth_mm is None else (config.bandwidth_mm,),
        slab_mm=config.slab_slices * slice_mm,
        spacing_yx_mm=spacing_yx,
        volume_mm3=float(np.median([grid_mm3(way_back, unit) for way_back in ways])),
    )
    everything = np.concatenate(list(points.values()))
    lattice = Lattice.around(everything, chosen.width_mm, config.slab_slices * slice_mm, spacing_yx)
    values = parzen(everything, lattice, chosen.width_mm)
    facts = DensityFacts(
        chosen.width_mm,
        config.floor,
        lattice,
        unit,
        _common_shape(ways) if enlarged else None,
        _triple(spacings.min(0)),
        _triple(spacings.max(0)),
        directions,
        tuple(sorted({subject for subject, _, _ in found})),
        len(points),
        len(everything),
        chosen.gain,
    )
    return Density((values / values.max()).astype(np.float32), facts)


def _common_directions(ways: Sequence[WayBack]) -> Directions:
    directions = min(way_back.directions for way_back in ways)
    if odd := {way_back.directions for way_back in ways if not can_be_laid(way_back, directions)}:
        raise PwmlError(f"slices, rows and columns run {join(directions)} in some training cases and {join(min(odd))} in others: a prior density needs one order; choose slice_axis axial, coronal or sagittal in plan.json")  # fmt: skip
    return directions


def _common_shape(ways: Sequence[WayBack]) -> tuple[int, int]:
    shapes = {way_back.slice_shape_yx for way_back in ways}
    if len(shapes) > 1:
        raise ValueError(f"enlarged heads have slices of one size, not {join(sorted(shapes))}")
    return shapes.pop()


def _triple(values: NDArray[np.float64]) -> tuple[float, float, float]:
    z, y, x = values.tolist()
    return z, y, x
