"""Where the probabilities of held-out cases come from: a trained run, alone, refined or corrected, or the classical method."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.dataset import Labels, open_dataset
from pwmlunet.data.splits import Split, read_splits
from pwmlunet.data.store import CaseFacts, CaseStore
from pwmlunet.data.workspace import Workspace
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.probabilities import read_probability
from pwmlunet.inference.classical import ClassicalConfig, ClassicalPredictor
from pwmlunet.inference.judged import Judged, corrected_out_of_fold
from pwmlunet.inference.refining import SeenImage
from pwmlunet.inference.runs import Run as FinishedRun
from pwmlunet.networks.dense_crf import DenseCrfConfig
from pwmlunet.planning.fingerprint import Fingerprint
from pwmlunet.planning.plan import read_labels
from pwmlunet.training.run import Run

_CLASSICAL_CUT = 0.5  # its map is above it exactly where its mask is


@dataclass(frozen=True)
class HeldOut:
    """The held-out cases of some folds of a dataset."""

    labels: Labels
    store: CaseStore
    """For their references; any of the dataset's preparations has them."""
    splits: Sequence[Split]
    """All folds."""
    fold_of: Mapping[str, str]
    """By case, the first of the folds that holds it out."""

    @classmethod
    def find(cls, folder: Path, preparation: str, folds: Sequence[str]) -> "HeldOut":
        """Those of a preprocessed dataset.

        Raises:
            PwmlError: splits.json names cases that are not prepared, or divides a subject.
        """
        store = CaseStore(folder / preparation)
        subjects = {name: facts_of(store, name).subject for name in store.names()}
        splits = read_splits(folder / "splits.json", subjects)
        fold_of: dict[str, str] = {}
        for fold in folds:
            for name in splits[int(fold)].val:
                fold_of.setdefault(name, fold)
        return cls(read_labels(folder / "dataset.json"), store, splits, fold_of)


def facts_of(store: CaseStore, name: str) -> CaseFacts:
    """The facts of a case that is known to be prepared."""
    facts = store.facts(name)
    assert facts is not None
    return facts


@dataclass(frozen=True)
class Source:
    """Where probabilities come from."""

    name: str
    """For messages."""
    threshold: float
    """Where they are cut."""
    find: Callable[[str, str], NDArray[np.float32]]
    """The probabilities (K, Z, Y, X) on a case's own grid, of the case's name and the fold that holds it out."""


def trained(run: Run, threshold: float) -> Source:
    """What the folds of a run found when they were finished."""

    def find(name: str, fold: str) -> NDArray[np.float32]:
        shape = facts_of(run.store, name).way_back.geometry.shape_zyx
        return read_probability(_path(run, name, fold), shape, len(run.model.labels.targets))

    return Source(str(run.model.folder), threshold, find)


def _path(run: Run, name: str, fold: str) -> Path:
    """Where a fold keeps what it found in a held-out case."""
    return run.model.fold_folder(fold) / "validation" / f"{name}.npz"


def refined(run: Run, threshold: float, *, may_delete: bool) -> Source:
    """The same after the dense CRF of RS-RCNN, with its paper's parameters: in pixels of the prepared grid."""
    plain = trained(run, threshold)

    def find(name: str, fold: str) -> NDArray[np.float32]:
        case = run.store.read(name)
        seen = SeenImage.of_prepared(case.image, case.facts.way_back)
        config = DenseCrfConfig.of_paper(case.facts.way_back.spacing_zyx_mm[1:])
        return seen.refine(plain.find(name, fold), replace(config, may_delete=may_delete), threshold)

    return Source(f"{plain.name} with the CRF", threshold, find)


def corrected(run: Run, threshold: float, *, removes: bool) -> Source:
    """The same after each fold's correction network, which names the kind of lesion, and removes some where it may.

    Raises:
        PwmlError: no correction of this run was trained.
    """
    judged = Judged.of_run(run.model)

    def find(name: str, fold: str) -> NDArray[np.float32]:
        alone = FinishedRun(run.model, run.store, {name: (fold, _path(run, name, fold))})
        return corrected_out_of_fold(alone, name, judged, removes=removes).probability

    return Source(f"{run.model.folder} with its correction", threshold, find)


def classical(workspace: Workspace, folder: Path, cases: HeldOut) -> Source:
    """What the classical method finds in the raw files of a planned dataset; sizes go by a fold's training lesions.

    Raises:
        PwmlError: there is no raw dataset, or the planned one has no fingerprint.
    """
    try:
        raw = workspace.find_raw(folder.name)
    except PwmlError as error:
        raise PwmlError(f"row A reads raw images: {error}; or leave it out (--rows)") from error
    files = {files.name: files for files in open_dataset(raw).cases}
    fingerprint = Fingerprint.read(folder / "fingerprint.json")

    def of_fold(fold: str) -> ClassicalPredictor:
        seen = tuple(case for case in fingerprint.cases if case.name in cases.splits[int(fold)].train)
        config = ClassicalConfig.of_fingerprint(
            replace(fingerprint, cases=seen), cases.labels.targets[0].name
        )
        return ClassicalPredictor(cases.labels, config)

    predictors = {fold: of_fold(fold) for fold in set(cases.fold_of.values())}
    return Source(
        "the classical method",
        _CLASSICAL_CUT,
        lambda name, fold: predictors[fold].predict_files(files[name]).probability,
    )
