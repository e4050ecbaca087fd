"""Preprocessed cases on disk: arrays that are read by region, and the way back to the scanner's grid."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.data.image import Geometry
from pwmlunet.errors import PwmlError
from pwmlunet.files import explain, make_folder

Axis = Literal["z", "y", "x"]


@dataclass(frozen=True)
class WayBack(Config):
    """What was done to a case's grid, so that a prediction can be put back where it belongs."""

    geometry: Geometry
    """The grid of the case's own files."""
    slice_axis: Axis
    """The file's axis along which slices are stacked; it became the first."""
    box_zyx: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    """The crop on the reordered axes; it may reach beyond the image."""
    grid_shape_zyx: tuple[int, int, int]
    """The shape after cropping and resampling."""

    @property
    def slice_shape_yx(self) -> tuple[int, int]:
        """Rows and columns of a slice of the grid."""
        return self.grid_shape_zyx[1:]

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """The spacing of the resampled grid."""
        order = slice_order(self.slice_axis)
        spacing = [self.geometry.spacing_zyx_mm[i] for i in order]
        lengths = [stop - start for start, stop in self.box_zyx]
        z, y, x = (s * b / g for s, b, g in zip(spacing, lengths, self.grid_shape_zyx, strict=True))
        return z, y, x


def slice_order(slice_axis: Axis) -> tuple[int, int, int]:
    """The file's axes (of z, y, x) in the order slice axis, rows, columns."""
    return {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}[slice_axis]


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
    image: NDArray[np.float32]
    """(C, Z, Y, X), normalised."""
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
        """What is known of a case; none where it is not finished."""
        path = self.folder / name / "case.json"
        return CaseFacts.read(path) if path.is_file() else None

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
            image = np.load(folder / "image.npy", mmap_mode="r")
            mask = np.load(folder / "mask.npy", mmap_mode="r") if (folder / "mask.npy").is_file() else None
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(folder, error) from error
        return PreprocessedCase(facts, image, mask)

    def remove(self, name: str) -> None:
        """Removes a case."""
        assert (self.folder / name).parent == self.folder and name not in ("", ".."), name
        rmtree(self.folder / name, ignore_errors=True)

    def reference(self, name: str) -> NDArray[np.uint8]:
        """The case's mask on the grid of its own files."""
        path = self.folder / name / "reference.npz"
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                return np.asarray(arrays["reference"])
        except (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error) as error:
            raise _damaged(path.parent, error) from error


def _damaged(folder: Path, error: Exception) -> PwmlError:
    return PwmlError(f"{folder} is damaged ({error}): delete it and run pwml_plan_and_preprocess")
