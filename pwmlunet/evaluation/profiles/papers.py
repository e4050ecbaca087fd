"""How the papers on tiny lesions counted, with their contradictions resolved."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.evaluation.lesions import find_touching, measure_lesions
from pwmlunet.evaluation.profiles.counting import (
    Line,
    Numbers,
    Profile,
    ProfileCase,
    Row,
    Values,
    dice_of,
    farthest,
    mean_of,
    means_of,
    overlap,
    touched,
)
from pwmlunet.evaluation.voxels import ratio

_ENLARGEMENT = 2.3  # a head of 80–111 × 94–129 pixels, its long side enlarged to 256
_LEAST_MM3 = 1.7
_ROUNDING_MM3 = 1e-9
_IOU = 0.6

_VOXELS = {name: Line(honest=name) for name in ("dice", "sensitivity", "specificity")}
_VOXELS_AND_PIXELS = (*_VOXELS, "hd_pixels")


def _score_trident(case: ProfileCase) -> list[Numbers]:
    reference, prediction = case.masks
    stack = reference.any((1, 2))
    if not stack.any():
        return []
    masks = reference[stack], prediction[stack]
    pixels = farthest(*masks, (1.0, _ENLARGEMENT, _ENLARGEMENT))
    return [{**overlap(*masks, case.valid[stack]), "hd_pixels": pixels}]


def _median_over_folds(rows: Sequence[Row]) -> Values:
    folds = _grouped(rows, lambda row: row.fold)
    result: Values = {}
    for name in _VOXELS_AND_PIXELS:
        means = [mean_of(fold, name) for fold in folds]
        values = [value for value, _ in means if value is not None]
        result[name] = (median(values) if values else None, sum(n for _, n in means))
    return result


def _grouped(rows: Sequence[Row], key: Callable[[Row], str]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())


def _score_rs_rcnn(case: ProfileCase) -> list[Numbers]:
    reference, prediction = case.masks
    rows: list[Numbers] = []
    for z in np.flatnonzero(reference.any((1, 2))):
        masks = reference[z : z + 1], prediction[z : z + 1]
        if masks[1].any():
            pixels = farthest(*masks, (1.0, 1.0, 1.0))
            scores = {**overlap(*masks, case.valid[z : z + 1]), "hd_pixels": pixels}
            rows.append({**scores, "dice_all_slices": scores["dice"], "left_out": 0})
        else:
            rows.append({**dict.fromkeys(_VOXELS_AND_PIXELS), "dice_all_slices": 0.0, "left_out": 1})
    return rows


def _sum_rs_rcnn(rows: Sequence[Row]) -> Values:
    left_out = sum(row.numbers["left_out"] or 0 for row in rows)
    means = means_of(*_VOXELS_AND_PIXELS, "dice_all_slices")(rows)
    return {**means, "slices_left_out": (left_out, len(rows))}


def _score_priority(case: ProfileCase) -> list[Numbers]:
    reference, prediction = (_without_small(mask, case.spacing_zyx_mm) for mask in case.cropped_masks)
    lesions = touched(reference, prediction, case.spacing_zyx_mm)
    voxel_mm3 = math.prod(case.spacing_zyx_mm)
    counts = {name: getattr(lesions, name) for name in ("n_reference", "n_predicted", "n_found", "n_true")}
    volumes = {
        "both_mm3": np.count_nonzero(reference & prediction) * voxel_mm3,
        "reference_mm3": np.count_nonzero(reference) * voxel_mm3,
        "predicted_mm3": np.count_nonzero(prediction) * voxel_mm3,
    }
    return [{**counts, **volumes}]


def _without_small(mask: NDArray[np.bool_], spacing: tuple[float, float, float]) -> NDArray[np.bool_]:
    lesions = measure_lesions(mask, spacing)
    large = lesions.n_voxels * math.prod(spacing) >= _LEAST_MM3 - _ROUNDING_MM3
    return np.asarray(np.concatenate([[False], large])[lesions.components])


def _sum_priority(rows: Sequence[Row]) -> Values:
    patients = [_total(group) for group in _grouped(rows, lambda row: row.subject)]
    n_reference, n_predicted, n_found, n_true = (
        int(sum(p[name] for p in patients)) for name in ("n_reference", "n_predicted", "n_found", "n_true")
    )
    return {
        "detection_precision": (ratio(n_true, n_predicted), n_predicted),
        "detection_recall": (ratio(n_found, n_reference), n_reference),
        "volume_precision": _weighted(patients, lambda p: ratio(p["both_mm3"], p["predicted_mm3"])),
        "volume_recall": _weighted(patients, lambda p: ratio(p["both_mm3"], p["reference_mm3"])),
        "dice": _weighted(
            patients, lambda p: ratio(2 * p["both_mm3"], p["reference_mm3"] + p["predicted_mm3"])
        ),
    }


def _total(rows: Sequence[Row]) -> dict[str, float]:
    return {name: sum(row.numbers[name] or 0 for row in rows) for name in rows[0].numbers}


def _weighted(
    patients: Sequence[dict[str, float]], share: Callable[[dict[str, float]], float | None]
) -> tuple[float | None, int]:
    """The mean over patients with lesions, each weighing as much as its reference volume; undefined is 0."""
    weighed = [patient for patient in patients if patient["reference_mm3"]]
    total = sum(patient["reference_mm3"] for patient in weighed)
    return ratio(sum(p["reference_mm3"] * (share(p) or 0.0) for p in weighed), total), len(weighed)


def _score_fci_laci(case: ProfileCase) -> list[Numbers]:
    reference, prediction = case.masks
    n_reference = n_predicted = n_found = n_right = 0
    for z in np.flatnonzero((reference | prediction).any((1, 2))):
        lesions, predicted = (
            measure_lesions(m[z : z + 1], case.spacing_zyx_mm) for m in (reference, prediction)
        )
        touching = find_touching(lesions, predicted)
        hits = np.flatnonzero(touching.iou > _IOU)
        classes = _classes(case.reference[:, z : z + 1], lesions.components)
        guesses = _classes(case.prediction[:, z : z + 1], predicted.components)
        n_reference += len(lesions)
        n_predicted += len(predicted)
        n_found += len(hits)
        n_right += int(np.sum(classes[touching.reference[hits]] == guesses[touching.predicted[hits]]))
    several = len(case.reference) > 1
    return [
        {
            "n_reference": n_reference,
            "n_predicted": n_predicted,
            "n_found": n_found,
            "n_right": n_right if several else None,
            "dice": dice_of(reference, prediction),
        }
    ]


def _classes(targets: NDArray[np.bool_], components: NDArray[Any]) -> NDArray[np.intp]:
    """The target (N,) that most voxels of each component are of."""
    n = int(components.max())
    shares = [np.bincount(components[target], minlength=n + 1)[1:] for target in targets]
    return np.asarray(np.stack(shares).argmax(0))


def _sum_fci_laci(rows: Sequence[Row]) -> Values:
    n_reference, n_predicted, n_found = (
        int(sum(row.numbers[name] or 0 for row in rows)) for name in ("n_reference", "n_predicted", "n_found")
    )
    n_both = n_reference + n_predicted
    right = [n for row in rows if (n := row.numbers["n_right"]) is not None]
    return {
        "detection_precision": (ratio(n_found, n_predicted), n_predicted),
        "classification_precision": (ratio(sum(right), n_found), n_found) if right else (None, 0),
        "dice": mean_of(rows, "dice"),
        "detection_recall": (ratio(n_found, n_reference), n_reference),
        "detection_f1": (ratio(2 * n_found, n_both), n_both),
    }


TRIDENT = Profile(
    name="trident",
    source="TS-CNN, Liu et al. 2019 (arXiv:1910.09773), as its code and its table have it",
    counts=(
        "Each case is the stack of its slices with a reference lesion, and no others; probabilities are cut at "
        f"0.7; the Hausdorff distance is in pixels of a grid enlarged {_ENLARGEMENT:g} times in the "
        "plane, with slices of the stack one pixel apart; means over the cases of a fold, then the median over "
        "folds."
    ),
    differs=(
        "False positives in all other slices are left out. The paper prints its distance as mm: it is none, and "
        "it depends on the crop (2.3 holds for heads of about 110 pixels) and on which slices lie in the stack; "
        "an empty prediction has no distance and is left out of it. The honest score takes whole cases, in mm."
    ),
    lines={**_VOXELS, "hd_pixels": Line("enlarged pixels", honest="hd_mm")},
    score=_score_trident,
    summarise=_median_over_folds,
    threshold=0.7,
    has_folds=True,
)


RS_RCNN = Profile(
    name="rs_rcnn",
    source="RS-RCNN, Liu et al. 2019, as its code has it",
    counts=(
        "Each slice with a reference lesion is scored by itself, the distance in pixels of the image; means over "
        "slices with a prediction."
    ),
    differs=(
        "Slices with an empty prediction are left out of the mean: a lesion that is missed altogether costs "
        "nothing, and predicting less can only help; dice_all_slices counts them as 0. Slices without a reference "
        "lesion are left out too. The honest score is of whole cases."
    ),
    lines={
        **{name: replace(line, over="slices") for name, line in _VOXELS.items()},
        "hd_pixels": Line("pixels", "slices", "hd_mm"),
        "dice_all_slices": Line(over="slices", honest="dice"),
        "slices_left_out": Line("slices", "slices"),
    },
    score=_score_rs_rcnn,
    summarise=_sum_rs_rcnn,
)


PRIORITY = Profile(
    name="priority",
    source="Priority U-Net, Erbacher et al. 2020",
    counts=(
        "Components of less than 1.7 mm³ are taken out of both masks; a lesion counts from one voxel of overlap, "
        "over the lesions of all patients together; volume precision |P∩G|/|P|, recall |P∩G|/|G| and Dice are "
        "means over patients, weighted by their share of the reference volume."
    ),
    differs=(
        "Small lesions are left out (the paper's 600 voxels are 2.0 mm³; its 1.7 mm³ is taken), a single large "
        "component finds every lesion it touches, and a patient without lesions weighs nothing in the volumes; "
        "an empty prediction has volume precision 0. The honest score matches one to one from IoU 0.1, and each "
        "case weighs the same."
    ),
    lines={
        "detection_precision": Line(over="predicted lesions", honest="pooled_precision"),
        "detection_recall": Line(over="reference lesions", honest="pooled_recall"),
        "volume_precision": Line(over="patients", honest="precision"),
        "volume_recall": Line(over="patients", honest="sensitivity"),
        "dice": Line(over="patients", honest="dice"),
    },
    score=_score_priority,
    summarise=_sum_priority,
)


FCI_LACI = Profile(
    name="fci_laci",
    source="the segmentation and correction networks for focal ischaemia and lacunar infarction on FLAIR pairs",
    counts=(
        "Slice by slice, all classes together: a predicted component is right if a reference component has an "
        "IoU above 0.6 with it; classification precision is the share of those whose class (that of most of its "
        "voxels) is right; Dice is the mean over cases."
    ),
    differs=(
        "The paper leaves out lesions that were missed, so that predicting only what is sure raises all its "
        "figures; detection_recall and detection_f1 are ours, counted likewise. An IoU above 0.6 forgives a lesion "
        "of 4 pixels one wrong pixel. Classification is undefined with one class. The honest score has recall and "
        "precision, in 3-D, from IoU 0.1."
    ),
    lines={
        "detection_precision": Line(over="predicted components", honest="pooled_precision"),
        "classification_precision": Line(over="components found"),
        "dice": Line(honest="dice"),
        "detection_recall": Line(over="reference components", honest="pooled_recall"),
        "detection_f1": Line(over="components of both masks", honest="pooled_f1"),
    },
    score=_score_fci_laci,
    summarise=_sum_fci_laci,
    is_joint=True,
)
