"""Intervals by bootstrap over subjects, for one system and for the difference of two."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pwmlunet.config import Config

N_RESAMPLES = 2000
SEED = 0
COVERAGE = 0.95


@dataclass(frozen=True)
class Interval(Config):
    """A 95 % interval: percentiles over resampled subjects (Efron & Tibshirani 1993, chapter 13)."""

    low: float
    """The 2.5th percentile."""
    high: float
    """The 97.5th."""


@lru_cache(maxsize=4)  # an evaluation asks a hundred times, for the same few numbers
def resample(n_subjects: int, n_resamples: int = N_RESAMPLES, seed: int = SEED) -> NDArray[np.float64]:
    """How often each subject is in each resample (R, S), read-only; the same for the same numbers, whoever asks."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_subjects, np.full(n_subjects, 1 / n_subjects), size=n_resamples)
    weights = np.asarray(drawn, np.float64)
    weights.setflags(write=False)
    return weights


def ratio_interval(parts: ArrayLike, wholes: ArrayLike) -> Interval | None:
    """The interval of Σ parts / Σ wholes, given both for each subject (S,).

    A mean of cases is such a ratio (their sum / how many), and so are recall, precision and one-to-one F1
    of all lesions together. None with fewer than two subjects that have a whole: there is nothing to resample.
    """
    parts, wholes = np.asarray(parts, np.float64), np.asarray(wholes, np.float64)
    if np.count_nonzero(wholes) < 2:
        return None
    return _interval(_ratios(parts, wholes))


def difference_interval(
    first: tuple[ArrayLike, ArrayLike], second: tuple[ArrayLike, ArrayLike]
) -> Interval | None:
    """The interval of ratio(first) − ratio(second) over the same subjects, in the same order.

    Each side is its parts and wholes by subject; the resamples are common to both. None as in `ratio_interval`.
    """
    sides = [tuple(np.asarray(values, np.float64) for values in side) for side in (first, second)]
    if any(np.count_nonzero(wholes) < 2 for _, wholes in sides):
        return None
    return _interval(_ratios(*sides[0]) - _ratios(*sides[1]))


def _ratios(parts: NDArray[np.float64], wholes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ratio in each resample (R,); NaN where nothing was drawn that has a whole."""
    weights = resample(len(parts))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights @ parts) / (weights @ wholes))


def _interval(values: NDArray[np.float64]) -> Interval:
    tail = 50 * (1 - COVERAGE)
    low, high = np.nanpercentile(values, (tail, 100 - tail))
    return Interval(float(low), float(high))
