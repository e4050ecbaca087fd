"""Runs to compare: folders that were evaluated, trained models, and folders of masks."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pwmlunet.config import join
from pwmlunet.data.dataset import Labels, list_files
from pwmlunet.data.image import FILE_ENDINGS
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.evaluate import evaluate_folders, read_summary
from pwmlunet.evaluation.scores import CaseScores, TargetScores


@dataclass(frozen=True)
class ScoredRun:
    """The cases of one run with their scores."""

    name: str
    """Short, to be told from the other runs."""
    cases: tuple[CaseScores, ...]
    """In any order."""


def read_runs(
    folders: Sequence[Path],
    *,
    reference: Path | None = None,
    labels: Labels | Path | None = None,
    only_common: bool = False,
) -> list[ScoredRun]:
    """The runs in some folders (see `read_run`), with names that tell them apart.

    Raises:
        PwmlError: some of them cannot be read; all of them at once.
    """
    problems = [f"{f} is named twice: name each run once" for f in _named_twice(folders)]
    runs = []
    for folder, name in zip(folders, short_names(folders), strict=True):
        try:
            run = read_run(folder, reference=reference, labels=labels, only_common=only_common)
            runs.append(ScoredRun(name, run.cases))
        except PwmlError as error:
            problems.append(str(error))
    if problems:
        raise PwmlError.listing("the runs cannot be compared", list(dict.fromkeys(problems)))
    return runs


def _named_twice(folders: Sequence[Path]) -> Iterator[Path]:
    places = [folder.resolve() for folder in folders]
    yield from (folder for n, folder in enumerate(folders) if places[n] in places[:n])


def read_run(
    folder: Path,
    *,
    reference: Path | None = None,
    labels: Labels | Path | None = None,
    only_common: bool = False,
) -> ScoredRun:
    """The run in a folder.

    Args:
        folder: With masks, nnU-Net's too, which are scored now where a reference is given (nothing is written
            into the folder); or of a trained model, whose held-out cases of all folds are taken together; or with
            a summary.json of pwml_evaluate.
        reference: Folder of reference masks.
        labels: What the values in the masks mean, as for `evaluate_folders`.
        only_common: Whether to score the cases that both folders have.

    Raises:
        PwmlError: it is none of these, or its files cannot be read.
    """
    if not folder.is_dir():
        raise PwmlError(f"{folder} is not a folder: check the path")
    path = folder / "summary.json"
    if reference is not None and _has_masks(folder, reference):
        cases = evaluate_folders(reference, folder, labels=labels, only_common=only_common)
    elif folds := sorted(folder.glob("fold_*/validation/summary.json")):
        cases = _out_of_fold(folds)
    elif path.is_file():
        _, cases = read_summary(path)
    else:
        known = (
            f"nor masks named as in {reference}"
            if reference
            else "and there is no --reference to score masks against"
        )
        raise PwmlError(f"{folder} holds no scores {known}: run pwml_evaluate on it, or check the path")
    return ScoredRun(folder.name, tuple(cases))


def _has_masks(folder: Path, reference: Path) -> bool:
    """Whether any of the reference masks has its counterpart in a folder."""
    masks = (path for ending in FILE_ENDINGS for path in list_files(reference, ending))
    return any((folder / mask.name).is_file() for mask in masks)


def _out_of_fold(paths: Sequence[Path]) -> list[CaseScores]:
    """The held-out cases of all folds together; each case in one fold only."""
    fold_of: dict[str, Path] = {}
    cases = []
    for path in paths:
        for case in read_summary(path)[1]:
            if case.name in fold_of:
                raise PwmlError(f"case {case.name} is held out in {fold_of[case.name]} and in {path}: the folds must not share cases")  # fmt: skip
            fold_of[case.name] = path
            cases.append(case)
    return cases


def short_names(folders: Sequence[Path]) -> list[str]:
    """The parts of each path that the paths do not begin or end with in common; numbered where they are equal."""
    parts = [folder.resolve().parts for folder in folders]
    shortest = min(map(len, parts))
    start = next((i for i in range(shortest) if len({p[i] for p in parts}) > 1), shortest)
    end = next((i for i in range(shortest - start) if len({p[-1 - i] for p in parts}) > 1), shortest - start)
    names = ["/".join(p[start : len(p) - end]) or p[-1] for p in parts]
    seen: dict[str, int] = {}
    for name in names:
        seen[name] = seen.get(name, 0) + 1
    counts: dict[str, int] = {}
    for index, name in enumerate(names):
        counts[name] = counts.get(name, 0) + 1
        if seen[name] > 1:
            names[index] = f"{name} ({counts[name]})"
    return names


def align(
    runs: Sequence[ScoredRun], *, only_common: bool = False
) -> tuple[list[list[CaseScores]], list[str]]:
    """The cases of each run in one order, and the targets; the same in all runs.

    Raises:
        PwmlError: there is one run only, or the runs differ in cases or targets (unless `only_common`), or in
            subjects or references; all of it at once.
    """
    if len(runs) < 2:
        raise PwmlError("there is one run only: name two or more to compare, the baseline first")
    names, targets = _common(runs, only_common)
    tables = [{case.name: case for case in run.cases} for run in runs]
    aligned = [[cases[name] for name in names] for cases in tables]
    problems = [
        problem
        for run, cases in zip(runs[1:], aligned[1:], strict=True)
        for case, first in zip(cases, aligned[0], strict=True)
        for problem in _contradictions(case, first, targets, where=(run.name, runs[0].name))
    ]
    if problems:
        raise PwmlError.listing("the runs were scored against other references", problems)
    return aligned, targets


def _common(runs: Sequence[ScoredRun], only_common: bool) -> tuple[list[str], list[str]]:
    """The cases and the targets that all runs have."""
    cases = [[case.name for case in run.cases] for run in runs]
    targets = [list(dict.fromkeys(target for case in run.cases for target in case.targets)) for run in runs]
    problems = [
        *_missing(runs, "case", cases, "score it there too, or compare what all have with --only-common"),
        *_missing(
            runs, "target", targets, "score with the same labels, or compare what all have with --only-common"
        ),
    ]
    if problems and not only_common:
        raise PwmlError.listing("the runs do not have the same cases", problems)
    for kind, found in (("case", cases), ("target", targets)):
        if not set(found[0]).intersection(*found):
            raise PwmlError(f"{join(run.name for run in runs)} have no {kind} in common: compare runs on the same cases")  # fmt: skip
    return sorted(set(cases[0]).intersection(*cases)), [
        t for t in targets[0] if all(t in other for other in targets)
    ]


def _missing(
    runs: Sequence[ScoredRun], kind: str, found: Sequence[Sequence[str]], advice: str
) -> Iterator[str]:
    everything = sorted({name for names in found for name in names})
    for run, names in zip(runs, found, strict=True):
        if missing := [name for name in everything if name not in names]:
            yield f"{run.name} lacks the {kind}{'s' if len(missing) > 1 else ''} {join(missing)}: {advice}"


def _contradictions(
    case: CaseScores, first: CaseScores, targets: Sequence[str], *, where: tuple[str, str]
) -> Iterator[str]:
    """In what the reference of a case differs between a run and the first, and where that is."""
    if case.subject != first.subject:
        yield f"case {case.name} is of {case.subject} in {where[0]} and of {first.subject} in {where[1]}: name the subjects in dataset.json, and give it with --labels"  # fmt: skip
    same = [_is_same_reference(case.targets[target], first.targets[target]) for target in targets]
    if case.n_labelled_slices != first.n_labelled_slices or not all(same):
        yield f"case {case.name} has another reference in {where[0]} than in {where[1]}: score both against the same masks"  # fmt: skip


def _is_same_reference(one: TargetScores, other: TargetScores) -> bool:
    """Whether the lesions are as large and lie where the other's do."""
    here, there = (
        [(r.volume_mm3, *r.centroid_zyx) for r in scores.lesions.reference] for scores in (one, other)
    )
    return len(here) == len(there) and np.allclose(here, there, rtol=1e-4)
