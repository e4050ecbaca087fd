"""The scores as tables: a short one for the screen, and cases.csv and lesions.csv with everything."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.evaluation.lesions import MAIN_RULE, Lesion
from pwmlunet.evaluation.reliability import reliability
from pwmlunet.evaluation.scores import CaseScores, TargetScores
from pwmlunet.evaluation.sizes import SizeBin
from pwmlunet.evaluation.summary import Summary, TargetSummary
from pwmlunet.files import write_csv


def write_tables(folder: Path, cases: Sequence[CaseScores]) -> None:
    """Writes cases.csv, a row for each case and target, and lesions.csv, a row for each lesion.

    lesions.csv holds every reference lesion, found or missed (its IoU and Dice are then 0), and every predicted
    lesion that is false. Numbers and places are in voxels and slices from 0, probabilities those of the voxels of
    the row's own lesion. A cell is empty where there is nothing to say.
    """
    if not cases:
        raise ValueError("there is nothing to write")
    pairs = [(case, target) for case in cases for target in case.targets]
    of_cases = [_case_row(case, target) for case, target in pairs]
    write_csv(folder / "cases.csv", list(of_cases[0]), of_cases)
    write_csv(folder / "lesions.csv", _LESION_COLUMNS, [row for pair in pairs for row in _lesion_rows(*pair)])


_COUNTS = ("true_positives", "false_positives", "false_negatives", "true_negatives")
_LESION_COLUMNS = (
    "case", "subject", "target", "fate", "number", "reference_volume_mm3", "predicted_volume_mm3", "iou", "dice",
    "centroid_z_voxels", "centroid_y_voxels", "centroid_x_voxels", "first_slice", "last_slice",
    "mean_probability", "max_probability",
)  # fmt: skip


def _case_row(case: CaseScores, target: str) -> dict[str, Any]:
    scores = case.targets[target]
    voxels = {f"{name}_voxels" if name in _COUNTS else name: v for name, v in scores.voxels.to_dict().items()}
    lesions = {
        f"{rule}_{name}": value
        for rule, found in scores.lesions.detections.items()
        for name, value in found.to_dict().items()
        if name not in ("n_reference", "n_predicted")
    }
    return {
        "case": case.name,
        "subject": case.subject,
        "target": target,
        **{f"spacing_{axis}_mm": mm for axis, mm in zip("zyx", case.spacing_zyx_mm, strict=True)},
        "n_labelled_slices": case.n_labelled_slices,
        **voxels,
        "n_reference_lesions": len(scores.lesions.reference),
        "n_predicted_lesions": len(scores.lesions.predicted),
        **lesions,
        "n_merged": scores.lesions.n_merged,
        "n_split": scores.lesions.n_split,
        "expected_calibration_error": scores.reliability
        and reliability(scores.reliability).expected_calibration_error,
    }


def _lesion_rows(case: CaseScores, target: str) -> Iterator[dict[str, Any]]:
    lesions = case.targets[target].lesions
    matches = lesions.match_of
    of_case = {"case": case.name, "subject": case.subject, "target": target}
    for number, lesion in enumerate(lesions.reference):
        match = matches.get(number)
        yield {
            **of_case,
            "fate": "found" if match else "missed",
            "number": number,
            "reference_volume_mm3": lesion.volume_mm3,
            "predicted_volume_mm3": lesions.predicted[match.predicted].volume_mm3 if match else None,
            "iou": match.iou if match else 0,
            "dice": match.dice if match else 0,
            **_place(lesion),
        }
    for number in lesions.false:
        lesion = lesions.predicted[number]
        yield {
            **of_case,
            "fate": "false",
            "number": number,
            "predicted_volume_mm3": lesion.volume_mm3,
            **_place(lesion),
        }


def _place(lesion: Lesion) -> dict[str, Any]:
    return {
        **{f"centroid_{axis}_voxels": step for axis, step in zip("zyx", lesion.centroid_zyx, strict=True)},
        "first_slice": lesion.first_slice,
        "last_slice": lesion.last_slice,
        "mean_probability": lesion.mean_probability,
        "max_probability": lesion.max_probability,
    }


def table(summary: Summary, cases: Sequence[CaseScores]) -> str:
    """The cases, their means with n and interval, sizes, FROC and remarks, as text for a screen."""
    several = len(summary.targets) > 1
    parts = []
    for name, target in summary.targets.items():
        rows = [[case.name, *_cells(case.targets[name])] for case in cases if case.n_labelled_slices]
        parts += [name] if several else []
        parts += _align([["case", *_COLUMNS.values()], *rows, *_foot(target)], n_foot=len(_foot(target)))
        parts += ["", *_in_words(target), "", *_sizes(target.by_size)]
    parts += [f"note: {remark}" for remark in summary.remarks]
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
    return [*map(_number, ratios), str(found.n_false_positives), _number(voxels.hd95_mm)]


def _foot(target: TargetSummary) -> list[list[str]]:
    """The rows below the line: means, their intervals where there are any, and over how many cases."""
    means = [target.means[key] for key in _COLUMNS]
    rows = [["mean", *(_number(mean.value) for mean in means)]]
    if any(mean.interval for mean in means):
        rows.append(["95 % interval", *(_interval(mean.interval) for mean in means)])
    return [*rows, ["cases in mean", *(str(mean.n) for mean in means)]]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _interval(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval.low:.2f}–{interval.high:.2f}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _align(rows: Sequence[Sequence[str]], *, n_foot: int = 0) -> list[str]:
    """Rows of text: the first column to the left, the others to the right, a line under header and body."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    rule = "-" * len(lines[0])
    foot = [rule, *lines[-n_foot:]] if n_foot else []
    return [lines[0], rule, *lines[1 : len(lines) - n_foot], *foot]


def _in_words(target: TargetSummary) -> Iterator[str]:
    found = target.pooled[MAIN_RULE]
    counts = {
        "recall": f"{found.n_found} of {found.n_reference}",
        "precision": f"{found.n_true} of {found.n_predicted}",
    }
    scores = [
        f"{'F1' if name == 'f1' else name} {_number(getattr(found, name))}{_in_brackets(interval, counts.get(name))}"
        for name, interval in target.pooled_intervals.items()
    ]
    yield f"all lesions: {', '.join(scores)}"
    per_subject = _in_brackets(target.false_positives_per_subject_interval, None)
    yield (
        f"false positives: {target.false_positives_per_subject:.2f}{per_subject} per subject, "
        f"{target.false_positives_per_case:.2f} per case, "
        f"{target.false_positives_per_labelled_slice:.2f} per labelled slice"
    )
    if target.n_clean_subjects:
        yield (
            f"clean subjects: {target.n_clean_subjects}, of whom {target.n_clean_subjects_with_false_positives} "
            f"with false positives ({_number(target.false_positives_per_clean_subject)} per clean subject)"
        )
    if target.n_without_distances:
        yield f"nothing predicted, so no distance: {_count(target.n_without_distances, 'case')} with lesions"
    if target.froc:
        at = target.froc["mean_probability"].sensitivity_at
        yield f"FROC by mean probability: recall {' '.join(map(_number, at.values()))} at {' '.join(at)} false+ per subject"
    if target.reliability:
        error = _number(target.reliability.expected_calibration_error)
        yield f"expected calibration error around lesions: {error}"
    yield f"means but false+ over the {_count(target.n_cases_with_lesions, 'case')} with lesions; matched one to one, IoU >= 0.1"


def _in_brackets(interval: Interval | None, count: str | None) -> str:
    """The interval and a count in brackets, as far as there are any."""
    parts = [part for part in (interval and _interval(interval), count) if part]
    return f" ({'; '.join(parts)})" if parts else ""


def _sizes(bins: Sequence[SizeBin]) -> list[str]:
    """A row for each size of lesion, and an empty line; nothing without bins."""
    header = ["mm³", "lesions", "found", "recall", "95 % interval", "Dice", "bias mm³", "predicted", "false"]
    rows = [
        [
            f"from {b.low_mm3:.3g}" if b.high_mm3 is None else f"{b.low_mm3:.3g} to {b.high_mm3:.3g}",
            *(str(b.n_reference), str(b.n_found), _number(b.recall), _interval(b.recall_interval)),
            *(_number(b.dice), _number(b.volume_bias_mm3), str(b.n_predicted), str(b.n_false)),
        ]
        for b in bins
    ]
    return [*_align([header, *rows]), ""] if bins else []
