"""Several runs on the same cases, side by side: paired differences, by score, by lesion size and by case."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.evaluation.bootstrap import Interval, difference_interval, ratio_interval
from pwmlunet.evaluation.runs import ScoredRun, align
from pwmlunet.evaluation.scores import CaseScores, TargetScores
from pwmlunet.evaluation.sizes import by_size, quartiles_mm3
from pwmlunet.evaluation.voxels import ratio

Verdict = Literal["better", "worse", "no difference shown", "no interval"]


@dataclass(frozen=True)
class Difference(Config):
    """A run minus the baseline, over what both of them have."""

    value: float | None
    """The difference; None where either has no value."""
    interval: Interval | None
    """Paired, by bootstrap over subjects; None with fewer than two subjects that count."""
    n: int
    """Of the run's n, how many the baseline has too."""
    verdict: Verdict
    """Better or worse where the interval leaves out 0."""


@dataclass(frozen=True)
class RunValue(Config):
    """One score of one run."""

    value: float | None
    """The score; None where n is 0."""
    interval: Interval | None
    """By bootstrap over subjects."""
    n: int
    """How many of `over` it is of."""
    difference: Difference | None
    """Against the first run; None for that run itself."""


@dataclass(frozen=True)
class ScoreComparison(Config):
    """One score of all runs."""

    name: str
    """As in summary.json."""
    words: str
    """The same for a reader."""
    unit: str
    """Empty for a share."""
    over: str
    """What n counts."""
    lower_is_better: bool
    """Whether less is better."""
    runs: tuple[RunValue, ...]
    """In the order of the runs."""


@dataclass(frozen=True)
class SizeComparison(Config):
    """Recall of the lesions of one range of volumes."""

    low_mm3: float
    """The least volume."""
    high_mm3: float | None
    """Volumes are below it; None in the last range, which is open."""
    runs: tuple[RunValue, ...]
    """Recall under the main rule; n counts reference lesions."""


@dataclass(frozen=True)
class CaseComparison(Config):
    """One case in all runs."""

    name: str
    """Of the case."""
    n_reference: int
    """Reference lesions."""
    lesion_f1: tuple[float | None, ...]
    """By run; None where neither mask has lesions."""
    dice: tuple[float | None, ...]
    """By run; None where both masks are empty."""

    @property
    def disagreement(self) -> tuple[float, float]:
        """How far apart the runs are, in lesion F1 and then in Dice; an undefined score counts as 1."""
        f1, dice = ([1.0 if v is None else v for v in values] for values in (self.lesion_f1, self.dice))
        return max(f1) - min(f1), max(dice) - min(dice)


@dataclass(frozen=True)
class TargetComparison(Config):
    """One target in all runs."""

    scores: tuple[ScoreComparison, ...]
    """Lesions first."""
    by_size: tuple[SizeComparison, ...]
    """Smallest first; ranges without reference lesions are left out."""
    cases: tuple[CaseComparison, ...]
    """Those on which the runs disagree most first."""


@dataclass(frozen=True)
class Comparison(Config):
    """Runs on the same cases."""

    runs: tuple[str, ...]
    """Names; the first is the baseline."""
    n_cases: int
    """Cases with labels."""
    n_subjects: int
    """Whose they are."""
    targets: dict[str, TargetComparison]
    """By the target's name."""
    remarks: tuple[str, ...]
    """What a reader must know to judge the numbers, a sentence each."""


Parts = tuple[float, float]
"""What a case adds to a score's numerator and denominator."""


@dataclass(frozen=True)
class _Score:
    """A score that is a ratio of sums over cases."""

    words: str
    over: str
    parts: Callable[[TargetScores], Parts | None]
    """Of a case; None where it is undefined there."""
    unit: str = ""
    lower_is_better: bool = False
    is_per_subject: bool = False


def _mean(name: str) -> Callable[[TargetScores], Parts | None]:
    """The parts of a voxel score's mean over the cases with reference lesions."""

    def parts(scores: TargetScores) -> Parts | None:
        value = getattr(scores.voxels, name)
        return None if scores.is_clean or value is None else (value, 1)

    return parts


def _f1(scores: TargetScores) -> Parts:
    found = scores.lesions.main
    return 2 * found.n_found, found.n_reference + found.n_predicted  # matched one to one: n_found is n_true


def _recall(scores: TargetScores) -> Parts:
    return scores.lesions.main.n_found, scores.lesions.main.n_reference


def _precision(scores: TargetScores) -> Parts:
    return scores.lesions.main.n_true, scores.lesions.main.n_predicted


def _false(scores: TargetScores) -> Parts:
    return scores.lesions.main.n_false_positives, 1


_CASES = "cases with lesions"
_SCORES = {
    "lesion_f1": _Score("lesion F1", "lesions of both masks", _f1),
    "lesion_recall": _Score("lesion recall", "reference lesions", _recall),
    "lesion_precision": _Score("lesion precision", "predicted lesions", _precision),
    "false_positives_per_subject": _Score(
        "false positives per subject", "subjects", _false, lower_is_better=True, is_per_subject=True
    ),
    "dice": _Score("Dice", _CASES, _mean("dice")),
    "surface_dice": _Score("surface Dice", "cases with a distance", _mean("surface_dice")),
    "hd95_mm": _Score("HD95", "cases with a distance", _mean("hd95_mm"), "mm", lower_is_better=True),
    "absolute_volume_difference_mm3": _Score(
        "absolute volume difference", _CASES, _mean("absolute_volume_difference_mm3"), "mm³", lower_is_better=True
    ),
}  # fmt: skip


def compare(
    runs: Sequence[ScoredRun], *, size_edges_mm3: Sequence[float] | None = None, only_common: bool = False
) -> Comparison:
    """The runs side by side, each against the first.

    Args:
        runs: Two or more, scored on the same cases against the same references.
        size_edges_mm3: Edges of the size bins; else the quartiles of the reference lesions.
        only_common: Whether to leave out what not all runs have, instead of complaining.

    Raises:
        PwmlError: there is one run only, or the runs differ in cases, targets, subjects or references.
    """
    aligned, targets = align(runs, only_common=only_common)
    labelled = [n for n, case in enumerate(aligned[0]) if case.n_labelled_slices]
    kept = [[cases[n] for n in labelled] for cases in aligned]
    n_subjects = len({case.subject for case in kept[0]})
    return Comparison(
        runs=tuple(run.name for run in runs),
        n_cases=len(labelled),
        n_subjects=n_subjects,
        targets={target: _compare_target(kept, target, size_edges_mm3) for target in targets},
        remarks=tuple(_remarks(runs, len(aligned[0]), len(labelled), n_subjects)),
    )


def _compare_target(
    runs: Sequence[Sequence[CaseScores]], target: str, size_edges_mm3: Sequence[float] | None
) -> TargetComparison:
    scores = tuple(
        ScoreComparison(
            name,
            score.words,
            score.unit,
            score.over,
            score.lower_is_better,
            tuple(_values([_case_parts(score, cases, target) for cases in runs], runs[0], score)),
        )
        for name, score in _SCORES.items()
    )
    cases = [_compare_case(cases, target) for cases in zip(*runs, strict=True)]
    return TargetComparison(
        scores,
        tuple(_compare_sizes(runs, target, size_edges_mm3)),
        tuple(sorted(cases, key=lambda case: (*(-d for d in case.disagreement), case.name))),
    )


def _compare_case(cases: Sequence[CaseScores], target: str) -> CaseComparison:
    scores = [case.targets[target] for case in cases]
    return CaseComparison(
        cases[0].name,
        len(scores[0].lesions.reference),
        tuple(s.lesions.main.f1 for s in scores),
        tuple(s.voxels.dice for s in scores),
    )


def _compare_sizes(
    runs: Sequence[Sequence[CaseScores]], target: str, size_edges_mm3: Sequence[float] | None
) -> Iterator[SizeComparison]:
    volumes = [v for case in runs[0] for v in case.targets[target].lesions.reference_volumes_mm3]
    if not volumes:
        return
    edges = quartiles_mm3(volumes) if size_edges_mm3 is None else size_edges_mm3
    binned = [[by_size([case], target, edges) for case in cases] for cases in runs]
    for index, one in enumerate(binned[0][0]):
        if not any(bins[index].n_reference for bins in binned[0]):
            continue
        parts = [[(bins[index].n_found, bins[index].n_reference) for bins in cases] for cases in binned]
        values = _values(parts, runs[0], _SCORES["lesion_recall"])
        yield SizeComparison(one.low_mm3, one.high_mm3, tuple(values))


def _case_parts(score: _Score, cases: Sequence[CaseScores], target: str) -> list[Parts | None]:
    return [score.parts(case.targets[target]) for case in cases]


def _values(
    runs: Sequence[Sequence[Parts | None]], cases: Sequence[CaseScores], score: _Score
) -> Iterator[RunValue]:
    """The score of each run from its parts by case, and its difference to the first run's."""
    for number, parts in enumerate(runs):
        sums = _by_subject(parts, cases, score)
        yield RunValue(
            value=ratio(float(sums[0].sum()), float(sums[1].sum())),
            interval=ratio_interval(*sums),
            n=int(sums[1].sum()),
            difference=_difference(parts, runs[0], cases, score) if number else None,
        )


def _difference(
    run: Sequence[Parts | None], baseline: Sequence[Parts | None], cases: Sequence[CaseScores], score: _Score
) -> Difference:
    """The paired difference over the cases in which both are defined."""
    both = [i for i, pair in enumerate(zip(run, baseline, strict=True)) if None not in pair]
    kept = [cases[i] for i in both]
    sides = [_by_subject([side[i] for i in both], kept, score) for side in (run, baseline)]
    values = [ratio(float(parts.sum()), float(wholes.sum())) for parts, wholes in sides]
    value = None if values[0] is None or values[1] is None else values[0] - values[1]
    interval = difference_interval(*sides) if value is not None else None
    return Difference(value, interval, int(sides[0][1].sum()), _verdict(interval, score.lower_is_better))


def _by_subject(
    parts: Sequence[Parts | None], cases: Sequence[CaseScores], score: _Score
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of the parts of each subject (S,), in the order of the subjects."""
    subjects = sorted({case.subject for case in cases})
    sums = np.zeros((2, len(subjects)))
    for case, part in zip(cases, parts, strict=True):
        if part is not None:
            sums[:, subjects.index(case.subject)] += part
    return sums[0], np.ones(len(subjects)) if score.is_per_subject else sums[1]


def _verdict(interval: Interval | None, lower_is_better: bool) -> Verdict:
    if interval is None:
        return "no interval"
    if interval.low <= 0 <= interval.high:
        return "no difference shown"
    return "better" if (interval.high < 0) == lower_is_better else "worse"


def _remarks(runs: Sequence[ScoredRun], n_common: int, n_labelled: int, n_subjects: int) -> Iterator[str]:
    if n := len({case.name for run in runs for case in run.cases}) - n_common:
        yield f"only the cases that all runs have are compared: {n} left out"
    if n := n_common - n_labelled:
        yield f"{n} of {n_common} cases have no labelled voxel: left out"
    if n_subjects == 1:
        yield "one subject only: no intervals, they say how subjects differ"
    else:
        yield "intervals say how subjects differ, not how a second training of the same run would"
