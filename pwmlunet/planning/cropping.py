"""Where the head, the body or the fan of an ultrasound probe lies in a volume."""

from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask
from numpy.typing import NDArray
from scipy import ndimage

_MANY_BLOCKS = (
    1e6  # of 4 x 4 x 4 voxels in a volume of 55 million; a volume of a million is looked at by voxel
)
_GAP = 2  # blocks on each side of a gap that a shadow or a vessel may leave in a fan
_LEAST_BACKGROUND = 0.02  # of the field: with less around it nothing is a fan

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Half-open [start, stop) along z, y and x."""


def foreground(volume: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the head or body lies in a volume (Z, Y, X): its largest bright piece, holes filled by slice.

    The threshold is half of Otsu's, on slices smoothed over 3 × 3 pixels: scan noise stays below it and
    dim tissue above. On the public slices of Liu et al. 2019 the box of this mask is 1 to 4 pixels larger
    on each side than the authors' crop (rows and columns that sum to more than 1024).
    """
    smooth = ndimage.uniform_filter(volume.astype(np.float32, copy=False), (0, 3, 3))
    low = float(smooth.min())
    bright = smooth > low + (_otsu(smooth) - low) / 2
    labelled, n_pieces = ndimage.label(bright)
    if n_pieces > 1:
        bright = labelled == 1 + np.argmax(np.bincount(labelled.ravel())[1:])
    return np.stack([ndimage.binary_fill_holes(piece) for piece in bright])


def _otsu(values: NDArray[Any]) -> float:
    """Otsu's threshold (1979): where the variance between the two sides is greatest."""
    counts, edges = np.histogram(values, 256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    n, total = below[-1], sums[-1]
    between = (total * below / n - sums) ** 2 / np.maximum(below * (n - below), 1)
    return float(centres[np.argmax(between)])


def find_fan(volume: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where an ultrasound probe saw something in a volume (Z, Y, X); none where that cannot be told.

    What it did not see holds one exact value, its corners'. The fan is the largest piece that does not, with
    narrow shadows closed. In a large volume it is made of blocks, and so some voxels too large, never too small.
    """
    block = max(1, round((volume.size / _MANY_BLOCKS) ** (1 / 3)))
    corners, counts = np.unique(volume[np.ix_((0, -1), (0, -1), (0, -1))], return_counts=True)
    seen = volume != corners[np.argmax(counts)]
    for axis, length in enumerate(volume.shape):
        seen = np.logical_or.reduceat(seen, np.arange(0, length, block), axis)
    field = (slice(_GAP, -_GAP),) * 3
    near = ndimage.binary_dilation(np.pad(seen, _GAP), iterations=_GAP)
    if not seen.any() or near[field].mean() > 1 - _LEAST_BACKGROUND:
        return None
    labelled, _ = ndimage.label(near)
    largest = labelled == 1 + np.argmax(np.bincount(labelled.ravel())[1:])
    fan = ndimage.binary_erosion(largest, iterations=_GAP)[field]
    for axis in range(3):
        fan = fan.repeat(block, axis)
    z, y, x = volume.shape
    return np.asarray(fan[:z, :y, :x])


def box_of(mask: NDArray[np.bool_]) -> Box:
    """The smallest box around what is true in (Z, Y, X); the whole array where nothing is."""
    (z0, z1), (y0, y1), (x0, x1) = get_bbox_from_mask(mask)
    return (int(z0), int(z1)), (int(y0), int(y1)), (int(x0), int(x1))


def square_box(box: Box, margin: float) -> Box:
    """The box made square in the plane about its centre, with a margin on each side (a share of the side).

    It may reach beyond the image.
    """
    z, y, x = box
    side = round(max(y[1] - y[0], x[1] - x[0]) * (1 + 2 * margin))
    return z, _about(y, side), _about(x, side)


def _about(interval: tuple[int, int], length: int) -> tuple[int, int]:
    start = (interval[0] + interval[1] - length) // 2
    return start, start + length
