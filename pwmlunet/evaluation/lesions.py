"""Lesion scores of one case and one target: components found, measured, paired, matched one to one."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.evaluation.voxels import ratio

CONNECTIVITY = "26 in 3-D, 8 in a single slice"

MAIN_RULE = "iou_0.1"
LEAST_IOU = 0.1
"""From which IoU a pair counts under the main rule."""

RULES = {
    "iou_0.1": "one to one, IoU >= 0.1, such that the total IoU of the pairs is greatest",
    "any_overlap": "recall over reference lesions touched, precision over predicted lesions that touch",
    "iou_0.5": "one to one, IoU >= 0.5",
    "centroid_2mm": "one to one, centroids at most 2 mm apart, such that the pairs are closest together",
}
"""How a lesion counts as found, by the name of the rule; `MAIN_RULE` is the one to rank by."""

_CENTROID_MM = 2.0
_ROUNDING_MM = 1e-6
_MORE_PAIRS = 1e-6  # where two matchings are equally good, the one with more pairs is taken


@dataclass(frozen=True, eq=False)
class Lesions:
    """The components of a mask, measured; lesion i (from 0) has the value i + 1 in `components`."""

    components: NDArray[Any]
    """Whole numbers (Z, Y, X), 0 outside."""
    places: NDArray[np.int64]
    """Where the mask is, as positions in the flattened image (V,)."""
    numbers: NDArray[np.int64]
    """Which lesion, from 0, each of these places is of (V,)."""
    n_voxels: NDArray[np.int64]
    """Size (N,)."""
    centroids_zyx: NDArray[np.float64]
    """Mean place (N, 3) in voxels."""
    slices: NDArray[np.int64]
    """First and last slice (N, 2)."""
    spacing_zyx_mm: tuple[float, float, float]
    """Of the image."""

    def __len__(self) -> int:
        return len(self.n_voxels)

    @property
    def volumes_mm3(self) -> NDArray[np.float64]:
        """Volume (N,)."""
        return np.asarray(self.n_voxels * math.prod(self.spacing_zyx_mm), np.float64)

    @property
    def centroids_zyx_mm(self) -> NDArray[np.float64]:
        """Mean place (N, 3) from the first voxel of the image."""
        return np.asarray(self.centroids_zyx * np.array(self.spacing_zyx_mm), np.float64)

    def voxels(self) -> list[NDArray[np.int64]]:
        """The voxels (V, 3) of each lesion as z, y, x, in raster order."""
        order = np.argsort(self.numbers, kind="stable")
        zyx = np.stack(np.unravel_index(self.places[order], self.components.shape), axis=-1)
        return np.split(zyx, np.cumsum(self.n_voxels)[:-1]) if len(self) else []


@dataclass(frozen=True, eq=False)
class Touching:
    """The pairs of a reference and a predicted lesion that share a voxel, as columns (P,)."""

    reference: NDArray[np.int64]
    """Number of the reference lesion."""
    predicted: NDArray[np.int64]
    """Number of the predicted lesion."""
    iou: NDArray[np.float64]
    """Voxels in both / voxels in either."""


@dataclass(frozen=True)
class Lesion(Config):
    """One component of the reference or of the prediction."""

    n_voxels: int
    """Size."""
    volume_mm3: float
    """Size × the volume of a voxel."""
    centroid_zyx: tuple[float, float, float]
    """Mean place in voxels, from 0."""
    first_slice: int
    """The first slice it is in, from 0."""
    last_slice: int
    """The last slice it is in."""
    mean_probability: float | None = None
    """Mean probability of its voxels; None where probabilities were not given."""
    max_probability: float | None = None
    """Greatest probability of its voxels."""


@dataclass(frozen=True)
class Match(Config):
    """A reference lesion and the predicted lesion that found it, under the main rule."""

    reference: int
    """Number of the reference lesion, from 0."""
    predicted: int
    """Number of the predicted lesion, from 0."""
    iou: float
    """Intersection over union of the two, in [0.1, 1]."""

    @property
    def dice(self) -> float:
        """Twice the intersection over the sum of the two."""
        return 2 * self.iou / (1 + self.iou)


@dataclass(frozen=True)
class Detection(Config):
    """How many lesions were found under one rule; `detection` makes it from the counts."""

    n_reference: int
    """Lesions in the reference."""
    n_predicted: int
    """Lesions in the prediction."""
    n_found: int
    """Reference lesions that were found."""
    n_true: int
    """Predicted lesions that found one; equal to `n_found` where lesions are matched one to one."""
    recall: float | None
    """Found / reference lesions; None without reference lesions."""
    precision: float | None
    """True / predicted lesions; None without predicted lesions."""
    f1: float | None
    """Harmonic mean of both; 0 where only one mask has lesions, None where neither has."""

    @property
    def n_false_positives(self) -> int:
        """Predicted lesions that found none."""
        return self.n_predicted - self.n_true


@dataclass(frozen=True)
class LesionScores(Config):
    """The lesions of one case and what became of them."""

    reference: tuple[Lesion, ...]
    """The reference lesions, in the order of their numbers."""
    predicted: tuple[Lesion, ...]
    """The predicted lesions."""
    matches: tuple[Match, ...]
    """The pairs under the main rule."""
    detections: dict[str, Detection]
    """Counts and scores by rule (see `RULES`)."""
    n_merged: int
    """Predicted lesions that touch several reference lesions."""
    n_split: int
    """Reference lesions that several predicted lesions touch."""

    @property
    def main(self) -> Detection:
        """Counts and scores under the main rule."""
        return self.detections[MAIN_RULE]

    @property
    def match_of(self) -> dict[int, Match]:
        """The match of each reference lesion that was found, by its number."""
        return {match.reference: match for match in self.matches}

    @property
    def missed(self) -> tuple[int, ...]:
        """Numbers of the reference lesions that were not found."""
        found = {match.reference for match in self.matches}
        return tuple(number for number in range(len(self.reference)) if number not in found)

    @property
    def false(self) -> tuple[int, ...]:
        """Numbers of the predicted lesions that found none."""
        true = {match.predicted for match in self.matches}
        return tuple(number for number in range(len(self.predicted)) if number not in true)

    @property
    def reference_volumes_mm3(self) -> tuple[float, ...]:
        """Volume of each reference lesion."""
        return tuple(lesion.volume_mm3 for lesion in self.reference)

    @property
    def predicted_volumes_mm3(self) -> tuple[float, ...]:
        """Volume of each predicted lesion."""
        return tuple(lesion.volume_mm3 for lesion in self.predicted)


def find_lesions(mask: NDArray[np.bool_]) -> tuple[NDArray[Any], int]:
    """The components of a mask (Z, Y, X) as whole numbers from 1, and how many there are.

    Voxels that meet at a corner belong together: connectivity 26, which is 8 in a single slice.
    """
    import cc3d

    # cc3d 4.1 reserves one label too few where an axis has length 1 ("maximum length exception")
    thick = np.pad(mask, [(0, int(n == 1)) for n in mask.shape]) if 1 in mask.shape else mask
    components, n = cc3d.connected_components(np.ascontiguousarray(thick), connectivity=26, return_N=True)
    depth, height, width = mask.shape
    return components[:depth, :height, :width], int(n)


def measure_lesions(mask: NDArray[np.bool_], spacing_zyx_mm: tuple[float, float, float]) -> Lesions:
    """The components of a mask (Z, Y, X) with their sizes and places."""
    return measure_components(*find_lesions(mask), spacing_zyx_mm)


def measure_components(
    components: NDArray[Any], n: int, spacing_zyx_mm: tuple[float, float, float]
) -> Lesions:
    """Components (Z, Y, X), numbered from 1 to n, with their sizes and places."""
    places = np.flatnonzero(components)
    numbers = components.ravel()[places].astype(np.int64) - 1
    n_voxels = np.bincount(numbers, minlength=n)
    zyx = np.unravel_index(places, components.shape)
    sums = np.stack([np.bincount(numbers, steps, minlength=n) for steps in zyx], axis=-1)  # (N, 3)
    slices = np.tile([len(components), -1], (n, 1))
    np.minimum.at(slices[:, 0], numbers, zyx[0])
    np.maximum.at(slices[:, 1], numbers, zyx[0])
    return Lesions(components, places, numbers, n_voxels, sums / n_voxels[:, None], slices, spacing_zyx_mm)


def find_touching(reference: Lesions, prediction: Lesions) -> Touching:
    """The pairs of lesions that share a voxel, and how much they share."""
    n_predicted = max(len(prediction), 1)
    other = prediction.components.ravel()[reference.places].astype(np.int64) - 1
    pair = (reference.numbers * n_predicted + other)[other >= 0]
    pair, shared = np.unique(pair, return_counts=True)
    i, j = np.divmod(pair, n_predicted)
    return Touching(i, j, shared / (reference.n_voxels[i] + prediction.n_voxels[j] - shared))


def score_lesions(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    *,
    spacing_zyx_mm: tuple[float, float, float],
    valid: NDArray[np.bool_] | None = None,
    probability: NDArray[np.float32] | None = None,
) -> LesionScores:
    """The lesion scores of two masks (Z, Y, X); with a probability (Z, Y, X), that of each lesion too.

    Voxels outside `valid` are taken out of both masks before there are components: lesions do not grow
    together across them, and of a lesion that lies partly there only the valid part is a lesion.
    """
    if valid is not None:
        reference, prediction = reference & valid, prediction & valid
    lesions = measure_lesions(reference, spacing_zyx_mm)
    predicted = measure_lesions(prediction, spacing_zyx_mm)
    touching = find_touching(lesions, predicted)
    matched = match_by_iou(touching, LEAST_IOU)
    return LesionScores(
        reference=_describe(lesions, probability),
        predicted=_describe(predicted, probability),
        matches=tuple(
            Match(int(touching.reference[k]), int(touching.predicted[k]), float(touching.iou[k]))
            for k in matched
        ),
        detections=_detections(lesions, predicted, touching),
        n_merged=_n_repeated(touching.predicted),
        n_split=_n_repeated(touching.reference),
    )


def _n_repeated(numbers: NDArray[np.int64]) -> int:
    return int(np.count_nonzero(np.bincount(numbers) > 1)) if len(numbers) else 0


def _describe(lesions: Lesions, probability: NDArray[np.float32] | None) -> tuple[Lesion, ...]:
    columns = [lesions.n_voxels, lesions.volumes_mm3, lesions.centroids_zyx, *lesions.slices.T]
    if probability is not None:
        columns += mean_and_max(lesions, probability.ravel()[lesions.places])
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return tuple(Lesion(n, volume, (z, y, x), *rest) for n, volume, (z, y, x), *rest in rows)


def mean_and_max(lesions: Lesions, values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and maximum (N,) over each lesion of the values (V,) at its places."""
    values = values.astype(np.float64)
    maxima = np.full(len(lesions), -np.inf)
    np.maximum.at(maxima, lesions.numbers, values)
    return np.bincount(lesions.numbers, values, minlength=len(lesions)) / lesions.n_voxels, maxima


def _detections(lesions: Lesions, predicted: Lesions, touching: Touching) -> dict[str, Detection]:
    """Counts and scores by rule, in the order of `RULES`."""
    near = len(match_by_centroid(lesions, predicted, _CENTROID_MM))
    loose, strict = len(match_by_iou(touching, LEAST_IOU)), len(match_by_iou(touching, 0.5))
    found = {
        "iou_0.1": (loose, loose),
        "any_overlap": (len(np.unique(touching.reference)), len(np.unique(touching.predicted))),
        "iou_0.5": (strict, strict),
        "centroid_2mm": (near, near),
    }
    sizes = len(lesions), len(predicted)
    return {rule: detection(*sizes, n_found=found[rule][0], n_true=found[rule][1]) for rule in RULES}


def detection(n_reference: int, n_predicted: int, *, n_found: int, n_true: int) -> Detection:
    """The scores that follow from the counts, of one case or of all cases together."""
    # 2 r p / (r + p) with both fractions multiplied out, so that one of them may be undefined
    f1 = ratio(2 * n_found * n_true, n_found * n_predicted + n_true * n_reference) or 0.0
    return Detection(
        n_reference=n_reference,
        n_predicted=n_predicted,
        n_found=n_found,
        n_true=n_true,
        recall=ratio(n_found, n_reference),
        precision=ratio(n_true, n_predicted),
        f1=f1 if n_reference or n_predicted else None,
    )


def match_by_iou(touching: Touching, least: float) -> NDArray[np.int64]:
    """Which touching pairs are matched one to one, of those with at least this IoU."""
    enough = np.flatnonzero(touching.iou >= least)
    i, j, iou = touching.reference[enough], touching.predicted[enough], touching.iou[enough]
    return np.asarray(enough[match_one_to_one(i, j, gain=iou)])


def match_by_centroid(reference: Lesions, prediction: Lesions, most_mm: float) -> NDArray[np.int64]:
    """The matched lesions (M, 2), numbers of reference and prediction, of those at most so far apart."""
    from scipy.spatial import cKDTree

    if not len(reference.n_voxels) or not len(prediction.n_voxels):
        return np.empty((0, 2), np.int64)
    tree, other = cKDTree(reference.centroids_zyx_mm), cKDTree(prediction.centroids_zyx_mm)
    near = tree.sparse_distance_matrix(other, most_mm + _ROUNDING_MM, output_type="ndarray")
    closeness = np.maximum(1 - near["v"] / most_mm, 0)
    chosen = match_one_to_one(near["i"], near["j"], gain=closeness)
    return np.stack([near["i"], near["j"]], axis=-1)[chosen].astype(np.int64)


def match_one_to_one(
    first: NDArray[Any], second: NDArray[Any], *, gain: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Which of the pairs (P,) are kept, so that no lesion is in two and the total gain is greatest.

    Taking the best pair first, and so on, would make the count depend on the order of equal pairs, so
    that a mirrored image could score otherwise; the optimum depends on the masks alone.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    rows, row = np.unique(first, return_inverse=True)
    columns, column = np.unique(second, return_inverse=True)
    if not len(rows):
        return np.empty(0, np.int64)
    # Each row also has a column of its own, which stands for "not matched" and gains nothing.
    alone = np.arange(len(rows))
    weight = np.concatenate([1 + _MORE_PAIRS + gain, np.ones(len(rows))])
    places = np.concatenate([row, alone]), np.concatenate([column, len(columns) + alone])
    graph = csr_array((weight, places), shape=(len(rows), len(columns) + len(rows)))
    _, partner = min_weight_full_bipartite_matching(graph, maximize=True)
    return np.flatnonzero(partner[row] == column)
