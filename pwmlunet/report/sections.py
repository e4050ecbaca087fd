"""The results of a report: the main numbers in words, and the charts, target by target."""

from collections.abc import Iterator
from dataclasses import dataclass

from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.evaluation.detection import Froc
from pwmlunet.evaluation.lesions import MAIN_RULE
from pwmlunet.evaluation.reliability import Reliability
from pwmlunet.evaluation.sizes import SizeBin
from pwmlunet.evaluation.summary import Mean, Summary, TargetSummary
from pwmlunet.report.figures import draw_froc, draw_recall_by_size, draw_reliability
from pwmlunet.report.pages import UNDEFINED, count, data_uri, interval, number, percent, size_range


@dataclass(frozen=True)
class Measure:
    """A row of the table of results."""

    name: str
    """What it is called."""
    value: str
    """The number with its unit."""
    interval: str
    """From where to where it may lie."""
    n: str
    """How many of what it is about."""
    meaning: str
    """In words."""


@dataclass(frozen=True)
class Section:
    """The results of one target."""

    name: str
    """The label's name."""
    measures: tuple[Measure, ...]
    """The main numbers."""
    sizes: tuple[tuple[str, SizeBin], ...]
    """By volume, with the range in words."""
    size_chart: str
    """Address of the picture; empty where there is nothing to draw, as all charts."""
    froc: dict[str, Froc]
    """By the score that ranks; empty without probabilities or lesions."""
    froc_chart: str
    """Sensitivity against false positives."""
    reliability: Reliability | None
    """Promised against observed."""
    reliability_chart: str
    """Likewise."""


def section_of(name: str, summary: Summary) -> Section:
    """The results of a target, ready to be written down."""
    target = summary.targets[name]
    has_lesions = target.pooled[MAIN_RULE].n_reference > 0
    reliability = target.reliability if target.reliability and target.reliability.n_voxels else None
    return Section(
        name,
        tuple(_measures(target, summary)),
        tuple((size_range(part.low_mm3, part.high_mm3), part) for part in target.by_size),
        data_uri(draw_recall_by_size(target.by_size)) if target.by_size and has_lesions else "",
        target.froc or {},
        data_uri(draw_froc(target.froc)) if target.froc else "",
        reliability,
        data_uri(draw_reliability(reliability)) if reliability else "",
    )


def _measures(target: TargetSummary, summary: Summary) -> Iterator[Measure]:
    yield from _of_lesions(target)
    yield from _of_false(target, summary)
    for key, (name, unit, digits, meaning) in _MEANS.items():
        mean = target.means[key]
        yield Measure(name, _with_unit(mean.value, digits, unit), interval(mean.interval, digits), _cases(mean), meaning)  # fmt: skip


_MEANS = {
    "lesion_f1": ("Lesion F1, mean of cases", "", 2, "as above, but every case counts the same"),
    "dice": ("Dice, mean of cases", "", 2, "overlap of the two masks: 0 is none, 1 is perfect"),
    "hd95_mm": ("Distance of the outlines (HD95), mean of cases", "mm", 1, "95 % of the outline lies at most so far from the other one; only cases in which something was predicted"),
    "volume_difference_mm3": ("Volume difference, mean of cases", "mm³", 1, "predicted minus reference: above 0 where too much was predicted"),
}  # fmt: skip


def _of_lesions(target: TargetSummary) -> Iterator[Measure]:
    pooled, intervals = target.pooled[MAIN_RULE], target.pooled_intervals
    yield Measure(
        "Lesions found (recall)",
        percent(pooled.recall),
        _percents(intervals["recall"]),
        f"{pooled.n_found} of {pooled.n_reference} reference lesions",
        "of the lesions that are there, the share that was found",
    )
    yield Measure(
        "Predictions that are right (precision)",
        percent(pooled.precision),
        _percents(intervals["precision"]),
        f"{pooled.n_true} of {pooled.n_predicted} predicted lesions",
        "of the lesions that were predicted, the share that is there",
    )
    yield Measure(
        "Lesion F1",
        number(pooled.f1),
        interval(intervals["f1"]),
        f"{pooled.n_reference} reference and {pooled.n_predicted} predicted lesions",
        "recall and precision in one number: 0 is worst, 1 is perfect",
    )


def _of_false(target: TargetSummary, summary: Summary) -> Iterator[Measure]:
    yield Measure(
        "False lesions per subject",
        number(target.false_positives_per_subject),
        interval(target.false_positives_per_subject_interval),
        count(summary.n_subjects, "subject"),
        "predicted lesions that are not there",
    )
    mean = target.means["false_positives"]
    yield Measure("False lesions per case", number(mean.value), interval(mean.interval), _cases(mean), "the same for each image")  # fmt: skip
    if target.n_clean_subjects:
        yield Measure(
            "False lesions per subject without lesions",
            number(target.false_positives_per_clean_subject),
            UNDEFINED,
            f"{count(target.n_clean_subjects, 'subject')}, {target.n_clean_subjects_with_false_positives} of them with false lesions",
            "the same for those in whom there is nothing to find",
        )


def _percents(value: Interval | None) -> str:
    return UNDEFINED if value is None else f"{percent(value.low)} to {percent(value.high)}"


def _with_unit(value: float | None, digits: int, unit: str) -> str:
    return number(value, digits) if value is None else f"{number(value, digits)} {unit}".strip()


def _cases(mean: Mean) -> str:
    return count(mean.n, "case")
