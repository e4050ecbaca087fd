"""Folds: which cases teach and which are held out, never one subject on both sides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pwmlunet.config import join
from pwmlunet.errors import PwmlError
from pwmlunet.files import read_json, write_json


@dataclass(frozen=True)
class Split:
    """One fold."""

    train: tuple[str, ...]
    """Cases to learn from."""
    val: tuple[str, ...]
    """Cases held out."""


def make_splits(
    subject_of_case: Mapping[str, str],
    lesions_of_case: Mapping[str, Sequence[int]],
    *,
    n_folds: int,
    seed: int = 0,
) -> list[Split]:
    """So many folds (fewer with fewer subjects), each held-out part with a like share of lesions.

    Subjects are sorted by their lesions of each kind, the kind that comes first before the others, and dealt out;
    within each deal chance decides.

    Raises:
        PwmlError: there is one subject only.
    """
    load: dict[str, list[int]] = {}
    for case, subject in subject_of_case.items():
        so_far = load.get(subject, [0] * len(lesions_of_case[case]))
        load[subject] = [sum(pair) for pair in zip(so_far, lesions_of_case[case], strict=True)]
    if len(load) < 2:
        raise PwmlError(
            f"all cases are of one subject ({join(load)}): folds need two; train with fold 'all', or name subjects in dataset.json"
        )
    rng = np.random.default_rng(seed)
    ranked = sorted(load, key=lambda subject: ([-n for n in load[subject]], subject))
    n_folds = min(n_folds, len(ranked))
    fold_of: dict[str, int] = {}
    for start in range(0, len(ranked), n_folds):
        deal = ranked[start : start + n_folds]
        fold_of.update(zip(deal, rng.permutation(n_folds).tolist(), strict=False))
    return [
        Split(
            tuple(sorted(c for c, s in subject_of_case.items() if fold_of[s] != fold)),
            tuple(sorted(c for c, s in subject_of_case.items() if fold_of[s] == fold)),
        )
        for fold in range(n_folds)
    ]


def write_splits(path: Path, splits: Sequence[Split]) -> None:
    """Writes splits.json: a list of {"train": […], "val": […]}, as nnU-Net's splits_final.json."""
    write_json(path, [{"train": list(s.train), "val": list(s.val)} for s in splits])


def read_splits(path: Path, subject_of_case: Mapping[str, str]) -> list[Split]:
    """The folds in splits.json, which may be edited.

    Raises:
        PwmlError: a case is unknown or a subject stands on both sides of a fold.
    """
    splits = _read(path)
    for fold, split in enumerate(splits):
        _check(split, subject_of_case, f"{path}, fold {fold}")
    return splits


def read_held_out(path: Path) -> dict[str, str]:
    """In splits.json, the number of the fold that holds out each case; of several the first.

    Raises:
        PwmlError: the file is no list of folds.
    """
    folds: dict[str, str] = {}
    for number, split in enumerate(_read(path)):
        for case in split.val:
            folds.setdefault(case, str(number))
    return folds


def _read(path: Path) -> list[Split]:
    content = read_json(path)
    if not isinstance(content, list) or not content:
        raise PwmlError(f'{path} must be a list of folds {{"train": […], "val": […]}}')
    return [_split(entry, f"{path}, fold {i}") for i, entry in enumerate(content)]


def _split(entry: Any, where: str) -> Split:
    good = isinstance(entry, dict) and set(entry) == {"train", "val"}
    if not good or not all(isinstance(v, list) and v for v in entry.values()):
        raise PwmlError(f'{where} must have "train" and "val", each a list of cases')
    return Split(tuple(map(str, entry["train"])), tuple(map(str, entry["val"])))


def _check(split: Split, subject_of_case: Mapping[str, str], where: str) -> None:
    unknown = sorted({*split.train, *split.val} - set(subject_of_case))
    if unknown:
        raise PwmlError(f"{where} names cases that are not preprocessed ({join(unknown)}): correct it, or delete it to make new folds")  # fmt: skip
    train, val = ({subject_of_case[case] for case in part} for part in (split.train, split.val))
    if shared := sorted(train & val):
        raise PwmlError(
            f"{where} leaks: subject {join(shared)} is both in train and in val; keep a subject on one side"
        )
