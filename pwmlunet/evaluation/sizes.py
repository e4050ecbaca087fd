"""Scores by the size of lesions: what is found of the small ones, and of the large."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pwmlunet.config import Config, join
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.bootstrap import Interval, ratio_interval
from pwmlunet.evaluation.lesions import LesionScores
from pwmlunet.evaluation.masks import DESCRIPTION
from pwmlunet.evaluation.scores import CaseScores
from pwmlunet.evaluation.voxels import ratio
from pwmlunet.files import read_json

_ROUNDING = 1e-6  # a volume is a count × a product of rounded spacings


@dataclass(frozen=True)
class SizeBin(Config):
    """The lesions of one range of volumes, over all cases, under the main rule."""

    low_mm3: float
    """The least volume."""
    high_mm3: float | None
    """Volumes are below it; None in the last bin, which is open."""
    n_reference: int
    """Reference lesions of this size."""
    n_found: int
    """Those of them that were found."""
    recall: float | None
    """Found / reference lesions; None without reference lesions."""
    recall_interval: Interval | None
    """By bootstrap over subjects; None with fewer than two that have such lesions."""
    dice: float | None
    """Mean over the reference lesions of Dice with the lesion that found them, 0 where missed."""
    volume_bias_mm3: float | None
    """Mean over the found of predicted minus reference volume; None where none was found."""
    n_predicted: int
    """Predicted lesions of this size."""
    n_false: int
    """Those of them that found no lesion."""


def quartiles_mm3(volumes: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles of one or more volumes."""
    low, middle, high = np.percentile(volumes, (25, 50, 75)).tolist()
    return low, middle, high


def training_quartiles_mm3(prediction: Path) -> dict[str, tuple[float, ...]] | None:
    """By target, the quartiles of the lesions that the model of a prediction was trained with.

    None where prediction.json, in the prediction's folder, is missing or does not say.

    Raises:
        PwmlError: they are no rising volumes.
    """
    path = prediction / DESCRIPTION
    content = read_json(path) if path.is_file() else {}
    quartiles = content.get("lesion_quartiles_mm3") if isinstance(content, dict) else None
    if quartiles is None:
        return None
    if not isinstance(quartiles, dict) or not all(map(_are_edges, quartiles.values())):
        raise PwmlError(
            f'{path}: "lesion_quartiles_mm3" must give rising volumes above 0 by target: predict again'
        )
    return {name: tuple(map(float, edges)) for name, edges in quartiles.items()}


def _are_edges(edges: object) -> bool:
    return (
        isinstance(edges, list | tuple)
        and all(isinstance(edge, int | float) and 0 < edge < float("inf") for edge in edges)
        and sorted(edges) == list(edges)
    )


def check_edges(edges_mm3: Sequence[float]) -> None:
    """Raises PwmlError where the edges of size bins are no rising volumes."""
    if not _are_edges(tuple(edges_mm3)):
        raise PwmlError(f"the edges of size bins must be rising volumes above 0 mm³, not {join(edges_mm3)}")


def by_size(cases: Sequence[CaseScores], target: str, edges_mm3: Sequence[float]) -> tuple[SizeBin, ...]:
    """The bins from 0 over each edge to infinity; a lesion as large as an edge is in the bin above it.

    Raises:
        PwmlError: the edges are no rising volumes.
    """
    check_edges(edges_mm3)
    lows = [0.0, *dict.fromkeys(map(float, edges_mm3))]
    fates = [fate for case in cases for fate in _fates(case, target)]
    predicted = [row for case in cases for row in _predicted(case.targets[target].lesions)]
    bins_of_fates = _bins_of([fate.volume_mm3 for fate in fates], lows)
    subjects = sorted({case.subject for case in cases})
    bins_of_predicted = _bins_of([volume for volume, _ in predicted], lows)
    return tuple(
        _bin(
            low,
            high,
            [fate for fate, place in zip(fates, bins_of_fates, strict=True) if place == number],
            [is_false for (_, is_false), place in zip(predicted, bins_of_predicted, strict=True) if place == number],
            subjects,
        )
        for number, (low, high) in enumerate(zip(lows, [*lows[1:], None], strict=True))
    )  # fmt: skip


@dataclass(frozen=True)
class _Fate:
    """What became of a reference lesion."""

    subject: str
    volume_mm3: float
    dice: float
    bias_mm3: float | None
    """Predicted minus reference volume; None where it was missed."""


def _fates(case: CaseScores, target: str) -> Iterator[_Fate]:
    lesions = case.targets[target].lesions
    matches = lesions.match_of
    for number, lesion in enumerate(lesions.reference):
        match = matches.get(number)
        dice = match.dice if match else 0.0
        bias = lesions.predicted[match.predicted].volume_mm3 - lesion.volume_mm3 if match else None
        yield _Fate(case.subject, lesion.volume_mm3, dice, bias)


def _predicted(lesions: LesionScores) -> Iterator[tuple[float, bool]]:
    """The volume of each predicted lesion, and whether it is false."""
    false = set(lesions.false)
    return ((lesion.volume_mm3, number in false) for number, lesion in enumerate(lesions.predicted))


def _bins_of(volumes: Sequence[float], lows: Sequence[float]) -> list[int]:
    """The number of the bin that each volume is in."""
    found = np.searchsorted(np.array(lows) * (1 - _ROUNDING), volumes, side="right") - 1
    return [int(number) for number in found]


def _bin(
    low: float,
    high: float | None,
    fates: Sequence[_Fate],
    false: Sequence[bool],
    subjects: Sequence[str],
) -> SizeBin:
    """The bin; all subjects are resampled, also those without lesions of this size."""
    biases = [fate.bias_mm3 for fate in fates if fate.bias_mm3 is not None]
    by_subject = [[fate for fate in fates if fate.subject == subject] for subject in subjects]
    found_by_subject = [sum(fate.bias_mm3 is not None for fate in group) for group in by_subject]
    return SizeBin(
        low_mm3=low,
        high_mm3=high,
        n_reference=len(fates),
        n_found=len(biases),
        recall=ratio(len(biases), len(fates)),
        recall_interval=ratio_interval(found_by_subject, [len(group) for group in by_subject]),
        dice=ratio(sum(fate.dice for fate in fates), len(fates)),
        volume_bias_mm3=ratio(sum(biases), len(biases)),
        n_predicted=len(false),
        n_false=sum(false),
    )
