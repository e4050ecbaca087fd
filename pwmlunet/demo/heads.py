"""Synthetic neonatal T1 heads with punctate lesions.

What is measured here was measured on the 12 labelled public slices of Liu et al. (arXiv:1910.09773; 8 bits,
256 x 256): head 31-43 % of the width; white matter about 50, cortex 75, deep grey matter 90, fluid 20, scalp
165-205; 13 lesions of 2-12 pixels (1-12 in the whole set, median 4), lesion mean / mean of the ring around it
1.18-2.35 (median 1.39), 0.0-2.4 (median 0.7) standard deviations above the head's mean, at the 77th to 98th
percentile of the head (never its brightest pixels), at 0.36-0.68 of the way from the head's edge to its middle.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from pwmlunet.data.image import Geometry
from pwmlunet.demo.lesions import draw_number

Floats = NDArray[np.float32]
Point = tuple[float, float]

DEMO_SHAPE_ZYX = (16, 128, 128)

SMALLEST_WIDTH = 48
"""Pixels across the field of view under which a head has no room for white matter."""

_SCALP, _SKULL, _FLUID, _GREY, _WHITE, _DEEP_GREY, _MYELIN = 175.0, 22.0, 22.0, 77.0, 50.0, 77.0, 92.0
_CHOROID, _VESSEL = 105.0, 92.0

_REAL_HALF_WIDTH = 26.0
"""Pixels of half a head for which the lengths below are meant; other heads scale them."""

LESIONS = (1, 6)
"""Of a subject that has any: at least and at most."""


@dataclass(frozen=True, eq=False)
class Head:
    """A subject's head before it is scanned: no noise, no bias field, in the middle of the grid."""

    signal: Floats
    """Intensities (Z, Y, X) on the 8-bit scale of the real slices."""
    mask: NDArray[np.uint8]
    """Lesions (Z, Y, X), 0 or 1."""


@dataclass(frozen=True, eq=False)
class _Frame:
    """Where each voxel lies in the head; every array broadcasts to (Z, Y, X)."""

    level: Floats
    """Height of the slice: 0 through the thalami, 1 at the crown."""
    side: Floats
    """Distance from the midline, 1 at the ear, the same on both sides."""
    back: Floats
    """-1.2 at the forehead, 1.2 at the back of the head."""
    depth: Floats
    """Pixels from the surface of the head, negative outside."""
    half_width: float
    """Pixels from the midline to the ear at level 0."""

    @property
    def unit(self) -> float:
        """Pixels that a length of 1 takes: thin layers neither vanish in small heads nor grow in large ones."""
        return float(np.clip(self.half_width / _REAL_HALF_WIDTH, 0.35, 1.6))

    def to_path(self, *points: Point) -> Floats:
        """Pixels from a path through points (side, back), drawn in both hemispheres."""
        pieces = [self._to_segment(start, end) for start, end in itertools.pairwise(points)]
        return np.asarray(np.minimum.reduce(pieces))

    def _to_segment(self, start: Point, end: Point) -> Floats:
        dx, dy = end[0] - start[0], end[1] - start[1]
        along = ((self.side - start[0]) * dx + (self.back - start[1]) * dy) / (dx**2 + dy**2)
        along = np.clip(along, 0, 1)
        away = np.hypot(self.side - start[0] - along * dx, self.back - start[1] - along * dy)
        return np.asarray(away * self.half_width, np.float32)

    def between(self, low: float, high: float) -> Floats:
        """1 for slices between two levels, fading to 0 outside."""
        rising, falling = (self.level - low) / 0.08, (high - self.level) / 0.08
        return np.asarray(np.clip(np.minimum(rising, falling) + 0.5, 0, 1))


def make_case(
    rng: Generator, *, shape_zyx: tuple[int, int, int] = DEMO_SHAPE_ZYX, n_lesions: int | None = None
) -> tuple[NDArray[np.int16], NDArray[np.uint8], Geometry]:
    """A scan (Z, Y, X), its lesion mask (0 or 1) and an oblique grid of thick slices.

    Without `n_lesions`, one case in five has none and the others have 1 to 6.
    """
    if n_lesions is None:
        n_lesions = draw_number(rng, *LESIONS)
    return scan(make_head(rng, shape_zyx=shape_zyx, n_lesions=n_lesions), rng)


def make_head(rng: Generator, *, shape_zyx: tuple[int, int, int], n_lesions: int) -> Head:
    """A subject's head, 37 to 44 % as wide as the field of view, with lesions in the white matter.

    There are `n_lesions` unless a small head runs out of room for them.
    """
    if min(shape_zyx[1:]) < SMALLEST_WIDTH:
        raise ValueError(f"a head needs at least {SMALLEST_WIDTH} pixels across, not {shape_zyx[1:]}")
    frame = _frame(rng, shape_zyx)
    inner = _to_fluid(rng, frame)
    signal = _paint_layers(rng, frame, inner)
    deep = _paint_deep_structures(frame, signal)
    white = _to_edge((inner > 2.4 * frame.unit) & (deep > 0))
    _draw_dots(rng, frame, signal, inner)
    _draw_vessels(rng, frame, signal, white)
    signal = ndimage.gaussian_filter(signal, (0, 0.45, 0.45))
    return _add_lesions(rng, frame, Head(signal, np.zeros(shape_zyx, np.uint8)), white, n_lesions)


def _noise(rng: Generator, shape_zyx: tuple[int, ...], sigma: float) -> Floats:
    """A smooth random field of unit variance; slices a few pixels thick are nearly independent."""
    field = rng.standard_normal(shape_zyx, np.float32)
    field = ndimage.gaussian_filter(field, (sigma / 4, sigma, sigma), mode="wrap")
    return np.asarray(field / field.std(), np.float32)


def _frame(rng: Generator, shape_zyx: tuple[int, int, int]) -> _Frame:
    n_slices, height, width = shape_zyx
    half_width = rng.uniform(0.37, 0.44) / 2 * min(height, width)
    level = np.linspace(-0.3, 0.68, 2 * n_slices + 1)[1::2, None, None].astype(np.float32)
    coarse, fine = 0.35 * half_width, 0.13 * half_width
    warp = [0.025 * _noise(rng, shape_zyx, coarse) + 0.014 * _noise(rng, shape_zyx, fine) for _ in range(2)]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = (y - (height - 1) / 2) / half_width, (x - (width - 1) / 2) / half_width
    turn = math.radians(rng.uniform(-10, 10))
    back = math.cos(turn) * y + math.sin(turn) * x + warp[0]
    across = math.cos(turn) * x - math.sin(turn) * y
    size = np.sqrt(1 - 0.6 * np.clip(level, -0.5, 1) ** 2)  # a slice near the crown is smaller
    egg = size * (1 + 0.08 * back)  # the back of the head is wider
    radius = np.sqrt((across / egg) ** 2 + (back / (size * rng.uniform(1.18, 1.3))) ** 2)
    depth = (1 - radius) * half_width * size
    side = np.abs(across + warp[1])
    return _Frame(level, side, back, depth, half_width)


def _to_fluid(rng: Generator, frame: _Frame) -> Floats:
    """Pixels from the fluid around the brain: its surface, the sulci, the fissures."""
    unit, half = frame.unit, frame.half_width
    inside = frame.depth - 2.8 * unit
    folds = _noise(rng, inside.shape, 0.1 * half)
    slope = np.hypot(*np.gradient(folds, axis=(1, 2)))
    depth = 0.22 - 0.05 * frame.between(-1, 0.14) * np.clip(frame.back * 3, 0, 1)  # room beside the horns
    reach = half * (depth + 0.05 * _noise(rng, inside.shape, 0.3 * half))  # how deep a sulcus goes
    sulci = np.hypot(np.abs(folds) / (slope + 1e-3), np.clip(inside - reach, 0, None))
    bridge = 0.42 * np.clip((0.5 - frame.level) / 0.2, 0, 1)  # the callosum joins the hemispheres below
    midline = np.hypot(frame.side, np.clip(bridge - np.abs(frame.back), 0, None)) * half
    insula = frame.to_path((1.0, -0.3), (0.76, -0.22), (0.66, -0.08), (0.68, 0.14))
    insula = insula + 99 * (1 - frame.between(-1, 0.25))
    nearest = np.minimum.reduce([inside, sulci + 0.45 * unit, midline + 0.2 * unit, insula])
    return np.asarray(np.where(_cut_off(nearest < 3.2 * unit), half, nearest), np.float32)


def _cut_off(grey: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Folds that do not reach the corner of their slice: no reader could tell them from lesions."""
    in_slice = np.zeros((3, 3, 3), bool)
    in_slice[1] = ndimage.generate_binary_structure(2, 1)
    pieces, _ = ndimage.label(grey, in_slice)
    return np.asarray(grey & (pieces != pieces[:, :1, :1]))


def _blend(signal: Floats, inside: Floats, value: float | Floats, weight: float | Floats = 1.0) -> None:
    """Paints where `inside` (pixels from an edge) is positive, with partial volume at the edge."""
    signal += np.clip(inside + 0.5, 0, 1) * weight * (value - signal)


def _paint_layers(rng: Generator, frame: _Frame, inner: Floats) -> Floats:
    """Scalp, skull, fluid, cortex and white matter, from the outside in."""
    unit, shape = frame.unit, inner.shape
    signal = np.zeros(shape, np.float32)
    patchy = np.asarray(np.clip(1 + 0.3 * _noise(rng, shape, 2.5), 0.4, 1.5), np.float32)
    forehead = np.clip(-frame.back, 0, 1)
    _blend(signal, frame.depth, _SCALP * patchy)
    _blend(signal, frame.depth - unit * (1.2 + 0.6 * forehead), _SKULL + 14 * forehead)
    _blend(signal, frame.depth - 2.2 * unit, _FLUID)
    texture = 1 + 0.03 * _noise(rng, shape, 3 * unit)
    _blend(signal, inner - 0.6 * unit, _GREY * texture)
    _blend(signal, inner - 2.6 * unit, _WHITE * texture)
    return signal


def _paint_deep_structures(frame: _Frame, signal: Floats) -> Floats:
    """Draws what lies in the middle of the brain; pixels from the nearest of it come back."""
    unit = frame.unit
    low, middle = frame.between(-1, 0.14), frame.between(0.1, 0.5)
    thalami = 0.24 * frame.half_width - frame.to_path((0.26, -0.2), (0.2, 0.0), (0.14, 0.12))
    _blend(signal, thalami / (5 * unit), _DEEP_GREY, low)
    _blend(signal, 0.8 * unit - frame.to_path((0.18, 0.14), (0.34, -0.12)), _MYELIN, low)
    bodies = 1.4 * unit - frame.to_path((0.16, -0.38), (0.1, -0.22), (0.13, 0.05), (0.26, 0.32))
    horns = 1.5 * unit - frame.to_path((0.34, 0.36), (0.42, 0.48), (0.42, 0.64))
    third = 0.7 * unit - frame.to_path((0.0, -0.14), (0.0, 0.16))
    cistern = 1.6 * unit - frame.to_path((0.0, 0.38), (0.1, 0.34))
    for fluid, levels in ((bodies, middle), (horns, low), (third, low), (cistern, low)):
        _blend(signal, fluid, _FLUID, levels)
    _blend(signal, 0.8 * unit - frame.to_path((0.19, 0.18), (0.22, 0.27)), _CHOROID, middle)
    _blend(signal, 0.8 * unit - frame.to_path((0.36, 0.39), (0.4, 0.46)), _CHOROID, low)
    upper = bodies - 99 * (1 - middle)
    lower = np.maximum.reduce([thalami + 2.5 * unit, horns, third, cistern]) - 99 * (1 - low)
    return np.asarray(-np.maximum(upper, lower), np.float32)


def _to_edge(inside: NDArray[np.bool_]) -> Floats:
    """Pixels to the nearest place in the same slice that is not inside."""
    slices = [ndimage.distance_transform_edt(plane) for plane in inside]
    return np.asarray(slices, np.float32)


def _draw_dots(rng: Generator, frame: _Frame, signal: Floats, inner: Floats) -> None:
    """Adds dots as bright as lesions to the outer cortex: vessels that cross the slice."""
    cortex = (inner > 0.4 * frame.unit) & (inner < 1.4 * frame.unit) & (frame.depth < 0.2 * frame.half_width)
    for z, y, x in rng.permutation(np.argwhere(cortex))[: 3 * signal.shape[0]]:
        signal[z, y, x] += rng.uniform(20, 60)


def _draw_vessels(rng: Generator, frame: _Frame, signal: Floats, white: Floats) -> None:
    """Adds bright lines, much longer than any lesion, to the white matter.

    `white` (pixels inside the white matter) is lowered near the lines, to keep lesions off them.
    """
    for z, y, x in rng.permutation(np.argwhere(white > 2.5 * frame.unit))[: 4 * signal.shape[0]]:
        angle, bend, length = rng.uniform(0.8, 2.3), rng.normal(0, 0.04), rng.uniform(10, 18) * frame.unit
        steps = np.arange(-length / 2, length / 2, 0.5)
        angles = angle + bend * steps
        path = np.cumsum(np.stack([np.sin(angles), np.cos(angles)]), axis=1) * 0.5
        path += np.array([[y], [x]]) - path.mean(axis=1, keepdims=True)
        rows, columns = np.round(path).astype(int)
        if white[z, rows, columns].min() > 1.5:
            rest_y, rest_x = (np.arange(n)[:, None] - p for n, p in zip(signal.shape[1:], path, strict=True))
            away = np.sqrt((rest_y[:, None] ** 2 + rest_x[None] ** 2).min(axis=-1)).astype(np.float32)
            _blend(signal[z], 0.6 - away, _VESSEL)
            white[z] = np.minimum(white[z], away - 1.5)


def _add_lesions(rng: Generator, frame: _Frame, head: Head, white: Floats, n_lesions: int) -> Head:
    """The head with lesions in one or two slices each, in the white matter around the ventricles."""
    relative_depth = frame.depth / frame.half_width
    around = frame.to_path((0.1, -0.36), (0.15, 0.0), (0.28, 0.4), (0.4, 0.62)) / frame.half_width
    zone = (relative_depth > 0.3) & (around < 0.38) & (frame.side > 0.2) & (white > 0)
    room = np.where(zone if zone.any() else white > 0, white, -99)
    signal, mask = head.signal.copy(), head.mask.copy()
    for _ in range(n_lesions):
        size = int(np.clip(round(rng.lognormal(np.log(4), 0.6)), 1, 12))
        if room.max() <= 0:
            break
        enough = min(1.9 + 0.8 * size**0.5, 0.75 * float(room.max()))  # pixels that keep it off the cortex
        z = rng.choice(np.flatnonzero(room.max(axis=(1, 2)) >= enough))
        y, x = rng.choice(np.argwhere(room[z] >= enough))
        contrast = _contrast(rng, size)
        beside = z + rng.choice([-1, 1])
        _add_spot(rng, signal[z], mask[z], centre_yx=(y, x), size=size, contrast=contrast)
        if rng.random() < 0.45 and 0 <= beside < len(mask) and room[beside, y, x] >= enough:
            rest = int(rng.integers((size + 1) // 2, size + 1))
            weaker = max(contrast * rng.uniform(0.6, 0.9), 0.4 + 0.3 / rest)
            _add_spot(rng, signal[beside], mask[beside], centre_yx=(y, x), size=rest, contrast=weaker)
        room[max(z - 2, 0) : z + 3, max(y - 6, 0) : y + 7, max(x - 6, 0) : x + 7] = -99
    return Head(signal, mask)


def _contrast(rng: Generator, size: int) -> float:
    """How much brighter than white matter a lesion of so many pixels is, as a fraction.

    The smallest real ones are never the faintest (2 pixels: 0.52 and 0.62), else nobody would see them.
    """
    return float(np.clip(rng.lognormal(np.log(0.52), 0.4), 0.4 + 0.3 / size, 1.3))


def _add_spot(
    rng: Generator, signal: Floats, mask: NDArray[np.uint8], *, centre_yx: Point, size: int, contrast: float
) -> None:
    """Adds a spot of `size` pixels to a slice (Y, X): compact or drawn out, with a faint halo."""
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] - np.reshape(centre_yx, (2, 1, 1))
    y, x = y - rng.uniform(-0.5, 0.5), x - rng.uniform(-0.5, 0.5)
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.4)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    distance = np.hypot(along / stretch, across * stretch)
    spot = distance <= np.partition(distance.ravel(), size - 1)[size - 1]
    glow = ndimage.gaussian_filter(np.where(spot, rng.uniform(0.7, 1.0, spot.shape), 0), 0.5)
    signal += contrast * _WHITE * glow / glow[spot].mean()
    mask[spot] = 1


def scan(head: Head, rng: Generator) -> tuple[NDArray[np.int16], NDArray[np.uint8], Geometry]:
    """A head as one session sees it: placed off-centre, shaded, noisy, in the scanner's own units."""
    shape = head.mask.shape
    shift = tuple(int(rng.integers(-n // 14, n // 14 + 1)) for n in shape[1:])
    signal, mask = np.roll(head.signal, shift, axis=(1, 2)), np.roll(head.mask, shift, axis=(1, 2))
    signal = signal * _bias_field(rng, shape)
    sigma = rng.uniform(1.2, 2.0)
    blur = (0, 0.35, 0.35)  # neighbouring pixels share some of their noise
    noise = [ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), blur) for _ in range(2)]
    noisy = np.hypot(signal + sigma * noise[0], sigma * noise[1])  # Rician
    return np.round(noisy * rng.uniform(4, 12)).astype(np.int16), mask, _oblique_grid(rng, mask.shape)


def _bias_field(rng: Generator, shape_zyx: tuple[int, ...]) -> Floats:
    """A smooth factor around 1, at most 25 % off."""
    axes = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in shape_zyx), indexing="ij", sparse=True
    )
    slope, curve = rng.uniform(-1, 1, (2, 3))
    field = sum(s * axis + c * (axis**2 - 0.5) for s, c, axis in zip(slope, curve, axes, strict=True))
    return np.asarray(np.exp(0.2 * field / np.abs(field).max()), np.float32)


def _oblique_grid(rng: Generator, shape_zyx: tuple[int, ...]) -> Geometry:
    """Thick slices, 5 to 20 degrees off each of the scanner's axes, away from its centre."""
    n_slices, height, width = shape_zyx
    angles = rng.uniform(5, 20, 3) * rng.choice([-1, 1], 3)
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix().ravel().tolist()
    pixel = round(float(rng.uniform(0.75, 0.85)), 3)
    spacing = (round(float(rng.uniform(2.8, 3.2)), 2), pixel, pixel)
    origin = np.array([-width * pixel / 2, -height * pixel / 2, -n_slices * spacing[0] / 2])
    origin += rng.uniform(-20, 20, 3)
    return Geometry((n_slices, height, width), spacing, tuple(origin.round(3).tolist()), tuple(direction))
