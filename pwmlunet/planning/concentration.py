"""Whether lesions gather in the same places of different subjects, so that a prior density can help."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.evaluation.bootstrap import Interval, ratio_interval
from pwmlunet.planning.kernel_density import DEFAULT_BANDWIDTH_MM, UNIFORM_SHARE, Points

CANDIDATES_MM = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
"""Bandwidths to choose among: wider ones than for voxels, as a lesion is one place here."""

FEWEST_SUBJECTS = 4
"""With lesions; below, an interval over subjects says nothing."""


@dataclass(frozen=True)
class Concentration(Config):
    """How much better the lesions of other subjects foretell a subject's lesions than chance does."""

    gain: float | None
    """Log-likelihood of a lesion less that of one anywhere in the head, in nats; null for fewer than two subjects."""
    interval: Interval | None
    """Of the gain, over subjects."""
    bandwidth_mm: float
    """Standard deviation of the Gaussian kernel under which the gain is greatest."""
    n_subjects: int
    """With lesions."""
    helps: bool
    """Whether a prior density can be expected to help: the gain is above 0 for certain, in enough subjects."""


def concentration(points_by_subject: Sequence[Points], head_mm3: float) -> Concentration:
    """How far the lesions of different subjects lie in the same places.

    Args:
        points_by_subject: the centroids (n, 3) of each subject's lesions, in mm from the middle of its head; (n, 2)
            of single slices.
        head_mm3: the volume of a head, in which lesions could lie anywhere; its area for single slices.
    """
    subjects = [np.asarray(points, np.float64) for points in points_by_subject if len(points)]
    if len(subjects) < 2:
        return Concentration(None, None, DEFAULT_BANDWIDTH_MM, len(subjects), False)
    gains = np.array([_gains(subjects, i, head_mm3) for i in range(len(subjects))])
    best = int(np.argmax(gains.mean(0)))
    interval = ratio_interval(gains[:, best], np.ones(len(subjects)))
    assert interval is not None
    helps = len(subjects) >= FEWEST_SUBJECTS and interval.low > 0
    return Concentration(float(gains[:, best].mean()), interval, CANDIDATES_MM[best], len(subjects), helps)


def _gains(subjects: Sequence[Points], left_out: int, head_mm3: float) -> NDArray[np.float64]:
    """The mean gain (bandwidths,) of one subject's lesions under the density of all others."""
    own = subjects[left_out]
    others = np.concatenate([points for i, points in enumerate(subjects) if i != left_out])
    squared = ((own[:, None] - others) ** 2).sum(2)
    kernels = (
        np.exp(squared / (-2 * h**2)).mean(1) / (2 * np.pi * h**2) ** (own.shape[1] / 2)  # (own,)
        for h in CANDIDATES_MM
    )
    return np.array([np.log((1 - UNIFORM_SHARE) * k * head_mm3 + UNIFORM_SHARE).mean() for k in kernels])
