"""The lesions of a predicted case, measured one by one, for a person to go through."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.data.dataset import Labels
from pwmlunet.data.image import Geometry
from pwmlunet.evaluation.lesions import measure_lesions
from pwmlunet.files import write_csv

ENDING = "_lesions"
"""What a table's file name has after the case's, before .json or .csv."""

_VERSION = 1
_MANY_POINTS = 2000


@dataclass(frozen=True)
class LesionRow(Config):
    """One predicted lesion: a connected component of one target."""

    target: str
    """The label's name."""
    number: int
    """From 1, in the order of the table."""
    volume_mm3: float
    """Its volume."""
    n_voxels: int
    """Its voxels."""
    largest_diameter_mm: float
    """The largest distance between the centres of two of its voxels, plus the smallest spacing."""
    centroid_x_mm: float | None
    """Its centroid in the patient's system of DICOM: x grows to the left. None, as y, z and side, for a picture."""
    centroid_y_mm: float | None
    """y grows to the back."""
    centroid_z_mm: float | None
    """z grows to the head."""
    centroid_z_voxel: float
    """The same place in voxels of the file, which are counted from 0 as slices are."""
    centroid_y_voxel: float
    """Row."""
    centroid_x_voxel: float
    """Column."""
    first_slice: int
    """The first slice along z."""
    last_slice: int
    """The last one; the same for a lesion in a single slice."""
    mean_probability: float | None
    """Mean over its voxels, calibrated where the model is; None where only the mask is known."""
    max_probability: float | None
    """The highest."""
    spread_over_folds: float | None
    """Standard deviation of the networks' probabilities, mean over its voxels; None for one network."""
    side: Literal["left", "right", "midline"] | None
    """The patient's side, by the affine, seen from the middle of the head along the file's axis nearest to left-right.

    None where the file does not say how the patient lay, or the head is not known.
    """


@dataclass(frozen=True)
class Totals(Config):
    """The lesions of one target together."""

    n_lesions: int
    """How many."""
    volume_mm3: float
    """Their volume."""


@dataclass(frozen=True)
class LesionTable(Config):
    """The lesions of a case, the least sure first."""

    version: int
    """Of this layout."""
    case: str
    """Its name."""
    totals: dict[str, Totals]
    """By target."""
    lesions: tuple[LesionRow, ...]
    """The least sure first: by the mean probability."""

    def problems(self) -> Iterator[str]:
        """What another version may have written."""
        if self.version != _VERSION:
            yield f"it is of version {self.version}, not {_VERSION}: predict the case again"


def tabulate(
    case: str,
    mask: NDArray[Any],
    geometry: Geometry,
    labels: Labels,
    *,
    probability: NDArray[np.floating[Any]] | None = None,
    spread: NDArray[np.floating[Any]] | None = None,
    head_centre_zyx: tuple[float, float, float] | None = None,
) -> LesionTable:
    """The lesions in a mask (Z, Y, X) of label values.

    Args:
        case: Its name.
        mask: Label values (Z, Y, X).
        geometry: Its grid.
        labels: What the values mean.
        probability: (K, Z, Y, X), one for each target.
        spread: Standard deviation over the networks, of the same shape.
        head_centre_zyx: The middle of the head in voxels; without it nothing is said about sides.
    """
    rows = []
    totals = {}
    for index, (target, where) in enumerate(zip(labels.targets, labels.encode(mask), strict=True)):
        maps = [None if part is None else part[index] for part in (probability, spread)]
        found = list(_rows(target.name, where, geometry, *maps, head_centre_zyx=head_centre_zyx))
        totals[target.name] = Totals(len(found), math.fsum(row["volume_mm3"] for row in found))
        rows += found
    rows.sort(key=_least_sure_first)
    return LesionTable(
        _VERSION, case, totals, tuple(LesionRow(number=n, **row) for n, row in enumerate(rows, 1))
    )


def _least_sure_first(row: dict[str, Any]) -> tuple[float, float]:
    return row["mean_probability"] or 0.0, row["volume_mm3"]


def _rows(
    target: str,
    where: NDArray[np.bool_],
    geometry: Geometry,
    probability: NDArray[Any] | None,
    spread: NDArray[Any] | None,
    *,
    head_centre_zyx: tuple[float, float, float] | None,
) -> Iterator[dict[str, Any]]:
    """The values of a row for each component, but its number."""
    lesions = measure_lesions(where, geometry.spacing_zyx_mm)
    for number, voxels in enumerate(lesions.voxels()):
        z, y, x = lesions.centroids_zyx[number].tolist()
        at = tuple(voxels.T)
        place = geometry.index_to_mm((z, y, x)) if geometry.is_placed else (None, None, None)
        values = None if probability is None else probability[at].astype(np.float64)
        yield {
            "target": target,
            "volume_mm3": float(lesions.volumes_mm3[number]),
            "n_voxels": len(voxels),
            "largest_diameter_mm": _largest_diameter_mm(voxels, geometry.spacing_zyx_mm),
            "centroid_x_mm": place[0],
            "centroid_y_mm": place[1],
            "centroid_z_mm": place[2],
            "centroid_z_voxel": z,
            "centroid_y_voxel": y,
            "centroid_x_voxel": x,
            "first_slice": int(voxels[0, 0]),
            "last_slice": int(voxels[-1, 0]),
            "mean_probability": None if values is None else float(values.mean()),
            "max_probability": None if values is None else float(values.max()),
            "spread_over_folds": None if spread is None else float(spread[at].mean()),
            "side": _side((z, y, x), head_centre_zyx, geometry),
        }


def _side(
    place_zyx: tuple[float, float, float], centre_zyx: tuple[float, float, float] | None, geometry: Geometry
) -> Literal["left", "right", "midline"] | None:
    """Which side of the head's middle a place lies on, along the file's axis that runs nearest from side to side.

    Along that axis and not along the scanner's: images are angled to the head. Within a voxel of the middle
    neither side is sure.
    """
    if centre_zyx is None or not geometry.is_placed:
        return None
    towards_the_left = geometry.direction_xyz[:3]  # of the file's axes x, y and z
    axis = int(np.argmax(np.abs(towards_the_left)))
    voxels = place_zyx[2 - axis] - centre_zyx[2 - axis]
    if abs(voxels) <= 1:
        return "midline"
    return "left" if voxels * towards_the_left[axis] > 0 else "right"


def _largest_diameter_mm(places: NDArray[np.int64], spacing_zyx_mm: tuple[float, float, float]) -> float:
    """Only corners of the convex hull can lie farthest apart; `places` (N, 3) are in raster order."""
    starts = np.ones(len(places), bool)
    starts[1:] = (np.diff(places[:, :2], axis=0) != 0).any(1)
    ends = np.append(starts[1:], True)
    points = places[starts | ends] * np.array(spacing_zyx_mm)  # both ends of each row of voxels
    if len(points) > _MANY_POINTS:
        points = _corners(points)
    from scipy.spatial.distance import cdist

    parts = range(0, len(points), _MANY_POINTS)
    farthest = max(float(cdist(points[i : i + _MANY_POINTS], points).max()) for i in parts)
    return farthest + min(spacing_zyx_mm)


def _corners(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The corners of the convex hull of points (N, 3), which may all lie in a plane or a line."""
    from scipy.spatial import ConvexHull

    extended = np.ptp(points, axis=0) > 0
    if np.count_nonzero(extended) < 2:
        return points[[points[:, extended].argmin(), points[:, extended].argmax()]]
    corners = ConvexHull(points[:, extended], qhull_options="QJ").vertices  # QJ: oblique planes too
    return np.asarray(points[corners])


def write_lesion_table(folder: Path, table: LesionTable) -> None:
    """Writes CASE_lesions.json and CASE_lesions.csv, which has the totals in its last rows."""
    table.write(folder / f"{table.case}{ENDING}.json")
    totals = [{"kind": "total", "target": target, **part.to_dict()} for target, part in table.totals.items()]
    rows = [row.to_dict() for row in table.lesions]
    columns = [field.name for field in fields(LesionRow)]
    for total in totals:
        total["n_voxels"] = sum(row["n_voxels"] for row in rows if row["target"] == total["target"])
        del total["n_lesions"]
    write_csv(folder / f"{table.case}{ENDING}.csv", ["case", "kind", *columns], [{"case": table.case, "kind": "lesion", **row} for row in (*rows, *totals)])  # fmt: skip


def read_lesion_tables(folder: Path) -> list[LesionTable]:
    """The tables in a folder of predictions, by case.

    Raises:
        PwmlError: one cannot be read or is of another layout.
    """
    return [LesionTable.read(path) for path in sorted(folder.glob(f"[!.]*{ENDING}.json"))]


def write_review(path: Path, tables: Sequence[LesionTable]) -> list[tuple[str, LesionRow]]:
    """Writes a CSV of the lesions of all cases, the least sure first; gives them with their cases."""
    lesions = [(table.case, row) for table in tables for row in table.lesions]
    lesions.sort(key=lambda lesion: _least_sure_first(lesion[1].to_dict()))
    columns = ["case", *(field.name for field in fields(LesionRow))]
    write_csv(path, columns, [{"case": case, **row.to_dict()} for case, row in lesions])
    return lesions
