"""From a raw dataset to everything that training needs: fingerprint, plan, preprocessed cases, folds."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pwmlunet.config import join
from pwmlunet.data.dataset import CaseFiles, Dataset, Labels, open_dataset
from pwmlunet.data.parallel import map_cases
from pwmlunet.data.splits import make_splits, read_splits, write_splits
from pwmlunet.data.store import CaseStore, PreprocessedCase
from pwmlunet.data.workspace import Workspace
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.lesions import find_lesions
from pwmlunet.files import write_json
from pwmlunet.planning.fingerprint import Fingerprint, extract_fingerprint
from pwmlunet.planning.plan import Plan, write_plan
from pwmlunet.planning.planner import PARENTS, Budget, make_plan
from pwmlunet.planning.preprocessing import Preparation, made_from, preprocess_case, restore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What came of planning and preprocessing."""

    folder: Path
    fingerprint: Fingerprint
    plan: Plan
    n_made: int
    """Cases that were preprocessed now; the others were there already."""


def plan_and_preprocess(
    workspace: Workspace,
    identifier: str,
    *,
    memory_gb: float | None = None,
    workers: int = 2,
    replan: bool = False,
) -> Prepared:
    """Looks at a raw dataset, decides, and prepares its cases.

    An existing plan.json, edited or not, is kept as long as the dataset stays as it was and `replan` is
    not asked for; a plan that is replaced is kept beside it as plan.json.old.
    """
    dataset = open_dataset(workspace.find_raw(identifier))
    fingerprint = extract_fingerprint(dataset, workers)
    folder = workspace.preprocessed / dataset.name
    plan = _plan(folder, fingerprint, memory_gb, replan)
    write_json(folder / "dataset.json", dataset.content)
    fingerprint.write(folder / "fingerprint.json")
    used = {c.preparation for c in plan.configurations.values()}
    n_made = sum(
        _preprocess(dataset, CaseStore(folder / name), plan.preparations[name], workers)
        for name in sorted(used)
    )
    _fold(folder / "splits.json", fingerprint)
    return Prepared(folder, fingerprint, plan, n_made)


def _plan(folder: Path, fingerprint: Fingerprint, memory_gb: float | None, replan: bool) -> Plan:
    path, known = folder / "plan.json", folder / "fingerprint.json"
    if path.is_file() and not replan and _is_known(fingerprint, known):
        if memory_gb is not None:
            raise PwmlError(f"{path} is there already and --memory-gb asks for another plan: add --replan")
        logger.info("the plan in %s is kept (--replan makes a new one)", path)
        return Plan.read(path)
    plan = make_plan(fingerprint, Budget.find(memory_gb))
    if path.is_file():
        path.replace(path.with_name("plan.json.old"))
        logger.info("the dataset or the wish changed: a new plan is made, the old one is plan.json.old")
    write_plan(path, plan, PARENTS)
    return plan


def _is_known(fingerprint: Fingerprint, path: Path) -> bool:
    """Whether the file holds this fingerprint; not so for one that is missing, damaged or of another version."""
    try:
        return path.is_file() and Fingerprint.read(path) == fingerprint
    except PwmlError:
        return False


def _preprocess(dataset: Dataset, store: CaseStore, preparation: Preparation, workers: int) -> int:
    todo = [case for case in dataset.cases if not _is_done(store, case, preparation)]
    names = {case.name for case in dataset.cases}
    for case in todo:  # one that fails now must not leave its old self to train with
        store.remove(case.name)

    def prepare_and_keep(files: CaseFiles) -> None:
        case = preprocess_case(files, dataset.labels, preparation)
        if lost := lost_lesions(case, dataset.labels):
            raise PwmlError(f"case {files.name} loses {lost} lesions on the planned grid: widen crop margin or raise long_side in plan.json")  # fmt: skip
        store.write(case)

    _, problems = map_cases(prepare_and_keep, todo, workers=workers, title="preprocess")
    if problems:
        raise PwmlError.listing("cases could not be preprocessed, the others are done", problems)
    for stale in sorted(set(store.names()) - names):
        store.remove(stale)
    return len(todo)


def _is_done(store: CaseStore, files: CaseFiles, preparation: Preparation) -> bool:
    facts = store.facts(files.name)
    return facts is not None and (facts.subject, facts.made_from) == (
        files.subject,
        made_from(files, preparation),
    )


def lost_lesions(case: PreprocessedCase, labels: Labels) -> int:
    """How many lesions of a case a perfect network could not give back: no voxel of them returns."""
    assert case.mask is not None and case.reference is not None
    targets = torch.from_numpy(labels.encode(case.mask)).float()
    returned = restore(targets, case.facts.way_back).numpy() > 0.5
    lost = 0
    for there, back in zip(labels.encode(case.reference), returned, strict=True):
        components, n_lesions = find_lesions(there)
        lost += n_lesions - len(np.setdiff1d(np.unique(components[back]), [0]))
    return lost


def _fold(path: Path, fingerprint: Fingerprint) -> None:
    """Writes splits.json where there is none; checks one that is there."""
    subjects = {case.name: case.subject for case in fingerprint.cases}
    if path.is_file():
        splits = read_splits(path, subjects)
        left_out = set(subjects) - {name for split in splits for name in (*split.train, *split.val)}
        if left_out:
            logger.warning("%s leaves out %s: delete it to make new folds", path, join(sorted(left_out)))
        return
    if len(set(subjects.values())) < 2:
        logger.warning("all cases are of one subject: only fold 'all' can be trained")
        return
    write_splits(path, make_splits(subjects, {case.name: len(case.lesions) for case in fingerprint.cases}))
