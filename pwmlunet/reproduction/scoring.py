"""The held-out cases of the rows, scored twice: as the paper counts, and honestly."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from pwmlunet.data.dataset import Labels
from pwmlunet.data.parallel import map_cases
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.comparison import Comparison, Difference, compare
from pwmlunet.evaluation.lesions import MAIN_RULE
from pwmlunet.evaluation.profiles.counting import Row, Values, profile_case
from pwmlunet.evaluation.profiles.folders import get_profile, score_profile
from pwmlunet.evaluation.runs import ScoredRun
from pwmlunet.evaluation.scores import CaseScores, score_case
from pwmlunet.evaluation.summary import Summary, summarise
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.report.compare import signed
from pwmlunet.report.pages import interval
from pwmlunet.reproduction.figures import Answer, HonestScore, PaperFigure, RowFigures, TargetFigures
from pwmlunet.reproduction.sources import HeldOut, Source, facts_of
from pwmlunet.reproduction.study import Question, Study, StudyRow

_WORKERS = 2  # each holds a whole volume

ASKED = {"lesion_f1": "lesion F1", "lesion_recall": "lesion recall", "dice": "Dice"}
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
    run: str | None
    """The model folder of the first seed."""
    seeds: tuple[SeedScores, ...]

    @property
    def cases(self) -> tuple[CaseScores, ...]:
        """The cases of all seeds, told apart by their names; those of a subject stay the subject's."""
        return tuple(
            replace(case, name=f"{case.name}, seed number {number}")
            for number, seed in enumerate(self.seeds)
            for case in seed.cases
        )

    def tells(self, target: str) -> bool:
        """Whether its scores say something of a target: those of all together always do."""
        return self.row.names_kinds or target in self.seeds[0].values


@dataclass(frozen=True)
class Scorer:
    """What the held-out cases of any source are scored by."""

    study: Study
    cases: HeldOut
    smallest_lesion_mm3: float
    """Smaller predicted components are left out of the honest scores."""

    @property
    def counted(self) -> Labels:
        """What the paper counts: every target by itself, or all of them together."""
        labels = self.cases.labels
        return labels.as_one() if get_profile(self.study.profile).is_joint else labels

    @property
    def scored(self) -> Labels:
        """What has honest scores: what the paper counts, and every target by itself."""
        targets = dict.fromkeys((*self.counted.targets, *self.cases.labels.targets))
        return replace(self.cases.labels, targets=tuple(targets))

    def score(self, source: Source) -> SeedScores:
        """One seed of a row.

        Raises:
            PwmlError: probabilities are missing or damaged, or cases cannot be read; all findings at once.
        """
        tasks = [_Task(name, fold, self, source) for name, fold in self.cases.fold_of.items()]
        done, problems = map_cases(_Task.score, tasks, workers=_WORKERS, title=f"score {source.name}")
        if problems:
            raise PwmlError.listing(f"{source.name} cannot be scored", problems)
        summarise_rows = get_profile(self.study.profile).summarise
        values = {
            target.name: summarise_rows([row for _, rows in done for row in rows[index]])
            for index, target in enumerate(self.counted.targets)
        }
        return SeedScores(tuple(case for case, _ in done), values)


@dataclass(frozen=True)
class _Task:
    """One held-out case, to be read and scored."""

    name: str
    fold: str
    scorer: Scorer
    source: Source

    def score(self) -> tuple[CaseScores, list[list[Row]]]:
        """Its honest scores, and the rows of the profile by target."""
        cases = self.scorer.cases
        labels, facts = cases.labels, facts_of(cases.store, self.name)
        spacing = facts.way_back.geometry.spacing_zyx_mm
        reference = cases.store.reference(self.name)
        probability = self.source.find(self.name, self.fold)
        cut = Postprocessing(self.source.threshold)
        cleaned = replace(cut, smallest_lesion_mm3=self.scorer.smallest_lesion_mm3)
        honest = score_case(
            reference,
            cleaned.apply(probability, labels, spacing),
            spacing_zyx_mm=spacing,
            labels=self.scorer.scored,
            name=self.name,
            subject=facts.subject,
        )
        mask = cut.apply(probability, labels, spacing)
        case = profile_case(reference, mask, labels, spacing, facts.subject, self.fold)
        return honest, score_profile(get_profile(self.scorer.study.profile), case)


def tabulate(study: Study, rows: Sequence[ScoredRow]) -> dict[str, TargetFigures]:
    """Rows and answers by target; rows that say nothing of a target are left out of it."""
    summaries = {row.row.name: summarise(row.cases) for row in rows}
    comparisons = {question: _compare(question, rows) for question in study.questions}
    first = summaries[rows[0].row.name]
    found = {}
    for target in first.targets:
        known = {row.row.name: row for row in rows if row.tells(target)}
        if not known:
            continue
        asked = [question for question in study.questions if {question.row, question.against} <= known.keys()]
        found[target] = TargetFigures(
            _n_lesions(first, target) // len(rows[0].seeds),
            tuple(_row(study, row, summaries[name], target) for name, row in known.items()),
            tuple(_answer(question, comparisons[question], target) for question in asked),
        )
    return found


def remarks_of(study: Study, rows: Sequence[ScoredRow]) -> tuple[str, ...]:
    """What a reader must know to judge the differences."""
    remarks = [_compare(question, rows).remarks for question in study.questions[:1]]
    return tuple(f"{remark[0].upper()}{remark[1:]}." for found in remarks for remark in found)


def _compare(question: Question, rows: Sequence[ScoredRow]) -> Comparison:
    cases = {row.row.name: row.cases for row in rows}
    return compare([ScoredRun(name, cases[name]) for name in (question.against, question.row)])


def _n_lesions(summary: Summary, target: str) -> int:
    return summary.targets[target].pooled[MAIN_RULE].n_reference


def _row(study: Study, row: ScoredRow, summary: Summary, target: str) -> RowFigures:
    is_counted = target in row.seeds[0].values  # else the paper counts it with the others alone
    tables = [table for table in study.tables if is_counted and table.has(row.row.name)]
    names = dict.fromkeys(name for table in tables for name in (*table.columns, *table.beside))
    figures = {
        name: _figure(row.row.printed.get(name), [_value(seed, name, target) for seed in row.seeds])
        for name in names
    }
    return RowFigures(
        row.row.name, row.run, row.row.words, figures, dict(_honest(summary, target, len(row.seeds)))
    )


def _value(seed: SeedScores, name: str, target: str) -> tuple[float | None, int]:
    """A figure as the profile counts it; a mean over cases where the profile has none of that name."""
    values = seed.values[target]
    if name in values:
        return values[name]
    mean = summarise(seed.cases).targets[target].means[name]
    return mean.value, mean.n


def _figure(printed: float | None, values: Sequence[tuple[float | None, int]]) -> PaperFigure:
    n = round(fmean(n for _, n in values))
    known = [value for value, _ in values if value is not None]
    if not known:
        return PaperFigure(printed, None, None, None, n)
    return PaperFigure(printed, fmean(known), min(known), max(known), n)


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
