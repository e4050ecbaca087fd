"""Calibration: the point and the temperature that out-of-fold cases speak for, and how sure that is.

All targets share one point. It is chosen on the probabilities as the networks give them, on which it does
not depend on the temperature, and written for the calibrated ones. The figures are nested: a subject is
scored at the point that the other subjects chose. The networks themselves are those of an ordinary
cross-validation: the subjects that choose for a subject were predicted by networks that had seen it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pwmlunet.evaluation.bootstrap import Interval, difference_interval, ratio_interval
from pwmlunet.inference.candidates import CaseTable
from pwmlunet.inference.choosing import (
    Wish,
    best_threshold,
    check,
    choose,
    f1_sums,
    is_kept,
    pooled_f1,
    reasons,
)
from pwmlunet.inference.counting import Counts, Grid, count, make_grid
from pwmlunet.inference.postprocessing import Choice, Estimate, Figures, Postprocessing
from pwmlunet.inference.temperature import find_temperature

Score = Callable[[Counts], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Part and whole (S,) of what is compared, from counts at one point."""

FIXED_THRESHOLDS = (0.5, 0.7)
"""What the chosen point is set beside."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was chosen, and what each subject has where the others choose."""

    postprocessing: Postprocessing
    """The point, the temperature, and why."""
    nested: Counts
    """At one point (P is 1), which may be another for each subject."""


def calibrate(
    tables: Sequence[CaseTable],
    wish: Wish | None = None,
    *,
    smallest_lesion_mm3: float = 0.0,
    nested: Counts | None = None,
) -> Calibration:
    """The settings, by lesion F1 or by a wish, and the counts of each subject at the point that the others choose.

    Smaller components than the plan's smallest lesion are removed at every point. Where the others choose
    more than the point, `nested` is what each subject has by that.

    Raises:
        PwmlError: the wish cannot be kept: what can is said.
    """
    temperature = find_temperature(tables)
    grid = make_grid(tables, temperature.value, smallest_lesion_mm3)
    counts = count(tables, grid)
    chosen, by_others = choose(counts, grid, wish)
    if wish:
        check(counts, grid, chosen, wish)
    nested = nested or counts.at(by_others)
    fixed = {f"fixed {t:g}": _fixed(counts, grid, t) for t in FIXED_THRESHOLDS}
    choice = Choice(
        criterion=str(wish) if wish else "lesion F1",
        reasons=(*reasons(counts, grid, chosen, wish), *_remarks(tables, nested, wish)),
        n_subjects=len(counts.subjects),
        n_subjects_with_lesions=int(np.count_nonzero(counts.n_reference)),
        n_cases=len(tables),
        n_lesions=int(counts.n_reference.sum()),
        n_folds=len({t.fold for t in tables}),
        figures={"nested": _figures(nested), **{name: _figures(c) for name, c in fixed.items()}},
        f1_differences={name: _difference(nested, c) for name, c in fixed.items()},
        best_threshold=None if wish else best_threshold(counts, grid),
        ece_before=temperature.error_before,
        ece_after=temperature.error_after,
    )
    point = grid.points[chosen].at_temperature(temperature.value)
    return Calibration(replace(point, chosen=choice), nested)


def difference_of(
    first: tuple[NDArray[np.float64], NDArray[np.float64]],
    second: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> tuple[float, Interval | None]:
    """How much higher the first of two means is, each its parts and wholes by subject (S,), and the interval."""
    means = [part.sum() / max(whole.sum(), 1) for part, whole in (first, second)]
    return float(means[0] - means[1]), difference_interval(first, second)


def because(postprocessing: Postprocessing, reason: str) -> Postprocessing:
    """Chosen settings with one more reason."""
    chosen = postprocessing.chosen
    assert chosen is not None
    return replace(postprocessing, chosen=replace(chosen, reasons=(*chosen.reasons, reason)))


def _fixed(counts: Counts, grid: Grid, threshold: float) -> Counts:
    return counts.at(np.full(len(counts.subjects), grid.fixed(threshold)))


def _figures(counts: Counts) -> Figures:
    """The figures of counts at one point."""
    found, predicted, reference = counts.n_found[0], counts.n_predicted[0], counts.n_reference
    return Figures(
        f1=_estimate(2 * found, predicted + reference),
        recall=_estimate(found, reference),
        precision=_estimate(found, predicted),
        false_positives_per_case=_estimate(predicted - found, counts.n_cases),
    )


def _estimate(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> Estimate:
    value = float(parts.sum() / wholes.sum()) if wholes.any() else None
    return Estimate(value, ratio_interval(parts, wholes))


def _difference(first: Counts, second: Counts) -> Estimate:
    value = float(pooled_f1(first)[0] - pooled_f1(second)[0])
    (a, b), (c, d) = f1_sums(first), f1_sums(second)
    return Estimate(value, difference_interval((a[0], b[0]), (c[0], d[0])))


def _remarks(tables: Sequence[CaseTable], nested: Counts, wish: Wish | None) -> Iterator[str]:
    if wish and not is_kept(nested, wish):
        yield "the subjects that did not choose do not keep it (see the nested figures): do not rely on it"
    if len({t.fold for t in tables}) == 1:
        yield f"all cases are of fold {tables[0].fold}: how the networks of folds differ is not seen"
    if len({t.subject for t in tables}) == 1:
        yield "all cases are of one subject: there are no intervals"


def text(postprocessing: Postprocessing) -> str:
    """What was chosen, why, and the nested figures beside those of fixed thresholds, as lines to print."""
    choice = postprocessing.chosen
    if choice is None:
        return postprocessing.in_words()
    return "\n".join([
        f"calibrated by {choice.criterion}, from {choice.n_subjects} subjects ({choice.n_subjects_with_lesions} with lesions), "
        f"{choice.n_cases} cases, {choice.n_lesions} lesions, {choice.n_folds} folds",
        f"chosen: {postprocessing.in_words()} (pwml_predict takes other values, such as --threshold, all the same)",
        *(f"  {reason}" for reason in choice.reasons),
        *_of_temperature(postprocessing),
        "over all lesions together (nested: each subject at the point that the other subjects choose):",
        *_table(choice),
        *(f"nested F1 less {name}: {_shown(d, '+.2f')}" for name, d in choice.f1_differences.items()),
        *_of_threshold(choice.best_threshold),
        *_of_error(choice),
    ])  # fmt: skip


def _of_temperature(postprocessing: Postprocessing) -> Iterator[str]:
    if postprocessing.temperature != 1:
        yield "  points are compared before temperature, which changes what a probability means and not what is found"


def _table(choice: Choice) -> Iterator[str]:
    columns = {"F1": "f1", "recall": "recall", "precision": "precision", "false positives a case": "false_positives_per_case"}  # fmt: skip
    yield "".join(f"{title:<20}" for title in ("", *columns)).rstrip()
    for name, figures in choice.figures.items():
        cells = (_shown(getattr(figures, field), ".2f") for field in columns.values())
        yield "".join(f"{cell:<20}" for cell in (name, *cells)).rstrip()


def _shown(estimate: Estimate, form: str) -> str:
    if estimate.value is None:
        return "-"
    interval = estimate.interval
    spread = f" [{interval.low:{form}}, {interval.high:{form}}]" if interval else ""
    return f"{estimate.value:{form}}{spread}"


def _of_threshold(best: Interval | None) -> Iterator[str]:
    if best:
        yield f"with other subjects the best threshold would lie between {best.low:g} and {best.high:g}"


def _of_error(choice: Choice) -> Iterator[str]:
    if choice.ece_before is not None and choice.ece_after is not None:
        yield f"expected calibration error around lesions: {choice.ece_before:.3f}, with temperature {choice.ece_after:.3f} (nested)"
