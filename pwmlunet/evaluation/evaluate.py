"""Scores of cases and what they come to: from masks, or from two folders of masks, to summary.json."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.data.dataset import Labels
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.lesions import (
    CONNECTIVITY,
    MAIN_RULE,
    RULES,
    Detection,
    LesionScores,
    detection,
    score_lesions,
)
from pwmlunet.evaluation.masks import pair_masks
from pwmlunet.evaluation.voxels import TOLERANCE_MM, VoxelScores, ratio, score_voxels
from pwmlunet.files import write_json

_VERSION = 1
_MEANS_OF_VOXELS = (
    "dice", "sensitivity", "precision", "specificity", "volume_difference_mm3", "absolute_volume_difference_mm3",
    "relative_volume_difference", "hd_mm", "hd95_mm", "assd_mm", "surface_dice",
)  # fmt: skip
_RULES_IN_WORDS = {
    "space": "the image's own grid; distances and volumes in mm from its spacing (pixels, where a picture has none and 1 is assumed)",
    "ignore": 'voxels labelled "ignore" are taken out of both masks before anything is counted',
    "connectivity": CONNECTIVITY,
    "main_matching": MAIN_RULE,
    "matching": RULES,
    "distances": f"between surface voxels; hd95 is the greater directed 95th percentile; surface Dice at {TOLERANCE_MM:g} mm",
    "means": "over the cases with reference lesions, each with its n; undefined values are left out of that n",
    "missed": "reference lesions and an empty prediction: Dice 0, recall 0, F1 0; precision and distances undefined, counted as n_without_distances",
    "clean": "a case without reference lesions is in no mean but that of false positives; a subject is clean if all its cases are",
    "pooled": "over the lesions of all cases together, clean ones included",
    "unlabelled": "a case in which no voxel has a label is counted and left out",
}


@dataclass(frozen=True)
class TargetScores(Config):
    """One target in one case."""

    voxels: VoxelScores
    """Overlap, volume and distance."""
    lesions: LesionScores
    """Components found, missed and invented."""

    @property
    def is_clean(self) -> bool:
        """Whether the reference is empty."""
        return not self.lesions.reference_volumes_mm3


@dataclass(frozen=True)
class CaseScores(Config):
    """One case, scored target by target."""

    name: str
    """The mask's file name without its ending."""
    subject: str
    """Whose image it is; several cases may be of one subject."""
    spacing_zyx_mm: tuple[float, float, float]
    """Of the image; 1, 1, 1 also where the file says nothing, as pictures do: mm are then pixels."""
    n_labelled_slices: int
    """Slices in which any voxel has a label other than "ignore"."""
    targets: dict[str, TargetScores]
    """By the target's name, in the order of the labels."""


@dataclass(frozen=True)
class Mean(Config):
    """A mean and over how many cases; the value is None where n is 0."""

    value: float | None
    """The mean."""
    n: int
    """Cases in which the score is defined."""


@dataclass(frozen=True)
class TargetSummary(Config):
    """One target over all labelled cases."""

    means: dict[str, Mean]
    """By score, over the cases with reference lesions."""
    pooled: dict[str, Detection]
    """By matching rule, over the lesions of all cases together."""
    false_positives_per_case: float
    """Over all cases, under the main rule as everything below."""
    false_positives_per_labelled_slice: float
    """Over all slices that have a label."""
    n_cases_with_lesions: int
    """Cases whose reference is not empty."""
    n_without_distances: int
    """Those of them with an empty prediction: Dice 0, recall 0, distances undefined."""
    n_clean_cases: int
    """Cases whose reference is empty."""
    n_clean_subjects: int
    """Subjects all of whose cases are clean."""
    n_clean_subjects_with_false_positives: int
    """Clean subjects in whom a lesion was predicted."""
    false_positives_per_clean_subject: float | None
    """Predicted lesions in clean subjects / clean subjects; None where there are none."""
    n_merged: int
    """Predicted lesions that touch several reference lesions."""
    n_split: int
    """Reference lesions that several predicted lesions touch."""


@dataclass(frozen=True)
class Summary(Config):
    """All cases together."""

    n_cases: int
    """Cases with labels; all numbers are over these."""
    n_subjects: int
    """Whose cases they are."""
    n_labelled_slices: int
    """Slices with labels."""
    n_unlabelled_cases: int
    """Cases in which every voxel is "ignore": left out."""
    targets: dict[str, TargetSummary]
    """By the target's name."""


def score_case(
    reference: NDArray[Any],
    prediction: NDArray[Any],
    *,
    spacing_zyx_mm: tuple[float, float, float],
    labels: Labels,
    name: str,
    subject: str,
) -> CaseScores:
    """The scores of a predicted mask (Z, Y, X) of label values against the reference on the same grid."""
    if reference.shape != prediction.shape or reference.ndim != 3:
        raise ValueError(f"masks must be (Z, Y, X) on one grid: {reference.shape}, {prediction.shape}")
    valid = None if labels.ignore is None else labels.valid(reference)
    n_slices = len(reference) if valid is None else int(np.count_nonzero(valid.any((1, 2))))
    masks = zip(labels.targets, labels.encode(reference), labels.encode(prediction), strict=True)
    targets = {
        target.name: TargetScores(
            score_voxels(truth, guess, spacing_zyx_mm=spacing_zyx_mm, valid=valid),
            score_lesions(truth, guess, spacing_zyx_mm=spacing_zyx_mm, valid=valid),
        )
        for target, truth, guess in masks
    }
    return CaseScores(name, subject, spacing_zyx_mm, n_slices, targets)


def summarise(cases: Sequence[CaseScores]) -> Summary:
    """What the cases come to (the rules for empty cases stand in `summary.json`)."""
    if not cases:
        raise ValueError("there is nothing to summarise")
    labelled = [case for case in cases if case.n_labelled_slices]
    return Summary(
        n_cases=len(labelled),
        n_subjects=len({case.subject for case in labelled}),
        n_labelled_slices=sum(case.n_labelled_slices for case in labelled),
        n_unlabelled_cases=len(cases) - len(labelled),
        targets={name: _summarise_target(labelled, name) for name in cases[0].targets},
    )


def _summarise_target(cases: Sequence[CaseScores], name: str) -> TargetSummary:
    scores = [case.targets[name] for case in cases]
    with_lesions = [s for s in scores if not s.is_clean]
    by_subject: dict[str, list[TargetScores]] = {}
    for case in cases:
        by_subject.setdefault(case.subject, []).append(case.targets[name])
    clean = [group for group in by_subject.values() if all(s.is_clean for s in group)]
    false_in_clean = [sum(s.lesions.main.n_false_positives for s in group) for group in clean]
    false = [s.lesions.main.n_false_positives for s in scores]
    return TargetSummary(
        means={**_means(with_lesions), "false_positives": _mean(false)},
        pooled={rule: _pool([s.lesions.detections[rule] for s in scores]) for rule in RULES},
        false_positives_per_case=ratio(sum(false), len(cases)) or 0.0,
        false_positives_per_labelled_slice=ratio(sum(false), sum(c.n_labelled_slices for c in cases)) or 0.0,
        n_cases_with_lesions=len(with_lesions),
        n_without_distances=sum(s.voxels.hd_mm is None for s in with_lesions),
        n_clean_cases=len(scores) - len(with_lesions),
        n_clean_subjects=len(clean),
        n_clean_subjects_with_false_positives=sum(n > 0 for n in false_in_clean),
        false_positives_per_clean_subject=ratio(sum(false_in_clean), len(clean)),
        n_merged=sum(s.lesions.n_merged for s in scores),
        n_split=sum(s.lesions.n_split for s in scores),
    )


def _means(scores: Sequence[TargetScores]) -> dict[str, Mean]:
    """By name: the voxel scores, then lesion_recall, lesion_precision and lesion_f1 under the main rule."""
    means = {name: _mean(getattr(s.voxels, name) for s in scores) for name in _MEANS_OF_VOXELS}
    for name in ("recall", "precision", "f1"):
        means[f"lesion_{name}"] = _mean(getattr(s.lesions.main, name) for s in scores)
    return means


def _mean(values: Iterable[float | None]) -> Mean:
    defined = [value for value in values if value is not None]
    return Mean(ratio(float(sum(defined)), len(defined)), len(defined))


def _pool(parts: Sequence[Detection]) -> Detection:
    return detection(
        sum(part.n_reference for part in parts),
        sum(part.n_predicted for part in parts),
        n_found=sum(part.n_found for part in parts),
        n_true=sum(part.n_true for part in parts),
    )


def evaluate_folders(
    reference: Path,
    prediction: Path,
    *,
    labels: Labels | Path | None = None,
    file_ending: str | None = None,
    only_common: bool = False,
) -> list[CaseScores]:
    """The scores of each predicted mask in a folder, by name (for the arguments see `pair_masks`).

    Raises:
        PwmlError: files are missing on one side (unless `only_common`), unreadable, on other grids or of
            unknown values; all of them at once.
    """
    pairs = pair_masks(reference, prediction, labels=labels, file_ending=file_ending)
    problems = [] if only_common else list(pairs.problems)
    cases = []
    for name in pairs.files:
        try:
            truth, guess, spacing = pairs.read(name)
        except PwmlError as error:
            problems.append(str(error))
            continue
        if not problems:
            cases.append(score_case(truth, guess, spacing_zyx_mm=spacing, labels=pairs.labels, name=name, subject=pairs.subject(name)))  # fmt: skip
    if problems:
        raise PwmlError.listing("the masks cannot be compared", problems)
    return cases


def write_summary(path: Path, cases: Sequence[CaseScores]) -> None:
    """Writes summary.json: the rules in words, all cases together, and each case."""
    content = {
        "version": _VERSION,
        "rules": _RULES_IN_WORDS,
        "summary": summarise(cases).to_dict(),
        "cases": [case.to_dict() for case in cases],
    }
    write_json(path, content)


def table(summary: Summary, cases: Sequence[CaseScores]) -> str:
    """The cases, their means with n, and the lesions of all cases together, as text for a screen."""
    several = len(summary.targets) > 1
    parts = []
    for name, target in summary.targets.items():
        rows = [[case.name, *_cells(case.targets[name])] for case in cases if case.n_labelled_slices]
        means = [target.means[key] for key in _COLUMNS]
        rows.append(["mean", *(_number(mean.value, 2) for mean in means)])
        rows.append(["cases in mean", *(str(mean.n) for mean in means)])
        title = [name] if several else []
        parts += [*title, *_align([["case", *_COLUMNS.values()], *rows]), "", *_in_words(target, summary), ""]
    if all(set(case.spacing_zyx_mm) == {1.0} for case in cases):
        parts.append("every spacing is 1, as it is where a file gives none: mm are then pixels")
    if summary.n_unlabelled_cases:
        parts.append(f"left out: {_count(summary.n_unlabelled_cases, 'case')} without a labelled voxel")
    return "\n".join(parts).rstrip()


_COLUMNS = {
    "dice": "Dice",
    "lesion_recall": "recall",
    "lesion_precision": "precision",
    "lesion_f1": "F1",
    "false_positives": "false+",
    "hd95_mm": "HD95 mm",
}


def _cells(scores: TargetScores) -> list[str]:
    found, voxels = scores.lesions.main, scores.voxels
    ratios = [voxels.dice, found.recall, found.precision, found.f1]
    return [*(_number(v, 2) for v in ratios), str(found.n_false_positives), _number(voxels.hd95_mm, 2)]


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of text: the first column to the left, the others to the right, a line under the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rule = "-" * len(lines[0])
    return [lines[0], rule, *lines[1:-2], rule, *lines[-2:]]


def _in_words(target: TargetSummary, summary: Summary) -> Iterator[str]:
    pooled = target.pooled[MAIN_RULE]
    yield (
        f"all lesions together: recall {_number(pooled.recall, 2)} ({pooled.n_found} of {pooled.n_reference}), "
        f"precision {_number(pooled.precision, 2)} ({pooled.n_true} of {pooled.n_predicted}), "
        f"F1 {_number(pooled.f1, 2)}"
    )
    yield (
        f"false positives: {target.false_positives_per_case:.2f} per case, "
        f"{target.false_positives_per_labelled_slice:.2f} per labelled slice"
    )
    if target.n_clean_subjects:
        yield (
            f"clean subjects: {target.n_clean_subjects}, of whom {target.n_clean_subjects_with_false_positives} "
            f"with false positives ({_number(target.false_positives_per_clean_subject, 2)} per clean subject)"
        )
    if target.n_without_distances:
        yield f"nothing predicted, so no distance: {_count(target.n_without_distances, 'case')} with lesions"
    yield f"means but false+ over the {_count(target.n_cases_with_lesions, 'case')} with lesions; matched one to one, IoU >= 0.1"
