"""Temperature: what the networks' logits are divided by, so that a probability means something."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pwmlunet.evaluation.reliability import N_BINS, ReliabilityCounts, reliability
from pwmlunet.inference.candidates import LOGITS, CaseTable
from pwmlunet.inference.counting import leave_out

_TEMPERATURES: NDArray[np.float64] = np.exp(np.arange(-35, 161) / 100)
_PRIOR_SPREAD = 0.5  # standard deviation of log T before anything is seen


@dataclass(frozen=True)
class Temperature:
    """A temperature and what it does to the expected calibration error around lesions and candidates."""

    value: float
    """What logits are divided by."""
    error_before: float | None
    """At temperature 1; None where there is nothing to look at."""
    error_after: float | None
    """Each subject at the temperature that the others choose."""


def find_temperature(tables: Sequence[CaseTable]) -> Temperature:
    """The temperature (Guo et al. 2017) that makes the lesions likely, each subject with lesions weighing alike.

    A lesion counts as one observation, since its voxels say the same; before any is seen log T is expected
    to be 0, within a half. So few lesions leave it near 1. It is not below 0.7: sharper ones would make
    logits of 10 and more one and the same probability in single precision.
    """
    subjects = sorted({table.subject for table in tables})
    histograms = np.zeros((len(subjects), 2, len(LOGITS)))
    n_lesions = np.zeros(len(subjects))
    for table in tables:
        histograms[subjects.index(table.subject)] += table.logits
        n_lesions[subjects.index(table.subject)] += len(table.reference_volumes_mm3)
    losses = _losses(histograms)

    def fit(some: NDArray[np.int64]) -> float:
        return _fit(losses[some], n_lesions[some])

    nested = leave_out(len(subjects), fit)
    errors = [_expected_error(histograms, each) for each in (np.ones_like(nested), nested)]
    return Temperature(fit(np.arange(len(subjects))), *errors)


def _losses(histograms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean negative log-likelihood of each subject at each temperature (S, T)."""
    scaled = LOGITS / _TEMPERATURES[:, None]  # (T, B)
    outside, inside = histograms[:, 0], histograms[:, 1]
    sums = outside @ np.logaddexp(0, scaled).T + inside @ np.logaddexp(0, -scaled).T
    return np.asarray(sums / np.maximum(histograms.sum((1, 2)), 1)[:, None])


def _fit(losses: NDArray[np.float64], n_lesions: NDArray[np.float64]) -> float:
    likely = losses[n_lesions > 0].sum(0) / max(np.count_nonzero(n_lesions), 1) * n_lesions.sum()
    prior = np.log(_TEMPERATURES) ** 2 / (2 * _PRIOR_SPREAD**2)
    return round(float(_TEMPERATURES[(likely + prior).argmin()]), 3)


def _expected_error(histograms: NDArray[np.float64], temperatures: NDArray[np.float64]) -> float | None:
    """The expected calibration error of all subjects together, each at its own temperature."""
    parts = [_reliability_counts(h, t) for h, t in zip(histograms, temperatures, strict=True)]
    return reliability(ReliabilityCounts.pool(parts)).expected_calibration_error


def _reliability_counts(histogram: NDArray[np.float64], temperature: float) -> ReliabilityCounts:
    probability = 1 / (1 + np.exp(-LOGITS / temperature))
    bins = np.minimum((probability * N_BINS).astype(np.int64), N_BINS - 1)
    columns = (histogram.sum(0), histogram.sum(0) * probability, histogram[1])
    n_voxels, sums, observed = (np.bincount(bins, column, N_BINS).tolist() for column in columns)
    return ReliabilityCounts(tuple(map(int, n_voxels)), tuple(sums), tuple(map(int, observed)))
