"""An adult's head as T2 FLAIR and T1 FLAIR show it: how bright each place is in both.

Lengths are in mm in a frame of its own: z upwards, y backwards, x to the left, 0 in the middle of the plane
through both commissures. Signals are pairs (T2 FLAIR, T1 FLAIR).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pwmlunet.demo.brain import Field, Knot, bend, random_field, random_folds, to_egg, to_tube

Floats = NDArray[np.float32]
Signal = tuple[float, float]
"""On T2 FLAIR and on T1 FLAIR, where normal white matter has 68 and 105."""

WHITE: Signal = (68.0, 105.0)
FLUID: Signal = (16.0, 18.0)
_GREY: Signal = (88.0, 72.0)
_SKIN: Signal = (120.0, 170.0)
_MUSCLE: Signal = (48.0, 62.0)
_BONE: Signal = (7.0, 7.0)
_MARROW: Signal = (58.0, 95.0)
_STEM: Signal = (74.0, 98.0)

_SKULL_ZYX_MM = (74.0, 85.0, 67.0)
"""Half of the room inside the skull, around a point 4 mm above the frame's origin."""

CORTEX_MM = 2.8

_SIDE_VENTRICLE: tuple[Knot, ...] = (
    (1.0, -37.0, 8.0, 2.0), (8.0, -33.0, 7.0, 4.2), (17.0, -18.0, 7.0, 4.6), (22.0, 4.0, 9.0, 4.4),
    (18.0, 24.0, 17.0, 5.2), (11.0, 35.0, 23.0, 5.4), (7.0, 50.0, 24.0, 2.6), (6.0, 60.0, 22.0, 1.0),
)  # fmt: skip
_LOWER_HORN: tuple[Knot, ...] = ((11.0, 33.0, 23.0, 5.0), (-4.0, 24.0, 32.0, 3.0), (-16.0, 4.0, 31.0, 2.2))
_FRONT_TIP: tuple[Knot, ...] = ((0.0, -40.0, 10.0, 1.0), (14.0, -36.0, 10.0, 1.0))
_BACK_TIP: tuple[Knot, ...] = ((14.0, 42.0, 26.0, 1.0), (6.0, 60.0, 24.0, 1.0))
_CHOROID: tuple[Knot, ...] = (
    (19.0, 16.0, 13.5, 0.8), (12.0, 32.0, 22.5, 2.4), (4.0, 29.0, 27.0, 1.5),
)  # fmt: skip
_TAIL: tuple[Knot, ...] = ((12.0, -18.0, 14.0, 3.5), (20.0, 2.0, 17.0, 2.4), (19.0, 18.0, 23.0, 1.6))
_PYRAMID: tuple[Knot, ...] = ((26.0, 4.0, 25.0, 4.0), (4.0, 10.0, 22.5, 2.6), (-12.0, 8.0, 11.0, 2.0))


@dataclass
class Canvas:
    """What is painted: signals (2, ...) at places (3, ...)."""

    signal: Floats
    edge_mm: float
    """Over which what is painted fades in."""

    def paint(self, depth_mm: NDArray[Any], signal: Signal, weight: Floats | float = 1.0) -> None:
        """Paints where `depth_mm` is positive."""
        share = np.clip(depth_mm / np.float32(self.edge_mm) + np.float32(0.5), 0, 1) * weight
        for channel, value in zip(self.signal, signal, strict=True):
            channel += share * (np.float32(value) - channel)


@dataclass(frozen=True, eq=False)
class Head:
    """One head's shape."""

    warp: Floats
    """As `bend` takes it."""
    size: float
    """1 for the average."""
    width_mm: float
    """By how much ventricles are wider than a young adult's."""
    sulcus_mm: float
    """Half the width of sulci: both grow with age."""
    folds: Field
    reach: Field
    """How deep sulci go, in standard deviations."""
    texture: Field
    caps: tuple[float, float, float]
    """How much brighter T2 FLAIR is before the frontal horns, behind the occipital ones and along the walls."""

    def bend(self, points: Floats) -> Floats:
        """Places (3, ...) of this head in the one that all resemble, the distance from the midline third."""
        return bend(points / np.float32(self.size), self.warp)

    def to_skull(self, bent: Floats) -> Floats:
        """The way in mm to the skull's inner side, negative outside."""
        z, y, side = bent
        high, long, wide = _SKULL_ZYX_MM
        wider = 1 + np.float32(0.0009) * y  # the back of the head is wider
        radius = np.sqrt(((z - 4) / high) ** 2 + (y / long) ** 2 + (side / (wide * wider)) ** 2)
        return np.asarray((1 - radius) * wide, np.float32)

    def to_fluid(self, points: Floats, bent: Floats) -> Floats:
        """The way in mm to the fluid around the brain and in its sulci and fissures, negative inside it."""
        z, y, side = bent
        surface = self.to_skull(bent) - 1.5 - 0.6 * self.sulcus_mm
        reach = 18 + 5 * self.reach.at(points)
        sulci = np.hypot(self.folds.at(points), np.clip(surface - reach, 0, None)) - self.sulcus_mm
        arch = (1 - np.hypot((z - 2) / 29, (y + 2) / 43)) * 29  # the callosum and what lies under it
        midline = np.hypot(side, np.clip(arch, 0, None)) - self.sulcus_mm - 0.2
        island = np.abs(to_egg(bent, (4, -4, 12), (24, 30, 29)))
        island = np.hypot(island, np.clip(33 - side, 0, None)) - self.sulcus_mm - 0.3
        opening = np.abs(y + 14 - 0.9 * (z - 4)) * 0.75
        cleft = np.hypot(np.hypot(opening, np.clip(41 - side, 0, None)), np.clip(np.abs(z - 3) - 15, 0, None))
        fissure = cleft - self.sulcus_mm - 0.3
        return np.asarray(np.minimum.reduce([surface, sulci, midline, island, fissure]), np.float32)

    def to_ventricle(self, bent: Floats) -> Floats:
        """The way in mm to the nearest wall of the lateral ventricles, negative inside."""
        nearest = np.minimum(to_tube(bent, _SIDE_VENTRICLE), to_tube(bent, _LOWER_HORN))
        return np.asarray(nearest - np.float32(self.width_mm), np.float32)

    def in_deep_grey(self, bent: Floats) -> Floats:
        """About how deep in mm inside the thalamus, caudate or lentiform nucleus, negative outside."""
        thalamus = to_egg(bent, (7, 5, 11), (9, 15, 8.5))
        caudate = np.maximum(to_egg(bent, (9, -25, 13), (10, 8, 5.5)), -to_tube(bent, _TAIL))
        lentiform = to_egg(bent, (4, -6, 25), (10, 17, 6.5))
        return np.asarray(np.maximum.reduce([thalamus, caudate, lentiform]), np.float32)

    def glow(self, bent: Floats, to_ventricle: Floats) -> Floats:
        """How much brighter T2 FLAIR is than usual in normal white matter beside the ventricles."""
        front, back, walls = self.caps
        away = np.clip(to_ventricle, 0, None)
        ahead, behind = to_tube(bent, _FRONT_TIP), to_tube(bent, _BACK_TIP)
        width = np.float32(2.6 + 0.5 * self.width_mm)
        caps = front * np.exp(-((np.clip(ahead, 0, None) / width) ** 2))
        caps += back * np.exp(-((np.clip(behind, 0, None) / (width + 1)) ** 2))
        uneven = 0.7 + 0.6 * np.sin(bent[1] / 7 + bent[0] / 5)
        return np.asarray(np.maximum(caps, walls * uneven * np.exp(-((away / 1.6) ** 2))), np.float32)

    def paint(self, points: Floats, edge_mm: float) -> Floats:
        """Signals (2, ...) at places (3, ...)."""
        bent, texture = self.bend(points), self.texture.at(points)
        canvas = Canvas(np.zeros((2, *texture.shape), np.float32), edge_mm)
        inner, fluid = self.to_skull(bent), self.to_fluid(points, bent)
        self._paint_shell(canvas, bent, inner, texture)
        canvas.paint(fluid, _GREY)
        canvas.paint(fluid - CORTEX_MM, WHITE)
        z, y, side = bent
        for paint, inside in (
            (self._paint_deep, (z < 42) & (side < 46) & (np.abs(y) < 70)),
            (self._paint_below, z < 8),
        ):
            part = Canvas(canvas.signal[:, inside], edge_mm)
            paint(part, bent[:, inside])
            canvas.signal[:, inside] = part.signal
        canvas.signal *= 1 + 0.025 * texture
        return canvas.signal

    def _paint_shell(self, canvas: Canvas, bent: Floats, inner: Floats, texture: Floats) -> None:
        """Scalp, muscle, skull and the fluid under it."""
        patchy = np.clip(1 + 0.15 * texture, 0.5, 1.4)
        bone = 6 + np.clip(np.abs(bent[1]) / 60, 0, 1.5)
        canvas.paint(inner + bone + 6, _SKIN, patchy)
        temple = to_egg(bent, (-2, -28, 76), (34, 26, 6))
        canvas.paint(np.minimum(temple, inner + bone + 4), _MUSCLE)
        canvas.paint(inner + bone, _BONE)
        canvas.paint(1.2 - np.abs(inner + bone / 2) + 0.5 * texture, _MARROW, 0.8)
        canvas.paint(inner, FLUID)

    def _paint_deep(self, canvas: Canvas, bent: Floats) -> None:
        """Deep grey matter, normal bright white matter and the ventricles."""
        canvas.paint(self.in_deep_grey(bent), (84, 80))
        canvas.paint(to_egg(bent, (2, -3, 20.5), (7, 10, 4)), (70, 94))  # pallidum
        canvas.paint(-to_tube(bent, _PYRAMID) / 3, (82, 103))
        ventricle = self.to_ventricle(bent)
        canvas.signal[0] += self.glow(bent, ventricle) * np.clip(canvas.signal[1] / 50 - 0.6, 0, 1)
        canvas.paint(0.5 - np.abs(ventricle - 0.3), (98, 96), 0.7)
        canvas.paint(-ventricle, FLUID)
        canvas.paint(-to_tube(bent, _CHOROID), (92, 62))
        canvas.paint(to_egg(bent, (0, 3, 0), (11, 13, 2 + 0.5 * self.width_mm)), FLUID)  # third ventricle

    def _paint_below(self, canvas: Canvas, bent: Floats) -> None:
        """Cisterns, brain stem and cerebellum."""
        canvas.paint(to_egg(bent, (-17, 12, 0), (13, 22, 22)), FLUID)
        canvas.paint(to_egg(bent, (-24, -17, 0), (14, 8, 10)), FLUID)
        canvas.paint(to_egg(bent, (-2, 33, 0), (7, 5, 9)), FLUID)
        stem = np.maximum(to_egg(bent, (-19, 12, 0), (20, 13, 11)), to_egg(bent, (-16, 4, 11), (14, 8, 8)))
        canvas.paint(stem, _STEM)
        canvas.paint(to_egg(bent, (-16, 19, 0), (12, 1.2, 1.2)), FLUID)  # aqueduct
        hind = to_egg(bent, (-38, 50, 0), (30, 28, 50))
        leaves = np.sin(1.6 * np.hypot(bent[0] + 34, bent[1] - 26)) * np.clip(bent[2] / 6, 0.3, 1)
        canvas.paint(hind + 1.5, FLUID)
        canvas.paint(hind, (82, 80))
        canvas.paint(np.minimum(hind - 2, 2 * leaves), (72, 94), 0.7)


def make_head(rng: Generator) -> Head:
    """A random head."""
    directions = rng.normal(0, 0.03, (3, 3, 3))
    phases, heights = rng.uniform(0, 6.3, (3, 3, 1)), rng.normal(0, 1.6, (3, 3, 1))
    age = float(rng.uniform(0, 1))
    return Head(
        warp=np.concatenate([directions, phases, heights], axis=-1).astype(np.float32),
        size=float(rng.uniform(0.94, 1.02)),
        width_mm=2.2 * age + float(rng.normal(0, 0.5)),
        sulcus_mm=0.4 + 0.7 * age + float(rng.uniform(0, 0.2)),
        folds=random_folds(rng, 3.6, step_mm=2.0, half=48),
        reach=random_field(rng, 9.0, step_mm=4.0, half=26),
        texture=random_field(rng, 5.0, step_mm=3.0, half=34),
        caps=(rng.uniform(25, 85), rng.uniform(15, 70), rng.uniform(5, 45)),
    )
