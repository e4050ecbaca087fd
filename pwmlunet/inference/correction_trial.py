"""Whether a run's correction helps: held-out cases with it beside the same without, and left out in doubt."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.inference.calibration import Calibration, Score, because, calibrate, difference_of
from pwmlunet.inference.candidates import CaseTable, tabulate_case
from pwmlunet.inference.choosing import refusal
from pwmlunet.inference.correction import CORRECTION, DESCRIPTION, Correction
from pwmlunet.inference.counting import count, make_grid
from pwmlunet.inference.judged import Judged, corrected_out_of_fold
from pwmlunet.inference.model import TrainedModel
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.runs import Run, facts_of, tabulate_cases, tabulate_groups

WITH, WITHOUT = f"{CORRECTION}/with.json", f"{CORRECTION}/without.json"
"""In a run's folder, how masks are made with its correction and without: pwml_predict takes either."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Stage one alone and corrected, each calibrated on the same held-out cases."""

    without: Calibration
    corrected: Calibration
    difference: float
    """How much higher the corrected score is, each subject at the point that the others choose."""
    interval: Interval | None
    """Of the difference, paired by subject."""
    equal_recall: tuple[Postprocessing, Postprocessing] | None
    """Without and with, the points with the fewest false lesions of those that find as many as stage one does at its own.

    Both are chosen on the cases that they will be counted on. None where there are no such points.
    """
    refused: str
    """Why nothing can be chosen from so few lesions; empty where it can."""
    verdict: str
    """In words, whether the correction is taken, and why."""

    @property
    def helps(self) -> bool:
        """Whether the correction is better for certain."""
        return not self.refused and self.interval is not None and self.interval.low > 0

    @property
    def chosen(self) -> Postprocessing:
        """The settings of the better one, with the verdict among their reasons."""
        taken = self.corrected if self.helps else self.without
        return because(taken.postprocessing, self.verdict)

    def write(self, model: TrainedModel) -> None:
        """Writes the settings with the correction and without into the run's folder."""
        for found in (self.corrected, self.without):
            write_either(model, found.postprocessing)


def try_correction(
    run: Run,
    score: Score,
    *,
    name: str,
    smallest_lesion_mm3: float = 0.0,
) -> Trial:
    """A run's correction on trial.

    Args:
        run: A run with a correction.
        score: What is compared, as a mean over subjects; `name` is its name.
        name: For the verdict.
        smallest_lesion_mm3: Of the plan.

    Raises:
        PwmlError: stage one was trained again since, or files are damaged.
    """
    (plain,) = tabulate_groups([run], [(run,)])
    tables = tabulate_corrected(run)
    without = calibrate(plain, smallest_lesion_mm3=smallest_lesion_mm3)
    found = calibrate(tables, smallest_lesion_mm3=smallest_lesion_mm3)
    corrected = replace(found, postprocessing=replace(found.postprocessing, correction=True))
    difference, interval = difference_of(score(corrected.nested), score(without.nested))
    return Trial(
        without,
        corrected,
        difference,
        interval,
        _at_equal_recall(plain, tables, without, smallest_lesion_mm3),
        refused := refusal(without.nested),
        _verdict(name, difference, interval, refused),
    )


def tabulate_corrected(run: Run) -> list[CaseTable]:
    """The tables of a run's held-out cases after its correction.

    Raises:
        PwmlError: a case was not judged, stage one was trained again since, or a file is damaged.
    """
    judged, labels = Judged.of_run(run.model), run.model.labels
    (tables,) = tabulate_cases(run, lambda name: [tabulate_case(corrected_out_of_fold(run, name, judged), labels)])  # fmt: skip
    return tables


def _verdict(name: str, difference: float, interval: Interval | None, refused: str) -> str:
    spread = f" [{interval.low:+.2f}, {interval.high:+.2f}]" if interval else ""
    words = f"the correction changes {name} by {difference:+.2f}{spread}"
    if refused:
        return f"{words}: left out, {refused}"
    if interval is None:
        return f"{words}: left out, one subject does not tell"
    return f"{words}: {'taken' if interval.low > 0 else 'left out, it is not better for certain'}"


def _at_equal_recall(
    plain: list[CaseTable], corrected: list[CaseTable], without: Calibration, smallest_lesion_mm3: float
) -> tuple[Postprocessing, Postprocessing] | None:
    n_least = without.nested.n_found.sum()
    first, second = (_fewest_false(tables, n_least, smallest_lesion_mm3) for tables in (plain, corrected))
    return None if first is None or second is None else (first, replace(second, correction=True))


def _fewest_false(
    tables: list[CaseTable], n_least: float, smallest_lesion_mm3: float
) -> Postprocessing | None:
    """The point with the fewest false lesions of those that find so many; None where none does, or nothing is found."""
    grid = make_grid(tables, smallest_lesion_mm3=smallest_lesion_mm3)
    counts = count(tables, grid)
    n_found, n_predicted = counts.n_found.sum(1), counts.n_predicted.sum(1)
    able = np.flatnonzero(n_found >= n_least)
    if not n_least or not len(able):
        return None
    order = np.lexsort((grid.distances[able], -n_found[able], (n_predicted - n_found)[able]))
    return grid.points[int(able[order[0]])]


def multiply_adds_of_correction(run: Run) -> float:
    """What judging the candidates of a case costs, for each voxel of the image, on average over the held-out cases."""
    correction = Correction.read(run.model.folder / CORRECTION / DESCRIPTION)
    side, n_seen = correction.network.region_pixels, len(correction.network.channels or range(correction.n_channels))  # fmt: skip
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        shape = (1, correction.network.n_views, n_seen + correction.network.n_maps, side, side)
        correction.build().eval()(torch.empty(shape))
    cases = Judged.of_run(run.model).cases
    n_candidates = sum(len(case.candidates) for case in cases.values())
    n_voxels = sum(math.prod(facts_of(run, name).way_back.geometry.shape_zyx) for name in cases)
    return float(counter.get_total_flops()) / 2 * n_candidates / max(n_voxels, 1)


def write_either(model: TrainedModel, settings: Postprocessing) -> None:
    """Writes settings with the correction, or without, into the run's folder."""
    settings.write(model.folder / (WITH if settings.correction else WITHOUT))


def other_settings(model: TrainedModel, *, corrected: bool) -> Postprocessing:
    """How masks of a run are made with its correction or without, whichever was found to be better.

    Raises:
        PwmlError: there is no correction, or its settings are missing.
    """
    path = model.folder / (WITH if corrected else WITHOUT)
    if not path.is_file():
        raise PwmlError(f"{path} is missing, which says how: run pwml_train_correction, or copy the model again")  # fmt: skip
    return Postprocessing.read(path)
