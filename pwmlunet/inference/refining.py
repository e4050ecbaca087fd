"""Refining: a dense CRF on the surroundings of each lesion of a prediction, slice by slice.

Exact mean field is for lesions of a few voxels. A region of more than `MOST_PIXELS` rows or columns is left as it is.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from pwmlunet.data.store import Orientation, WayBack
from pwmlunet.evaluation.lesions import find_lesions
from pwmlunet.inference.candidates import THRESHOLDS
from pwmlunet.inference.postprocessing import sizes_and_peaks
from pwmlunet.networks.dense_crf import DenseCrfConfig, mean_field
from pwmlunet.planning.cropping import foreground
from pwmlunet.planning.preprocessing import restore

logger = logging.getLogger(__name__)

MOST_PIXELS = 48
"""Rows or columns of a region; its kernel takes 21 MB then."""

LEAST_PROBABILITY = THRESHOLDS[0] / 2
"""Voxels above it make the pieces that are refined with their surroundings, wherever lesions are cut."""

_BATCH = 16  # regions
_REACH = 2  # standard deviations: beyond, a kernel holds 5 % along an axis
_PERCENTILES = (0.5, 99.5)
_NEIGHBOURS = np.ones((3, 3), bool)  # pixels that meet at a corner belong together


@dataclass(frozen=True, eq=False)
class SeenImage:
    """A case's image as the CRF sees it."""

    intensities: NDArray[np.float32]
    """(C, Z, Y, X), slices first, on the case's own pixels; of the range in the head, each channel from 0 to 1."""
    spacing_zyx_mm: tuple[float, float, float]
    """Of slices, rows and columns."""
    orientation: Orientation
    """Where they lie in the case's own files."""

    @classmethod
    def of_prepared(cls, image: NDArray[np.floating[Any]], way_back: WayBack) -> "SeenImage":
        """A prepared case (C, Z, Y, X) sent back to its own grid. Beyond its crop it is as dark as it ever is."""
        orientation = way_back.orientation
        lifted = np.array(image)
        for channel in lifted:
            channel -= channel.min()  # 0 is what is beyond
            channel /= channel.max() or 1  # `restore` leaves out slices of small numbers
        on_grid = orientation.to_grid(restore(torch.from_numpy(lifted), way_back).numpy())
        _make_shares(on_grid)
        z, y, x = (way_back.geometry.spacing_zyx_mm[axis] for axis in orientation.order)
        return cls(on_grid, (z, y, x), orientation)

    def refine(
        self, probability: NDArray[np.floating[Any]], config: DenseCrfConfig, *thresholds: float
    ) -> NDArray[np.float32]:
        """Probabilities (K, Z, Y, X) in the file's order after the CRF.

        Unless the config lets lesions vanish, each component at a threshold keeps a voxel above it, and where
        it was the most probable target one in which it still is: one that would lose all keeps its former
        probabilities. This holds at each threshold that is given. Two lesions may still merge.
        """
        refined = np.array(probability, np.float32)
        for before, after in zip(probability, refined, strict=True):
            before, after = (self.orientation.to_grid(array) for array in (before, after))
            regions = sorted(self._regions(before, config), key=lambda region: region.own.shape)
            for start in range(0, len(regions), _BATCH):  # those of like size are padded to one
                self._refine_regions(regions[start : start + _BATCH], before, after, config)
        if not config.may_delete:
            _keep_lesions(probability, refined, sorted(thresholds))
        return refined

    def _regions(self, probability: NDArray[np.floating[Any]], config: DenseCrfConfig) -> Iterator["_Region"]:
        """The surroundings of each piece of a slice that is more probable than a low level."""
        margin_mm = _REACH * max(config.smooth_mm, config.alike_mm)
        margins = [math.ceil(margin_mm / step) for step in self.spacing_zyx_mm[1:]]
        for z in np.flatnonzero(probability.max((1, 2)) > LEAST_PROBABILITY):
            pieces, _ = ndimage.label(probability[z] > LEAST_PROBABILITY, _NEIGHBOURS)
            nearest = _nearest(pieces, self.spacing_zyx_mm[1:])
            for number, box in enumerate(ndimage.find_objects(pieces), start=1):
                rows, columns = (_enlarge(side, by) for side, by in zip(box, margins, strict=True))
                region = _Region(int(z), (rows, columns), nearest[rows, columns] == number)
                if max(region.own.shape) <= MOST_PIXELS:
                    yield region
                else:
                    logger.debug("slice %d: a region of %d × %d pixels is not refined", z, *region.own.shape)

    def _refine_regions(
        self,
        regions: Sequence["_Region"],
        before: NDArray[np.floating[Any]],
        after: NDArray[np.float32],
        config: DenseCrfConfig,
    ) -> None:
        """Writes the regions of one batch, each into the pixels nearest to its own piece."""
        height, width = np.max([region.own.shape for region in regions], axis=0)
        probability = np.zeros((len(regions), height, width), np.float32)
        intensities = np.zeros((len(regions), len(self.intensities), height, width), np.float32)
        valid = np.zeros(probability.shape, bool)
        for number, region in enumerate(regions):
            part = (slice(region.own.shape[0]), slice(region.own.shape[1]))
            probability[number, *part] = before[region.z, *region.box]
            intensities[number, :, *part] = self.intensities[:, region.z, *region.box]
            valid[number, *part] = True
        p, i, v = [torch.from_numpy(array) for array in (probability, intensities, valid)]
        refined = mean_field(p, i, v, self.spacing_zyx_mm[1:], config).numpy()
        for region, values in zip(regions, refined, strict=True):
            own_values = values[: region.own.shape[0], : region.own.shape[1]][region.own]
            after[region.z, *region.box][region.own] = own_values


@dataclass(frozen=True, eq=False)
class _Region:
    """The surroundings of a piece."""

    z: int
    box: tuple[slice, slice]
    own: NDArray[np.bool_]
    """In the box: which pixels are nearer to this piece than to any other; the others are theirs to write."""


def _make_shares(image: NDArray[np.float32]) -> None:
    """Makes 0 and 1 the ends of each channel's range in the head, which the first of (C, Z, Y, X) shows."""
    head = foreground(image[0])
    head |= not head.any()  # an image of one value has none
    for channel in image:
        low, high = np.percentile(channel[head], _PERCENTILES)
        channel -= low
        channel /= high - low or 1


def _nearest(pieces: NDArray[np.int32], spacing_yx_mm: tuple[float, float]) -> NDArray[np.int32]:
    """The number of the piece that each pixel (Y, X) is nearest to."""
    indices = ndimage.distance_transform_edt(pieces == 0, spacing_yx_mm, False, True)
    return np.asarray(pieces[tuple(indices)])


def _enlarge(side: slice, margin: int) -> slice:
    return slice(max(side.start - margin, 0), side.stop + margin)


def _keep_lesions(
    before: NDArray[np.floating[Any]], after: NDArray[np.float32], thresholds: Sequence[float]
) -> None:
    """Gives lesions of (K, Z, Y, X) that are lost at one of the rising thresholds their former probabilities."""
    for was, became in zip(before, after, strict=True):
        lost = _lost(was, became, thresholds)
        became[lost] = was[lost]
    if len(before) == 1:
        return
    first_before, first_after = before.argmax(0), after.argmax(0)
    for k in range(len(before)):  # where targets exclude each other, another one may have taken the place
        was, became = np.where(first_before == k, before[k], 0), np.where(first_after == k, after[k], 0)
        lost = _lost(was, became, thresholds)
        after[:, lost] = before[:, lost]


def _lost(
    before: NDArray[np.floating[Any]], after: NDArray[np.floating[Any]], thresholds: Sequence[float]
) -> NDArray[np.bool_]:
    """The components of (Z, Y, X) at rising thresholds of which no voxel stays above the threshold."""
    lost = np.zeros(before.shape, bool)
    islands, _ = find_lesions(before > thresholds[0])
    for number, box in enumerate(ndimage.find_objects(islands), start=1):
        alone = np.where(islands[box] == number, before[box], 0)
        for threshold in thresholds:
            components, n = find_lesions(alone > threshold)
            _, peaks = sizes_and_peaks(components, n, after[box])
            lost[box] |= np.append(False, peaks <= threshold)[components]
    return lost
