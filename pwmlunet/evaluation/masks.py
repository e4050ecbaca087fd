"""Masks of the same name in two folders, paired, read and checked against each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.data.dataset import Labels, Target, list_files, read_dataset_json, subject_of
from pwmlunet.data.image import FILE_ENDINGS, read_image
from pwmlunet.errors import PwmlError

DESCRIPTION = "prediction.json"
"""What `pwml_predict` writes beside its masks: what made them."""

OVERLAY = "overlay.png"
"""The picture that `pwml_evaluate --images` draws, which may lie among masks and is none."""

LESION = Labels((Target("lesion", (1,), 1),), ignore=None)
"""What masks of 0 and 1 mean where nobody says."""


@dataclass(frozen=True)
class MaskPairs:
    """Masks of the same name in two folders; nothing is read yet."""

    files: Mapping[str, tuple[Path, Path]]
    """Reference and prediction by case."""
    labels: Labels
    """What their values mean."""
    subjects: Mapping[str, str]
    """Subject by case, where dataset.json says so."""
    problems: tuple[str, ...]
    """Files that are missing on one side."""
    advice: str = ""
    """What to do about an unknown value, where the labels are a guess."""

    def subject(self, name: str) -> str:
        """Whose case it is."""
        return str(self.subjects.get(name, subject_of(name)))

    def probability(self, name: str) -> Path | None:
        """The probabilities beside the predicted mask; None where there are none."""
        path = self.files[name][1].with_name(f"{name}.npz")
        return path if path.is_file() else None

    def read(self, name: str) -> tuple[NDArray[Any], NDArray[Any], tuple[float, float, float]]:
        """The reference and the predicted mask (Z, Y, X) of a case, and their spacing (z, y, x) in mm.

        Raises:
            PwmlError: a file cannot be read, holds other values than the labels, or the grids differ.
        """
        paths = self.files[name]
        reference, prediction = (read_image(path) for path in paths)
        known = self.labels.known_values
        arrays = (
            _whole_numbers(reference.array, known, f"{paths[0]}", self.advice),
            _whole_numbers(prediction.array, known - {self.labels.ignore}, f"{paths[1]}", self.advice),
        )
        if found := prediction.geometry.differences(reference.geometry):
            raise PwmlError(f"{paths[1]} is not on the grid of {paths[0]}: {'; '.join(found)}")
        return *arrays, reference.geometry.spacing_zyx_mm


def _whole_numbers(mask: NDArray[Any], known: frozenset[int | None], where: str, advice: str) -> NDArray[Any]:
    if mask.dtype.kind == "f":
        odd = mask[mask != np.round(mask)]
        if len(odd):
            raise PwmlError(f"{where} holds {odd[0]:g}: a mask must hold whole numbers")
        mask = np.clip(mask, -1e9, 1e9).astype(np.int32)
    unknown = [value for value in np.unique(mask[mask != 0]) if value not in known]
    if unknown:
        advice = advice or f"it may hold {join(sorted(v for v in known if v is not None))}"
        raise PwmlError(f"{where} holds the value {join(unknown[:5])}: {advice}")
    return mask


def pair_masks(
    reference: Path, prediction: Path, *, labels: Labels | Path | None = None, file_ending: str | None = None
) -> MaskPairs:
    """The masks that two folders have in common.

    Args:
        reference: Folder of reference masks.
        prediction: Folder of predicted masks, with the same file names.
        labels: What the values mean, or the dataset.json that says so. Without it a dataset.json in the
            prediction's folder or beside the reference's is taken; without that either, 1 is a lesion.
        file_ending: Ending of the masks; else that of dataset.json, else any that is known.

    Raises:
        PwmlError: a folder cannot be read or they have no file in common.
    """
    if (reference / DESCRIPTION).is_file() and not (prediction / DESCRIPTION).is_file():
        raise PwmlError(f"{reference} holds predictions of pwml_predict and {prediction} does not: swap them, -r takes the references")  # fmt: skip
    beside = (prediction / "dataset.json", reference / "dataset.json", reference.parent / "dataset.json")
    found = next((path for path in beside if path.is_file()), None)
    path = labels if isinstance(labels, Path) else found
    content = read_dataset_json(path) if path else {}
    if path and not isinstance(labels, Labels):
        labels = Labels.from_json(content["labels"], content.get("regions_class_order"), str(path))
    ending = file_ending or content.get("file_ending")
    endings = (ending,) if ending else FILE_ENDINGS
    sides = [
        {p.name: p for e in endings for p in list_files(side, e) if p.name != OVERLAY}
        for side in (reference, prediction)
    ]
    for side, found_there in zip((reference, prediction), sides, strict=True):
        if not found_there:
            raise PwmlError(f"{side} holds no masks ({join(endings)}): check the path")
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        raise PwmlError(f"{reference} and {prediction} have no {join(endings)} file name in common: name each prediction like its reference")  # fmt: skip
    files = {_stem(name, endings): (sides[0][name], sides[1][name]) for name in common}
    if len(files) < len(common):
        raise PwmlError(f"{reference} and {prediction} hold a case in several formats: keep one of them")
    advice = "" if isinstance(labels, Labels) else "say what it means with --labels dataset.json"
    known = labels if isinstance(labels, Labels) else LESION
    problems = (*_lonely(sides, prediction, 0), *_lonely(sides, reference, 1))
    return MaskPairs(files, known, content.get("subjects", {}), problems, advice)


def _lonely(sides: Sequence[Mapping[str, Path]], other: Path, side: int) -> Iterator[str]:
    for name in sorted(sides[side].keys() - sides[1 - side].keys()):
        yield f"{sides[side][name]} has no counterpart in {other}: add it, or leave it out with --only-common"


def _stem(name: str, endings: Sequence[str]) -> str:
    return name.removesuffix(next(ending for ending in endings if name.endswith(ending)))
