"""The scores of one case: every target's voxels, lesions, candidates and reliability."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.data.dataset import Labels
from pwmlunet.evaluation.detection import Candidate, find_candidates
from pwmlunet.evaluation.lesions import LesionScores, score_lesions
from pwmlunet.evaluation.reliability import ReliabilityCounts, count_reliability
from pwmlunet.evaluation.voxels import VoxelScores, score_voxels


@dataclass(frozen=True)
class TargetScores(Config):
    """One target in one case."""

    voxels: VoxelScores
    """Overlap, volume and distance."""
    lesions: LesionScores
    """Components found, missed and invented."""
    candidates: tuple[Candidate, ...] | None = None
    """Components of the probability, for FROC; None where probabilities were not given."""
    reliability: ReliabilityCounts | None = None
    """Sums for the reliability curve; None where probabilities were not given."""

    @property
    def is_clean(self) -> bool:
        """Whether the reference is empty."""
        return not self.lesions.reference


@dataclass(frozen=True)
class CaseScores(Config):
    """One case, scored target by target."""

    name: str
    """The mask's file name without its ending."""
    subject: str
    """Whose image it is; several cases may be of one subject."""
    spacing_zyx_mm: tuple[float, float, float]
    """Of the image; 1, 1, 1 also where the file says nothing, as pictures do: mm are then pixels."""
    n_labelled_slices: int
    """Slices in which any voxel has a label other than "ignore"."""
    targets: dict[str, TargetScores]
    """By the target's name, in the order of the labels."""


def score_case(
    reference: NDArray[Any],
    prediction: NDArray[Any],
    *,
    spacing_zyx_mm: tuple[float, float, float],
    labels: Labels,
    name: str,
    subject: str,
    probability: NDArray[np.float32] | None = None,
) -> CaseScores:
    """The scores of a predicted mask (Z, Y, X) of label values against the reference on the same grid.

    The probability (K, Z, Y, X) of each target, where there is one, gives candidates and reliability.
    """
    if reference.shape != prediction.shape or reference.ndim != 3:
        raise ValueError(f"masks must be (Z, Y, X) on one grid: {reference.shape}, {prediction.shape}")
    if probability is not None and probability.shape != (len(labels.targets), *reference.shape):
        raise ValueError(f"probability must be (K, Z, Y, X) on the masks' grid: {probability.shape}")
    valid = None if labels.ignore is None else labels.valid(reference)
    n_slices = len(reference) if valid is None else int(np.count_nonzero(valid.any((1, 2))))
    chances = [None] * len(labels.targets) if probability is None else list(probability)
    masks = zip(labels.targets, labels.encode(reference), labels.encode(prediction), chances, strict=True)
    targets = {
        target.name: _score_target(truth, guess, spacing_zyx_mm, valid, chance)
        for target, truth, guess, chance in masks
    }
    return CaseScores(name, subject, spacing_zyx_mm, n_slices, targets)


def _score_target(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing_zyx_mm: tuple[float, float, float],
    valid: NDArray[np.bool_] | None,
    probability: NDArray[np.float32] | None,
) -> TargetScores:
    where: dict[str, Any] = {"spacing_zyx_mm": spacing_zyx_mm, "valid": valid}
    voxels = score_voxels(reference, prediction, **where)
    lesions = score_lesions(reference, prediction, **where, probability=probability)
    if probability is None:
        return TargetScores(voxels, lesions)
    candidates = find_candidates(probability, reference, **where)
    return TargetScores(voxels, lesions, candidates, count_reliability(probability, reference, valid))
