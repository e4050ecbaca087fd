"""From a raw dataset to everything that training needs: fingerprint, plan, preprocessed cases, folds."""

import logging
from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.data.dataset import CaseFiles, Dataset, Labels, open_dataset
from pwmlunet.data.parallel import map_cases
from pwmlunet.data.splits import make_splits, read_splits, write_splits
from pwmlunet.data.store import CaseStore, PreprocessedCase, WayBack
from pwmlunet.data.workspace import Workspace
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.lesions import find_lesions
from pwmlunet.files import make_folder, write_json
from pwmlunet.planning.alignment import REFERENCE, CoarseImage, coarse_image
from pwmlunet.planning.budget import Budget
from pwmlunet.planning.fingerprint import Fingerprint, extract_fingerprint
from pwmlunet.planning.plan import Plan, write_plan
from pwmlunet.planning.planner import make_plan, parents_of
from pwmlunet.planning.preprocessing import Preparation, made_from, preprocess_case, restore
from pwmlunet.planning.workers import affordable_workers

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
    workers = affordable_workers(dataset.cases, workers)
    fingerprint = extract_fingerprint(dataset, workers)
    folder = workspace.preprocessed / dataset.name
    plan = _plan(folder, fingerprint, memory_gb, replan)
    write_json(folder / "dataset.json", dataset.content)
    fingerprint.write(folder / "fingerprint.json")
    used = {c.preparation for c in plan.configurations.values()}
    n_made = sum(
        _preprocess(dataset, fingerprint, CaseStore(folder / name), plan.preparations[name], workers)
        for name in sorted(used)
    )
    _fold(folder / "splits.json", fingerprint, plan.n_folds)
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
        logger.info(
            "the dataset, the wish or what is measured changed: a new plan is made, the old one is plan.json.old"
        )
    write_plan(path, plan, parents_of(plan))
    return plan


def _is_known(fingerprint: Fingerprint, path: Path) -> bool:
    """Whether the file holds this fingerprint; not so for one that is missing, damaged or of another version."""
    try:
        return path.is_file() and Fingerprint.read(path) == fingerprint
    except PwmlError:
        return False


def _preprocess(
    dataset: Dataset, fingerprint: Fingerprint, store: CaseStore, preparation: Preparation, workers: int
) -> int:
    middle = _reference_case(dataset, fingerprint) if preparation.align == "rigid" else None
    origins = {case.name: _origin(case, preparation, middle) for case in dataset.cases}
    todo = [case for case in dataset.cases if not _is_done(store, case, origins[case.name])]
    names = {case.name for case in dataset.cases}
    for case in todo:  # one that fails now must not leave its old self to train with
        store.remove(case.name)

    reference = _reference(store.folder / REFERENCE, middle, preparation, remake=bool(todo))

    def prepare_and_keep(files: CaseFiles) -> None:
        case = preprocess_case(files, dataset.labels, preparation, reference)
        case = replace(case, facts=replace(case.facts, made_from=origins[files.name]))
        if lost := lost_lesions(case, dataset.labels):
            advice = "its mask reaches beyond the fan, correct it" if preparation.crop == "fan" else "widen crop margin or raise long_side in plan.json"  # fmt: skip
            raise PwmlError(f"case {files.name} loses lesions on the planned grid ({lost} of them): {advice}")
        store.write(case)

    _, problems = map_cases(prepare_and_keep, todo, workers=workers, title="preprocess")
    if problems:
        raise PwmlError.of_some(problems, len(todo), "cases")
    for stale in sorted(set(store.names()) - names):
        store.remove(stale)
    return len(todo)


def _is_done(store: CaseStore, files: CaseFiles, origin: dict[str, Any]) -> bool:
    facts = store.facts(files.name)
    return facts is not None and (facts.subject, facts.made_from) == (files.subject, origin)


def _origin(files: CaseFiles, preparation: Preparation, reference: CaseFiles | None) -> dict[str, Any]:
    """What a case is made from: its own files, the preparation, and the reference that it is laid beside."""
    origin = made_from(files, preparation)
    return (
        origin if reference is None else {**origin, "reference": made_from(reference, preparation)["files"]}
    )


def _reference_case(dataset: Dataset, fingerprint: Fingerprint) -> CaseFiles:
    """The image of the case whose head is nearest to the median size: the others differ least from it."""
    head_mm3 = {
        case.name: case.head_voxels * prod(case.geometry.spacing_zyx_mm) for case in fingerprint.cases
    }
    median = float(np.median(list(head_mm3.values())))
    files = min(dataset.cases, key=lambda case: (abs(head_mm3[case.name] - median), case.name))
    return replace(files, label=None)


def _reference(
    path: Path, files: CaseFiles | None, preparation: Preparation, *, remake: bool
) -> CoarseImage | None:
    """The image that cases are registered to, kept in a file; none where they are not."""
    if files is None:
        path.unlink(missing_ok=True)
        return None
    if not remake:
        try:
            return CoarseImage.read(path)
        except PwmlError as error:
            logger.info("the reference is made again: %s", error)
    logger.info("cases are registered to %s, whose head is nearest to the median size", files.name)
    case = preprocess_case(files, None, replace(preparation, align="middle"))
    make_folder(path.parent)
    coarse_image(case.image[0], case.facts.way_back.spacing_zyx_mm).write(path)
    return CoarseImage.read(path)


def lost_lesions(case: PreprocessedCase, labels: Labels) -> int:
    """How many lesions of a case a perfect network could not give back: no voxel of them returns."""
    assert case.mask is not None and case.reference is not None
    if _keeps_every_voxel(case.mask, case.reference, case.facts.way_back):
        return 0
    targets = torch.from_numpy(labels.encode(case.mask)).float()
    returned = restore(targets, case.facts.way_back).numpy() > 0.5
    lost = 0
    for there, back in zip(labels.encode(case.reference), returned, strict=True):
        components, n_lesions = find_lesions(there)
        lost += n_lesions - len(np.setdiff1d(np.unique(components[back]), [0]))
    return lost


def _keeps_every_voxel(mask: NDArray[np.uint8], reference: NDArray[np.uint8], way_back: WayBack) -> bool:
    """Whether the grid is the file's own but for a crop, and the crop cuts nothing off that is labelled."""
    (_, _), *box_yx = way_back.box_zyx
    is_native = tuple(stop - start for start, stop in box_yx) == way_back.slice_shape_yx
    return is_native and np.count_nonzero(mask) == np.count_nonzero(reference)


def _fold(path: Path, fingerprint: Fingerprint, n_folds: int) -> None:
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
    write_splits(path, make_splits(subjects, _lesions_by_kind(fingerprint), n_folds=n_folds))


def _lesions_by_kind(fingerprint: Fingerprint) -> dict[str, tuple[int, ...]]:
    """How many lesions each case has, of the rarest kind first: it is the one that a fold might lack."""
    counts = Counter(lesion.target for lesion in fingerprint.lesions)
    kinds = sorted(counts, key=lambda kind: (counts[kind], kind))
    of_cases = {case.name: Counter(lesion.target for lesion in case.lesions) for case in fingerprint.cases}
    return {name: tuple(found[kind] for kind in kinds) for name, found in of_cases.items()}
