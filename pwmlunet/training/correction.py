"""The correction of a run: networks that judge the candidates of stage one, trained fold by fold.

A candidate is only ever judged by a network that has seen neither its subject nor what a stage one that had seen it
said of others. Candidates to learn from for fold f are therefore those of another fold g, found by stage-one networks
that were trained without both: "pair networks", one for every two folds.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from shutil import rmtree
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pwmlunet.config import join
from pwmlunet.data.splits import Split
from pwmlunet.data.workspace import Workspace
from pwmlunet.errors import PwmlError
from pwmlunet.inference.candidate_classes import (
    ThresholdRow,
    choose_threshold,
    class_names,
    tabulate_thresholds,
)
from pwmlunet.inference.correction import CORRECTION, DESCRIPTION, VERSION, Correction
from pwmlunet.inference.device import choose_device
from pwmlunet.inference.judged import Judged, JudgedCase, describe_candidates
from pwmlunet.inference.model import ALL, find_model, save_tensors
from pwmlunet.networks.correction import CorrectionConfig, CorrectionNetwork, classify
from pwmlunet.planning.plan import Plan
from pwmlunet.training.config import TrainingConfig
from pwmlunet.training.correction_learning import REACH, CorrectionRecipe, learn
from pwmlunet.training.correction_sources import Source
from pwmlunet.training.run import Run, open_inner_run, open_run
from pwmlunet.training.trainer import FoldTrainer

logger = logging.getLogger(__name__)

RECIPE = "training.json"
"""How networks are trained, in the folder of their run or of its correction."""

_FEW = 5  # candidates of a class, which teach little


@dataclass(frozen=True)
class _Stage:
    """A run as stage one, and what its correction is made of."""

    run: Run
    config: CorrectionConfig
    recipe: CorrectionRecipe
    folds: tuple[str, ...]
    """The folds whose candidates are judged, and learned from for the others."""

    @property
    def folder(self) -> Path:
        """Where the correction is kept."""
        return self.run.model.folder / CORRECTION

    @property
    def classes(self) -> tuple[str, ...]:
        """From 1 on."""
        return class_names(self.run.model.labels)

    @cached_property
    def inner(self) -> Run:
        """The run of the pair networks: its k-th fold holds out the k-th pair of the run's folds."""
        assert self.run.splits is not None
        splits = [_without(self.run.splits, pair) for pair in self._pairs]
        return open_inner_run(self.run, self.folder / "inner", splits)

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        return list(combinations(range(len(self.run.splits or ())), 2))

    def pair_fold(self, first: str, second: str) -> str:
        """The inner run's fold that holds out two folds."""
        pair = sorted((int(first), int(second)))
        return str(self._pairs.index((pair[0], pair[1])))

    def sources(self, fold: str) -> Iterator[Source]:
        """The cases to learn from for a fold."""
        for other in self.folds:
            if other != fold:
                pair = self.pair_fold(fold, other)
                yield from (Source(self.inner, name, pair) for name in self.run.split(other).val)

    def held_out(self, fold: str) -> list[Source]:
        """The cases that the network of a fold judges."""
        return [Source(self.run, name, fold) for name in self.run.split(fold).val]


def _without(splits: Sequence[Split], pair: tuple[int, int]) -> Split:
    first, second = (splits[number] for number in pair)
    train = tuple(sorted(set(first.train) & set(second.train)))
    if not train:
        raise PwmlError(f"no case is left to learn from without folds {join(pair)}, which a correction needs: make at least three folds in splits.json")  # fmt: skip
    return Split(train, tuple(sorted({*first.val, *second.val})))


@dataclass(frozen=True, eq=False)
class Corrected:
    """What `train_correction` made."""

    run: Run
    folds: tuple[str, ...]
    judged: Judged
    thresholds: tuple[ThresholdRow, ...]
    """Recall and false candidates of stage one's held-out cases at each threshold."""
    remarks: tuple[str, ...]
    """What a reader must know, a sentence each."""


def train_correction(
    workspace: Workspace,
    dataset: str,
    run_name: str,
    recipe: CorrectionRecipe,
    *,
    folds: Sequence[str] = (),
    device: str | None = None,
) -> Corrected:
    """Trains a correction network for each fold of a run, and the pair networks that it learns from.

    Pair networks that are trained already stay; correction networks, which take a minute, are always trained anew.

    Args:
        workspace: Where the run and the preprocessed cases are.
        dataset: Number or name.
        run_name: Name of the model folder of stage one.
        recipe: How the correction networks learn.
        folds: Folds of the run; all finished ones by default.
        device: What is computed on; that of the recipe and of the run by default.

    Raises:
        PwmlError: stage one lacks a fold, no candidate is found, or nothing is to be told apart.
        TrainingStoppedError: a signal asked to stop; the same call goes on.
    """
    stage = _open(workspace, dataset, run_name, recipe, folds, device)
    on, labels = choose_device(stage.recipe.device), stage.run.model.labels
    for first, second in combinations(stage.folds, 2):
        logger.info("stage one without folds %s and %s", first, second)
        FoldTrainer(stage.inner, stage.pair_fold(first, second)).train()
    rows = {fold: tabulate_thresholds((s.read() for s in stage.sources(fold)), labels) for fold in stage.folds}  # fmt: skip
    thresholds = {fold: choose_threshold(of_others) for fold, of_others in rows.items()}
    networks: dict[str, CorrectionNetwork] = {}
    cases: dict[str, JudgedCase] = {}
    remarks: list[str] = []
    for fold in tqdm(stage.folds, "correction", leave=False):
        networks[fold], remark = _learn(stage, fold, thresholds[fold], on)
        remarks += remark
        for source in stage.held_out(fold):
            cases[source.name] = _judge(networks[fold], source, thresholds[fold], fold)
    judged = Judged.of(stage.classes, thresholds, cases)
    _write(stage, networks, judged)
    held_out = (source.read() for fold in stage.folds for source in stage.held_out(fold))
    return Corrected(stage.run, stage.folds, judged, tuple(tabulate_thresholds(held_out, labels)), tuple(remarks))  # fmt: skip


def _open(
    workspace: Workspace,
    dataset: str,
    run_name: str,
    recipe: CorrectionRecipe,
    folds: Sequence[str],
    device: str | None,
) -> _Stage:
    prepared = workspace.find_preprocessed(dataset)
    recipe_of_run = TrainingConfig.read(find_model(workspace, prepared.name, run_name).folder / RECIPE)
    run = open_run(workspace, prepared.name, recipe_of_run, run_name)
    if device:
        recipe = replace(recipe, device=device)
        run = replace(run, config=replace(run.config, device=device))
    if recipe.channel_dropout is None:
        recipe = replace(recipe, channel_dropout=run.config.augmentation.channel_dropout)
    config = Plan.read(prepared / "plan.json").correction
    if config is None:
        raise PwmlError(f"{prepared / 'plan.json'} plans no correction: make a new plan with pwml_plan_and_preprocess -d {dataset} --replan")  # fmt: skip
    return _Stage(run, config, recipe, _finished(run, folds))


def _finished(run: Run, wanted: Sequence[str]) -> tuple[str, ...]:
    """The folds of stage one that can take part.

    Raises:
        PwmlError: some that are wanted are not trained, or there are too few.
    """
    finished = [fold for fold in run.model.finished_folds() if fold != ALL]
    if missing := sorted(set(wanted) - set(finished)):
        raise PwmlError(f"{run.model.folder} has not finished fold {join(missing)} (finished: {join(finished) or 'none'}): a correction has no more folds than stage one; run pwml_train first")  # fmt: skip
    folds = tuple(fold for fold in finished if not wanted or fold in wanted)
    if len(folds) < 2:
        raise PwmlError(f"{run.model.folder} has fold {join(folds) or 'none'} alone: a correction learns from the candidates of other folds; train two or more")  # fmt: skip
    _check_folds(run, folds)
    return folds


def _check_folds(run: Run, folds: Sequence[str]) -> None:
    """Raises PwmlError where a subject is held out twice, or what networks said of held-out cases is missing."""
    fold_of: dict[str, str] = {}
    for fold in folds:
        for name in run.split(fold).val:
            if not (run.model.fold_folder(fold) / "validation" / f"{name}.npz").is_file():
                raise PwmlError(f"fold {fold} of {run.model.folder} has no probabilities of case {name}: delete its folder validation and run pwml_train again")  # fmt: skip
            facts = run.store.facts(name)
            assert facts is not None  # the run was opened with it
            if fold_of.setdefault(facts.subject, fold) != fold:
                raise PwmlError(f"subject {facts.subject} is held out by folds {fold_of[facts.subject]} and {fold}: a correction needs each in one; change splits.json, or name other folds with -f")  # fmt: skip


def _learn(
    stage: _Stage, fold: str, threshold: float, device: torch.device
) -> tuple[CorrectionNetwork, list[str]]:
    """The correction network of a fold, and what is to be said of what it learned from."""
    regions, classes = [], []
    for source in stage.sources(fold):
        candidates = source.candidates(threshold).to_learn_from()
        if candidates.n:
            regions.append(candidates.cut(stage.config, reach=REACH).half())
            classes.append(candidates.classes)
    names = ("no lesion", *stage.classes)
    counts = np.bincount(np.concatenate([np.empty(0, int), *classes]), minlength=len(names))
    shown = join(f"{n} {name}" for n, name in zip(counts, names, strict=True))
    if np.count_nonzero(counts) < 2:
        raise PwmlError(f"fold {fold}: of the candidates above a probability of {threshold:g} there are {shown}, so there is nothing to tell apart: train stage one longer, or on more subjects")  # fmt: skip
    logger.info("fold %s learns from %s, above %g", fold, shown, threshold)
    known = torch.from_numpy(np.concatenate(classes))
    seed = stage.recipe.seed * 1009 + int(fold)
    network = learn(stage.config, torch.cat(regions), known, len(names), stage.recipe, seed=seed, device=device)  # fmt: skip
    few = [f"{n} {name}" for n, name in zip(counts, names, strict=True) if n < _FEW]
    remark = f"The network of fold {fold} learned from only {join(few)}: the other folds have no more such candidates."  # fmt: skip
    return network, [remark] if few else []


def _judge(network: CorrectionNetwork, source: Source, threshold: float, fold: str) -> JudgedCase:
    """A held-out case's candidates and what the network of its fold says of them."""
    found = source.candidates(threshold)
    scores: NDArray[Any] = (
        classify(network, found.cut(network.config)).numpy() if found.n else np.empty((0, 0))
    )
    rows = describe_candidates(found.components, found.n, found.probability, found.classes, scores)
    return JudgedCase(fold, rows)


def _write(stage: _Stage, networks: Mapping[str, CorrectionNetwork], judged: Judged) -> None:
    """All at the end: whoever stops before has the former correction whole."""
    for folder in stage.folder.glob("fold_*"):
        rmtree(folder)
    for fold, network in networks.items():
        save_tensors(stage.folder / f"fold_{fold}" / "weights.pt", network.state_dict())
    Correction(
        VERSION,
        stage.config,
        median(judged.thresholds.values()),
        judged.thresholds,
        judged.classes,
        len(stage.run.model.plan.channel_names),
        may_lack_channels=bool(stage.recipe.channel_dropout),
    ).write(stage.folder / DESCRIPTION)
    stage.recipe.write(stage.folder / RECIPE)
    judged.write_for(stage.run.model)
