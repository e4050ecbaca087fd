"""How intensities are brought to one scale."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]

_ENOUGH_VOXELS = 2_000_000  # for percentiles: of a larger image every second, third … voxel is looked at


def _zscore_head(image: Array, head: Mask) -> Array:
    inside = image[head] if head.any() else image.ravel()
    mean, std = inside.mean(), max(float(inside.std()), 1e-6)
    normalised = np.asarray(image - mean)
    normalised /= std
    return normalised


def _percentiles_head(image: Array, head: Mask) -> Array:
    inside = image[head] if head.any() else image.ravel()
    every = 1 + len(inside) // _ENOUGH_VOXELS
    low, high = (float(v) for v in np.percentile(inside[::every], (0.5, 99.5)))
    normalised = image - low
    normalised /= max(high - low, 1e-6)
    return np.clip(normalised, 0, 1, out=normalised)


def _mean_subtracted(image: Array, head: Mask) -> Array:
    return np.asarray(image - image.mean())


def _unchanged(image: Array, head: Mask) -> Array:
    return image


NORMALISATIONS: dict[str, Callable[[Array, Mask], Array]] = {
    "zscore_head": _zscore_head,
    "percentiles_head": _percentiles_head,
    "mean_subtracted": _mean_subtracted,
    "none": _unchanged,
}
"""By name: z-score inside the head; 0.5th to 99.5th percentile there to [0, 1]; Liu et al.'s; nothing."""
