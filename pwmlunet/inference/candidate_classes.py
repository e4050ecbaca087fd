"""What candidates are by the reference: a lesion of which target, none, or not to be told; and how low to look for them."""

from collections.abc import Iterable, Sequence
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
class Reference:
    """A case's reference, measured once for candidates at any threshold."""

    targets: NDArray[np.bool_]
    """Where each target lies (K, Z, Y, X)."""
    valid: NDArray[np.bool_]
    """Where the label is known (Z, Y, X)."""
    lesions: NDArray[Any]
    """Components (Z, Y, X) of any target, numbered from 1."""
    n_voxels: NDArray[np.int64]
    """Of each lesion (L,)."""
    are_regions: bool
    """Whether targets overlap, and are one kind."""

    @classmethod
    def of(cls, mask: NDArray[np.uint8], labels: Labels) -> "Reference":
        """That of a mask (Z, Y, X)."""
        targets = labels.encode(mask)
        lesions, n = find_lesions(np.asarray(targets.any(0)))
        n_voxels = np.bincount(lesions[lesions > 0], minlength=n + 1)[1:]
        return cls(targets, labels.valid(mask), lesions, n_voxels, labels.are_regions)


@dataclass(frozen=True, eq=False)
class CandidateClasses:
    """What the candidates of a case are by its reference."""

    classes: NDArray[np.int64]
    """(N,): 0 no lesion, 1 … the target, -1 not to be told."""
    n_found: int
    """Reference lesions that have a candidate of their own."""


def class_names(labels: Labels) -> tuple[str, ...]:
    """The kinds that a correction network tells apart beside what is no lesion; regions, which overlap, are one."""
    return ("lesion",) if labels.are_regions else tuple(target.name for target in labels.targets)


def classify_by_reference(
    components: NDArray[np.int32], n: int, probability: NDArray[np.floating[Any]], reference: Reference
) -> CandidateClasses:
    """The classes of the N candidates numbered in `components` (Z, Y, X).

    A candidate is a lesion where it has an IoU of at least 0.1 with a reference lesion, or its most probable voxel
    lies in one; of the target that most of their common voxels are of. What only touches a lesion, or is most probable
    where labels are unknown, is not to be told.
    """
    places = np.flatnonzero(components)
    candidate = components.ravel()[places].astype(np.int64) - 1
    lesion = reference.lesions.ravel()[places].astype(np.int64)
    known = reference.valid.ravel()[places]
    is_peak = _are_peaks(candidate, probability.max(0).ravel()[places], n)
    n_lesions = len(reference.n_voxels)
    pairs = np.bincount(candidate * (n_lesions + 1) + lesion, known, minlength=n * (n_lesions + 1))
    common = pairs.reshape(n, n_lesions + 1)[:, 1:]
    sizes = np.bincount(candidate, known, minlength=n)
    iou = common / np.maximum(sizes[:, None] + reference.n_voxels - common, 1)
    alike = iou.max(1, initial=0) >= LEAST_IOU
    is_lesion = alike | _have_any(candidate, is_peak & (lesion > 0), n)
    is_known = _have_any(candidate, is_peak & known, n) & ~common.any(1)
    classes = np.where(is_known, NO_LESION, UNKNOWN)
    classes[is_lesion] = _targets(candidate, reference, places, n)[is_lesion]
    found = np.unique(iou.argmax(1)[alike]) if n_lesions else []
    return CandidateClasses(classes, len(found))


def _are_peaks(candidate: NDArray[np.int64], values: NDArray[Any], n: int) -> NDArray[np.bool_]:
    """Which voxels (V,) are the most probable of their candidate."""
    peaks = np.zeros(n, values.dtype)
    np.maximum.at(peaks, candidate, values)
    return np.asarray(values == peaks[candidate])


def _have_any(candidate: NDArray[np.int64], which: NDArray[np.bool_], n: int) -> NDArray[np.bool_]:
    """Which candidates (N,) have any of some voxels (V,)."""
    found = np.zeros(n, bool)
    found[candidate[which]] = True
    return found


def _targets(
    candidate: NDArray[np.int64], reference: Reference, places: NDArray[np.int64], n: int
) -> NDArray[np.int64]:
    """From 1, the target (N,) that most of each candidate's voxels are of; 1 where regions overlap."""
    if reference.are_regions:
        return np.ones(n, np.int64)
    counts = [np.bincount(candidate, target.ravel()[places], minlength=n) for target in reference.targets]
    return np.asarray(1 + np.argmax(counts, axis=0))


def tabulate_thresholds(
    cases: Iterable[tuple[NDArray[np.floating[Any]], NDArray[np.uint8]]], labels: Labels
) -> list[ThresholdRow]:
    """What the candidates of some cases, each its probabilities and mask, would be at every threshold."""
    sums = np.zeros((len(LOW_THRESHOLDS), 3), int)
    n_cases = 0
    for probability, mask in cases:
        n_cases += 1
        something = np.asarray((probability > LOW_THRESHOLDS[0]).any(0) | (mask > 0))
        box = tuple(slice(*side) for side in box_of(something))  # most of a volume is empty
        near, reference = probability[:, *box], Reference.of(mask[box], labels)
        for row, threshold in zip(sums, LOW_THRESHOLDS, strict=True):
            components, n = find_candidates(near, threshold)
            found = classify_by_reference(components, n, near, reference)
            row += (len(reference.n_voxels), found.n_found, np.count_nonzero(found.classes == NO_LESION))
    return [
        ThresholdRow(threshold, n_cases, *map(int, row))
        for threshold, row in zip(LOW_THRESHOLDS, sums, strict=True)
    ]


def choose_threshold(rows: Sequence[ThresholdRow]) -> float:
    """The lowest threshold that finds (nearly) as many lesions as any does, unless that floods cases with candidates.

    The lower, the more there is to learn from and to find; too low, and lesions grow together with what is beside them.
    """
    fewest = min(row.false_per_case for row in rows)
    able = [row for row in rows if row.false_per_case <= max(_MOST_FALSE, fewest)]
    most = max(row.n_found for row in able)
    return min(row.threshold for row in able if row.n_found >= _ENOUGH * most)
