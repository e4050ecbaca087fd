"""Out-of-fold cases as small tables: what would be found in them at every point that may be chosen."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.dataset import Labels
from pwmlunet.evaluation.lesions import Lesions, find_touching, match_one_to_one, measure_lesions
from pwmlunet.evaluation.probabilities import MOST_LOGIT, logit_of
from pwmlunet.evaluation.reliability import REACH_VOXELS, neighbourhood
from pwmlunet.inference.postprocessing import Postprocessing, find_targets, sizes_and_peaks
from pwmlunet.planning.cropping import box_of

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
"""The thresholds that may be chosen."""

LEAST_PEAKS = (0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999, 0.99999)
"""The cuts of a lesion's highest probability; near 1 in steps of logits, for networks that are always sure."""

SMALLEST_QUANTILES = (0.0, 0.05, 0.1, 0.25)
"""The smallest sizes, as quantiles of the reference lesions' volumes."""

LOGIT_STEPS = 16
"""Bins of the histogram of logits in each unit."""

LOGITS: NDArray[np.floating[Any]] = np.linspace(
    -MOST_LOGIT, MOST_LOGIT, round(2 * MOST_LOGIT * LOGIT_STEPS) + 1
)
"""Their centres (B,)."""

_LEAST_IOU = 0.1
_N_GROUPS = 20


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """A case and what networks that never saw it say."""

    name: str
    subject: str
    fold: str
    spacing_zyx_mm: tuple[float, float, float]
    reference: NDArray[np.uint8]
    """Label values (Z, Y, X)."""
    probability: NDArray[np.float32]
    """(K, Z, Y, X), as the networks gave them: at temperature 1."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The lesions predicted in a case at one threshold, of all targets."""

    volumes_mm3: NDArray[np.float64]
    """Of the whole component (N,): what a smallest size is compared with."""
    peaks: NDArray[np.float32]
    """Its highest probability (N,)."""
    n_voxels: NDArray[np.int64]
    """Voxels with a known label (N,)."""
    n_shared: NDArray[np.int64]
    """Those of them that are in the reference (N,)."""
    pairs: NDArray[np.int64]
    """Reference lesion and candidate (P, 2) of an IoU of at least 0.1: they may be matched."""
    iou: NDArray[np.float64]
    """Of the pairs (P,)."""


@dataclass(frozen=True, eq=False)
class CaseTable:
    """All that a choice needs to know of a case."""

    name: str
    subject: str
    fold: str
    reference_volumes_mm3: NDArray[np.float64]
    """Of the reference lesions of all targets (L,)."""
    n_reference_voxels: int
    candidates: tuple[Candidates, ...]
    """At each of `THRESHOLDS`."""
    logits: NDArray[np.int64]
    """Voxels near lesions and candidates by logit (2, B): outside and inside the reference."""


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


def tabulate_case(case: OutOfFold, labels: Labels) -> CaseTable:
    """The table of a case; its arrays need not be kept."""
    valid, reference = labels.valid(case.reference), labels.encode(case.reference)
    box = _box(case.probability, reference)
    probability, valid, reference = case.probability[:, *box], valid[box], reference[:, *box]
    lesions = [measure_lesions(r, case.spacing_zyx_mm) for r in reference]
    voxel_mm3 = math.prod(case.spacing_zyx_mm)
    histogram = np.sum([_logits(p, r, valid) for p, r in zip(probability, reference, strict=True)], axis=0)
    rows = []
    for threshold in THRESHOLDS:
        found = find_targets(probability, labels, threshold)
        parts = [
            _candidates(f, p, valid, known, case.spacing_zyx_mm)
            for f, p, known in zip(found, probability, lesions, strict=True)
        ]
        rows.append(_of_all_targets(parts, [len(known.n_voxels) for known in lesions]))
    return CaseTable(
        name=case.name,
        subject=case.subject,
        fold=case.fold,
        reference_volumes_mm3=np.concatenate([known.n_voxels for known in lesions]) * voxel_mm3,
        n_reference_voxels=int(np.count_nonzero(reference)),
        candidates=tuple(rows),
        logits=histogram,
    )


def _box(probability: NDArray[np.float32], reference: NDArray[np.bool_]) -> tuple[slice, slice, slice]:
    """Where anything is to be seen: most of a volume is empty."""
    something = np.asarray((probability > THRESHOLDS[0]).any(0) | reference.any(0))
    z, y, x = (slice(max(start - REACH_VOXELS, 0), stop + REACH_VOXELS) for start, stop in box_of(something))
    return z, y, x


def _logits(
    probability: NDArray[np.float32], reference: NDArray[np.bool_], valid: NDArray[np.bool_]
) -> NDArray[np.int64]:
    near = neighbourhood(reference, np.where(valid, probability, 0)) & valid
    bins = np.rint((logit_of(probability[near]) + MOST_LOGIT) * LOGIT_STEPS).astype(np.int64)
    sides = (bins[~reference[near]], bins[reference[near]])
    return np.stack([np.bincount(side, minlength=len(LOGITS)) for side in sides])


def _candidates(
    found: NDArray[np.bool_],
    probability: NDArray[np.float32],
    valid: NDArray[np.bool_],
    lesions: Lesions,
    spacing_zyx_mm: tuple[float, float, float],
) -> Candidates:
    """One target's candidates.

    What a user gets is cut on whole components; what is scored is their part with known labels, which may
    be several pieces. A piece is kept where its component is.
    """
    whole = measure_lesions(found, spacing_zyx_mm)
    n_voxels, peaks = sizes_and_peaks(whole.components, len(whole.n_voxels), probability)
    pieces = whole if valid.all() else measure_lesions(found & valid, spacing_zyx_mm)
    origin = np.zeros(len(pieces.n_voxels), np.int64)  # number of each piece's component
    index = np.flatnonzero(pieces.components)
    origin[pieces.components.ravel()[index].astype(np.int64) - 1] = whole.components.ravel()[index]
    origin -= 1
    touching = find_touching(lesions, pieces)
    able = touching.iou >= _LEAST_IOU
    inside = pieces.components[lesions.components > 0].astype(np.int64)
    return Candidates(
        volumes_mm3=n_voxels[origin] * np.float64(math.prod(spacing_zyx_mm)),
        peaks=peaks[origin],
        n_voxels=pieces.n_voxels,
        n_shared=np.bincount(inside, minlength=len(pieces.n_voxels) + 1)[1:],
        pairs=np.stack([touching.reference, touching.predicted], axis=-1)[able],
        iou=touching.iou[able],
    )


def _of_all_targets(parts: Sequence[Candidates], n_lesions: Sequence[int]) -> Candidates:
    """The candidates of all targets, numbered through."""
    before = np.cumsum([(0, 0), *((n, len(p.n_voxels)) for n, p in zip(n_lesions, parts, strict=True))], 0)
    return Candidates(
        volumes_mm3=np.concatenate([p.volumes_mm3 for p in parts]),
        peaks=np.concatenate([p.peaks for p in parts]),
        n_voxels=np.concatenate([p.n_voxels for p in parts]),
        n_shared=np.concatenate([p.n_shared for p in parts]),
        pairs=np.concatenate([p.pairs + shift for p, shift in zip(parts, before[:-1], strict=True)]),
        iou=np.concatenate([p.iou for p in parts]),
    )


@dataclass(frozen=True, eq=False)
class Grid:
    """The points that may be chosen, at temperature 1."""

    points: tuple[Postprocessing, ...]
    distances: NDArray[np.float64]
    """How far each point is from the default (P,): |logit of the threshold| + steps of size + steps of peak."""

    @property
    def default(self) -> int:
        """Number of the default point."""
        return self.points.index(Postprocessing())


def make_grid(tables: Sequence[CaseTable]) -> Grid:
    """The points for some cases: sizes are quantiles of their reference lesions' volumes."""
    volumes = np.concatenate([t.reference_volumes_mm3 for t in tables])
    quantiles = np.quantile(volumes, SMALLEST_QUANTILES, method="lower") if len(volumes) else []
    sizes = sorted({0.0, *map(float, quantiles)})
    points, distances = [], []
    for threshold, (i, size), (j, peak) in product(
        THRESHOLDS, enumerate(sizes), enumerate((0.0, *LEAST_PEAKS))
    ):
        if peak == 0 or peak > threshold:
            points.append(Postprocessing(threshold, size, peak))
            distances.append(abs(math.log(threshold / (1 - threshold))) + i + j)
    return Grid(tuple(points), np.array(distances))


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
