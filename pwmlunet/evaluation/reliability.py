"""Reliability: whether of the voxels given a probability of .7 seven in ten are lesion."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.evaluation.detection import CANDIDATE_THRESHOLD
from pwmlunet.evaluation.voxels import ratio

N_BINS = 10
"""Bins of equal width from 0 to 1."""

REACH_VOXELS = 3
"""How far around lesions and candidates voxels are looked at: the empty background is always right."""


@dataclass(frozen=True)
class ReliabilityCounts(Config):
    """Sums over voxels by bin of probability; those of several cases add up."""

    n_voxels: tuple[int, ...]
    """Voxels in each bin."""
    probability: tuple[float, ...]
    """Sum of their probabilities."""
    observed: tuple[int, ...]
    """How many of them are lesion."""

    def __add__(self, other: "ReliabilityCounts") -> "ReliabilityCounts":
        return ReliabilityCounts(
            n_voxels=tuple(a + b for a, b in zip(self.n_voxels, other.n_voxels, strict=True)),
            probability=tuple(a + b for a, b in zip(self.probability, other.probability, strict=True)),
            observed=tuple(a + b for a, b in zip(self.observed, other.observed, strict=True)),
        )

    @classmethod
    def pool(cls, parts: Iterable["ReliabilityCounts"]) -> "ReliabilityCounts":
        """The sums over several cases."""
        return sum(parts, start=cls((0,) * N_BINS, (0.0,) * N_BINS, (0,) * N_BINS))


@dataclass(frozen=True)
class ReliabilityBin(Config):
    """The voxels whose probability is in a tenth of [0, 1]."""

    mean_probability: float | None
    """What they were promised; None where the bin is empty."""
    observed_share: float | None
    """The part of them that is lesion."""
    n_voxels: int
    """How many they are."""


@dataclass(frozen=True)
class Reliability(Config):
    """Promised against observed, in the neighbourhood of lesions and candidates."""

    bins: tuple[ReliabilityBin, ...]
    """From 0 to 1."""
    expected_calibration_error: float | None
    """Mean over the voxels of |promised − observed| of their bin; None without voxels."""
    n_voxels: int
    """In the neighbourhoods, "ignore" left out."""


def neighbourhood(reference: NDArray[np.bool_], probability: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The voxels (Z, Y, X) within a box of 3 voxels around the reference and all above the candidates' threshold."""
    near = reference | (probability > CANDIDATE_THRESHOLD)
    for axis in range(near.ndim):
        _spread(np.moveaxis(near, axis, 0))
    return near


def _spread(near: NDArray[np.bool_]) -> None:
    """Widens what is True by the reach along the first axis, in place."""
    original = near.copy()
    for step in range(1, min(REACH_VOXELS, len(near) - 1) + 1):
        near[step:] |= original[:-step]
        near[:-step] |= original[step:]


def count_reliability(
    probability: NDArray[np.float32], reference: NDArray[np.bool_], valid: NDArray[np.bool_] | None
) -> ReliabilityCounts:
    """The sums of one case (Z, Y, X) in its neighbourhoods; voxels outside `valid` neither count nor make one."""
    if valid is None:
        near = neighbourhood(reference, probability)
    else:
        near = neighbourhood(reference & valid, np.where(valid, probability, 0)) & valid
    p, lesion = probability[near], reference[near]
    bins = np.minimum((p * N_BINS).astype(np.int64), N_BINS - 1)
    return ReliabilityCounts(
        n_voxels=tuple(np.bincount(bins, minlength=N_BINS).tolist()),
        probability=tuple(np.bincount(bins, p, minlength=N_BINS).tolist()),
        observed=tuple(np.bincount(bins[lesion], minlength=N_BINS).tolist()),
    )


def reliability(counts: ReliabilityCounts) -> Reliability:
    """The bins and the expected calibration error (Guo et al. 2017, eq. 3)."""
    rows = list(zip(counts.n_voxels, counts.probability, counts.observed, strict=True))
    n_voxels = sum(counts.n_voxels)
    return Reliability(
        bins=tuple(ReliabilityBin(ratio(p, n), ratio(observed, n), n) for n, p, observed in rows),
        expected_calibration_error=ratio(sum(abs(p - observed) for _, p, observed in rows), n_voxels),
        n_voxels=n_voxels,
    )
