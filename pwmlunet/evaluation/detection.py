"""FROC: how many lesions are found against how many false alarms, as the demanded score falls."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.evaluation.lesions import LEAST_IOU, find_touching, match_by_iou, mean_and_max, measure_lesions
from pwmlunet.evaluation.probabilities import logit_of, probability_of

CANDIDATE_THRESHOLD = 0.1
"""Above this probability a voxel may belong to a candidate."""

_PEAK_SHARE = 0.5  # a candidate reaches to half of its highest probability, as spots are measured elsewhere

FALSE_POSITIVE_RATES = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1.0, "2": 2.0, "4": 4.0, "8": 8.0}
"""False positives per subject at which sensitivity is read, by their names (as LUNA16 does)."""

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Candidate(Config):
    """A component of the probability that may or may not be called a lesion."""

    is_true: bool
    """Whether it finds a reference lesion, matched one to one under the main rule."""
    mean_logit: float
    """Mean of the logits of its voxels; ranks are taken on logits, which do not saturate."""
    max_logit: float
    """Greatest logit of its voxels."""
    volume_mm3: float
    """Its volume."""


@dataclass(frozen=True)
class FrocPoint(Config):
    """What is found and invented if candidates from this score on are called lesions."""

    false_positives_per_subject: float
    """False candidates / subjects, those without lesions included."""
    sensitivity: float
    """True candidates / reference lesions."""
    score: float
    """The least score that is accepted, as a probability."""


@dataclass(frozen=True)
class Froc(Config):
    """Sensitivity against false positives per subject."""

    curve: tuple[FrocPoint, ...]
    """From the strictest score: for each sensitivity the point with the fewest false positives, and the end."""
    sensitivity_at: dict[str, float]
    """Greatest sensitivity with at most 1/8 … 8 false positives per subject."""
    n_reference: int
    """Reference lesions."""
    n_subjects: int
    """Subjects, those without lesions included."""


def find_candidates(
    probability: NDArray[np.float32],
    reference: NDArray[np.bool_],
    *,
    spacing_zyx_mm: tuple[float, float, float],
    valid: NDArray[np.bool_] | None = None,
) -> tuple[Candidate, ...]:
    """The peaks of a probability (Z, Y, X), and which of them find a reference lesion.

    Each component above the threshold is cut at half of its highest probability, so that a sure lesion is not
    drowned in its faint surroundings and a faint one is still there; what falls apart is several candidates.
    """
    above = probability > CANDIDATE_THRESHOLD
    if valid is not None:
        above, reference = above & valid, reference & valid
    candidates = measure_lesions(_cut_at_half(above, probability, spacing_zyx_mm), spacing_zyx_mm)
    touching = find_touching(measure_lesions(reference, spacing_zyx_mm), candidates)
    true = set(touching.predicted[match_by_iou(touching, LEAST_IOU)].tolist())
    logit = logit_of(probability.ravel()[candidates.places])
    means, maxima = mean_and_max(candidates, logit)
    rows = zip(means.tolist(), maxima.tolist(), candidates.volumes_mm3.tolist(), strict=True)
    return tuple(Candidate(number in true, *row) for number, row in enumerate(rows))


def _cut_at_half(
    above: NDArray[np.bool_], probability: NDArray[np.float32], spacing_zyx_mm: tuple[float, float, float]
) -> NDArray[np.bool_]:
    """What of each component is above half of its highest probability."""
    whole = measure_lesions(above, spacing_zyx_mm)
    values = probability.ravel()[whole.places]
    _, peaks = mean_and_max(whole, values)
    cut = np.zeros(above.size, bool)
    cut[whole.places[values > _PEAK_SHARE * peaks[whole.numbers]]] = True
    return cut.reshape(above.shape)


def froc(
    candidates: Sequence[Candidate], *, n_reference: int, n_subjects: int, by: Literal["mean", "max"]
) -> Froc:
    """The curve over the candidates of all subjects, ranked by the mean or the greatest logit.

    Candidates of the same score enter together: their order says nothing.
    """
    if n_reference < 1 or n_subjects < 1:
        raise ValueError(f"FROC needs lesions and subjects: {n_reference}, {n_subjects}")
    points = _points(candidates, n_reference, n_subjects, by)
    sensitivity_at = {
        name: max((p.sensitivity for p in points if p.false_positives_per_subject <= rate + _ROUNDING), default=0.0)
        for name, rate in FALSE_POSITIVE_RATES.items()
    }  # fmt: skip
    return Froc(_corners(points), sensitivity_at, n_reference, n_subjects)


def _points(
    candidates: Sequence[Candidate], n_reference: int, n_subjects: int, by: Literal["mean", "max"]
) -> list[FrocPoint]:
    """A point for each score that occurs, from the greatest."""
    logit = np.array([c.mean_logit if by == "mean" else c.max_logit for c in candidates])
    is_true = np.array([c.is_true for c in candidates], bool)
    scores, group = np.unique(-logit, return_inverse=True)  # ascending: the greatest logit first
    true = np.cumsum(np.bincount(group[is_true], minlength=len(scores)))
    false = np.cumsum(np.bincount(group[~is_true], minlength=len(scores)))
    rows = zip(false / n_subjects, true / n_reference, probability_of(-scores), strict=True)
    return [FrocPoint(*map(float, row)) for row in rows]


def _corners(points: Sequence[FrocPoint]) -> tuple[FrocPoint, ...]:
    """The points at which sensitivity rises, and the last."""
    before = [0.0, *(point.sensitivity for point in points)]
    rising = [p for p, sensitivity in zip(points, before, strict=False) if p.sensitivity > sensitivity]
    return tuple(rising + [p for p in points[-1:] if p not in rising])
