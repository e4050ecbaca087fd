"""A study on a dataset: its rows trained on the same folds, scored out of fold, and set beside the paper."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pwmlunet.config import join
from pwmlunet.data.splits import read_held_out
from pwmlunet.data.workspace import Workspace
from pwmlunet.errors import PwmlError
from pwmlunet.files import read_json
from pwmlunet.planning.plan import Plan
from pwmlunet.report.pages import count
from pwmlunet.reproduction.entries import (
    configurations_of,
    planned_network,
    prepare,
    quick_name,
    remarks_on_plan,
    width_of,
)
from pwmlunet.reproduction.figures import Reproduction
from pwmlunet.reproduction.scoring import ScoredRow, Scorer, remarks_of, tabulate
from pwmlunet.reproduction.sources import HeldOut, Source, classical, corrected, refined, trained
from pwmlunet.reproduction.study import Quick, Study, StudyRow
from pwmlunet.training.config import TrainingConfig
from pwmlunet.training.correction import train_correction
from pwmlunet.training.pretrained import check_pretrained
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
    pretrained: Path | None = None
    """Weights that every training begins from, as far as they fit."""
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
    _check_corrections(folder, study, n_folds, folds)
    plan = prepare(workspace, folder, study, wishes.quick)
    runs = {name: _open(workspace, folder.name, name, study, wishes) for name in study.recipes}
    first = plan.configurations[configurations_of(plan, study, wishes.quick)[0]]
    scorer = Scorer(study, HeldOut.find(folder, first.preparation, folds), plan.smallest_lesion_mm3)
    untrained = {  # before days of training: it needs the raw files
        row.name: scorer.score(classical(workspace, folder, scorer.cases))
        for row in study.rows
        if not row.run
    }
    _train([run for seeds in runs.values() for run in seeds], folds)
    for name in study.corrected:
        _correct(workspace, folder.name, study, runs[name], folds, wishes)
    rows = [
        _score(row, runs[row.run], scorer)
        if row.run
        else ScoredRow(row, None, (untrained[row.name],) * len(wishes.seeds))
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
        smallest_lesion_mm3=plan.smallest_lesion_mm3,
        shrunk=tuple(_shrunk(plan, study, wishes.quick)) if wishes.quick else (),
        different=(
            *study.different,
            *_one_label(scorer.cases, untrained),
            *_one_kind(scorer.cases, study),
            *(_beginning(wishes) if runs else ()),
            *remarks_on_plan(plan, study, wishes.quick),
        ),
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


def _open(workspace: Workspace, dataset: str, name: str, study: Study, wishes: Wishes) -> list[Run]:
    """A run of a study for each seed."""
    recipe = study.recipes[name]
    recipe = wishes.quick.shorten(recipe, study.quick_loss) if wishes.quick else recipe
    recipe = replace(recipe, configuration=quick_name(recipe.configuration, wishes.quick))
    recipe = replace(recipe, device=wishes.device or recipe.device, pretrained=wishes.pretrained)
    name = quick_name(name, wishes.quick)
    return [
        open_run(workspace, dataset, replace(recipe, seed=seed), f"{name}_seed{seed}" if seed else name)
        for seed in wishes.seeds
    ]


def _train(runs: Sequence[Run], folds: Sequence[str]) -> None:
    """Trains what is not trained yet; whether the weights to begin from fit is told before the first."""
    for run in runs:
        check_pretrained(run, folds)
    for run in runs:
        for fold in folds:
            logger.info("%s, fold %s", run.model.folder.name, fold)
            FoldTrainer(run, fold).train()


def _check_corrections(folder: Path, study: Study, n_folds: int, folds: Sequence[str]) -> None:
    """Whether second networks can be trained, which is told before days of training.

    Raises:
        PwmlError: there are too few folds, or the plan has none.
    """
    if not study.corrected:
        return
    rows = join(row.name for row in study.rows if row.correction)
    if min(n_folds, len(folds) + 1) < 3:
        raise PwmlError(f"a second network (row {rows}) learns from another fold than it is asked about, of first networks trained without both: take two folds or more (--folds) of three or more in {folder / 'splits.json'}, or leave the rows out (--rows)")  # fmt: skip
    if Plan.read(folder / "plan.json").correction is None:
        raise PwmlError(f"{folder / 'plan.json'} plans no second network (row {rows}): make a new plan with pwml_plan_and_preprocess -d {folder.name} --replan")  # fmt: skip


def _correct(
    workspace: Workspace,
    dataset: str,
    study: Study,
    seeds: Sequence[Run],
    folds: Sequence[str],
    wishes: Wishes,
) -> None:
    """Trains the second networks of a run for each seed, as far as they are not trained yet."""
    assert study.correction is not None  # rows have second networks
    recipe = wishes.quick.shorten_correction(study.correction) if wishes.quick else study.correction
    for run in seeds:
        recipe = replace(recipe, seed=run.config.seed)
        train_correction(workspace, dataset, run.model.folder.name, recipe, folds=folds, device=wishes.device)


def _one_label(cases: HeldOut, untrained: Mapping[str, object]) -> Iterator[str]:
    """What rows without training cannot do."""
    first, *others = (target.name for target in cases.labels.targets)
    if untrained and others:
        yield f"Row {join(untrained)} knows one kind of lesion, which counts as {first}: its figures and differences for {join(others)} mean nothing."


def _one_kind(cases: HeldOut, study: Study) -> Iterator[str]:
    """What second networks cannot do where there are no kinds to tell apart."""
    if study.corrected and (cases.labels.are_regions or len(cases.labels.targets) == 1):
        yield "This dataset does not have several kinds of lesions that exclude each other: a second network has nothing to name, and only row b_ours can gain by it."


def _beginning(wishes: Wishes) -> Iterator[str]:
    if wishes.pretrained:
        yield f"Networks begin from {wishes.pretrained}, as far as its weights fit (training.log says how far)."


def _score(row: StudyRow, seeds: Sequence[Run], scorer: Scorer) -> ScoredRow:
    """The row with the scores of its run for each seed."""
    sources = [_source(row, run, scorer.study.threshold) for run in seeds]
    return ScoredRow(row, seeds[0].model.folder.name, tuple(map(scorer.score, sources)))


def _source(row: StudyRow, run: Run, threshold: float) -> Source:
    if row.crf:
        return refined(run, threshold, may_delete=row.may_delete)
    if row.correction:
        return corrected(run, threshold, removes=row.correction == "all")
    return trained(run, threshold)


_RATES = {
    "cosine": "a rate of {:g} that falls to 0",
    "constant": "a constant rate of {:g}",
    "plateau": "a rate of {:g} that is halved where the loss no longer falls",
}


_OPTIMISERS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD", "rmsprop": "RMSProp"}


def _shrunk(plan: Plan, study: Study, quick: Quick) -> Iterator[str]:
    """What --quick made smaller."""
    if study.quick_parent and study.configurations:
        yield planned_network(plan, study, quick)
    else:
        yield from _widths(plan, study, quick)
    if study.quick_loss:
        yield f'The loss is {study.quick_loss}: by the paper\'s, networks still say "no lesion" everywhere after so few steps.'
    schedules = {_schedule(recipe): _schedule(quick.shorten(recipe)) for recipe in study.recipes.values()}
    for before, now in schedules.items():
        yield f"Training has {now}, instead of {before}: so few steps at the paper's rate would leave a network where it began."
    if study.corrected and (recipe := study.correction):
        yield f"Second networks have {count(quick.shorten_correction(recipe).steps, 'step')}, instead of {recipe.steps}."


def _widths(plan: Plan, study: Study, quick: Quick) -> Iterator[str]:
    for name in study.configurations:
        before, now = width_of(plan, name), width_of(plan, quick_name(name, quick))
        yield f"{name} has {count(now, 'channel')} at full resolution" + (f" instead of {before}." if now != before else ", as without --quick.")  # fmt: skip


def _schedule(recipe: TrainingConfig) -> str:
    epochs, steps = count(recipe.epochs, "epoch"), count(recipe.steps_per_epoch, "step")
    batch = f", batch {recipe.batch_size}" if recipe.batch_size else ""
    rate = _RATES[recipe.schedule].format(recipe.learning_rate)
    return f"{epochs} of {steps}{batch}, {_OPTIMISERS[recipe.optimiser]} at {rate}"
