"""Preprocessed cases on disk: arrays that are read by region, and the way back to the scanner's grid."""

from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.data.image import Geometry
from pwmlunet.errors import PwmlError
from pwmlunet.files import explain, make_folder, reading_arrays, reading_headers

SliceAxis = Literal["z", "y", "x", "axial", "coronal", "sagittal"]


@dataclass(frozen=True)
class Orientation(Config):
    """How the file's axes lie in the grid: slices first, then rows, then columns."""

    order: tuple[int, int, int] = (0, 1, 2)
    """The file's axes (0 is z, 1 is y, 2 is x) that became slices, rows and columns."""
    flipped: tuple[bool, bool, bool] = (False, False, False)
    """Which of slices, rows and columns run against the file's axis."""

    def to_grid(self, array: NDArray[Any]) -> NDArray[Any]:
        """A view of an array (…, Z, Y, X) in the file's order, with slices, rows and columns last."""
        n_before = array.ndim - 3
        ordered = array.transpose(*range(n_before), *(n_before + axis for axis in self.order))
        return self._flip(ordered)

    def to_file(self, array: NDArray[Any]) -> NDArray[Any]:
        """A view of an array (…, slices, rows, columns) in the file's order: the inverse of `to_grid`."""
        n_before = array.ndim - 3
        back = (n_before + self.order.index(axis) for axis in range(3))
        return self._flip(array).transpose(*range(n_before), *back)

    def _flip(self, array: NDArray[Any]) -> NDArray[Any]:
        z, y, x = (slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return array[..., z, y, x]


@dataclass(frozen=True)
class Rigid(Config):
    """A rotation and a shift from a case's grid to a reference's, in mm from the middle of each grid."""

    rotation_zyx: tuple[float, float, float, float, float, float, float, float, float]
    """Row by row, for (slices, rows, columns)."""
    translation_zyx_mm: tuple[float, float, float]
    """Added after the rotation."""


_DIRECTIONS = (("left", "right"), ("back", "front"), ("up", "down"))


@dataclass(frozen=True)
class WayBack(Config):
    """What was done to a case's grid, so that a prediction can be put back where it belongs."""

    geometry: Geometry
    """The grid of the case's own files."""
    orientation: Orientation
    """How the file's axes lie in the grid."""
    box_zyx: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    """The crop on the reordered axes; it may reach beyond the image."""
    grid_shape_zyx: tuple[int, int, int]
    """The shape after cropping and resampling."""
    to_reference: Rigid | None = None
    """Where the case lies beside the reference of its dataset; null where middles of heads are laid on each other."""
    head_middle_zyx: tuple[float, float, float] | None = None
    """The middle of the head, or of the fan, on the grid in voxels; null for the grid's own middle."""

    @property
    def directions(self) -> tuple[str, str, str]:
        """Where slices, rows and columns run in the patient: to the left, right, back, front, up or down."""
        cosines, near = _anatomy(self.geometry)
        found = []
        for axis, flip in zip(self.orientation.order, self.orientation.flipped, strict=True):
            to = near.index(axis)
            found.append(_DIRECTIONS[to][int((cosines[to, axis] < 0) != flip)])
        slices, rows, columns = found
        return slices, rows, columns

    @property
    def slice_shape_yx(self) -> tuple[int, int]:
        """Rows and columns of a slice of the grid."""
        return self.grid_shape_zyx[1:]

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """The spacing of the resampled grid."""
        spacing = [self.geometry.spacing_zyx_mm[i] for i in self.orientation.order]
        lengths = [stop - start for start, stop in self.box_zyx]
        z, y, x = (s * b / g for s, b, g in zip(spacing, lengths, self.grid_shape_zyx, strict=True))
        return z, y, x


_FILE_ORDERS = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}

_LEFT, _BACK, _UP = 0, 1, 2  # the axes of the scanner's space, as they run (LPS)
_RUNS = {
    "axial": ((_UP, 1), (_BACK, 1), (_LEFT, 1)),
    "coronal": ((_BACK, 1), (_UP, -1), (_LEFT, 1)),
    "sagittal": ((_LEFT, 1), (_UP, -1), (_BACK, 1)),
}  # where slices, rows and columns lead; -1 is against the axis


def orientation_of(geometry: Geometry, slice_axis: SliceAxis) -> Orientation:
    """How a file's axes become slices, rows and columns.

    "z", "y" and "x" are the file's axes as they run. For the others the affine decides, so that a head looks
    the same from every file: axial slices run upwards, coronal ones to the back, sagittal ones to the left;
    rows run downwards (in axial slices to the back), columns to the left (in sagittal slices to the back).
    """
    if slice_axis in _FILE_ORDERS:
        return Orientation(_FILE_ORDERS[slice_axis])
    cosines, near = _anatomy(geometry)
    runs = [(near[to], bool(sign * cosines[to, near[to]] < 0)) for to, sign in _RUNS[slice_axis]]
    (z, flip_z), (y, flip_y), (x, flip_x) = runs
    return Orientation((z, y, x), (flip_z, flip_y, flip_x))


def _anatomy(geometry: Geometry) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Cosines (to left, back, up; the file's z, y, x), and the file's axes that lead nearest to left, back and up."""
    cosines = np.reshape(geometry.direction_xyz, (3, 3))[:, ::-1]
    near = max(permutations(range(3)), key=lambda axes: np.abs(cosines[range(3), axes]).sum())
    return cosines, near


@dataclass(frozen=True)
class CaseFacts(Config):
    """What is known of a preprocessed case beside its arrays."""

    name: str
    subject: str
    way_back: WayBack
    made_from: dict[str, Any]
    """The preparation and the source files' sizes and times: a case is made again when one changed."""


@dataclass(frozen=True, eq=False)
class PreprocessedCase:
    """A case on the network's grid. Arrays read from a store are views of files."""

    facts: CaseFacts
    image: NDArray[Any]
    """(C, Z, Y, X), normalised; float32, or float16 where the preparation says so."""
    mask: NDArray[np.uint8] | None = None
    """(Z, Y, X), the label values of the raw dataset; none for a case to predict."""
    reference: NDArray[np.uint8] | None = None
    """(Z, Y, X) on the grid of the case's own files: what a prediction is scored against."""

    @property
    def name(self) -> str:
        """The case's name."""
        return self.facts.name


class CaseStore:
    """A folder of preprocessed cases, one folder each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> list[str]:
        """The finished cases, sorted."""
        return sorted(p.parent.name for p in self.folder.glob("*/case.json"))

    def facts(self, name: str) -> CaseFacts | None:
        """What is known of a case; none where it is not finished, or was written by another version."""
        path = self.folder / name / "case.json"
        try:
            return CaseFacts.read(path) if path.is_file() else None
        except PwmlError:  # it is made again, as one that is not there
            return None

    def write(self, case: PreprocessedCase) -> None:
        """Writes a case; `case.json` comes last, and its presence says that the case is whole."""
        folder = self.folder / case.name
        self.remove(case.name)
        make_folder(folder)
        try:
            np.save(folder / "image.npy", case.image)
            if case.mask is not None and case.reference is not None:
                np.save(folder / "mask.npy", case.mask)
                np.savez_compressed(folder / "reference.npz", reference=case.reference)
        except OSError as error:
            raise explain(error, folder, "write") from error
        case.facts.write(folder / "case.json")

    def read(self, name: str) -> PreprocessedCase:
        """A case whose image and mask stay on disk until a region of them is asked for."""
        facts = self.facts(name)
        folder = self.folder / name
        if facts is None:
            raise PwmlError(f"case {name} is not preprocessed in {self.folder}: run pwml_plan_and_preprocess")
        try:
            with reading_headers:
                image = np.load(folder / "image.npy", mmap_mode="r")
                path = folder / "mask.npy"
                mask = np.load(path, mmap_mode="r") if path.is_file() else None
        except (OSError, ValueError, EOFError) as error:
            raise PwmlError(f"{folder} is damaged ({error}): delete it and run pwml_plan_and_preprocess") from error  # fmt: skip
        return PreprocessedCase(facts, image, mask)

    def remove(self, name: str) -> None:
        """Removes a case."""
        assert (self.folder / name).parent == self.folder and name not in ("", ".."), name
        rmtree(self.folder / name, ignore_errors=True)

    def reference(self, name: str) -> NDArray[np.uint8]:
        """The case's mask on the grid of its own files."""
        what = "mask of a preprocessed case: delete its folder and run pwml_plan_and_preprocess"
        with reading_arrays(self.folder / name / "reference.npz", what) as arrays:
            return np.asarray(arrays["reference"])
