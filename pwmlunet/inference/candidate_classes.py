"""What candidates are by the reference: a lesion of which target, none, or not to be told; and how low to look for them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.data.dataset import Labels
from pwmlunet.evaluation.lesions import LEAST_IOU, find_lesions
from pwmlunet.inference.candidate_regions import find_candidates
from pwmlunet.planning.cropping import box_of

LOW_THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Above which voxels may make candidates."""

NO_LESION, UNKNOWN = 0, -1
"""Classes beside those of the targets, which are counted from 1."""

_MOST_FALSE = 30.0  # a case, where some threshold has fewer
_ENOUGH = 0.98  # of the lesions that any threshold finds


@dataclass(frozen=True)
class ThresholdRow(Config):
    """Candidates of held-out cases at one threshold."""

    threshold: float
    """Voxels above it make candidates, as the networks give them."""
    n_cases: int
    """Cases."""
    n_lesions: int
    """Their lesions, of all targets."""
    n_found: int
    """Lesions that have a candidate of their own."""
    n_false: int
    """Candidates that are no lesion."""

    @property
    def recall(self) -> float:
        """Found of all lesions; 0 without any."""
        return self.n_found / max(self.n_lesions, 1)

    @property
    def false_per_case(self) -> float:
        """Candidates of a case that are no lesion, on average."""
        return self.n_false / max(self.n_cases, 1)


@dataclass(frozen=True, eq=False)
class CandidateClasses:
    """What the candidates of a case are by its reference."""

    classes: NDArray[np.int64]
    """(N,): 0 no lesion, 1 … the target, -1 not to be told."""
    n_found: int
    """Reference lesions that have a candidate of their own."""
    n_lesions: int
    """All of them."""


def class_names(labels: Labels) -> tuple[str, ...]:
    """The kinds that a correction network tells apart beside what is no lesion; regions, which overlap, are one."""
    return ("lesion",) if labels.are_regions else tuple(target.name for target in labels.targets)


def classify_by_reference(
    components: NDArray[np.int32],
    n: int,
    probability: NDArray[np.floating[Any]],
    reference: NDArray[np.uint8],
    labels: Labels,
) -> CandidateClasses:
    """The classes of the N candidates numbered in `components` (Z, Y, X).

    A candidate is a lesion where it has an IoU of at least 0.1 with a reference lesion, or its most probable voxel
    lies in one; of the target that most of their common voxels are of. What only touches a lesion, or lies where
    labels are unknown, is not to be told.
    """
    targets = labels.encode(reference)
    lesions, n_lesions = find_lesions(np.asarray(targets.any(0)))
    places = np.flatnonzero((components > 0) & labels.valid(reference))
    candidate = components.ravel()[places].astype(np.int64) - 1
    lesion = lesions.ravel()[places].astype(np.int64)
    common = _overlaps(candidate, lesion, n, n_lesions)
    sizes, lesion_sizes = np.bincount(candidate, minlength=n), np.bincount(lesions.ravel(), minlength=1)[1:]
    iou = common / np.maximum(sizes[:, None] + lesion_sizes - common, 1)
    best = iou.argmax(1) if n_lesions else np.zeros(n, np.int64)
    alike = iou.max(1, initial=0) >= LEAST_IOU
    is_lesion = alike | _peaks_in(candidate, lesion > 0, probability.max(0).ravel()[places], n)
    classes = np.where(sizes > 0, NO_LESION, UNKNOWN)
    classes[common.any(1)] = UNKNOWN
    shared = lesion > 0
    classes[is_lesion] = _targets(candidate[shared], targets.reshape(len(targets), -1)[:, places[shared]], n, labels)[is_lesion]  # fmt: skip
    return CandidateClasses(classes, len(np.unique(best[is_lesion & alike])), n_lesions)


def _overlaps(
    candidate: NDArray[np.int64], lesion: NDArray[np.int64], n: int, n_lesions: int
) -> NDArray[np.int64]:
    """Voxels that each candidate shares with each lesion (N, L), from the numbers at all candidates' voxels."""
    pairs = np.bincount(candidate * (n_lesions + 1) + lesion, minlength=n * (n_lesions + 1))
    return np.asarray(pairs.reshape(n, n_lesions + 1)[:, 1:])


def _peaks_in(
    candidate: NDArray[np.int64], inside: NDArray[np.bool_], values: NDArray[Any], n: int
) -> NDArray[np.bool_]:
    """Of which candidates a most probable voxel lies inside (N,)."""
    peaks = np.zeros(n, values.dtype)
    np.maximum.at(peaks, candidate, values)
    found = np.zeros(n, bool)
    found[candidate[inside & (values == peaks[candidate])]] = True
    return found


def _targets(
    candidate: NDArray[np.int64], targets: NDArray[np.bool_], n: int, labels: Labels
) -> NDArray[np.int64]:
    """From 1, the target (N,) that most of each candidate's lesion voxels (V,) are of; 1 where regions overlap."""
    if labels.are_regions:
        return np.ones(n, np.int64)
    counts = [np.bincount(candidate[target], minlength=n) for target in targets]
    return np.asarray(1 + np.argmax(counts, axis=0))


def tabulate_thresholds(
    cases: Iterable[tuple[NDArray[np.floating[Any]], NDArray[np.uint8]]], labels: Labels
) -> list[ThresholdRow]:
    """What the candidates of some cases, each its probabilities and reference, would be at every threshold."""
    sums = np.zeros((len(LOW_THRESHOLDS), 3), int)
    n_cases = 0
    for probability, reference in cases:
        n_cases += 1
        probability, reference = _where_anything_is(probability, reference)
        for row, threshold in zip(sums, LOW_THRESHOLDS, strict=True):
            components, n = find_candidates(probability, threshold)
            found = classify_by_reference(components, n, probability, reference, labels)
            row += (found.n_lesions, found.n_found, np.count_nonzero(found.classes == NO_LESION))
    return [
        ThresholdRow(threshold, n_cases, *map(int, row))
        for threshold, row in zip(LOW_THRESHOLDS, sums, strict=True)
    ]


def _where_anything_is(
    probability: NDArray[np.floating[Any]], reference: NDArray[np.uint8]
) -> tuple[NDArray[np.floating[Any]], NDArray[np.uint8]]:
    """Both within the box of what may be a candidate or is labelled: most of a volume is empty."""
    something = np.asarray((probability > LOW_THRESHOLDS[0]).any(0) | (reference > 0))
    box = tuple(slice(*side) for side in box_of(something))
    return probability[:, *box], reference[box]


def add_rows(parts: Iterable[Sequence[ThresholdRow]]) -> list[ThresholdRow]:
    """The rows of several groups of cases together."""
    counts = ("n_cases", "n_lesions", "n_found", "n_false")
    return [ThresholdRow(rows[0].threshold, **_sums(rows, counts)) for rows in zip(*parts, strict=True)]


def _sums(rows: Sequence[ThresholdRow], names: Sequence[str]) -> Mapping[str, int]:
    return {name: sum(getattr(row, name) for row in rows) for name in names}


def choose_threshold(rows: Sequence[ThresholdRow]) -> float:
    """The lowest threshold that finds (nearly) as many lesions as any does, unless that floods cases with candidates.

    The lower, the more there is to learn from and to find; too low, and lesions grow together with what is beside them.
    """
    fewest = min(row.false_per_case for row in rows)
    able = [row for row in rows if row.false_per_case <= max(_MOST_FALSE, fewest)]
    most = max(row.n_found for row in able)
    return min(row.threshold for row in able if row.n_found >= _ENOUGH * most)
