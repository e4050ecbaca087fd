"""What a correction is worth: the trial on held-out cases, the settings that follow from it, and its page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pwmlunet.data.workspace import Workspace
from pwmlunet.evaluation.comparison import ScoreComparison, compare
from pwmlunet.evaluation.runs import ScoredRun
from pwmlunet.evaluation.scores import CaseScores, score_case
from pwmlunet.inference.best import read_best
from pwmlunet.inference.calibration import text
from pwmlunet.inference.candidate_classes import UNKNOWN
from pwmlunet.inference.candidate_regions import cut_regions, find_candidates
from pwmlunet.inference.correction import CORRECTION, DESCRIPTION, Correction
from pwmlunet.inference.correction_trial import Trial, try_correction
from pwmlunet.inference.judged import correct_case
from pwmlunet.inference.model import TrainedModel
from pwmlunet.inference.postprocessing import SETTINGS, Postprocessing, write_settings
from pwmlunet.inference.runs import Run, facts_of, gather_runs, out_of_fold
from pwmlunet.inference.selection import sums_of
from pwmlunet.report.correction import (
    CandidatePicture,
    CorrectionPage,
    ShownCandidate,
    ThresholdPoint,
    worth_showing,
    write_correction_page,
)
from pwmlunet.training.correction import Corrected

PAGE = "report.html"
"""In the correction's folder."""

_CRITERION: Literal["lesion_f1"] = "lesion_f1"
_SCORES = ("lesion_f1", "lesion_recall", "lesion_precision", "false_positives_per_subject", "dice")


@dataclass(frozen=True)
class Outcome:
    """What a correction is worth."""

    trial: Trial
    page: Path
    """The page that was written."""
    text: str
    """To be printed."""


def conclude(workspace: Workspace, dataset: str, corrected: Corrected) -> Outcome:
    """Tries a correction on the held-out cases and uses it from now on where it helps.

    Raises:
        PwmlError: files of the run are damaged.
    """
    run = _held_out(workspace, dataset, corrected)
    model = run.model
    smallest = model.plan.smallest_lesion_mm3
    score = partial(sums_of, criterion=_CRITERION)
    trial = try_correction(run, score, name=_CRITERION, smallest_lesion_mm3=smallest)
    trial.write(model)
    page = model.folder / CORRECTION / PAGE
    write_correction_page(page, _page(run, corrected, trial))
    lines = [*_thresholds(corrected), text(trial.chosen), *_settle(model, trial), f"pictures in {page}"]
    return Outcome(trial, page, "\n".join(lines))


def _settle(model: TrainedModel, trial: Trial) -> Iterator[str]:
    """Writes the settings that follow, and says what predictions will be made with."""
    path = model.folder / SETTINGS
    before = model.postprocessing
    if not (trial.helps or before.correction or before == model.unchosen):
        yield f"{path} stays as it is"
        return
    write_settings(path, trial.chosen, model.unchosen)
    kept = f" (the former settings: {SETTINGS}.old)" if before not in (model.unchosen, trial.chosen) else ""  # fmt: skip
    yield f"written to {path}{kept}"
    best = read_best(model.folder.parent)
    if best and best.runs != (model.folder.name,):
        yield f"pwml_predict uses what pwml_find_best chose, which is not this run: name it with -c {model.folder.name}, or run pwml_find_best again"


def _held_out(workspace: Workspace, dataset: str, corrected: Corrected) -> Run:
    """The run with the out-of-fold cases that were judged."""
    prepared = workspace.find_preprocessed(dataset)
    name = corrected.run.model.folder.name
    (run,) = gather_runs(workspace.results / prepared.name, prepared, [name])
    return Run(run.model, run.store, {n: at for n, at in run.files.items() if at[0] in corrected.folds})


def _thresholds(corrected: Corrected) -> Iterator[str]:
    """Recall and false candidates at each threshold, as lines to print."""
    yield "candidates of the held-out cases:"
    yield f"{'probability above':<20}{'lesions found':<20}false candidates a case"
    for row in corrected.thresholds:
        found = f"{row.n_found} of {row.n_lesions} ({row.recall:.2f})"
        yield f"{row.threshold:<20g}{found:<20}{row.false_per_case:.1f}"
    chosen = ", ".join(f"{fold}: {at:g}" for fold, at in corrected.judged.thresholds.items())
    yield f"chosen, for each fold by the others: {chosen}"
    yield from corrected.remarks


# the page


def _page(run: Run, corrected: Corrected, trial: Trial) -> CorrectionPage:
    judged, model = corrected.judged, run.model
    correction = Correction.read(model.folder / CORRECTION / DESCRIPTION)
    numbered = list(_candidates(corrected, trial.corrected.postprocessing))
    rows = [row for _, _, row in numbered]
    shown = [numbered[i] for i in worth_showing(rows)]
    points = _points(trial)
    seen = correction.network.channels or range(len(model.plan.channel_names))
    return CorrectionPage(
        run=run.name,
        dataset=model.folder.parent.name,
        folds=corrected.folds,
        n_subjects=len({facts_of(run, name).subject for name in run.files}),
        n_cases=len(run.files),
        n_lesions=corrected.thresholds[0].n_lesions,
        classes=("not a lesion", *judged.classes),
        channels=tuple(model.plan.channel_names[channel] for channel in seen),
        is_used=trial.helps,
        verdict=trial.verdict,
        threshold=correction.threshold,
        thresholds=tuple(ThresholdPoint(r.threshold, r.n_found, r.n_false) for r in corrected.thresholds),
        candidates=tuple(rows),
        points={name: words for name, (_, words) in points.items()},
        scores=_scores(run, corrected, {name: settings for name, (settings, _) in points.items()}),
        pictures=tuple(_pictures(run, corrected, correction, shown)),
        fold_thresholds=judged.thresholds,
        remarks=(*corrected.remarks, *_remarks(trial)),
    )


def _remarks(trial: Trial) -> Iterator[str]:
    yield "the verdict is a mean over subjects with lesions, each at the point that the others choose; the table above counts the lesions of all subjects at one point"
    if trial.equal_recall is None and trial.without.nested.n_found.any():
        yield "with the correction no point finds as many lesions as stage one does at its own"


def _candidates(corrected: Corrected, settings: Postprocessing) -> Iterator[tuple[str, int, ShownCandidate]]:
    """Case, number and what became of each candidate that the reference tells about."""
    cut = settings.least_score
    for case, judged in corrected.judged.cases.items():
        for number, candidate in enumerate(judged.candidates, start=1):
            if candidate.class_by_reference != UNKNOWN:
                none, *kinds = candidate.probabilities
                became = 1 + int(np.argmax(kinds)) if 1 - none > cut else 0
                z = round(candidate.centre_zyx[0])
                row = ShownCandidate(case, candidate.class_by_reference, became, candidate.probabilities, candidate.peak, z)  # fmt: skip
                yield case, number, row


def _points(trial: Trial) -> dict[str, tuple[Postprocessing, str]]:
    """What is compared, and how it is to be read."""
    points = {
        "stage one": (trial.without.postprocessing, "alone, at its own point"),
        "corrected": (trial.corrected.postprocessing, "at a point of its own"),
    }
    if trial.equal_recall:
        words = "the point with the fewest false lesions of those that find as many as stage one at its own; chosen on these cases"
        first, second = trial.equal_recall
        points |= {"stage one, at equal recall": (first, words), "corrected, at equal recall": (second, words)}  # fmt: skip
    return points


def _scores(
    run: Run, corrected: Corrected, points: Mapping[str, Postprocessing]
) -> dict[str, tuple[ScoreComparison, ...]]:
    """By target, the scores of the held-out cases at each point."""
    cases: dict[str, list[CaseScores]] = {name: [] for name in points}
    for name in run.files:
        (plain,) = out_of_fold(name, [run], [(run,)])
        after = correct_case(run, plain, corrected.judged)
        for point, settings in points.items():
            case = after if settings.correction else plain
            labels, spacing = run.model.labels, case.spacing_zyx_mm
            mask = settings.apply(settings.calibrate(case.probability), labels, spacing)
            cases[point].append(
                score_case(
                    case.reference,
                    mask,
                    spacing_zyx_mm=spacing,
                    labels=labels,
                    name=name,
                    subject=case.subject,
                )
            )
    comparison = compare([ScoredRun(name, tuple(scored)) for name, scored in cases.items()])
    return {
        target: tuple(score for score in found.scores if score.name in _SCORES)
        for target, found in comparison.targets.items()
    }


def _pictures(
    run: Run, corrected: Corrected, correction: Correction, shown: Sequence[tuple[str, int, ShownCandidate]]
) -> Iterator[CandidatePicture]:
    """What the network of its fold sees of each candidate that is shown."""
    network = replace(correction.network, sees_mask=True, sees_probability=False, views="slice")
    for case in dict.fromkeys(case for case, _, _ in shown):
        prepared = run.store.read(case)
        (plain,) = out_of_fold(case, [run], [(run,)])
        components, _ = find_candidates(plain.probability, corrected.judged.thresholds[plain.fold])
        numbers = [number for of, number, _ in shown if of == case]
        rows = [row for of, _, row in shown if of == case]
        renumbered = np.zeros(components.max() + 1, np.int32)
        renumbered[numbers] = np.arange(1, len(numbers) + 1)
        regions = cut_regions(prepared.image, prepared.facts.way_back, plain.probability, renumbered[components], len(numbers), network)  # fmt: skip
        for row, region in zip(rows, regions[:, 0], strict=True):
            channels, mask = torch.split(region, [len(region) - 1, 1])
            yield CandidatePicture(row, channels.numpy(), mask[0].numpy() > 0.5, network.region_mm)
