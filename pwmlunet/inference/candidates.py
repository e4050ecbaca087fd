"""Out-of-fold cases as small tables: what is predicted in them at every threshold that may be chosen."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.dataset import Labels
from pwmlunet.evaluation.lesions import LEAST_IOU, Lesions, find_lesions, find_touching, measure_lesions
from pwmlunet.evaluation.probabilities import MOST_LOGIT, logit_of
from pwmlunet.evaluation.reliability import REACH_VOXELS, neighbourhood
from pwmlunet.inference.postprocessing import find_targets, nest, sizes_and_peaks
from pwmlunet.planning.cropping import box_of

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
"""The thresholds that may be chosen."""

LOGIT_STEPS = 16
"""Bins of the histogram of logits in each unit."""

LOGITS: NDArray[np.floating[Any]] = np.linspace(
    -MOST_LOGIT, MOST_LOGIT, round(2 * MOST_LOGIT * LOGIT_STEPS) + 1
)
"""Their centres (B,)."""


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
    """Reference lesion and candidate (P, 2) of at least the least IoU: they may be matched."""
    iou: NDArray[np.float64]
    """Of the pairs (P,)."""


_NONE = Candidates(
    volumes_mm3=np.empty(0),
    peaks=np.empty(0, np.float32),
    n_voxels=np.empty(0, np.int64),
    n_shared=np.empty(0, np.int64),
    pairs=np.empty((0, 2), np.int64),
    iou=np.empty(0),
)


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


def tabulate_case(case: OutOfFold, labels: Labels) -> CaseTable:
    """The table of a case; its arrays need not be kept."""
    valid, reference = labels.valid(case.reference), labels.encode(case.reference)
    box = _box(case.probability, reference)
    probability, valid, reference = case.probability[:, *box], valid[box], reference[:, *box]
    histogram = np.sum([_logits(p, r, valid) for p, r in zip(probability, reference, strict=True)], axis=0)
    lesions: list[Lesions] = []
    rows: list[list[Candidates]] = [[] for _ in THRESHOLDS]
    for island in _islands(nest(probability, labels), reference, valid):
        known = [measure_lesions(r, case.spacing_zyx_mm) for r in island.reference]
        lesions += known
        for threshold, row in zip(THRESHOLDS, rows, strict=True):
            row += _at_threshold(island, labels, threshold, known)
    n_lesions = [len(known) for known in lesions]
    return CaseTable(
        name=case.name,
        subject=case.subject,
        fold=case.fold,
        reference_volumes_mm3=np.concatenate([np.empty(0), *(known.volumes_mm3 for known in lesions)]),
        n_reference_voxels=int(np.count_nonzero(reference)),
        candidates=tuple(_together(row, n_lesions) for row in rows),
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
    near &= (
        probability > 0
    )  # what was left out, by a crop or a correction, says nothing of how sure networks are
    bins = np.rint((logit_of(probability[near]) + MOST_LOGIT) * LOGIT_STEPS).astype(np.int64)
    sides = (bins[~reference[near]], bins[reference[near]])
    return np.stack([np.bincount(side, minlength=len(LOGITS)) for side in sides])


@dataclass(frozen=True, eq=False)
class _Island:
    """Voxels connected at the lowest threshold or in the reference, alone in their box.

    No lesion and no candidate is on two; to look at islands is faster than to look at volumes.
    """

    probability: NDArray[np.floating[Any]]
    """(K, Z, Y, X), 0 beside the island."""
    reference: NDArray[np.bool_]
    """(K, Z, Y, X)."""
    valid: NDArray[np.bool_]
    """Where the label is known (Z, Y, X)."""


def _islands(
    probability: NDArray[np.floating[Any]], reference: NDArray[np.bool_], valid: NDArray[np.bool_]
) -> Iterator[_Island]:
    from scipy import ndimage

    components, _ = find_lesions(np.asarray((probability > THRESHOLDS[0]).any(0) | reference.any(0)))
    for number, box in enumerate(ndimage.find_objects(components), start=1):
        inside = components[box] == number
        yield _Island(probability[:, *box] * inside, reference[:, *box] & inside, valid[box])


def _at_threshold(
    island: _Island, labels: Labels, threshold: float, lesions: Sequence[Lesions]
) -> Iterator[Candidates]:
    """Each target's candidates."""
    found = find_targets(island.probability, labels, threshold)
    for inside, p, known in zip(found, island.probability, lesions, strict=True):
        yield _candidates(inside, p, island.valid, known) if inside.any() else _NONE


def _candidates(
    found: NDArray[np.bool_], probability: NDArray[Any], valid: NDArray[np.bool_], lesions: Lesions
) -> Candidates:
    """One target's candidates.

    What a user gets is cut on whole components; what is scored is their part with known labels, which may
    be several pieces. A piece is kept where its component is.
    """
    whole = measure_lesions(found, lesions.spacing_zyx_mm)
    n_voxels, peaks = sizes_and_peaks(whole.components, len(whole), probability)
    pieces = whole if valid.all() else measure_lesions(found & valid, lesions.spacing_zyx_mm)
    origin = np.zeros(len(pieces), np.int64)  # number of each piece's component
    origin[pieces.numbers] = whole.components.ravel()[pieces.places].astype(np.int64) - 1
    touching = find_touching(lesions, pieces)
    able = touching.iou >= LEAST_IOU
    shared = lesions.components.ravel()[pieces.places] > 0
    return Candidates(
        volumes_mm3=n_voxels[origin] * np.float64(math.prod(lesions.spacing_zyx_mm)),
        peaks=peaks[origin],
        n_voxels=pieces.n_voxels,
        n_shared=np.bincount(pieces.numbers[shared], minlength=len(pieces)),
        pairs=np.stack([touching.reference, touching.predicted], axis=-1)[able],
        iou=touching.iou[able],
    )


def _together(parts: Sequence[Candidates], n_lesions: Sequence[int]) -> Candidates:
    """The candidates of all islands and targets, numbered through."""
    parts, n_lesions = [_NONE, *parts], [0, *n_lesions]
    before = np.cumsum([(0, 0), *((n, len(p.n_voxels)) for n, p in zip(n_lesions, parts, strict=True))], 0)
    return Candidates(
        volumes_mm3=np.concatenate([p.volumes_mm3 for p in parts]),
        peaks=np.concatenate([p.peaks for p in parts]),
        n_voxels=np.concatenate([p.n_voxels for p in parts]),
        n_shared=np.concatenate([p.n_shared for p in parts]),
        pairs=np.concatenate([p.pairs + shift for p, shift in zip(parts, before[:-1], strict=True)]),
        iou=np.concatenate([p.iou for p in parts]),
    )
