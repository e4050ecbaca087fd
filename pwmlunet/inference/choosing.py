"""Choosing a point from the counts of out-of-fold cases, by lesion F1 or by a wish; the default in doubt."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.bootstrap import N_RESAMPLES, Interval, resample
from pwmlunet.inference.counting import Counts, Grid, leave_out

LEAST_SUBJECTS = 3
LEAST_LESIONS = 10
"""Where fewer subjects with lesions, or fewer lesions, choose for another subject, nothing is chosen."""

N_STANDARD_ERRORS = 1.5
"""By how many standard errors the best point must beat a point nearer to the default.

A gain that comes from one subject is 1.0 to 1.1 of its own standard errors, however large it is: one subject
shall not decide. In simulations of 6 to 30 subjects the point was worse than the default by more than .02 F1
in 1 to 5 % of draws with 1.5, in 3 to 11 % with 1, in 13 to 25 % without the rule.
"""

_N_RESAMPLES = 200  # enough for a standard error (Efron & Tibshirani 1993, section 6.4)
_TIE = 1e-9


@dataclass(frozen=True)
class Wish(Config):
    """A promise that the point shall keep; one of the two."""

    at_most_false_positives: float | None = None
    """A case, on average."""
    at_least_recall: float | None = None
    """Of all lesions together, from 0 to 1."""

    def problems(self) -> Iterator[str]:
        """Wishes that cannot be meant."""
        if (self.at_most_false_positives is None) == (self.at_least_recall is None):
            yield "wish for at_most_false_positives or for at_least_recall, not for both"
        if self.at_most_false_positives is not None and self.at_most_false_positives < 0:
            yield f"at_most_false_positives cannot be negative, not {self.at_most_false_positives:g}"
        if self.at_least_recall is not None and not 0 < self.at_least_recall < 1:
            yield f"at_least_recall must be between 0 and 1, not {self.at_least_recall:g}"

    def __str__(self) -> str:
        if self.at_most_false_positives is not None:
            return f"at most {self.at_most_false_positives:g} false positives a case"
        return f"recall of at least {self.at_least_recall:g}"


def choose(counts: Counts, grid: Grid, wish: Wish | None) -> tuple[int, NDArray[np.int64]]:
    """Number of the point, and of that which the others choose for each subject (S,).

    Both are the default where the data cannot carry a choice.
    """
    n = len(counts.subjects)
    if refusal(counts):
        return grid.default, np.full(n, grid.default)
    return choose_point(counts, grid, wish), leave_out(
        n, lambda others: choose_point(counts.of(others), grid, wish)
    )


def choose_point(counts: Counts, grid: Grid, wish: Wish | None) -> int:
    """Number of the point, whether the data can carry a choice or not."""
    return _by_wish(counts, grid, wish) if wish else _by_f1(counts, grid)


def refusal(counts: Counts) -> str:
    """Why nothing is chosen; empty where something is, and the others can choose for every subject too."""
    n_lesions = counts.n_reference
    n_others = leave_out(len(n_lesions), lambda others: np.count_nonzero(n_lesions[others]))
    theirs = leave_out(len(n_lesions), lambda others: n_lesions[others].sum())
    if n_others.min() >= LEAST_SUBJECTS and theirs.min() >= LEAST_LESIONS:
        return ""
    return (
        f"{n_lesions.sum():g} lesions in {np.count_nonzero(n_lesions)} subjects are too few to choose from "
        f"(whoever is left out, {LEAST_LESIONS} lesions in {LEAST_SUBJECTS} subjects must remain)"
    )


def _by_f1(counts: Counts, grid: Grid) -> int:
    """The point nearest to the default of those whose F1 cannot be told from the best one's.

    The one-standard-error rule (Breiman et al. 1984, section 3.4.3), with the bootstrap's standard error of
    the difference, over subjects.
    """
    f1 = pooled_f1(counts)
    best = _nearest(grid, f1 >= f1.max() - _TIE, f1)
    return _nearest(grid, f1[best] - f1 <= N_STANDARD_ERRORS * _errors(counts, best) + _TIE, f1)


def _nearest(grid: Grid, able: NDArray[np.bool_], score: NDArray[np.float64]) -> int:
    """The point nearest to the default of those able; of equally near ones that of the highest score."""
    order = np.lexsort((-score, grid.distances.round(9)))
    return int(order[able[order]][0])


def pooled_f1(counts: Counts) -> NDArray[np.float64]:
    """Of all lesions together (P,); 0 where there are none."""
    parts, wholes = f1_sums(counts)
    return _ratio(parts.sum(1), wholes.sum(1))


def f1_sums(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Part and whole of F1 (P, S)."""
    return 2 * counts.n_found, counts.n_predicted + counts.n_reference


def _ratio(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(parts, wholes, out=np.zeros_like(parts), where=wholes > 0)


def _resampled_f1(counts: Counts, n_resamples: int = N_RESAMPLES) -> NDArray[np.float64]:
    """(R, P) over resampled subjects."""
    weights = resample(len(counts.subjects), n_resamples)
    parts, wholes = f1_sums(counts)
    return _ratio(weights @ parts.T, weights @ wholes.T)


def _errors(counts: Counts, best: int) -> NDArray[np.float64]:
    """Standard error (P,) of each point's F1 difference to the best one."""
    f1 = _resampled_f1(counts, _N_RESAMPLES)
    return np.asarray((f1[:, [best]] - f1).std(0))


def best_threshold(counts: Counts, grid: Grid) -> Interval | None:
    """Between which the threshold of the highest F1 lies, of points equally good that nearest to the default.

    None with one subject.
    """
    if len(counts.subjects) < 2:
        return None
    winners = (_resampled_f1(counts) - _TIE * grid.distances).argmax(1)
    low, high = np.percentile([grid.points[i].threshold for i in winners], (2.5, 97.5), method="nearest")
    return Interval(float(low), float(high))


def _by_wish(counts: Counts, grid: Grid, wish: Wish) -> int:
    """The best point of those that keep the wish, or that come nearest to it where none does."""
    risk, limit = _risk(counts, wish)
    able = risk <= max(limit, risk.min()) + _TIE
    n_found, n_false = counts.n_found.sum(1), (counts.n_predicted - counts.n_found).sum(1)
    score = -n_false if wish.at_least_recall is not None else n_found
    return _nearest(grid, able & (score >= score[able].max()), score)


def _risk(counts: Counts, wish: Wish) -> tuple[NDArray[np.float64], float]:
    """What each point (P,) risks, and what the wish allows.

    As if one more false positive had been counted, or one lesion more been missed. That is a little more
    than conformal risk control asks for (Angelopoulos et al. 2024, eq. 4, with a loss of at most 1).
    """
    if wish.at_most_false_positives is not None:
        n_false = (counts.n_predicted - counts.n_found).sum(1)
        return (n_false + 1) / counts.n_cases.sum(), wish.at_most_false_positives
    assert wish.at_least_recall is not None
    n_missed = (counts.n_reference - counts.n_found).sum(1)
    return (n_missed + 1) / counts.n_reference.sum(), 1 - wish.at_least_recall


def is_kept(counts: Counts, wish: Wish) -> bool:
    """Whether counts at one point keep the wish as they are, with nothing counted for safety."""
    n_found = counts.n_found.sum()
    if wish.at_most_false_positives is not None:
        n_allowed = wish.at_most_false_positives * counts.n_cases.sum()
        return bool(counts.n_predicted.sum() - n_found <= n_allowed + _TIE)
    return bool(n_found >= (wish.at_least_recall or 0) * counts.n_reference.sum() - _TIE)


def check(counts: Counts, grid: Grid, chosen: int, wish: Wish) -> None:
    """Raises PwmlError where the point does not keep the wish."""
    if words := refusal(counts):
        raise PwmlError(f"{wish}: {words}; leave the wish out, or train on more")
    risk, limit = _risk(counts, wish)
    if risk[chosen] <= limit + _TIE:
        return
    n = f"{counts.n_cases.sum():g} cases with {counts.n_reference.sum():g} lesions"
    if wish.at_most_false_positives is not None:
        best = f"{risk[chosen]:.2g} false positives a case"
    else:
        best = f"a recall of {1 - risk[chosen]:.3g}"
    raise PwmlError(f"{wish} cannot be promised from {n}: the best that can is {best}, with one more counted for safety")  # fmt: skip


def reasons(counts: Counts, grid: Grid, chosen: int, wish: Wish | None) -> Iterator[str]:
    """Why the point is as it is."""
    if words := refusal(counts):
        yield f"{words}: the default stays"
    elif wish:
        risk, _ = _risk(counts, wish)
        kept = (
            f"{risk[chosen]:.2f} false positives a case"
            if wish.at_least_recall is None
            else f"a recall of {1 - risk[chosen]:.2f}"
        )
        aim = "highest recall" if wish.at_least_recall is None else "fewest false positives"
        yield f"{grid.points[chosen].in_words()} has the {aim} of the points that keep it: {kept}, with one more counted for safety"
    else:
        yield _reason_of_f1(counts, grid, chosen)


def _reason_of_f1(counts: Counts, grid: Grid, chosen: int) -> str:
    f1 = pooled_f1(counts)
    best = _nearest(grid, f1 >= f1.max() - _TIE, f1)
    error = float(_errors(counts, best)[chosen])
    tops, here = (f"{grid.points[i].in_words()} (F1 {f1[i]:.2f})" for i in (best, chosen))
    if chosen == best:
        default = f1[grid.default]
        return (
            f"no point has a higher F1 than the default, {here}"
            if chosen == grid.default
            else f"{here} is better than the default (F1 {default:.2f}), and no point nearer to it is as good"
        )
    stays = (
        "the default stays"
        if chosen == grid.default
        else "of the points it cannot tell apart, it is the nearest to the default"
    )
    return f"the data cannot tell {tops} from {here}, standard error {error:.2f}: {stays}"
