"""What a study is: rows of a paper's tables, how each comes to be, and what is asked about them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from pwmlunet.config import did_you_mean
from pwmlunet.errors import PwmlError
from pwmlunet.training.config import AugmentationConfig, TrainingConfig
from pwmlunet.training.correction_learning import CorrectionRecipe

NO_AUGMENTATION = replace(
    AugmentationConfig(),
    flip=False,
    **{f.name: 0.0 for f in fields(AugmentationConfig) if f.name.endswith("_probability")},  # type: ignore[arg-type]
)

FOLDS = "Folds are those of splits.json, made of subjects"
LAST = "The last weights are scored: the best ones on the held-out cases would be judged by what chose them."


@dataclass(frozen=True)
class StudyRow:
    """One line of a paper's table."""

    name: str
    """Short, for `--rows`."""
    words: str
    """The line as the paper has it."""
    run: str | None
    """Name of the model folder, which rows may share; None for the classical method, for which nothing is trained."""
    recipe: TrainingConfig | None
    """How the run is trained, configuration included."""
    printed: Mapping[str, float]
    """The paper's figures, by the names of the tables' columns; empty for a row that is ours."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """What its network has of its own, where the rows differ by that."""
    crf: bool = False
    """Whether the dense CRF refines what its run found."""
    may_delete: bool = True
    """Whether the CRF may delete a lesion, as a paper's may."""
    correction: Literal["kind", "all"] | None = None
    """What a second network corrects of what its run found: the kind of lesion alone, or also whether it is one."""
    names_kinds: bool = True
    """Whether it tells the targets apart; else all that it finds counts as the first, which says nothing of each."""


@dataclass(frozen=True)
class Table:
    """One table of a paper."""

    title: str
    columns: Mapping[str, str]
    """By the name of a figure of the profile, or of a mean of the honest scores: its heading."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """The same, of figures that the paper has not."""
    rows: tuple[str, ...] = ()
    """Names of its rows; empty for all."""

    def has(self, row: str) -> bool:
        """Whether the row of a name stands in it."""
        return not self.rows or row in self.rows


@dataclass(frozen=True)
class Question:
    """Whether what one row has more than another helps."""

    words: str
    row: str
    """The name of the row that has it."""
    against: str
    """That of the row that has it not."""


@dataclass(frozen=True)
class Study:
    """A paper's comparison."""

    name: str
    """For `pwml_reproduce`."""
    source: str
    """Which paper, and which of its tables."""
    data: str
    """What the paper's figures were measured on."""
    profile: str
    """How the paper counts."""
    threshold: float
    """Where probabilities are cut, for the paper's figures and the honest ones."""
    tables: tuple[Table, ...]
    rows: tuple[StudyRow, ...]
    questions: tuple[Question, ...]
    different: tuple[str, ...]
    """What remains different from the paper, a sentence each."""
    planned: Mapping[str, str] = field(default_factory=dict)
    """The planned configurations that the study's are made from, which only planning can make; empty where the paper
    says all that is needed."""
    quick_loss: str = ""
    """The loss with --quick, where networks do not begin by the paper's in so few steps."""
    quick_parent: str = ""
    """The planned configuration that the rows' networks are made from with --quick, where the paper's are too large
    to be narrowed."""
    correction: CorrectionRecipe | None = None
    """How the second networks of its rows learn."""

    @property
    def recipes(self) -> dict[str, TrainingConfig]:
        """How each run is trained, by its name."""
        return {row.run: row.recipe for row in self.rows if row.run and row.recipe}

    @property
    def corrected(self) -> tuple[str, ...]:
        """The runs that have second networks."""
        return tuple(dict.fromkeys(row.run for row in self.rows if row.run and row.correction))

    @property
    def configurations(self) -> tuple[str, ...]:
        """The plan's configurations that the runs are trained with."""
        return tuple(dict.fromkeys(recipe.configuration for recipe in self.recipes.values()))

    def only(self, names: Sequence[str]) -> "Study":
        """The study with some of its rows, and what can be asked about them; with all of them where none is named.

        Raises:
            PwmlError: there is no row of a name.
        """
        known = [row.name for row in self.rows]
        for name in names:
            if name not in known:
                raise PwmlError(f"{self.name} has no row {name!r}{did_you_mean(name, known)}")
        rows = tuple(row for row in self.rows if not names or row.name in names)
        left = {row.name for row in rows}
        return replace(
            self, rows=rows, questions=tuple(q for q in self.questions if {q.row, q.against} <= left)
        )


@dataclass(frozen=True)
class Quick:
    """What `--quick` makes of a study: networks and trainings for a CPU."""

    width: int = 8
    """Of the widest network; the others are narrowed in proportion."""
    epochs: int = 32
    steps_per_epoch: int = 25
    batch_size: int = 4
    """Where the paper names one; else the plan's."""
    learning_rate: float = 2e-3
    """So few steps at a paper's rate would leave a network where it began; so would momentum alone."""
    correction_steps: int = 200
    """Of a second network."""

    def shorten_correction(self, recipe: CorrectionRecipe) -> CorrectionRecipe:
        """The recipe of a second network with fewer steps."""
        return replace(recipe, steps=min(self.correction_steps, recipe.steps))

    def shorten(self, recipe: TrainingConfig, loss: str = "") -> TrainingConfig:
        """The recipe with fewer, smaller and faster steps, which end in rest: the last weights are scored.

        Another loss takes the place of one by which networks would not begin to find anything in so few steps.
        """
        return replace(
            recipe,
            loss=loss or recipe.loss,
            batch_size=recipe.batch_size and self.batch_size,
            epochs=self.epochs,
            steps_per_epoch=self.steps_per_epoch,
            optimiser="adam",
            learning_rate=self.learning_rate,
            schedule="cosine",
            warmup_steps=self.steps_per_epoch,
            validate_every=self.epochs,
        )
