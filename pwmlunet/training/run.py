"""A run: the model folder that folds are trained into, and the cases of a fold."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.data.parallel import name_case
from pwmlunet.data.splits import Split, read_splits, write_splits
from pwmlunet.data.store import CaseStore, WayBack
from pwmlunet.data.workspace import Workspace
from pwmlunet.errors import PwmlError
from pwmlunet.files import make_folder, read_json, write_json
from pwmlunet.inference.model import ALL, DENSITY, TrainedModel
from pwmlunet.inference.postprocessing import SETTINGS, Postprocessing
from pwmlunet.planning.alignment import REFERENCE
from pwmlunet.planning.density import Density, fit_densities_of_others, fit_density
from pwmlunet.planning.density_picture import draw_density
from pwmlunet.planning.plan import Configuration, Plan, read_labels
from pwmlunet.training.config import AugmentationConfig, TrainingConfig

logger = logging.getLogger(__name__)

RESUME = "resume.pt"
"""What a fold's training goes on from, in its folder."""

_MAY_CHANGE = ("device", "workers", "save_every_seconds")  # without changing what is learned


@dataclass(frozen=True)
class Run:
    """Where a network is trained, on what, and how."""

    model: TrainedModel
    config: TrainingConfig
    store: CaseStore
    splits: list[Split] | None
    """None where all cases are of one subject: then only fold `all` can be trained."""

    def lesions(self, name: str) -> tuple[str, NDArray[np.bool_], WayBack]:
        """A case's subject, where any target lies on its grid (Z, Y, X), and the grid."""
        case = self.store.read(name)
        assert case.mask is not None
        values = [value for target in self.model.labels.targets for value in target.values]
        return case.facts.subject, np.isin(case.mask, values), case.facts.way_back

    def split(self, fold: str) -> Split:
        """The cases of a fold; `all` learns from every case and looks at the same ones.

        Raises:
            PwmlError: there is no such fold.
        """
        if fold == ALL:
            names = tuple(self.store.names())
            return Split(names, names)
        folds = {str(number): split for number, split in enumerate(self.splits or ())}
        if fold not in folds:
            raise PwmlError(f"unknown fold {fold!r} (known: {join([*folds, ALL])})")
        return folds[fold]


def fold_density(run: Run, fold: str) -> Density | None:
    """The prior density of a fold's training cases; none for a network without.

    A training that goes on keeps the density that it began with.

    Raises:
        PwmlError: no training subject has a lesion.
    """
    config = run.model.configuration.prior
    if config is None:
        return None
    path = run.model.fold_folder(fold) / DENSITY
    if path.is_file() and (path.parent / RESUME).is_file():
        return Density.read(path)
    try:
        enlarged = run.model.preparation.long_side is not None
        density = fit_density(map(run.lesions, run.split(fold).train), config, enlarged=enlarged)
    except PwmlError as error:
        raise PwmlError(f"fold {fold}: {error}") from error
    for name in run.split(fold).val:  # found now, and not at the first look
        _check_held_out(run, name, density)
    density.write(path)
    draw_density(path.with_suffix(".png"), density)
    return density


def densities_of_others(run: Run, names: Sequence[str], density: Density) -> dict[str, Density]:
    """By subject of the named training cases, the prior density without it."""
    config = run.model.configuration.prior
    assert config is not None  # there is a density
    return fit_densities_of_others(map(run.lesions, names), density, config)


def _check_held_out(run: Run, name: str, density: Density) -> None:
    facts = run.store.facts(name)
    assert facts is not None
    try:
        density.place(facts.way_back)
    except PwmlError as error:
        raise PwmlError(name_case(error, name)) from error


def open_run(workspace: Workspace, dataset: str, config: TrainingConfig, name: str | None) -> Run:
    """The run of a dataset, made where it is new.

    Raises:
        PwmlError: the dataset is not preprocessed, or the run was begun with another recipe.
    """
    prepared = workspace.find_preprocessed(dataset)
    plan = Plan.read(prepared / "plan.json")
    configuration, chosen = plan.configuration(config.configuration or None)
    planned = {"configuration": configuration, "loss": config.loss or chosen.loss}
    config = TrainingConfig.from_dict({**config.to_dict(), **planned}, "the recipe")
    for problem in _contradictions(config.augmentation, chosen, plan):
        raise PwmlError(f"{configuration} {problem}")
    store = CaseStore(prepared / chosen.preparation)
    subjects = _subjects(store)
    if not subjects:
        raise PwmlError(
            f"{prepared.name} has no preprocessed cases: run pwml_plan_and_preprocess -d {dataset}"
        )
    splits_path = prepared / "splits.json"
    splits = read_splits(splits_path, subjects) if splits_path.is_file() else None
    folder = workspace.results / prepared.name / (name or configuration)
    labels, reference = prepared / "dataset.json", store.folder / REFERENCE
    if differing := _begin(folder, config, plan, labels=labels, reference=reference):
        raise PwmlError(f"{folder} was begun with {join(differing)}: name another run with --run, or delete it")  # fmt: skip
    return Run(TrainedModel.open(folder), config, store, splits)


def open_inner_run(outer: Run, folder: Path, splits: Sequence[Split]) -> Run:
    """A run of other folds in a folder within a run's, made where it is new; it keeps the last weights.

    Plan, recipe and labels are the outer run's: its networks are what the outer's would be, had they not seen more cases.

    Raises:
        PwmlError: a fold has a subject on both sides, or the folder was begun from another outer run or other folds.
    """
    pretrained, results = outer.config.pretrained, outer.model.folder.parent.resolve()
    if pretrained and pretrained.resolve().is_relative_to(results):
        raise PwmlError(f"{outer.model.folder} began from {pretrained}, which has learned from cases that the folds within it hold out: take a run that began from another dataset's weights, or from none")  # fmt: skip
    config = replace(outer.config, checkpoint="last", validate_every=outer.config.epochs)
    path = folder / "splits.json"
    labels, reference = outer.model.folder / "dataset.json", outer.model.folder / REFERENCE
    differing = _begin(folder, config, outer.model.plan, labels=labels, reference=reference)
    if not _is_begun(folder):
        write_splits(path, splits)
    subjects = _subjects(outer.store)
    if not path.is_file() or read_splits(path, subjects) != list(splits):
        differing.append("other folds")
    if differing:
        raise PwmlError(f"{folder} was begun with {join(differing)}: delete it, so that it is trained again")
    return Run(TrainedModel.open(folder), config, outer.store, list(splits))


def _contradictions(augmentation: AugmentationConfig, chosen: Configuration, plan: Plan) -> Iterator[str]:
    """What a configuration cannot learn from, to be said after its name."""
    if chosen.patch_slices > 1 and augmentation.paste_probability:
        yield "learns from volumes, and lesions are pasted into single slices: leave augmentation.paste_probability at 0"
    if len(chosen.channels or plan.channel_names) == 1 and augmentation.channel_dropout:
        yield "sees one channel, which cannot be left out: leave --channel-dropout at 0"


def _subjects(store: CaseStore) -> dict[str, str]:
    """The subject of each preprocessed case."""
    return {name: facts.subject for name in store.names() if (facts := store.facts(name))}


def _begin(folder: Path, config: TrainingConfig, plan: Plan, *, labels: Path, reference: Path) -> list[str]:
    """Writes the run's JSON files where no fold was begun; else what differs from what they say, in words.

    `labels` is a dataset.json, `reference` what cases are registered to, if they are.
    """
    make_folder(folder)
    path = folder / "training.json"
    if _is_begun(folder):
        differing = _differences(folder, config, plan, labels)
    else:
        differing = []
        write_json(folder / "plan.json", plan.to_dict())
        write_json(folder / "dataset.json", read_json(labels))
        Postprocessing(smallest_lesion_mm3=plan.smallest_lesion_mm3).write(folder / SETTINGS)
        if reference.is_file():
            shutil.copyfile(reference, folder / REFERENCE)
    if not differing:
        config.write(path)
    return differing


def _is_begun(folder: Path) -> bool:
    """Whether the training of any fold was begun."""
    return (folder / "training.json").is_file() and any(folder.glob("fold_*/training.log"))


def _differences(folder: Path, config: TrainingConfig, plan: Plan, labels: Path) -> list[str]:
    """What a run was begun with that is otherwise now."""
    known = TrainingConfig.read(folder / "training.json")
    differing = [
        f"{f.name} {getattr(known, f.name)} (now {getattr(config, f.name)})"
        for f in fields(config)
        if f.name not in _MAY_CHANGE and getattr(known, f.name) != getattr(config, f.name)
    ]
    if not _same_plan(Plan.read(folder / "plan.json"), plan, config.configuration):
        differing.append("another plan.json")
    if read_labels(folder / "dataset.json") != read_labels(labels):
        differing.append("other labels")
    return differing


def _same_plan(known: Plan, plan: Plan, configuration: str) -> bool:
    """Whether two plans mean the same to a configuration; others may have come and gone."""
    if configuration not in known.configurations:
        return False
    before, now = known.configurations[configuration], plan.configurations[configuration]
    return before == now and known.preparations[before.preparation] == plan.preparations[now.preparation]
