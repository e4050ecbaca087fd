"""Whether a dense CRF helps what was found to be best: tried on the same out-of-fold cases, and left out in doubt.

The settings are a plain grid. Each is judged exactly, by one pass over the cases; a search that asks for
points one after the other (Bayesian optimisation, as the authors of RS-RCNN did) would tell apart settings that
a handful of lesions cannot, and would add a dependency.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pwmlunet.errors import PwmlError
from pwmlunet.inference.calibration import Calibration, Score, because, calibrate, difference_of
from pwmlunet.inference.candidates import THRESHOLDS, CaseTable, tabulate_case
from pwmlunet.inference.choosing import Wish, check, choose_point, refusal
from pwmlunet.inference.counting import Counts, Grid, count, leave_out, make_grid
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.refining import SeenImage
from pwmlunet.inference.runs import Run, facts_of, out_of_fold, tabulate_cases
from pwmlunet.inference.temperature import find_temperature
from pwmlunet.networks.dense_crf import DenseCrfConfig

WEIGHTS = (1.0, 0.3, 0.1)
"""Shares of the paper's weights: where pixels are larger than the paper's, its full weights can erase real lesions."""

INTENSITIES = (1.0, 2.0)
"""Times the paper's deviation of intensities."""


@dataclass(frozen=True, eq=False)
class _Tried:
    """One setting and what every subject has with it at every point."""

    config: DenseCrfConfig
    tables: list[CaseTable]
    grid: Grid
    counts: Counts


def try_crf(
    group: tuple[Run, ...],
    without: Calibration,
    score: Score,
    *,
    name: str,
    wish: Wish | None = None,
    smallest_lesion_mm3: float = 0.0,
) -> Postprocessing:
    """The settings with the best CRF where it is better for certain, else those without; what was tried is in the reasons.

    Args:
        group: The runs that predict together.
        without: How they were calibrated.
        score: What is compared, as a mean over subjects; `name` is its name.
        name: For the reasons.
        wish: What the point shall promise.
        smallest_lesion_mm3: Of the plans.
    """
    if words := refusal(without.nested):
        return because(without.postprocessing, f"no CRF was tried: {words}")
    tried = _try(group, settings(_pixels_mm(group)), smallest_lesion_mm3)
    best, nested = _choose(tried, score, wish)
    difference, interval = difference_of(score(nested), score(without.nested))
    figures = f"{name} {difference:+.2f}" + (
        f" [{interval.low:+.2f}, {interval.high:+.2f}]" if interval else ""
    )
    words = f"a dense CRF was tried ({len(tried)} settings, chosen by the other subjects): {figures}"
    if interval is None or interval.low <= 0:
        return because(without.postprocessing, f"{words}, left out")
    try:
        found = calibrate(tried[best].tables, wish, smallest_lesion_mm3=smallest_lesion_mm3, nested=nested)
    except PwmlError as error:  # it keeps the wish without
        return because(without.postprocessing, f"{words}, left out: {error}")
    return because(replace(found.postprocessing, crf=tried[best].config), f"{words}, taken")


def settings(pixels_mm: Sequence[float]) -> list[DenseCrfConfig]:
    """The CRFs that are tried, for each size of a pixel: the paper's first, then with wider intensities and weaker weights."""
    return [
        replace(
            paper,
            smooth_weight=paper.smooth_weight * weight,
            alike_weight=paper.alike_weight * weight,
            alike_intensity=paper.alike_intensity * intensity,
        )
        for paper in (DenseCrfConfig.of_paper((side, side)) for side in pixels_mm)
        for weight, intensity in product(WEIGHTS, INTENSITIES)
    ]


def _pixels_mm(group: tuple[Run, ...]) -> list[float]:
    """The side of a pixel of the prepared grid, then of the cases' own, as medians; one where they are alike.

    Where heads are enlarged, the prepared grid is near the paper's.
    """
    ways = [facts_of(group[0], name).way_back for name in group[0].files]
    own = ([w.geometry.spacing_zyx_mm[axis] for axis in w.orientation.order[1:]] for w in ways)
    grids = ((w.spacing_zyx_mm[1:] for w in ways), own)
    sides = [np.median([math.sqrt(y * x) for y, x in grid]) for grid in grids]
    return list(dict.fromkeys(float(f"{side:.2g}") for side in sides))


def _try(
    group: tuple[Run, ...], configs: Sequence[DenseCrfConfig], smallest_lesion_mm3: float
) -> list[_Tried]:
    def tabulate(name: str) -> list[CaseTable]:
        (case,) = out_of_fold(name, group, [group])
        prepared = group[0].store.read(name)
        seen = SeenImage.of_prepared(prepared.image, prepared.facts.way_back)
        refined = (seen.refine(case.probability, config, *THRESHOLDS) for config in configs)
        return [tabulate_case(replace(case, probability=p), group[0].model.labels) for p in refined]

    tried = []
    for config, tables in zip(configs, tabulate_cases(group[0], tabulate), strict=True):
        grid = make_grid(tables, find_temperature(tables).value, smallest_lesion_mm3)
        tried.append(_Tried(config, tables, grid, count(tables, grid)))
    return tried


def _choose(tried: Sequence[_Tried], score: Score, wish: Wish | None) -> tuple[int, Counts]:
    """Number of the best setting, and the counts of each subject by the setting and point that the others choose.

    Settings that cannot keep the wish are left out where others can.
    """
    subjects = tried[0].counts.subjects

    def choose(some: NDArray[np.int64]) -> tuple[int, int]:
        points, values, able = [], [], []
        for one in tried:
            counts = one.counts.of(some)
            points.append(choose_point(counts, one.grid, wish))
            part, whole = score(counts.at(np.full(len(some), points[-1])))
            values.append(part.sum() / max(whole.sum(), 1))
            able.append(_keeps(counts, one.grid, points[-1], wish))
        best = max(range(len(tried)), key=lambda i: (able[i], values[i]))
        return best, points[best]

    by_others = leave_out(len(subjects), choose)  # (S, 2)
    columns = [
        tried[s].counts.at(np.full(len(subjects), p)).of(np.array([i])) for i, (s, p) in enumerate(by_others)
    ]
    return choose(np.arange(len(subjects)))[0], _side_by_side(columns)


def _keeps(counts: Counts, grid: Grid, point: int, wish: Wish | None) -> bool:
    """Whether a point keeps the wish; one that nobody made is kept."""
    if wish:
        try:
            check(counts, grid, point, wish)
        except PwmlError:
            return False
    return True


def _side_by_side(columns: Sequence[Counts]) -> Counts:
    """The counts of single subjects as those of all."""
    fields = ("n_cases", "n_reference", "n_found", "n_predicted", "overlap", "both_sizes")
    joined = (np.concatenate([getattr(column, field) for column in columns], axis=-1) for field in fields)
    return Counts(tuple(column.subjects[0] for column in columns), *joined)
