"""Out-of-fold cases of trained rows, scored twice: as the paper counts, and honestly."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from pwmlunet.data.parallel import map_cases
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.comparison import Comparison, Difference, compare
from pwmlunet.evaluation.lesions import MAIN_RULE
from pwmlunet.evaluation.probabilities import read_probability
from pwmlunet.evaluation.profiles.counting import Row, Values, profile_case
from pwmlunet.evaluation.profiles.folders import get_profile, score_profile
from pwmlunet.evaluation.runs import ScoredRun
from pwmlunet.evaluation.scores import CaseScores, score_case
from pwmlunet.evaluation.summary import Summary, summarise
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.report.compare import signed
from pwmlunet.report.pages import interval
from pwmlunet.reproduction.figures import Answer, HonestScore, PaperFigure, RowFigures, TargetFigures
from pwmlunet.reproduction.studies import Question, Study, StudyRow
from pwmlunet.training.run import Run

_WORKERS = 2  # each holds a whole volume

ASKED = {"lesion_f1": "lesion F1", "lesion_recall": "lesion recall"}
"""The scores whose differences answer a question."""


@dataclass(frozen=True)
class SeedScores:
    """One seed of a row."""

    cases: tuple[CaseScores, ...]
    """The honest scores of the held-out cases."""
    values: Mapping[str, Values]
    """The paper's figures by target."""


@dataclass(frozen=True)
class ScoredRow:
    """A row with its scores by seed."""

    row: StudyRow
    run: str
    seeds: tuple[SeedScores, ...]

    @property
    def cases(self) -> tuple[CaseScores, ...]:
        """The cases of all seeds, told apart by their names; those of a subject stay the subject's."""
        return tuple(
            replace(case, name=f"{case.name}, seed number {number}")
            for number, seed in enumerate(self.seeds)
            for case in seed.cases
        )


def score_seed(run: Run, study: Study, folds: Sequence[str], smallest_lesion_mm3: float) -> SeedScores:
    """The held-out cases of some folds of a trained run, each in the first fold that holds it out.

    Raises:
        PwmlError: their probabilities are missing or damaged; all findings at once.
    """
    fold_of: dict[str, str] = {}
    for fold in folds:
        for name in run.split(fold).val:
            fold_of.setdefault(name, fold)
    tasks = [_Task(name, fold, run, study, smallest_lesion_mm3) for name, fold in fold_of.items()]
    done, problems = map_cases(_Task.score, tasks, workers=_WORKERS, title=f"score {run.model.folder.name}")
    if problems:
        raise PwmlError.listing(f"{run.model.folder} cannot be scored", problems)
    summarise_rows = get_profile(study.profile).summarise
    values = {
        target.name: summarise_rows([row for _, rows in done for row in rows[index]])
        for index, target in enumerate(run.model.labels.targets)
    }
    return SeedScores(tuple(case for case, _ in done), values)


@dataclass(frozen=True)
class _Task:
    """One held-out case, to be read and scored."""

    name: str
    fold: str
    run: Run
    study: Study
    smallest_lesion_mm3: float

    def score(self) -> tuple[CaseScores, list[list[Row]]]:
        """Its honest scores, and the rows of the profile by target."""
        labels, facts = self.run.model.labels, self.run.store.facts(self.name)
        assert facts is not None  # splits are checked against the store
        spacing = facts.way_back.geometry.spacing_zyx_mm
        reference = self.run.store.reference(self.name)
        path = self.run.model.fold_folder(self.fold) / "validation" / f"{self.name}.npz"
        probability = read_probability(path, reference.shape, len(labels.targets))
        cut = Postprocessing(self.study.threshold)
        mask = cut.apply(probability, labels, spacing)
        cleaned = replace(cut, smallest_lesion_mm3=self.smallest_lesion_mm3)
        honest = score_case(
            reference,
            cleaned.apply(probability, labels, spacing),
            spacing_zyx_mm=spacing,
            labels=labels,
            name=self.name,
            subject=facts.subject,
        )
        case = profile_case(reference, mask, labels, spacing, facts.subject, self.fold)
        return honest, score_profile(get_profile(self.study.profile), case)


def tabulate(study: Study, rows: Sequence[ScoredRow]) -> dict[str, TargetFigures]:
    """Rows and answers by target."""
    summaries = [summarise(row.cases) for row in rows]
    comparisons = {question: _compare(question, rows) for question in study.questions}
    return {
        target: TargetFigures(
            _n_lesions(summaries[0], target) // len(rows[0].seeds),
            tuple(_row(row, summary, target) for row, summary in zip(rows, summaries, strict=True)),
            tuple(_answer(question, comparison, target) for question, comparison in comparisons.items()),
        )
        for target in summaries[0].targets
    }


def remarks_of(study: Study, rows: Sequence[ScoredRow]) -> tuple[str, ...]:
    """What a reader must know to judge the differences."""
    return tuple(f"{remark[0].upper()}{remark[1:]}." for remark in _compare(study.questions[0], rows).remarks)


def _compare(question: Question, rows: Sequence[ScoredRow]) -> Comparison:
    runs = {row.row.run: ScoredRun(row.run, row.cases) for row in rows}
    return compare([runs[question.against], runs[question.run]])


def _n_lesions(summary: Summary, target: str) -> int:
    return summary.targets[target].pooled[MAIN_RULE].n_reference


def _row(row: ScoredRow, summary: Summary, target: str) -> RowFigures:
    figures = {
        name: _figure(printed, [_value(seed, name, target) for seed in row.seeds])
        for name, printed in row.row.printed.items()
    }
    return RowFigures(row.run, row.row.words, figures, dict(_honest(summary, target, len(row.seeds))))


def _value(seed: SeedScores, name: str, target: str) -> float | None:
    """A figure as the profile counts it; a mean over cases where the profile has none of that name."""
    values = seed.values[target]
    return values[name][0] if name in values else summarise(seed.cases).targets[target].means[name].value


def _figure(printed: float, values: Sequence[float | None]) -> PaperFigure:
    known = [value for value in values if value is not None]
    return PaperFigure(printed, *((fmean(known), min(known), max(known)) if known else (None, None, None)))


def _honest(summary: Summary, target: str, n_seeds: int) -> Iterator[tuple[str, HonestScore]]:
    scores = summary.targets[target]
    pooled = scores.pooled[MAIN_RULE]
    counts = {
        "f1": (pooled.n_reference + pooled.n_predicted, "lesions of both masks"),
        "recall": (pooled.n_reference, "reference lesions"),
        "precision": (pooled.n_predicted, "predicted lesions"),
    }
    for name, (n, over) in counts.items():
        value = getattr(pooled, name)
        yield f"lesion_{name}", HonestScore(value, scores.pooled_intervals[name], round(n / n_seeds), over)
    dice = scores.means["dice"]
    yield "dice", HonestScore(dice.value, dice.interval, round(dice.n / n_seeds), "cases with lesions")


def _answer(question: Question, comparison: Comparison, target: str) -> Answer:
    found = {score.name: score.runs[1].difference for score in comparison.targets[target].scores}
    differences = {name: difference for name in ASKED if (difference := found[name]) is not None}
    sentences = [_in_words(ASKED[name], difference) for name, difference in differences.items()]
    return Answer(question.words, differences, " ".join(sentences))


_VERDICTS = {
    "better": "it helps",
    "worse": "it hurts",
    "no difference shown": "it cannot be told",
    "no interval": "it cannot be told, too few subjects for an interval",
}


def _in_words(score: str, difference: Difference) -> str:
    numbers = f"{signed(difference.value)}; 95 % interval {interval(difference.interval)}"
    return f"By {score} {_VERDICTS[difference.verdict]} ({numbers})."
