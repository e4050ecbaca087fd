"""What was found to predict best: `best.json` beside a dataset's runs, and the models that it names."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pwmlunet.config import Config
from pwmlunet.data.dataset import FOLDER_NAME
from pwmlunet.data.workspace import Workspace, is_called
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.inference.model import TrainedModel, find_model
from pwmlunet.inference.postprocessing import Postprocessing

Criterion = Literal["lesion_f1", "lesion_recall", "dice"]

BEST = "best.json"
"""In the folder of a dataset's runs."""
VERSION = 1
"""Of its layout."""
_SHOWN = 10  # candidates that are printed


@dataclass(frozen=True)
class Candidate(Config):
    """A run, or several together, judged on the cases that its networks did not learn from."""

    runs: tuple[str, ...]
    """Their probabilities are averaged."""
    multiply_adds_per_voxel: float
    """Of the image's own grid, for one fold and without mirrored versions; the sum over the runs."""
    value: float | None
    """The criterion, each subject at the point that the others chose; None without lesions."""
    interval: Interval | None
    """Of the value; None with one subject."""
    dice: float | None
    """Mean over subjects with lesions; it decides between equals."""
    false_positives_per_clean_subject: float | None
    """False lesions in subjects without any, which the criterion does not see; None without such subjects."""
    difference: float | None
    """How much the highest value is above this one."""
    difference_interval: Interval | None
    """Of the difference, paired by subject."""
    correction: bool = False
    """Whether the run's correction judges what it finds."""

    @property
    def name(self) -> str:
        """The runs' names."""
        return name_of(self.runs, self.correction)


@dataclass(frozen=True)
class Best(Config):
    """What predicts best; `best.json` beside a dataset's runs."""

    version: int
    """Of this file's layout."""
    runs: tuple[str, ...]
    """The runs whose probabilities are averaged, by the names of their folders."""
    postprocessing: str
    """The file with their settings, from the folder of best.json."""
    criterion: Criterion
    """What was compared: the mean of lesion F1, lesion recall or Dice over the subjects with lesions."""
    reasons: tuple[str, ...]
    """Why these runs, and which could not be compared."""
    candidates: tuple[Candidate, ...]
    """All that was compared, the highest value first."""
    correction: bool = False
    """Whether the correction of the only run judges what it finds."""

    def problems(self) -> Iterator[str]:
        """What a hand or another version may have written."""
        if self.version != VERSION:
            yield f"it is of version {self.version}, not {VERSION}: run pwml_find_best again"
        if not self.runs:
            yield "runs must name at least one run: run pwml_find_best again"


def read_best(folder: Path) -> Best | None:
    """What was found to be best in a dataset's folder of results; None where nobody looked.

    Raises:
        PwmlError: best.json is broken.
    """
    path = folder / BEST
    return Best.read(path) if path.is_file() else None


def find_models(
    workspace: Workspace, dataset: str | None, run: str | None
) -> tuple[list[TrainedModel], Postprocessing]:
    """The models to predict with and their settings: the run that is named, else the best, else the only one.

    Raises:
        PwmlError: there is none, or several and nothing says which.
    """
    trained = {p.parents[2] for p in workspace.results.glob("*/*/fold_*/weights.pt")}
    folders = sorted(folder for folder in trained if FOLDER_NAME.fullmatch(folder.name))
    folders = [f for f in folders if dataset is None or is_called(f, dataset)]
    best = read_best(folders[0]) if run is None and len(folders) == 1 else None
    if best is None:
        model = find_model(workspace, dataset, run)
        return [model], model.postprocessing
    for name in best.runs:
        if not (folders[0] / name / "training.json").is_file():
            raise PwmlError(f"{folders[0] / BEST} names the run {name}, which is not there: run pwml_find_best again, or name a run with -c")  # fmt: skip
    path = folders[0] / best.postprocessing
    if not path.is_file():
        raise PwmlError(f"{folders[0] / BEST} names {best.postprocessing}, which is not there: run pwml_find_best again, or name a run with -c")  # fmt: skip
    return [TrainedModel.open(folders[0] / name) for name in best.runs], Postprocessing.read(path)


def name_of(runs: Sequence[str], correction: bool) -> str:
    """Runs that predict together, in words."""
    return " + ".join(runs) + (", corrected" if correction else "")


def lines_of(best: Best) -> Iterator[str]:
    """The first candidates as a table, and the reasons."""
    shown = best.candidates[:_SHOWN]
    yield "means over subjects with lesions:"
    names = [f"all {len(c.runs)} together" if len(c.runs) > 2 else c.name for c in shown]
    width = max(len("candidate"), *map(len, names)) + 2
    yield f"{'candidate':<{width}}{best.criterion:<20}{'Dice':<7}{'false+ if clean':<17}multiply-adds a voxel"
    for name, c in zip(names, shown, strict=True):
        spread = f" [{c.interval.low:.2f}, {c.interval.high:.2f}]" if c.interval else ""
        figures = (c.value, c.dice, c.false_positives_per_clean_subject)
        value, dice, false = ("-" if v is None else f"{v:.2f}" for v in figures)
        yield f"{name:<{width}}{value + spread:<20}{dice:<7}{false:<17}{c.multiply_adds_per_voxel:,.0f}"
    if len(shown) < len(best.candidates):
        yield f"and {len(best.candidates) - len(shown)} more, in {BEST}"
    if len(best.candidates) > 1:
        yield "the same subjects choose among the candidates, so that the highest value is a little too good"
    yield f"best: {name_of(best.runs, best.correction)}"
    yield from (f"  {reason}" for reason in best.reasons)
