"""Brain, ventricles and the contour midway between them in a slice, without anything learned."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pwmlunet.config import Config

SpacingYX = tuple[float, float]
"""Distance between rows and between columns in mm."""

_NORMAL = 1.4826  # standard deviations of a Gaussian in its median absolute deviation


@dataclass(frozen=True)
class AnatomyConfig(Config):
    """Where brain and ventricles are. Shares are of the head's radius: that of a disc as large as the head in the slice."""

    edge_share: float = 0.12
    """Skin, skull and the fluid below it: the brain begins this deep in the head."""
    ventricle_depth_share: float = 0.35
    """Ventricles lie deeper in the head than this."""
    ventricle_blob_share: float = 0.03
    """Width (sigma) of the Gaussian under which they are dark blobs."""
    ventricle_surroundings_share: float = 0.15
    """Width (sigma) of the Gaussian mean of the brain that they are darker than."""
    ventricle_deviations: float = 2.0
    """By how many standard deviations they are darker."""
    least_ventricle_share: float = 0.003
    """Smaller dark blobs are no ventricles; a share of the head's area in the slice."""


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What is told apart in a slice (Y, X)."""

    radius_mm: float
    """Of a disc as large as the head."""
    depth_mm: NDArray[np.float64]
    """Below the head's edge; 0 outside."""
    brain: NDArray[np.bool_]
    """What lies below skin, skull and fluid."""
    ventricles: NDArray[np.bool_]
    """Large dark blobs deep in the head."""
    midway: NDArray[np.float64]
    """1 where ventricles and the brain's edge are equally near, 0 at either and outside."""


def find_anatomy(
    image: NDArray[np.float32], head: NDArray[np.bool_], spacing_yx_mm: SpacingYX, config: AnatomyConfig
) -> Anatomy:
    """Brain, ventricles and how near to the midway contour each pixel is, in a slice (Y, X).

    The deepest point counts as a ventricle: in many slices there is none, in others only one is seen.
    """
    radius = radius_mm(head, spacing_yx_mm)
    depth = ndimage.distance_transform_edt(np.pad(head, 1), sampling=spacing_yx_mm)[1:-1, 1:-1]
    brain = depth > config.edge_share * radius
    widths = config.ventricle_blob_share * radius, config.ventricle_surroundings_share * radius
    excess = excess_over_surroundings(image, brain, widths, spacing_yx_mm)
    inside = depth > config.ventricle_depth_share * radius
    mean, deviation = fit_gaussian(excess[inside])
    dark = inside & (excess < mean - config.ventricle_deviations * deviation)
    ventricles = _large(dark, config.least_ventricle_share * np.count_nonzero(head))
    middle = ventricles | (depth == depth.max())
    to_middle = ndimage.distance_transform_edt(~middle, sampling=spacing_yx_mm)
    to_edge = np.maximum(depth - config.edge_share * radius, 0)
    midway = np.where(brain, 1 - np.abs(to_middle - to_edge) / np.maximum(to_middle + to_edge, 1e-6), 0)
    return Anatomy(radius, depth, brain, ventricles, midway)


def radius_mm(head: NDArray[np.bool_], spacing_yx_mm: SpacingYX) -> float:
    """The radius of a disc as large as the head in a slice."""
    return float(np.sqrt(np.count_nonzero(head) * spacing_yx_mm[0] * spacing_yx_mm[1] / np.pi))


def _large(mask: NDArray[np.bool_], least_pixels: float) -> NDArray[np.bool_]:
    pieces, _ = ndimage.label(mask)
    is_large = np.bincount(pieces.ravel()) >= least_pixels
    is_large[0] = False
    return np.asarray(is_large[pieces])


def excess_over_surroundings(
    image: NDArray[np.float32],
    brain: NDArray[np.bool_],
    widths_mm: tuple[float, float],
    spacing_yx_mm: SpacingYX,
) -> NDArray[np.float32]:
    """A slice under a narrow Gaussian less the brain's mean under a wide one; widths are sigmas."""
    narrow, wide = ([width / s for s in spacing_yx_mm] for width in widths_mm)
    weight = ndimage.gaussian_filter(brain.astype(np.float32), wide)
    around = ndimage.gaussian_filter(np.where(brain, image, 0), wide) / np.maximum(weight, 1e-3)
    return np.asarray(ndimage.gaussian_filter(image, narrow) - around)


def fit_gaussian(values: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Mean and standard deviation by the median and the median distance from it, which outliers do not move."""
    if not len(values):
        return 0.0, 0.0
    mean = float(np.median(values))
    return mean, _NORMAL * float(np.median(np.abs(values - mean)))
