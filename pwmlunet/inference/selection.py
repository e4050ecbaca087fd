"""Selection: which of a dataset's trained runs, or which of them together, predicts best, and at what point."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.workspace import Workspace
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.bootstrap import difference_interval, ratio_interval
from pwmlunet.inference.best import BEST, VERSION, Best, Candidate, Criterion, lines_of, name_of
from pwmlunet.inference.calibration import Calibration, because, calibrate, text
from pwmlunet.inference.candidates import CaseTable
from pwmlunet.inference.choosing import Wish, refusal
from pwmlunet.inference.correction_trial import (
    multiply_adds_of_correction,
    tabulate_corrected,
    write_either,
)
from pwmlunet.inference.counting import Counts
from pwmlunet.inference.crf_trial import try_crf
from pwmlunet.inference.judged import is_corrected
from pwmlunet.inference.model import TrainedModel
from pwmlunet.inference.postprocessing import SETTINGS, Postprocessing, write_settings
from pwmlunet.inference.runs import (
    Run,
    comparable_runs,
    gather_runs,
    groups_of,
    multiply_adds,
    tabulate_groups,
)

_TIE = 1e-6


@dataclass(frozen=True)
class Found:
    """What `find_best` found and wrote."""

    best: Best
    postprocessing: Postprocessing
    text: str
    """To be printed."""


def find_best(
    workspace: Workspace,
    dataset: str,
    *,
    criterion: Criterion = "lesion_f1",
    wish: Wish | None = None,
    runs: Sequence[str] | None = None,
    crf: bool = False,
) -> Found:
    """The best of the trained runs, all pairs of them and all together, calibrated, and written down.

    Args:
        workspace: Where the runs and the preprocessed cases are.
        dataset: Number or name.
        criterion: What is compared.
        wish: What the point shall promise; lesion F1 chooses it otherwise.
        runs: Names of the runs to compare; all by default.
        crf: Whether to try dense CRFs on what is best, and keep one that helps for certain.

    Raises:
        PwmlError: there is no run to compare, a file of one is damaged, or the wish cannot be kept.
    """
    prepared = workspace.find_preprocessed(dataset)
    folder = workspace.results / prepared.name
    comparable, left_out = comparable_runs(gather_runs(folder, prepared, runs))
    groups = groups_of(comparable)
    plain = [_Contender(g, t) for g, t in zip(groups, tabulate_groups(comparable, groups), strict=True)]
    corrected, remarks = _corrected(comparable)
    calibrations, kept, unable = _calibrate_all([*plain, *corrected], wish)
    _write_either(kept, calibrations)
    candidates = _judge(kept, calibrations, criterion)
    chosen, reason = _pick(candidates)
    names = candidates[chosen].runs
    postprocessing = calibrations[chosen].postprocessing
    if crf and not postprocessing.correction:
        postprocessing = try_crf(
            kept[chosen].group,
            calibrations[chosen],
            partial(sums_of, criterion=criterion),
            name=criterion,
            wish=wish,
            smallest_lesion_mm3=kept[chosen].smallest_lesion_mm3,
        )
    elif crf:
        postprocessing = because(postprocessing, "no CRF was tried: a correction judges what networks say, not what a CRF makes of it")  # fmt: skip
    file = SETTINGS if len(names) > 1 else f"{names[0]}/{SETTINGS}"
    ranked = tuple(sorted(candidates, key=_rank))
    reasons = (reason, *unable, *remarks, *left_out)
    best = Best(VERSION, names, file, criterion, reasons, ranked, postprocessing.correction)
    write_settings(folder / file, postprocessing, TrainedModel.open(folder / names[0]).unchosen)
    best.write(folder / BEST)
    closing = f"written to {folder / BEST} and {folder / file}: pwml_predict uses it from now on"
    return Found(best, postprocessing, "\n".join([*lines_of(best), text(postprocessing), closing]))


@dataclass(frozen=True, eq=False)
class _Contender:
    """Runs that predict together, or one with its correction, and what is in their held-out cases."""

    group: tuple[Run, ...]
    tables: list[CaseTable]
    correction: bool = False

    @property
    def name(self) -> str:
        """The runs' names."""
        return name_of([run.name for run in self.group], self.correction)

    @property
    def smallest_lesion_mm3(self) -> float:
        """The smallest lesion of the runs' plans, the largest where they differ."""
        return max(run.model.plan.smallest_lesion_mm3 for run in self.group)


def _corrected(runs: Sequence[Run]) -> tuple[list[_Contender], list[str]]:
    """The runs with their corrections, and what is to be said of the others."""
    contenders, remarks = [], []
    for run in runs:
        if is_corrected(run.model):
            try:
                contenders.append(_Contender((run,), tabulate_corrected(run), correction=True))
            except PwmlError as error:
                remarks.append(f"{run.name} is not corrected: {error}")
        if not run.model.names_kinds:
            remarks.append(f"{run.name} names no kind of lesion: all count as the first, unless a correction names them, and it is in no ensemble")  # fmt: skip
    return contenders, remarks


def _calibrate_all(
    contenders: Sequence[_Contender], wish: Wish | None
) -> tuple[list[Calibration], list[_Contender], list[str]]:
    """The calibrations of those that can keep the wish, these, and why the others cannot."""
    calibrations, kept, problems = [], [], []
    for contender in contenders:
        try:
            found = calibrate(contender.tables, wish, smallest_lesion_mm3=contender.smallest_lesion_mm3)
        except PwmlError as error:
            problems.append(f"{contender.name}: {error}")
            continue
        if contender.correction and (words := refusal(found.nested)):
            problems.append(f"{contender.name}: {words}")
            continue
        settings = replace(found.postprocessing, correction=contender.correction)
        calibrations.append(replace(found, postprocessing=settings))
        kept.append(contender)
    if not kept:
        raise PwmlError.listing("nothing keeps the wish", problems)
    return calibrations, kept, problems


def _write_either(contenders: Sequence[_Contender], calibrations: Sequence[Calibration]) -> None:
    """Writes how masks of corrected runs are made with and without their correction, for who asks for either."""
    corrected = {contender.group for contender in contenders if contender.correction}
    for contender, found in zip(contenders, calibrations, strict=True):
        if contender.group in corrected:
            write_either(contender.group[0].model, found.postprocessing)


def _judge(
    contenders: Sequence[_Contender], calibrations: Sequence[Calibration], criterion: Criterion
) -> list[Candidate]:
    """The candidates, in the order of the contenders."""
    sums = [sums_of(c.nested, criterion) for c in calibrations]
    dices = [_mean_of(sums_of(c.nested, "dice")) for c in calibrations]
    values = [_mean_of(s) for s in sums]
    top = min(range(len(values)), key=lambda i: (-_rounded(values[i]), -_rounded(dices[i])))
    costs = {run.name: multiply_adds(run) for contender in contenders for run in contender.group}
    return [
        Candidate(
            runs=tuple(run.name for run in contender.group),
            correction=contender.correction,
            multiply_adds_per_voxel=float(f"{_cost(contender, costs):.4g}"),
            value=values[i],
            interval=ratio_interval(*sums[i]),
            dice=dices[i],
            false_positives_per_clean_subject=_false_positives(calibrations[i].nested),
            difference=_less(values[top], values[i]),
            difference_interval=difference_interval(sums[top], sums[i]),
        )
        for i, contender in enumerate(contenders)
    ]


def _cost(contender: _Contender, costs: Mapping[str, float]) -> float:
    """Multiply-adds a voxel of the runs, and of the correction."""
    runs = sum(costs[run.name] for run in contender.group)
    return runs + (multiply_adds_of_correction(contender.group[0]) if contender.correction else 0)


def sums_of(counts: Counts, criterion: Criterion) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each subject's score (S,), and whether it has one: those with lesions, so that all runs are judged on the same."""
    parts, wholes = {
        "lesion_f1": (2 * counts.n_found[0], counts.n_predicted[0] + counts.n_reference),
        "lesion_recall": (counts.n_found[0], counts.n_reference),
        "dice": (counts.overlap[0], counts.both_sizes[0]),
    }[criterion]
    defined = (counts.n_reference > 0).astype(np.float64)
    return defined * parts / np.maximum(wholes, 1), defined


def _false_positives(counts: Counts) -> float | None:
    """Predicted lesions of a clean subject, on average."""
    clean = counts.n_reference == 0
    return float(counts.n_predicted[0, clean].mean()) if clean.any() else None


def _mean_of(sums: tuple[NDArray[np.float64], NDArray[np.float64]]) -> float | None:
    scores, defined = sums
    return float(scores.sum() / defined.sum()) if defined.any() else None


def _less(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _rounded(value: float | None) -> float:
    """What ties are told by."""
    return -1.0 if value is None else round(value / _TIE) * _TIE


def _rank(candidate: Candidate) -> tuple[float, float, float]:
    """The highest value first, then the highest Dice, then the cheapest."""
    return -_rounded(candidate.value), -_rounded(candidate.dice), candidate.multiply_adds_per_voxel


def _pick(candidates: Sequence[Candidate]) -> tuple[int, str]:
    """The cheapest candidate that cannot be told from the best, and why in words."""
    order = sorted(range(len(candidates)), key=lambda i: _rank(candidates[i]))
    top = order[0]
    if candidates[top].value == 0:
        return top, "no candidate finds a lesion of the held-out cases: train longer"
    if len(candidates) == 1:
        return top, f"{candidates[top].name} is the only run: nothing was compared"
    able = [i for i in order if i == top or _cannot_tell(candidates[i])]
    chosen = min(able, key=lambda i: (candidates[i].multiply_adds_per_voxel, order.index(i)))
    return chosen, _reason(candidates, top, chosen)


def _cannot_tell(candidate: Candidate) -> bool:
    interval = candidate.difference_interval
    return interval is None or interval.low <= 0 <= interval.high


def _reason(candidates: Sequence[Candidate], top: int, chosen: int) -> str:
    best, taken = candidates[top], candidates[chosen]
    name = taken.name
    if chosen == top:
        return f"{name} has the highest value of the candidates, and nothing cheaper comes within its uncertainty"
    interval, gap = taken.difference_interval, taken.difference or 0.0
    cheaper = f"cheaper ({taken.multiply_adds_per_voxel:,.0f} against {best.multiply_adds_per_voxel:,.0f} multiply-adds a voxel)"
    if gap <= _TIE:
        return f"{name} is as good as {best.name}, and {cheaper}"
    if interval is None:
        return f"{best.name} has the highest value; with one subject nobody can tell whether that is noise, and {name} is {cheaper}"
    return (
        f"{best.name} has the highest value, but its difference to {name}, {gap:.2f} "
        f"[{interval.low:.2f}, {interval.high:.2f}], may be noise, and {name} is {cheaper}"
    )
