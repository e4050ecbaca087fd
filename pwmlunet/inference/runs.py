"""The trained runs of a dataset: their out-of-fold cases, alone and together, and what they cost."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from pwmlunet.config import did_you_mean, join
from pwmlunet.data.parallel import default_workers, map_cases
from pwmlunet.data.store import CaseFacts, CaseStore, WayBack
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.probabilities import read_probability
from pwmlunet.inference.candidates import CaseTable, OutOfFold, tabulate_case
from pwmlunet.inference.model import ALL, TrainedModel
from pwmlunet.planning.plan import read_labels

_WORKERS = 2  # more would hold many volumes of many runs in memory


@dataclass(frozen=True, eq=False)
class Run:
    """A trained run and its out-of-fold cases."""

    model: TrainedModel
    store: CaseStore
    files: Mapping[str, tuple[str, Path]]
    """Fold and probabilities by case."""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.model.folder.name


def gather_runs(folder: Path, prepared: Path, names: Sequence[str] | None) -> list[Run]:
    """The trained runs with out-of-fold probabilities."""
    found = [p.parent for p in sorted(folder.glob("*/training.json")) if any(p.parent.glob("fold_*/validation/*.npz"))]  # fmt: skip
    for name in names or ():
        if name not in {f.name for f in found}:
            raise PwmlError(
                f"{folder} has no trained run {name!r}{did_you_mean(name, [f.name for f in found])}"
            )
    opened = [TrainedModel.open(f) for f in found if not names or f.name in names]
    runs = [Run(m, CaseStore(prepared / m.configuration.preparation), _out_of_fold(m)) for m in opened]
    labels = read_labels(prepared / "dataset.json")
    for run in runs:
        if run.model.labels != labels:
            raise PwmlError(f"{run.model.folder} was trained with other labels than {prepared} has now: leave it out with --runs")  # fmt: skip
    runs = [run for run in runs if run.files]
    if not runs:
        raise PwmlError(f"{folder} has no run with a finished fold: run pwml_train {prepared.name} 0")
    return runs


def _out_of_fold(model: TrainedModel) -> dict[str, tuple[str, Path]]:
    """Fold and probabilities by case; of a case that several folds hold out, the first fold's."""
    files: dict[str, tuple[str, Path]] = {}
    for fold in model.finished_folds():
        if fold != ALL:  # its networks learned from these cases
            # not what a killed run left half-written, whose name begins with a dot
            for path in sorted((model.fold_folder(fold) / "validation").glob("[!.]*.npz")):
                files.setdefault(path.name.removesuffix(".npz"), (fold, path))
    return files


def comparable_runs(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """The runs that have the cases of the run that has most, and why the others are left out."""
    most = max(runs, key=lambda run: len(run.files))
    comparable = [run for run in runs if run.files.keys() >= most.files.keys()]
    left_out = []
    for run in runs:
        if run not in comparable:
            missing = {most.files[case][0] for case in most.files.keys() - run.files.keys()}
            left_out.append(
                f"{run.name} is left out: it has not predicted the cases of fold {join(sorted(missing))}; train it there"
            )
    return [Run(r.model, r.store, {c: r.files[c] for c in sorted(most.files)}) for r in comparable], left_out


def groups_of(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """Each run, all pairs, and all together; what names no kind of lesion is in no mean with what does."""
    able = [run for run in runs if run.model.names_kinds]
    groups: list[tuple[Run, ...]] = [*((run,) for run in runs), *combinations(able, 2)]
    return [*groups, tuple(able)] if len(able) > 2 else groups


def out_of_fold(name: str, runs: Sequence[Run], groups: Sequence[tuple[Run, ...]]) -> Iterator[OutOfFold]:
    """A case with the mean probabilities of each group of the runs; those of all runs are in memory."""
    first = runs[0]
    facts, reference = facts_of(first, name), first.store.reference(name)
    n_targets = len(first.model.labels.targets)
    read = {run.name: read_probability(run.files[name][1], reference.shape, n_targets) for run in runs}
    known = (facts.subject, first.files[name][0], facts.way_back.geometry.spacing_zyx_mm, reference)
    for group in groups:
        yield OutOfFold(name, *known, _mean([read[run.name] for run in group]))


def tabulate_groups(runs: Sequence[Run], groups: Sequence[tuple[Run, ...]]) -> list[list[CaseTable]]:
    """The tables of each group. The probabilities of all runs are in memory for two cases at a time.

    Raises:
        PwmlError: a file is damaged; all such files are listed.
    """
    labels = runs[0].model.labels
    return tabulate_cases(
        runs[0], lambda name: [tabulate_case(case, labels) for case in out_of_fold(name, runs, groups)]
    )


@dataclass(frozen=True)
class _Case:
    name: str


def tabulate_cases(run: Run, tabulate: Callable[[str], list[CaseTable]]) -> list[list[CaseTable]]:
    """The tables of all cases of a run, for each of what `tabulate` makes of a case's name.

    Raises:
        PwmlError: a file is damaged; all such files are listed.
    """
    tables, problems = map_cases(
        lambda case: tabulate(case.name),
        [_Case(name) for name in sorted(run.files)],
        workers=min(_WORKERS, default_workers()),
        title="out-of-fold cases",
    )
    if problems:
        raise PwmlError.listing("cases cannot be compared", problems)
    return [list(rows) for rows in zip(*tables, strict=True)]


def facts_of(run: Run, name: str) -> CaseFacts:
    """What is known of a case.

    Raises:
        PwmlError: it is not preprocessed.
    """
    facts = run.store.facts(name)
    if facts is None:
        raise PwmlError(f"case {name}, which {run.name} has predicted, is not preprocessed in {run.store.folder}: run pwml_plan_and_preprocess")  # fmt: skip
    return facts


def _mean(probabilities: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    return probabilities[0] if len(probabilities) == 1 else np.mean(probabilities, axis=0)


def multiply_adds(run: Run) -> float:
    """What one look at the first case costs, for each voxel of the image; counted, not run."""
    way_back, network = facts_of(run, min(run.files)).way_back, run.model.configuration.network
    n_batch, n_channels, n_slices, y, x = _seen_shape(run.model, way_back)
    n_alike = n_slices if network.n_slices == network.slice_stride == 1 else 1  # each slice from itself alone
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        run.model.build().eval().segment(torch.empty(n_batch, n_channels, n_slices // n_alike, y, x))
    return n_alike * float(counter.get_total_flops()) / 2 / math.prod(way_back.geometry.shape_zyx)


def _seen_shape(model: TrainedModel, way_back: WayBack) -> tuple[int, int, int, int, int]:
    """The prepared case as the network sees it: slices repeated at both ends, sides up to its strides."""
    network = model.configuration.network
    strides = network.slice_stride, network.stride, network.stride
    z, y, x = (math.ceil(n / s) * s for n, s in zip(way_back.grid_shape_zyx, strides, strict=True))
    return 1, model.n_channels + network.takes_prior, z + network.n_slices - 1, y, x
