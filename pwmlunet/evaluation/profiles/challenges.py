"""How challenges with small lesions count."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pwmlunet.evaluation.lesions import find_lesions
from pwmlunet.evaluation.profiles.counting import (
    Line,
    Numbers,
    Profile,
    ProfileCase,
    dice_of,
    means_of,
    touched,
)
from pwmlunet.evaluation.voxels import ratio, score_voxels

_LEAST_MM3 = 2.0  # BraTS's value for metastases, its smallest lesions; so is one step of dilation
_WORST_MM = 374.0


def _score_wmh(case: ProfileCase) -> list[Numbers]:
    reference, prediction = case.cropped_masks
    lesions = touched(reference, prediction, case.spacing_zyx_mm)
    # The challenge's script gives 1 where there is nothing to find, and where nothing was predicted.
    recall = 1.0 if lesions.recall is None else lesions.recall
    precision = 1.0 if lesions.precision is None else lesions.precision
    n = int(np.count_nonzero(reference))
    difference = ratio(abs(n - int(np.count_nonzero(prediction))), n)
    return [
        {
            "dice": dice_of(reference, prediction),
            "hd95_mm": _wmh_hd95(reference, prediction, case.spacing_zyx_mm),
            "volume_difference_percent": None if difference is None else 100 * difference,
            "lesion_recall": recall,
            "lesion_f1": ratio(2 * precision * recall, precision + recall) or 0.0,
        }
    ]


def _wmh_hd95(
    reference: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> float | None:
    """The greater directed 95th percentile between edges that are found slice by slice."""
    from scipy.ndimage import binary_erosion
    from scipy.spatial import cKDTree

    if not reference.any() or not prediction.any():
        return None
    square = np.ones((1, 3, 3), bool)
    edges = [
        np.argwhere(mask & ~binary_erosion(mask, square, border_value=1)) * spacing
        for mask in (reference, prediction)
    ]
    if not all(len(edge) for edge in edges):
        return None
    ways = (edges, edges[::-1])
    return float(max(np.percentile(cKDTree(there).query(here)[0], 95) for here, there in ways))


def _score_isles(case: ProfileCase) -> list[Numbers]:
    reference, prediction = case.cropped_masks
    lesions = touched(reference, prediction, case.spacing_zyx_mm)
    found, missed, false = lesions.n_found, lesions.n_reference - lesions.n_found, lesions.n_false_positives
    excess = int(np.count_nonzero(prediction)) - int(np.count_nonzero(reference))
    dice = dice_of(reference, prediction)
    f1 = ratio(2 * found, 2 * found + false + missed)
    return [
        {
            "dice": 1.0 if dice is None else dice,
            "volume_difference_ml": abs(excess) * math.prod(case.spacing_zyx_mm) / 1000,
            "lesion_count_difference": abs(lesions.n_reference - lesions.n_predicted),
            "lesion_f1": 1.0 if f1 is None else f1,
        }
    ]


def _score_brats_lesionwise(case: ProfileCase) -> list[Numbers]:
    from scipy.ndimage import binary_dilation, find_objects, generate_binary_structure

    reference, prediction = case.cropped_masks
    merged, n = find_lesions(binary_dilation(reference, generate_binary_structure(3, 2)))
    predicted, n_predicted = find_lesions(prediction)
    pairs = np.unique(np.stack([merged[prediction], predicted[prediction]], axis=-1), axis=0)
    touching = pairs[pairs[:, 0] > 0]
    volumes = np.bincount(merged[reference], minlength=n + 1) * math.prod(case.spacing_zyx_mm)
    places = find_objects(merged), find_objects(predicted)
    scores = []
    for lesion in np.flatnonzero(volumes > _LEAST_MM3):
        guesses = touching[touching[:, 0] == lesion, 1]
        box = _union([places[0][lesion - 1], *(places[1][guess - 1] for guess in guesses)])
        truth = reference[box] & (merged[box] == lesion)
        found = score_voxels(truth, np.isin(predicted[box], guesses), spacing_zyx_mm=case.spacing_zyx_mm)
        scores.append((found.dice or 0.0, _WORST_MM if found.hd95_mm is None else found.hd95_mm))
    n_false = n_predicted - len(np.unique(touching[:, 1]))
    scores += [(0.0, _WORST_MM)] * n_false
    dice, distance = np.mean(scores, axis=0).tolist() if scores else (1.0, 0.0)
    return [{"lesionwise_dice": dice, "lesionwise_hd95_mm": distance}]


def _union(boxes: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    """The box around boxes."""
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))  # fmt: skip


WMH = Profile(
    name="wmh",
    source="WMH Segmentation Challenge 2017, Kuijf et al. 2019, its revised script",
    counts=(
        "Dice, 95th percentile Hausdorff distance between edges found slice by slice, absolute volume difference "
        "in percent of the reference, lesion recall and F1 from one voxel of overlap, 26-connected; means over "
        "cases."
    ),
    differs=(
        "A single large component finds every lesion it touches. Nothing to find gives recall 1 and nothing "
        "predicted precision 1; there Dice, distance and volume are undefined and left out. The honest score "
        "matches one to one from IoU 0.1 and counts cases without lesions apart."
    ),
    lines={
        "dice": Line(honest="dice"),
        "hd95_mm": Line("mm", honest="hd95_mm"),
        "volume_difference_percent": Line("%", honest="relative_volume_difference"),
        "lesion_recall": Line(honest="lesion_recall"),
        "lesion_f1": Line(honest="lesion_f1"),
    },
    score=_score_wmh,
    summarise=means_of("dice", "hd95_mm", "volume_difference_percent", "lesion_recall", "lesion_f1"),
)


ISLES = Profile(
    name="isles",
    source="ISLES 2022, Hernandez Petzsche et al. 2022",
    counts=(
        "Dice, absolute volume difference in ml, absolute difference of the numbers of lesions, and lesion F1 "
        "from one voxel of overlap, 26-connected; means over all cases."
    ),
    differs=(
        "A case that is empty on both sides scores Dice 1 and F1 1, which lifts the mean; a false and a missed "
        "lesion cancel in the count; a single large component finds every lesion it touches. The honest score "
        "counts cases without lesions apart and matches one to one from IoU 0.1."
    ),
    lines={
        "dice": Line(honest="dice"),
        "volume_difference_ml": Line("ml", honest="absolute_volume_difference_mm3"),
        "lesion_count_difference": Line("lesions"),
        "lesion_f1": Line(honest="lesion_f1"),
    },
    score=_score_isles,
    summarise=means_of("dice", "volume_difference_ml", "lesion_count_difference", "lesion_f1"),
)


BRATS_LESIONWISE = Profile(
    name="brats_lesionwise",
    source="BraTS 2023, lesion-wise scores, with its settings for metastases",
    counts=(
        "Reference components that meet after a dilation by one voxel (18 neighbours) are one lesion; all "
        "predicted components that touch its dilation are scored against it together; missed lesions and "
        "predicted components that touch none score Dice 0 and HD95 374 mm; mean over both in a case, then over "
        "cases."
    ),
    differs=(
        "Lesions of up to 2 mm³ are left out, missed or not; a prediction need not overlap what it finds; a case "
        "that is empty on both sides scores Dice 1 and HD95 0; the distance is mostly the share of errors times "
        "374. HD95 is between surface voxels here, weighted by surface area there. The honest score keeps "
        "every lesion, and an undefined distance undefined."
    ),
    lines={
        "lesionwise_dice": Line(honest="dice"),
        "lesionwise_hd95_mm": Line("mm", honest="hd95_mm"),
    },
    score=_score_brats_lesionwise,
    summarise=means_of("lesionwise_dice", "lesionwise_hd95_mm"),
)
