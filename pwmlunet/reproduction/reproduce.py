"""A study on a dataset: its rows trained on the same folds, scored out of fold, and set beside the paper."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pwmlunet.config import join
from pwmlunet.data.splits import read_held_out
from pwmlunet.data.workspace import Workspace
from pwmlunet.errors import PwmlError
from pwmlunet.files import read_json
from pwmlunet.planning.plan import Plan
from pwmlunet.report.pages import count
from pwmlunet.reproduction.entries import prepare, quick_name, remarks_on_plan, width_of
from pwmlunet.reproduction.figures import Reproduction
from pwmlunet.reproduction.scoring import ScoredRow, remarks_of, score_seed, tabulate
from pwmlunet.reproduction.studies import Quick, Study, StudyRow
from pwmlunet.training.config import TrainingConfig
from pwmlunet.training.run import Run, open_run
from pwmlunet.training.trainer import FoldTrainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wishes:
    """How a study is repeated."""

    folds: tuple[str, ...] = ()
    """Numbers of splits.json; empty for all."""
    seeds: tuple[int, ...] = (0,)
    """Each trains every row anew."""
    device: str | None = None
    """As for training; None takes what there is."""
    quick: Quick | None = None
    """What networks and trainings are shrunk to; None leaves the paper's."""


def reproduce(workspace: Workspace, dataset: str, study: Study, wishes: Wishes) -> Reproduction:
    """Trains what is not trained yet, scores the held-out cases, and returns all figures.

    Raises:
        PwmlError: the dataset is not planned, lacks a fold or a configuration, or a run was begun otherwise.
        TrainingStoppedError: a signal asked to stop; the same call goes on.
    """
    folder = workspace.find_preprocessed(dataset)
    n_folds, folds = _folds(folder, wishes.folds)
    wishes = replace(wishes, seeds=tuple(dict.fromkeys(wishes.seeds)))
    if min(wishes.seeds) < 0:
        raise PwmlError(f"a seed cannot be negative: give other ones than {join(wishes.seeds)} to --seeds")
    plan = prepare(workspace, folder, study, wishes.quick)
    runs = {row.run: _open(workspace, folder.name, row, wishes) for row in study.rows}
    for fold, run in ((fold, run) for row in runs.values() for run in row for fold in folds):
        logger.info("%s, fold %s", run.model.folder.name, fold)
        FoldTrainer(run, fold).train()
    smallest = plan.smallest_lesion_mm3
    rows = [
        ScoredRow(
            row,
            runs[row.run][0].model.folder.name,
            tuple(score_seed(run, study, folds, smallest) for run in runs[row.run]),
        )
        for row in study.rows
    ]
    cases = [case for case in rows[0].seeds[0].cases if case.n_labelled_slices]
    return Reproduction(
        study=study.name,
        dataset=folder.name,
        n_subjects=len({case.subject for case in cases}),
        n_cases=len(cases),
        folds=folds,
        n_folds=n_folds,
        seeds=wishes.seeds,
        smallest_lesion_mm3=smallest,
        shrunk=tuple(_shrunk(plan, study, wishes.quick)) if wishes.quick else (),
        different=(*study.different, *remarks_on_plan(plan, study)),
        remarks=remarks_of(study, rows),
        targets=tabulate(study, rows),
    )


def page_of(workspace: Workspace, dataset: str, study: Study) -> Path:
    """Where the page of a study goes by default."""
    return workspace.results / workspace.find_preprocessed(dataset).name / f"reproduction_{study.name}.html"


def _folds(folder: Path, wished: Sequence[str]) -> tuple[int, tuple[str, ...]]:
    """How many folds there are, and which are meant."""
    path = folder / "splits.json"
    if not path.is_file():
        raise PwmlError(f"{path} is missing: a study needs folds, and folds two subjects or more; run pwml_plan_and_preprocess -d {folder.name}")  # fmt: skip
    read_held_out(path)  # it is a list of folds
    known = [str(number) for number in range(len(read_json(path)))]
    if unknown := [fold for fold in wished if fold not in known]:
        raise PwmlError(f"{path} has no fold {join(unknown)} (known: {join(known)})")
    return len(known), tuple(dict.fromkeys(wished or known))


def _open(workspace: Workspace, dataset: str, row: StudyRow, wishes: Wishes) -> list[Run]:
    """The row's run for each seed."""
    recipe = wishes.quick.shorten(row.recipe) if wishes.quick else row.recipe
    recipe = replace(recipe, configuration=quick_name(recipe.configuration, wishes.quick))
    if wishes.device:
        recipe = replace(recipe, device=wishes.device)
    name = quick_name(row.run, wishes.quick)
    return [
        open_run(workspace, dataset, replace(recipe, seed=seed), f"{name}_seed{seed}" if seed else name)
        for seed in wishes.seeds
    ]


_RATES = {
    "cosine": "a rate of {:g} that falls to 0",
    "constant": "a constant rate of {:g}",
    "plateau": "a rate of {:g} that is halved where the loss no longer falls",
}


def _shrunk(plan: Plan, study: Study, quick: Quick) -> Iterator[str]:
    """What --quick made smaller."""
    widths = {
        name: (width_of(plan, name), width_of(plan, quick_name(name, quick))) for name in study.configurations
    }
    for name, (before, now) in widths.items():
        yield f"{name} has {count(now, 'channel')} at full resolution" + (f" instead of {before}." if now != before else ", as without --quick.")  # fmt: skip
    for recipe in dict.fromkeys(_schedule(row.recipe) for row in study.rows):
        yield f"Training has {_schedule(quick.shorten(study.rows[0].recipe))}, instead of {recipe}: so few steps at the paper's rate would leave a network where it began."


def _schedule(recipe: TrainingConfig) -> str:
    epochs, steps = count(recipe.epochs, "epoch"), count(recipe.steps_per_epoch, "step")
    batch = f", batch {recipe.batch_size}," if recipe.batch_size else ""
    return f"{epochs} of {steps}{batch} at {_RATES[recipe.schedule].format(recipe.learning_rate)}"
