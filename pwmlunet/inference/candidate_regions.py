"""Candidates of the first network, and the region around each that a correction network looks at."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pwmlunet.data.store import Orientation, WayBack
from pwmlunet.evaluation.lesions import find_lesions
from pwmlunet.networks.correction import CorrectionConfig
from pwmlunet.planning.cropping import foreground

_PERCENTILES = (0.5, 99.5)
_ENOUGH_VOXELS = 1_000_000  # to find the head and its range; a larger image is looked at in steps

_Places = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Of a region's slices, rows and columns, in voxels along the three axes; one of them has length 1."""


def find_candidates(
    probability: NDArray[np.floating[Any]], threshold: float
) -> tuple[NDArray[np.int32], int]:
    """The components (Z, Y, X), from 1, of where any target of (K, Z, Y, X) is above the threshold, and how many."""
    components, n = find_lesions(np.asarray((probability > threshold).any(0)))
    return components.astype(np.int32, copy=False), n


def cut_regions(
    image: NDArray[np.floating[Any]],
    way_back: WayBack,
    probability: NDArray[np.floating[Any]],
    components: NDArray[np.int32],
    n: int,
    config: CorrectionConfig,
    *,
    reach: float = 1.0,
    some: slice = slice(None),
) -> Tensor:
    """The regions (N, V, C', Q, Q) around candidates: image channels in [0, 1], then mask, then probability.

    Args:
        image: The prepared case (C, Z, Y, X); it may be a file's view, of which only surroundings are read.
        way_back: From its grid to the case's own.
        probability: (K, Z, Y, X) in the order of the case's own file.
        components: (Z, Y, X) there, numbered from 1 to n.
        n: How many candidates there are.
        config: What is cut.
        reach: The region's side, and its pixels, are so many times the network's; a pixel stays as large.
        some: Which of them, counted from 0; by default all.
    """
    channels = list(range(len(image)) if config.channels is None else config.channels)
    scale = _Scale.of_head(image, channels)
    numbers, likely = (way_back.orientation.to_grid(a) for a in (components, probability))
    spacing = [way_back.geometry.spacing_zyx_mm[axis] for axis in way_back.orientation.order]
    n_pixels = round(config.region_pixels * reach)
    steps_mm = (np.arange(n_pixels) + 0.5 - n_pixels / 2) * config.region_mm / config.region_pixels
    centres = find_centres(components, n, probability.max(0))
    centres = _to_grid(centres, components.shape, way_back.orientation)
    chosen, n_maps = range(n)[some], len(channels) + config.n_maps
    regions = np.empty((len(chosen), config.n_views, n_maps, n_pixels, n_pixels), np.float32)
    for of_candidate, index in zip(regions, chosen, strict=True):
        views = _views(centres[index], steps_mm, spacing, config.views)
        for region, places in zip(of_candidate, views, strict=True):
            region[: len(channels)] = _cut_image(image, channels, scale, _on_grid(places, way_back))
            region[len(channels) :] = _cut_maps(numbers, index + 1, likely, places, config)
    return torch.from_numpy(regions)


@dataclass(frozen=True, eq=False)
class _Scale:
    """What brings the range of each channel (C,) in the head to [0, 1]."""

    low: NDArray[np.float32]
    factor: NDArray[np.float32]
    """0 for a channel that is constant."""

    @classmethod
    def of_head(cls, image: NDArray[np.floating[Any]], channels: Sequence[int]) -> "_Scale":
        """Of the given channels of (C, Z, Y, X); the first channel that is not constant shows the head."""
        every = int(np.ceil((image[0].size / _ENOUGH_VOXELS) ** (1 / 3)))
        coarse = np.array(image[:, ::every, ::every, ::every], np.float32)
        head = foreground(next((c for c in coarse if c.min() < c.max()), coarse[0]))
        head |= not head.any()  # an image of one value has none
        low, high = np.array([np.percentile(coarse[c][head], _PERCENTILES) for c in channels], np.float32).T
        return cls(low, np.divide(1, high - low, out=np.zeros_like(low), where=high > low))

    def apply(self, values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """A part (C, Z, Y, X) of the channels in [0, 1]."""
        low, factor = (array[:, None, None, None] for array in (self.low, self.factor))
        return np.clip((values - low) * factor, 0, 1)


def find_centres(
    components: NDArray[np.int32], n: int, weights: NDArray[np.floating[Any]] | None = None
) -> NDArray[np.float64]:
    """The mean place (N, 3) of each candidate's voxels, all alike or by weights (Z, Y, X); in the order of (Z, Y, X)."""
    where = np.nonzero(components)
    numbers = components[where] - 1
    heavy = np.ones(len(numbers)) if weights is None else weights[where].astype(np.float64)
    sums = np.stack([np.bincount(numbers, heavy * steps, minlength=n) for steps in where], axis=-1)
    return np.asarray(sums / np.bincount(numbers, heavy, minlength=n)[:, None])


def _to_grid(
    places: NDArray[np.float64], shape_zyx: tuple[int, ...], orientation: Orientation
) -> NDArray[np.float64]:
    """Places (N, 3) in the file's order as slices, rows and columns."""
    ordered = places[:, orientation.order]
    last = np.array(shape_zyx)[list(orientation.order)] - 1
    return np.where(orientation.flipped, last - ordered, ordered)


def _views(
    centre_zyx: NDArray[np.float64],
    steps_mm: NDArray[np.float64],
    spacing_zyx_mm: Sequence[float],
    views: Literal["slice", "slices", "planes"],
) -> list[_Places]:
    """Where the pixels of each view lie on the case's own grid; slices are not mixed in the plane."""
    z, y, x = (c + steps_mm / step for c, step in zip(centre_zyx, spacing_zyx_mm, strict=True))
    nearest = np.floor(centre_zyx[:1] + 0.5)
    if views == "planes":
        return [(nearest, y, x), (z, centre_zyx[1:2], x), (z, y, centre_zyx[2:])]
    return [(nearest + beside, y, x) for beside in ((0,) if views == "slice" else (-1, 0, 1))]


def _on_grid(places: _Places, way_back: WayBack) -> _Places:
    """Places on the case's own grid, on the prepared one; pixels are areas, and their middles lie at halves."""
    z, y, x = (
        (at + 0.5 - start) * n / (stop - start) - 0.5
        for at, (start, stop), n in zip(places, way_back.box_zyx, way_back.grid_shape_zyx, strict=True)
    )
    return z, y, x


def _cut_image(
    image: NDArray[np.floating[Any]], channels: list[int], scale: _Scale, places: _Places
) -> NDArray[np.float32]:
    """The channels (C, Q, Q) at places on the prepared grid; beyond it the border goes on."""
    taps = [_Taps.at(at, n, beyond="border") for at, n in zip(places, image.shape[1:], strict=True)]
    around = image[:, *(tap.box for tap in taps)][channels]
    return _weigh(scale.apply(around), taps)


def _cut_maps(
    numbers: NDArray[np.int32],
    number: int,
    probability: NDArray[np.floating[Any]],
    places: _Places,
    config: CorrectionConfig,
) -> NDArray[np.float32]:
    """The candidate's mask and the probability, as the network sees them, at places on the case's own grid."""
    taps = [_Taps.at(at, n, beyond="zero") for at, n in zip(places, numbers.shape, strict=True)]
    box = tuple(tap.box for tap in taps)
    mask = [numbers[box] == number] if config.sees_mask else []
    likely = [probability[:, *box].max(0)] if config.sees_probability else []
    maps = np.array([*mask, *likely], np.float32).reshape(-1, *numbers[box].shape)
    return _weigh(maps, taps)


@dataclass(frozen=True, eq=False)
class _Taps:
    """Between which two voxels along an axis each place lies, and how near to either."""

    box: slice
    """All of the voxels."""
    voxels: NDArray[np.int64]
    """(2, Q), from the first in the box."""
    weights: NDArray[np.float32]
    """(2, Q)."""

    @classmethod
    def at(cls, places: NDArray[np.float64], n: int, *, beyond: Literal["border", "zero"]) -> "_Taps":
        """For places (Q,) along an axis of n voxels."""
        low = np.floor(places).astype(np.int64)
        voxels, share = np.stack((low, low + 1)), places - low
        weights = np.stack((1 - share, share))
        if beyond == "zero":
            weights *= (voxels >= 0) & (voxels < n)
        voxels = voxels.clip(0, n - 1)
        first = int(voxels.min())
        return cls(slice(first, int(voxels.max()) + 1), voxels - first, weights.astype(np.float32))


def _weigh(values: NDArray[np.float32], taps: Sequence[_Taps]) -> NDArray[np.float32]:
    """What (C, Z, Y, X) of the boxes is at the places: trilinear, axis by axis; (C, Q, Q), the axis of length 1 left out."""
    side = max(tap.weights.shape[1] for tap in taps)
    for axis, tap in enumerate(taps, start=1):
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        near, far = (
            values.take(v, axis) * w.reshape(shape) for v, w in zip(tap.voxels, tap.weights, strict=True)
        )
        values = near + far
    return values.reshape(-1, side, side)
