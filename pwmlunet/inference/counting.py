"""What every subject has at every point that may be chosen: lesions found, predicted, and voxels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.evaluation.lesions import match_one_to_one
from pwmlunet.inference.candidates import THRESHOLDS, Candidates, CaseTable
from pwmlunet.inference.postprocessing import MOST_CUT, Postprocessing

LEAST_PEAKS = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999, 0.99999)
"""The cuts of a lesion's highest probability; near 1 in steps of logits, for networks that are always sure."""

SMALLEST_QUANTILES = (0.0, 0.05, 0.1, 0.25)
"""The smallest sizes, as quantiles of the reference lesions' volumes."""

_N_GROUPS = 20


@dataclass(frozen=True, eq=False)
class Counts:
    """What each subject (S) has at each point (P); cases and targets added up."""

    subjects: tuple[str, ...]
    n_cases: NDArray[np.float64]
    """Cases (S,)."""
    n_reference: NDArray[np.float64]
    """Reference lesions (S,)."""
    n_found: NDArray[np.float64]
    """Matched lesions (P, S)."""
    n_predicted: NDArray[np.float64]
    """Predicted lesions (P, S)."""
    overlap: NDArray[np.float64]
    """Twice the voxels in both masks (P, S), the numerator of Dice."""
    both_sizes: NDArray[np.float64]
    """Voxels of the two masks added (P, S), its denominator."""

    def of(self, subjects: NDArray[np.int64]) -> "Counts":
        """The counts of some subjects."""
        return Counts(
            tuple(self.subjects[i] for i in subjects),
            self.n_cases[subjects],
            self.n_reference[subjects],
            *(a[:, subjects] for a in (self.n_found, self.n_predicted, self.overlap, self.both_sizes)),
        )

    def at(self, points: NDArray[np.int64]) -> "Counts":
        """The counts with one point for each subject (S,); P is 1."""
        each = np.arange(len(self.subjects))
        columns = (self.n_found, self.n_predicted, self.overlap, self.both_sizes)
        return Counts(
            self.subjects, self.n_cases, self.n_reference, *(a[points, each][None] for a in columns)
        )


@dataclass(frozen=True, eq=False)
class Grid:
    """The points that may be chosen, at temperature 1."""

    points: tuple[Postprocessing, ...]
    distances: NDArray[np.float64]
    """How far each point is from the default (P,): |logit of the threshold| + steps of size + steps of peak."""

    smallest_lesion_mm3: float = 0.0
    """The smallest size of the default."""

    @property
    def default(self) -> int:
        """Number of the default point."""
        return self.fixed(Postprocessing().threshold)

    def fixed(self, threshold: float) -> int:
        """Number of the point with a threshold and otherwise the default's settings."""
        return self.points.index(Postprocessing(threshold, self.smallest_lesion_mm3))


def make_grid(
    tables: Sequence[CaseTable], temperature: float = 1.0, smallest_lesion_mm3: float = 0.0
) -> Grid:
    """The points for some cases, each of which can be moved along to a temperature; no lesion is smaller than given.

    Sizes are quantiles of the reference lesions' volumes. A subject that is left out when the others choose
    among them has had its share in them: so far nested figures are not nested.
    """
    volumes = np.concatenate([t.reference_volumes_mm3 for t in tables])
    quantiles = np.quantile(volumes, SMALLEST_QUANTILES, method="lower") if len(volumes) else []
    least = smallest_lesion_mm3
    sizes = sorted({least, *(size for q in quantiles if (size := float(q)) > least)})
    peaks = [p for p in LEAST_PEAKS if math.log(p / (1 - p)) <= MOST_CUT * temperature]
    points, distances = [], []
    for threshold, (i, size), (j, peak) in product(THRESHOLDS, enumerate(sizes), enumerate((0.0, *peaks))):
        if peak == 0 or peak > threshold:
            points.append(Postprocessing(threshold, size, peak))
            distances.append(abs(math.log(threshold / (1 - threshold))) + i + j)
    return Grid(tuple(points), np.array(distances), least)


def count(tables: Sequence[CaseTable], grid: Grid) -> Counts:
    """The counts of every subject at every point."""
    subjects = tuple(sorted({t.subject for t in tables}))
    column = {subject: i for i, subject in enumerate(subjects)}
    sums = np.zeros((4, len(grid.points), len(subjects)))
    n_cases, n_reference = np.zeros((2, len(subjects)))
    for table in tables:
        s = column[table.subject]
        n_cases[s] += 1
        n_reference[s] += len(table.reference_volumes_mm3)
        sums[..., s] += _count_case(table, grid)
    return Counts(subjects, n_cases, n_reference, *sums)


def _count_case(table: CaseTable, grid: Grid) -> NDArray[np.float64]:
    """Found, predicted, twice the voxels in both masks and the sum of their sizes (4, P)."""
    counts = np.empty((4, len(grid.points)))
    for threshold, candidates in zip(THRESHOLDS, table.candidates, strict=True):
        at = [i for i, point in enumerate(grid.points) if point.threshold == threshold]
        kept = np.stack([grid.points[i].keeps(candidates.volumes_mm3, candidates.peaks) for i in at])
        counts[0, at] = _n_matched(candidates, kept)
        counts[1, at] = kept.sum(1)
        counts[2, at] = 2 * (kept @ candidates.n_shared)
        counts[3, at] = kept @ candidates.n_voxels + table.n_reference_voxels
    return counts


def _n_matched(candidates: Candidates, kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many lesions are matched one to one by the candidates that each point (P, N) keeps."""
    lesion, candidate = candidates.pairs.T
    choices, which = np.unique(kept[:, candidate], axis=0, return_inverse=True)
    n = [len(match_one_to_one(lesion[c], candidate[c], gain=candidates.iou[c])) for c in choices]
    return np.array(n, np.int64)[which.ravel()]


def leave_out(n_subjects: int, choose: Callable[[NDArray[np.int64]], Any]) -> NDArray[Any]:
    """What is chosen for each subject (S,) by the others: one by one, or in 20 groups where there are more."""
    group = np.arange(n_subjects) % _N_GROUPS
    chosen = [choose(np.flatnonzero(group != g)) for g in range(min(n_subjects, _N_GROUPS))]
    return np.asarray(np.array(chosen)[group])
