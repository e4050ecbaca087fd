"""The brain of a preterm newborn as ultrasound meets it: how each place echoes and weakens the beam.

Lengths are in mm in a frame of its own: z upwards, y backwards, x to the left, the splenium near the middle.
Echoes are in decibels under white.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]
Knot = tuple[float, float, float, float]
"""z, y, distance from the midline and radius of a tube."""

_FLUID, _TISSUE, _BONE = -70.0, -35.0, -4.0
_FLUID_LOSS, _BONE_LOSS = -0.3, 5.0
"""Decibels per mm more than tissue takes."""

_FLAT = 0.55
"""The front of a lateral ventricle is a slit: this much of its width counts."""

_SIDE_VENTRICLE: tuple[Knot, ...] = (
    (2.0, -19.0, 3.2, 0.5), (3.4, -12.0, 4.2, 0.9), (4.2, -3.0, 5.2, 0.9), (3.6, 5.0, 7.4, 1.4),
    (1.6, 12.0, 10.6, 2.4), (-1.8, 20.0, 12.6, 1.6),
)  # fmt: skip
_LOWER_HORN: tuple[Knot, ...] = ((1.6, 12.0, 10.6, 2.2), (-5.0, 9.0, 13.8, 1.1), (-9.5, 1.0, 15.0, 0.6))
_CHOROID: tuple[Knot, ...] = (
    (2.6, -4.0, 5.0, 0.5), (2.6, 5.0, 7.2, 1.0), (0.6, 11.5, 10.6, 1.8), (-4.0, 9.5, 13.2, 0.9),
)  # fmt: skip
_VESSELS: tuple[tuple[Knot, ...], ...] = (
    ((-16.0, -8.0, 1.0, 0.5), (-13.5, -10.0, 8.0, 0.45), (-10.0, -9.0, 17.0, 0.4)),
    ((-12.0, -8.0, 9.0, 0.25), (-4.0, -6.0, 12.0, 0.2)),
    ((-12.0, -5.0, 10.5, 0.25), (-3.5, -3.0, 13.5, 0.2)),
)
_STEM: tuple[Knot, ...] = ((-11.0, 4.0, 0.0, 4.5), (-19.0, 4.0, 0.0, 5.0), (-30.0, 8.0, 0.0, 4.0))

_GRID_MM, _GRID_HALF = 0.8, 44
"""Of the random fields: 89 places along each axis."""


@dataclass(frozen=True, eq=False)
class Field:
    """Random values at every place."""

    values: Floats
    step_mm: float = _GRID_MM

    def at(self, points: Floats) -> Floats:
        """The values at places (3, ...)."""
        where = points / np.float32(self.step_mm) + len(self.values) // 2
        return np.asarray(ndimage.map_coordinates(self.values, where, np.float32, order=1, mode="nearest"))


def random_field(
    rng: Generator, sigma_mm: float, *, step_mm: float = _GRID_MM, half: int = _GRID_HALF
) -> Field:
    """A smooth field of unit variance that reaches `half` steps from the middle."""
    noise = rng.standard_normal((2 * half + 1,) * 3, np.float32)
    noise = ndimage.gaussian_filter(noise, sigma_mm / step_mm, mode="wrap")
    return Field(np.asarray(noise / noise.std(), np.float32), step_mm)


def random_folds(
    rng: Generator, sigma_mm: float, *, step_mm: float = _GRID_MM, half: int = _GRID_HALF
) -> Field:
    """The way in mm to the nearest of many curved sheets, negative on one side of each."""
    noise = random_field(rng, sigma_mm, step_mm=step_mm, half=half).values
    slope = np.sqrt(sum(g**2 for g in np.gradient(noise, step_mm)))
    return Field(np.asarray(noise / (slope + 0.02), np.float32), step_mm)


def bend(points: Floats, warp: Floats) -> Floats:
    """Places (3, ...) of one brain in the one that all resemble, the distance from the midline third.

    `warp` holds for each axis waves: their directions (3), phase and height.
    """
    bent = points.copy()
    for axis, waves in enumerate(warp):
        for *direction, phase, height in waves.tolist():
            along = sum(p * d for p, d in zip(points, direction, strict=True))
            bent[axis] += np.float32(height) * np.sin(along + phase)
    np.abs(bent[2], out=bent[2])
    return bent


@dataclass
class _Canvas:
    """What is painted: echo and loss (in decibels, and per mm) at places (3, ...)."""

    echo: Floats
    loss: Floats
    edge_mm: float
    """Over which what is painted fades in."""

    def paint(
        self, depth_mm: NDArray[Any], echo: float, loss: float | None = None, weight: Floats | float = 1.0
    ) -> None:
        """Paints where `depth_mm` is positive."""
        share = np.clip(depth_mm / np.float32(self.edge_mm) + np.float32(0.5), 0, 1) * weight
        self.echo += share * (echo - self.echo)
        if loss is not None:
            self.loss += share * (loss - self.loss)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One brain's shape."""

    warp: Floats
    """(3, 3, 5): per axis, waves that bend it: their directions (3), phase and height."""
    width: float
    """Of the ventricles, about 1."""
    folds: Field
    reach: Field
    """How deep sulci go, in standard deviations."""
    texture: Field
    has_cavum: bool
    """Whether there is fluid between the frontal horns, as in most preterm newborns."""

    def bend(self, points: Floats) -> Floats:
        """Places (3, ...) of this brain in the one that all resemble, the distance from the midline third."""
        return bend(points, self.warp)

    def to_ventricle(self, bent: Floats) -> Floats:
        """The way in mm to the nearest wall of the lateral ventricles, negative inside."""
        front = np.clip((8 - bent[1]) / 8, 0, 1)  # 1 where it is a slit, 0 where it is round
        squeezed = bent.copy()
        tilt = np.float32(0.5) * (bent[2] - 5) * front
        squeezed[0] -= tilt
        middle = 5 + np.clip(bent[1] + 3, 0, None) * np.float32(0.35)
        squeezed[2] += front * (_FLAT - 1) * (bent[2] - middle)
        body, horn = to_tube(squeezed, _SIDE_VENTRICLE), to_tube(bent, _LOWER_HORN)
        return np.asarray(np.minimum(body, horn) - np.float32(0.7 * (self.width - 1)), np.float32)

    def to_skull(self, bent: Floats) -> Floats:
        """The way in mm to the skull, negative outside the head."""
        vault = to_egg(bent, (-4, 3, 0), (31, 44, 32))
        fossa = -24 + 9 / (1 + np.exp((bent[1] + 14) / np.float32(1.5)))  # the skull's base rises in front
        ridge = 6 * np.exp(-(((bent[1] - 7 + 0.3 * bent[2]) / 2.5) ** 2)) * np.clip((bent[2] - 5) / 8, 0, 1)
        return np.asarray(np.minimum(vault, bent[0] - fossa - ridge), np.float32)

    def is_white_matter(self, bent: Floats) -> NDArray[np.bool_]:
        """Which places lie beside or above the ventricles, away from the deep grey matter."""
        deep = np.hypot((bent[0] + 5) / 8.5, (bent[1] - 0) / 15, dtype=np.float32) < 1
        return np.asarray(
            (bent[2] > 6) & (bent[0] > -3) & ~(deep & (bent[2] < 18)) & (self.to_skull(bent) > 7)
        )

    def paint(self, points: Floats, edge_mm: float) -> tuple[Floats, Floats]:
        """Echo in decibels and extra loss in decibels per mm at places (3, ...)."""
        bent = self.bend(points)
        texture = self.texture.at(points)
        canvas = _Canvas(_TISSUE + 1.4 * texture, np.zeros_like(texture), edge_mm)
        inner, ventricle = self.to_skull(bent), self.to_ventricle(bent)
        canvas.echo += 4 * np.exp(-np.clip(ventricle, 0, None) / 4)  # the blush of normal white matter
        self._paint_deep(canvas, bent)
        self._paint_surface(canvas, points, bent, inner)
        self._paint_hind(canvas, bent)
        canvas.paint(-ventricle, _FLUID, _FLUID_LOSS)
        self._paint_midline(canvas, bent)
        canvas.paint(-to_tube(bent, _CHOROID), -15, 0.1)
        canvas.paint(-inner, _BONE, _BONE_LOSS)
        canvas.paint(-inner - 1.5, -36)
        return canvas.echo, canvas.loss

    def _paint_deep(self, canvas: _Canvas, bent: Floats) -> None:
        """Deep grey matter and its vessels."""
        canvas.paint(to_egg(bent, (-4.5, 1, 6.5), (5.5, 10, 6)) / 4, -38)  # thalamus
        canvas.paint(to_egg(bent, (-0.5, -12, 6.5), (3.5, 6, 3.5)), -34)  # caudate
        canvas.paint(to_egg(bent, (-5, -6, 16), (6, 9, 4)), -33)  # lentiform
        for vessel in _VESSELS:
            canvas.paint(-to_tube(bent, vessel), -19)

    def _paint_surface(self, canvas: _Canvas, points: Floats, bent: Floats, inner: Floats) -> None:
        """Sulci: bright lines from the surface, the midline and the lateral fissure inwards."""
        above = np.where(bent[0] > 10, bent[2], 99)
        surface = np.minimum(inner, above)
        reach = 6 + 2.5 * self.reach.at(points)
        lines = 0.3 - np.abs(self.folds.at(points))
        canvas.paint(np.minimum(lines, reach - surface), -18)
        canvas.paint(0.7 - inner, -22)  # the brain's surface
        insula = 0.4 - np.abs(to_egg(bent, (-3, -3, 31), (9, 15, 10)))
        fissure = np.minimum(0.4 - np.abs(bent[0] + 4 + 0.15 * (bent[2] - 21)), 13 - np.abs(bent[1] + 3))
        canvas.paint(np.minimum(insula, 25 - bent[2]), -17)
        canvas.paint(np.minimum(fissure, bent[2] - 21), -16)

    def _paint_hind(self, canvas: _Canvas, bent: Floats) -> None:
        """Cerebellum under its tent, and brain stem."""
        tent = to_egg(bent, (-20, 18, 0), (11, 12, 19))
        leaves = np.sin(3 * np.sqrt((bent[0] + 12) ** 2 + (bent[1] - 14) ** 2 + (bent[2] / 2) ** 2))
        canvas.paint(tent, -29)
        canvas.echo += 2.5 * leaves * (tent > 0)
        canvas.paint(to_egg(bent, (-18, 16, 0), (8, 8, 4)), -21)  # vermis
        canvas.paint(0.4 - np.abs(tent), -19)
        canvas.paint(-to_tube(bent, _STEM) / 3, -40)
        canvas.paint(0.9 - np.abs(to_tube(bent, _STEM) - 0.6), -24, weight=(bent[0] < -10) * np.float32(0.8))
        canvas.paint(to_egg(bent, (-18, 10.5, 0), (3, 1.6, 3)), _FLUID, _FLUID_LOSS)  # fourth ventricle

    def _paint_midline(self, canvas: _Canvas, bent: Floats) -> None:
        """Callosum, fissure, cavum and third ventricle."""
        z, y, side = bent
        roof = 6.5 - np.float32(0.012) * (y + 2) ** 2 + 6 * (1 - np.exp(-((side / 14) ** 2)))
        between = np.minimum(y + 20, 15 - y)
        canvas.paint(np.minimum(1.0 - side / 12 - np.abs(z - roof), between) * 2, -43)
        canvas.paint(np.minimum(0.4 - side / 12 - np.abs(z - roof - 1.4), between), -17)
        girdle = 0.35 - np.abs(z - roof - 7 - np.sin(y / 3))
        canvas.paint(np.minimum(girdle, np.minimum(between, 6 - side)), -19)
        canvas.paint(
            np.minimum(0.35 - side, np.maximum(z - roof - 1.2, np.minimum(y - 15, z + 8))), -17
        )  # falx
        canvas.paint(np.minimum(0.7 - side, to_egg(bent, (-6, -1, 0), (4, 6, 5))), _FLUID, _FLUID_LOSS)
        canvas.paint(to_egg(bent, (-9, 9, 0), (3, 3, 6)), -19)  # cistern
        if self.has_cavum:
            canvas.paint(to_egg(bent, (2.0, -9, 0), (2.6, 8, 2.0)), _FLUID, _FLUID_LOSS)


def to_tube(bent: Floats, knots: tuple[Knot, ...]) -> Floats:
    """The way in mm to the surface of a tube in each hemisphere, negative inside."""
    return np.asarray(
        np.minimum.reduce([_to_piece(bent, *pair) for pair in itertools.pairwise(knots)]), np.float32
    )


def _to_piece(bent: Floats, start: Knot, end: Knot) -> Floats:
    step = [b - a for a, b in zip(start, end, strict=True)]
    length = sum(s**2 for s in step[:3])
    along = sum((p - a) * (s / length) for p, a, s in zip(bent, start, step[:3], strict=False))
    along = np.clip(along, 0, 1)
    away = sum((p - a - along * s) ** 2 for p, a, s in zip(bent, start, step[:3], strict=False))
    return np.asarray(np.sqrt(away) - (start[3] + along * step[3]), np.float32)


def to_egg(bent: Floats, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Floats:
    """About how deep in mm inside an ellipsoid in each hemisphere, negative outside."""
    radius = np.sqrt(sum(((p - c) / r) ** 2 for p, c, r in zip(bent, centre, radii, strict=True)))
    return np.asarray((1 - radius) * min(radii), np.float32)


def make_anatomy(rng: Generator) -> Anatomy:
    """A random brain."""
    directions = rng.normal(0, 0.13, (3, 3, 3))
    phases, heights = rng.uniform(0, 6.3, (3, 3, 1)), rng.normal(0, 0.45, (3, 3, 1))
    return Anatomy(
        warp=np.concatenate([directions, phases, heights], axis=-1).astype(np.float32),
        width=float(rng.uniform(0.7, 2.0)),
        folds=random_folds(rng, 3.0),
        reach=random_field(rng, 5.0),
        texture=random_field(rng, 2.5),
        has_cavum=bool(rng.random() < 0.7),
    )
