"""Voxel scores of one case and one target: overlap, volume, and distance between the surfaces."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config

TOLERANCE_MM = 1.0
"""How far apart two surfaces may lie and still agree, for the normalised surface Dice."""

_ROUNDING_MM = 1e-6


@dataclass(frozen=True)
class VoxelScores(Config):
    """Counts and scores of one mask against another; a score whose denominator is empty is None."""

    true_positives: int
    """Voxels in both masks; voxels labelled "ignore" are in none of the four counts."""
    false_positives: int
    """Voxels in the prediction only."""
    false_negatives: int
    """Voxels in the reference only."""
    true_negatives: int
    """Labelled voxels in neither."""
    dice: float | None
    """2 TP / (2 TP + FP + FN); None where both masks are empty."""
    sensitivity: float | None
    """TP / (TP + FN); None where the reference is empty."""
    precision: float | None
    """TP / (TP + FP); None where the prediction is empty."""
    specificity: float | None
    """TN / (TN + FP); shown, never ranked by: small lesions leave it near 1 whatever is predicted."""
    reference_volume_mm3: float
    """Volume of the reference."""
    predicted_volume_mm3: float
    """Volume of the prediction."""
    volume_difference_mm3: float
    """Prediction minus reference: above 0 where too much was predicted."""
    absolute_volume_difference_mm3: float
    """The same without its sign, so that cases do not cancel in a mean."""
    relative_volume_difference: float | None
    """Absolute difference / reference volume; None where the reference is empty."""
    hd_mm: float | None
    """Hausdorff distance of the surfaces; None, as all distances, where either mask is empty."""
    hd95_mm: float | None
    """The greater of the two directed 95th percentiles of surface distance."""
    assd_mm: float | None
    """Average symmetric surface distance: mean over the voxels of both surfaces."""
    surface_dice: float | None
    """Normalised surface Dice: the part of both surfaces that lies within the tolerance of the other."""
    tolerance_mm: float
    """The tolerance of `surface_dice`."""


def score_voxels(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    *,
    spacing_zyx_mm: tuple[float, float, float],
    valid: NDArray[np.bool_] | None = None,
    tolerance_mm: float = TOLERANCE_MM,
) -> VoxelScores:
    """The scores of two masks (Z, Y, X); voxels outside `valid` count nowhere."""
    n_voxels = reference.size if valid is None else int(np.count_nonzero(valid))
    if valid is not None:
        reference, prediction = reference & valid, prediction & valid
    both = int(np.count_nonzero(reference & prediction))
    only_reference = int(np.count_nonzero(reference)) - both
    only_predicted = int(np.count_nonzero(prediction)) - both
    neither = n_voxels - both - only_reference - only_predicted
    voxel_mm3 = math.prod(spacing_zyx_mm)
    excess = only_predicted - only_reference
    return VoxelScores(
        true_positives=both,
        false_positives=only_predicted,
        false_negatives=only_reference,
        true_negatives=neither,
        dice=ratio(2 * both, 2 * both + only_predicted + only_reference),
        sensitivity=ratio(both, both + only_reference),
        precision=ratio(both, both + only_predicted),
        specificity=ratio(neither, neither + only_predicted),
        reference_volume_mm3=(both + only_reference) * voxel_mm3,
        predicted_volume_mm3=(both + only_predicted) * voxel_mm3,
        volume_difference_mm3=excess * voxel_mm3,
        absolute_volume_difference_mm3=abs(excess) * voxel_mm3,
        relative_volume_difference=ratio(abs(excess), both + only_reference),
        tolerance_mm=tolerance_mm,
        **_surface_scores(reference, prediction, spacing_zyx_mm=spacing_zyx_mm, tolerance_mm=tolerance_mm),
    )


def ratio(part: float, whole: float) -> float | None:
    """`part` / `whole`, or None where the whole is 0."""
    return part / whole if whole else None


def _surface_scores(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    *,
    spacing_zyx_mm: tuple[float, float, float],
    tolerance_mm: float,
) -> dict[str, float | None]:
    """The four scores of distance by their names; None where a mask is empty."""
    surfaces = [surface_points_mm(mask, spacing_zyx_mm) for mask in (reference, prediction)]
    if not all(len(points) for points in surfaces):
        return dict.fromkeys(("hd_mm", "hd95_mm", "assd_mm", "surface_dice"))
    there, back = nearest_mm(surfaces[0], surfaces[1]), nearest_mm(surfaces[1], surfaces[0])
    distances = np.concatenate([there, back])
    return {
        "hd_mm": float(distances.max()),
        "hd95_mm": float(max(np.percentile(there, 95), np.percentile(back, 95))),
        "assd_mm": float(distances.mean()),
        "surface_dice": float(np.mean(distances <= tolerance_mm + _ROUNDING_MM)),
    }


def surface_points_mm(
    mask: NDArray[np.bool_], spacing_zyx_mm: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Centres (N, 3) in mm (z, y, x) of the voxels that share a face with the background.

    Outside the image is background. In a single slice the faces towards other slices do not count: there
    all voxels would be surface.
    """
    padded = np.pad(mask, 1)
    flat, steps = padded.ravel(), padded.strides
    index = np.flatnonzero(flat)
    inside = np.ones(len(index), bool)
    for axis in range(3):
        if mask.shape[axis] > 1:
            inside &= flat[index - steps[axis]] & flat[index + steps[axis]]
    places = np.stack(np.unravel_index(index[~inside], padded.shape), axis=-1)
    return np.asarray(places * spacing_zyx_mm, np.float64)


def nearest_mm(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """The distance (N,) from each point (N, 3) to the nearest of the others (M, 3), M > 0.

    A k-d tree rather than a distance transform: exact too, and a volume costs what its surfaces cost even
    where two lesions lie in opposite corners of it.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(others, balanced_tree=False, compact_nodes=False)
    return np.asarray(tree.query(points)[0], np.float64)
