"""Synthetic pairs of T2 FLAIR and T1 FLAIR of adults with tiny ischemic lesions.

What is imitated is the data of the segmentation correction paper: 113 patients, slices of 6 mm, 512 x 512; 37
without a lesion, 68 with focal cerebral ischemia (FCI: bright on T2 FLAIR, no obvious signal on T1 FLAIR), 30 with
lacunar infarction (LACI: bright on T2 FLAIR, dark on T1 FLAIR), and slices with more than five lesions. On T2 FLAIR
the two kinds are drawn alike in every respect: only T1 FLAIR tells them apart.
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.transform import Rotation

from pwmlunet.data.image import Geometry
from pwmlunet.demo.adult import Floats, Head, make_head
from pwmlunet.demo.spots import FCI, LACI, Placer, Spot, draw_places

DEMO_SHAPE_ZYX, TRUE_SHAPE_ZYX = (16, 128, 128), (16, 512, 512)
"""Pixels of 1.7 mm, and of 0.42 mm, nearly the paper's."""

SLICE_MM = 6.0
FIELD_MM = 215.0
"""The shorter side of what a slice shows."""

COARSEST_MM = 4.5
"""Larger pixels would hold a lesion each."""

LESIONS = (1, 18)
"""Of a subject that has any: at least and at most."""

CASES_PER_HEALTHY = 3
"""One subject in so many has no lesion: 37 of 113 in the paper."""

_KINDS = ((1.0, 46), (0.0, 8), (0.6, 22))
"""Of the paper's 76 patients with lesions: the share of FCI among one's lesions, and how many such there are."""

_BRIGHT = (98.0, 165.0)
"""Of lesions and of what only looks like one, on T2 FLAIR."""

_CAVITY = (22.0, 62.0)
"""Of lacunes and of perivascular spaces, on T1 FLAIR."""

_WIDTHS_MM, _MEDIAN_MM = (3.0, 8.0), 4.9
_FEWEST_PIXELS = 3
_MIDDLE_MM = 24.0
"""Height of the middle slice above the frame's origin: at the bodies of the ventricles."""

_PROFILE_MM = (-1.8, 0.0, 1.8)
"""A slice is the mean of these heights."""


@dataclass(frozen=True, eq=False)
class Patient:
    """A subject before a scan."""

    head: Head
    lesions: tuple[Spot, ...]
    lookalikes: tuple[Spot, ...]
    """Flow in sulci, vessels, streaks and perivascular spaces."""


def make_case(
    rng: Generator, *, shape_zyx: tuple[int, int, int] = DEMO_SHAPE_ZYX, n_lesions: int
) -> tuple[tuple[NDArray[np.int16], ...], NDArray[np.uint8], Geometry]:
    """T2 FLAIR and T1 FLAIR (Z, Y, X), their mask (0, 1 for FCI, 2 for LACI) and their grid."""
    return scan(make_patient(rng, n_slices=shape_zyx[0], n_lesions=n_lesions), rng, shape_zyx=shape_zyx)


def make_patient(rng: Generator, *, n_slices: int, n_lesions: int) -> Patient:
    """A subject with `n_lesions` in white and deep grey matter, or as many as have room."""
    places = draw_places(rng, make_head(rng), _heights_mm(n_slices))
    placer = Placer(rng, places, np.full(places.points.shape[1], np.inf, np.float32))
    return Patient(places.head, _put_lesions(rng, placer, n_lesions), _put_lookalikes(rng, placer, n_slices))


def _heights_mm(n_slices: int) -> Floats:
    """Of the slices' middles."""
    return np.asarray(_MIDDLE_MM + (np.arange(n_slices) - (n_slices - 1) / 2) * SLICE_MM, np.float32)


def _put_lesions(rng: Generator, placer: Placer, n: int) -> tuple[Spot, ...]:
    """Lesions that gather about a level, and rather near the ventricles."""
    shares, patients = zip(*_KINDS, strict=True)
    share = float(rng.choice(shares, p=np.array(patients) / sum(patients)))
    places, level, spread = placer.places, rng.uniform(16, 40), rng.uniform(7, 20)
    liking = 0.3 + np.exp(-places.to_ventricle.clip(0) / 10)
    liking *= 0.05 + np.exp(-0.5 * ((places.points[0] - level) / spread) ** 2)
    return placer.put(
        n, partial(_draw_lesion, rng, share), lambda spot: liking * places.tissue(spot.reach_mm)
    )


def _draw_lesion(rng: Generator, fci_share: float) -> Spot:
    width = float(np.clip(rng.lognormal(math.log(_MEDIAN_MM), 0.32), *_WIDTHS_MM))
    stretch = math.sqrt(rng.uniform(1, 1.5))
    high = rng.uniform(6.5, 8) if rng.random() < 0.2 else rng.uniform(2.6, 3.6)  # a few span several slices
    spot = partial(
        Spot,
        (high, width / 2 * stretch, width / 2 / stretch),
        float(rng.uniform(0, math.pi)),
        t2=float(rng.uniform(*_BRIGHT)),
    )
    cavity, core, lot = rng.uniform(*_CAVITY), rng.uniform(0.7, 0.9), rng.random()
    return spot(kind=FCI) if lot < fci_share else spot(t1=float(cavity), core=float(core), kind=LACI)


def _put_lookalikes(rng: Generator, placer: Placer, n_slices: int) -> tuple[Spot, ...]:
    """What every subject has, with or without lesions; flow is bright where T1 FLAIR is dark, like a lacune."""
    places = placer.places
    flow = placer.put(2 * n_slices, partial(_draw_dot, rng), lambda _: places.fluid())
    vessels = placer.put(n_slices, partial(_draw_dot, rng), lambda _: places.cortex())
    streaks = placer.put(n_slices // 2, partial(_draw_streak, rng), lambda _: places.tissue(1.0))
    spaces = placer.put(int(rng.integers(4, 16)), partial(_draw_space, rng), lambda _: places.tissue(0.5))
    return flow + vessels + streaks + spaces


def _draw_dot(rng: Generator) -> Spot:
    short = float(rng.uniform(0.9, 2.0))
    stretched = short * float(rng.uniform(1, 1.8))
    return Spot((3.0, stretched, short), float(rng.uniform(0, math.pi)), t2=float(rng.uniform(*_BRIGHT)))


def _draw_streak(rng: Generator) -> Spot:
    """A vessel or tract in the plane, much longer than any lesion."""
    radii = (2.5, float(rng.uniform(7, 10)), float(rng.uniform(0.7, 1.0)))
    return Spot(radii, float(rng.uniform(0, math.pi)), t2=float(rng.uniform(90, 140)))


def _draw_space(rng: Generator) -> Spot:
    """A perivascular space: as dark as a lacune on T1 FLAIR, and nothing on T2 FLAIR."""
    short = float(rng.uniform(0.9, 1.7))
    radii = (4.0, short * float(rng.uniform(1, 1.8)), short)
    return Spot(radii, float(rng.uniform(0, math.pi)), t1=float(rng.uniform(*_CAVITY)))


def scan(
    patient: Patient, rng: Generator, *, shape_zyx: tuple[int, int, int] = DEMO_SHAPE_ZYX
) -> tuple[tuple[NDArray[np.int16], ...], NDArray[np.uint8], Geometry]:
    """A subject as one session sees it: shifted and turned in the plane, shaded, noisy, in the scanner's units.

    T2 FLAIR and T1 FLAIR, the mask and the grid that all three lie on.
    """
    pixel_mm = FIELD_MM / min(shape_zyx[1:])
    if pixel_mm > COARSEST_MM:
        raise ValueError(f"{shape_zyx[1:]} pixels are too few for lesions: ask for {math.ceil(FIELD_MM / COARSEST_MM)} or more a side")  # fmt: skip
    plane = _draw_plane(rng, shape_zyx, pixel_mm)
    signal, mask = np.zeros((2, *shape_zyx), np.float32), np.zeros(shape_zyx, np.uint8)
    for index, height in enumerate(_heights_mm(shape_zyx[0])):
        _paint_slice(patient, plane, float(height), pixel_mm, signal[:, index], mask[index])
    return (*_receive(rng, signal),), mask, _nearly_straight_grid(rng, shape_zyx, pixel_mm)


def _draw_plane(rng: Generator, shape_zyx: tuple[int, int, int], pixel_mm: float) -> Floats:
    """Where the pixels (2, Y, X) of every slice lie in the subject, y and x in mm."""
    y, x = ((np.arange(n) - (n - 1) / 2) * pixel_mm for n in shape_zyx[1:])
    turn, (down, aside) = math.radians(rng.uniform(-4, 4)), rng.uniform(-2.5, 2.5, 2)
    y, x = y[:, None] - down, x[None] - aside
    turned = math.cos(turn) * y + math.sin(turn) * x, math.cos(turn) * x - math.sin(turn) * y
    return np.stack(turned).astype(np.float32)


def _paint_slice(
    patient: Patient,
    plane: Floats,
    height_mm: float,
    pixel_mm: float,
    signal: Floats,
    mask: NDArray[np.uint8],
) -> None:
    """Draws a slice's signals (2, Y, X) and labels (Y, X)."""
    inside = np.hypot(plane[0] / 112, plane[1] / 92) < 1
    points = _through(plane[:, inside], height_mm)
    signal[:, inside] = patient.head.paint(points, max(0.7, pixel_mm)).mean(1)
    for spot in patient.lookalikes + patient.lesions:
        if not spot.is_seen(height_mm, SLICE_MM / 2):
            continue
        _, y, x = spot.centre_zyx_mm
        near = np.hypot(plane[0] - y, plane[1] - x) < spot.reach_mm + pixel_mm
        around = _through(plane[:, near], height_mm)
        for channel, value, share in ((0, spot.t2, 1.0), (1, spot.t1, spot.core)):
            if value is not None:
                cover = spot.cover(around, pixel_mm, share).mean(0)
                signal[channel][near] += cover * (value - signal[channel][near])
        if spot.kind:
            mask[near] = np.where(_is_marked(spot, around, pixel_mm, height_mm), spot.kind, mask[near])


def _is_marked(spot: Spot, around: Floats, pixel_mm: float, height_mm: float) -> NDArray[np.bool_]:
    """Which pixels a reader would count to a lesion: those it half fills, and three at least in its own slice."""
    cover = spot.cover(around, pixel_mm).mean(0)
    is_own = abs(spot.centre_zyx_mm[0] - height_mm) < SLICE_MM / 2
    least = np.sort(cover)[-_FEWEST_PIXELS] if is_own else 1.0
    return np.asarray((cover > 0) & (cover >= min(0.5, least)))


def _through(places_yx: Floats, height_mm: float) -> Floats:
    """Points (3, heights, n) of a slice's thickness at places (2, n)."""
    heights = np.array(_PROFILE_MM, np.float32)[:, None] + np.float32(height_mm)
    return np.stack(np.broadcast_arrays(heights, *places_yx[:, None]))


def _receive(rng: Generator, signal: Floats) -> list[NDArray[np.int16]]:
    """Both channels as the scanner writes them: each with its own shading, noise and units."""
    received = []
    for channel in signal:
        blurred = ndimage.gaussian_filter(channel, (0, 0.45, 0.45)) * _shading(rng, channel.shape)
        sigma = rng.uniform(2.0, 4.0)
        noise = [
            ndimage.gaussian_filter(rng.standard_normal(channel.shape, np.float32), (0, 0.35, 0.35))
            for _ in range(2)
        ]
        noisy = np.hypot(blurred + sigma * noise[0], sigma * noise[1])  # Rician
        received.append(np.round(noisy * rng.uniform(2, 14)).astype(np.int16))
    return received


def _shading(rng: Generator, shape_zyx: tuple[int, ...]) -> Floats:
    """A smooth factor about 1: the head coil's elements hear what is near them best."""
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape_zyx]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    slopes = rng.uniform(-0.1, 0.1, 3)
    field = sum(slope * axis for slope, axis in zip(slopes, (z, y, x), strict=True))
    return np.asarray(np.exp(field + rng.uniform(0.05, 0.25) * (y**2 + x**2 - 0.5)), np.float32)


def _nearly_straight_grid(rng: Generator, shape_zyx: tuple[int, int, int], pixel_mm: float) -> Geometry:
    """Thick slices in rows to the left, the back and the top, up to 8 degrees off, away from the scanner's centre."""
    angles = rng.uniform(3, 8, 3) * rng.choice([-1, 1], 3)
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix().ravel().tolist()
    spacing = (SLICE_MM, pixel_mm, pixel_mm)
    lengths = np.array([n * mm for n, mm in zip(shape_zyx, spacing, strict=True)])
    origin = -lengths[::-1] / 2 + rng.uniform(-20, 20, 3)
    return Geometry(shape_zyx, spacing, tuple(origin.round(3).tolist()), tuple(direction))
