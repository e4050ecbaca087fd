"""What a reproduction comes to: the paper's figures, ours counted likewise, the honest scores, and the answers."""

from dataclasses import dataclass

from pwmlunet.config import Config
from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.evaluation.comparison import Difference


@dataclass(frozen=True)
class PaperFigure(Config):
    """A figure as the paper prints it, and the same counted here."""

    printed: float | None
    """In the paper, on its own data; None where it has none."""
    value: float | None
    """Here, the mean over seeds; None where it is undefined."""
    lowest: float | None
    """Of the seeds."""
    highest: float | None
    """Of the seeds."""
    n: int
    """How many cases, slices or lesions it is of, in one seed."""


@dataclass(frozen=True)
class HonestScore(Config):
    """A score of the rules of summary.json, over the cases of all seeds."""

    value: float | None
    """None where it is undefined."""
    interval: Interval | None
    """By bootstrap over subjects, whose cases stay together; None with fewer than two."""
    n: int
    """How many lesions or cases it is of, in one seed."""
    over: str
    """What n counts."""


@dataclass(frozen=True)
class RowFigures(Config):
    """One row of the paper's table."""

    name: str
    """Its short name."""
    run: str | None
    """The model folder of the first seed; None where nothing is trained."""
    words: str
    """The line as the paper has it."""
    figures: dict[str, PaperFigure]
    """The columns of the tables that it stands in; none for a target that the paper does not count by itself."""
    honest: dict[str, HonestScore]
    """lesion_f1, lesion_recall, lesion_precision and dice."""


@dataclass(frozen=True)
class Answer(Config):
    """A question, its paired differences, and what they say."""

    question: str
    """As the page has it."""
    differences: dict[str, Difference]
    """Of lesion_f1 and lesion_recall, with what is asked about less without."""
    words: str
    """Whether it helps, hurts or cannot be told."""


@dataclass(frozen=True)
class TargetFigures(Config):
    """One target: a table and its answers."""

    n_lesions: int
    """Reference lesions of the cases that are scored."""
    rows: tuple[RowFigures, ...]
    """In the paper's order."""
    answers: tuple[Answer, ...]
    """Is each step of the paper a step forward here?"""

    @property
    def is_papers(self) -> bool:
        """Whether the paper counts this target by itself."""
        return any(row.figures for row in self.rows)


@dataclass(frozen=True)
class Reproduction(Config):
    """A study on a dataset."""

    study: str
    """Its name."""
    dataset: str
    """The dataset's folder name."""
    n_subjects: int
    """Subjects that are scored."""
    n_cases: int
    """Their cases."""
    folds: tuple[str, ...]
    """Folds whose held-out cases are scored."""
    n_folds: int
    """Folds in splits.json."""
    seeds: tuple[int, ...]
    """Each trains every row anew."""
    smallest_lesion_mm3: float
    """Smaller predicted components are left out of the honest scores."""
    shrunk: tuple[str, ...]
    """What --quick made smaller, a sentence each; empty without it."""
    different: tuple[str, ...]
    """What remains different from the paper, a sentence each."""
    remarks: tuple[str, ...]
    """What a reader must know to judge the intervals, a sentence each."""
    targets: dict[str, TargetFigures]
    """By the target's name; all of them together first, where the paper counts them so."""
