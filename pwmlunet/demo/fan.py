"""A three-dimensional ultrasound probe: a sector that sweeps from front to back, and what it hears."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

Floats = NDArray[np.float32]

_LOOKS = 3
"""Independent looks at each place that are averaged, which calms the speckle."""

_PULSE_MM, _BEAM_RADIANS = 0.2, 0.011
"""Standard deviations of the resolution along and across a beam: across, it worsens with depth."""

_RANGE_DB = 60.0
"""From black to white."""

_NOISE_DB = -55.0


@dataclass(frozen=True)
class Fan:
    """Beams from the anterior fontanel, as arrays (sweep, angle, range)."""

    apex_zyx_mm: tuple[float, float, float] = (30.0, -5.0, 0.0)
    """Where all beams would meet, just above the skin."""
    sweep_radians: tuple[float, float] = (-0.82, 0.9)
    """The foremost and the hindmost plane; 0 is straight down."""
    half_angle_radians: float = 0.76
    """To either side in each plane."""
    range_mm: tuple[float, float] = (5.5, 58.0)
    voxel_mm: float = 0.15
    """Of the volume to make: beams need not be much finer."""

    @cached_property
    def sweeps(self) -> Floats:
        """Angles of the planes."""
        return self._angles(*self.sweep_radians)

    @cached_property
    def angles(self) -> Floats:
        """Angles of the beams in a plane."""
        return self._angles(-self.half_angle_radians, self.half_angle_radians)

    @cached_property
    def ranges(self) -> Floats:
        """Distances of the samples of a beam from the apex."""
        n = math.ceil((self.range_mm[1] - self.range_mm[0]) / max(0.15, self.voxel_mm / 2)) + 1
        return np.linspace(*self.range_mm, n, dtype=np.float32)

    def _angles(self, first: float, last: float) -> Floats:
        step = max(0.0075, self.voxel_mm / 40)  # a voxel at 40 mm
        return np.linspace(first, last, math.ceil((last - first) / step) + 1, dtype=np.float32)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(sweeps, angles, ranges)."""
        return len(self.sweeps), len(self.angles), len(self.ranges)

    @property
    def step_mm(self) -> float:
        """Between the samples of a beam."""
        return float(self.ranges[1] - self.ranges[0])

    def points(self, part: tuple[slice, slice, slice]) -> Floats:
        """The places (3, sweep, angle, range), z, y, x in mm, of a part of the beams."""
        sweep, angle, away = np.ix_(*(a[s] for a, s in zip(self._axes, part, strict=True)))
        level = away * np.cos(angle)
        z, y, x = self.apex_zyx_mm
        places = z - level * np.cos(sweep), y + level * np.sin(sweep), x + away * np.sin(angle)
        return np.stack(np.broadcast_arrays(*places))

    def around(self, point_zyx_mm: Floats, reach_mm: float) -> tuple[slice, slice, slice]:
        """The part of the beams that holds all places within `reach_mm` of a point; perhaps nothing."""
        sweep, angle, away = (float(c[0]) for c in self._polar(*(point_zyx_mm[i : i + 1] for i in range(3))))
        wide = reach_mm / max(away - reach_mm, 1.0)
        limits = zip(self._axes, (sweep, angle, away), (wide / math.cos(angle), wide, reach_mm), strict=True)
        first, second, third = (
            slice(*np.searchsorted(axis, (at - by, at + by)).tolist()) for axis, at, by in limits
        )
        return first, second, third

    def holds(self, points: Floats, margin_mm: float) -> NDArray[np.bool_]:
        """Which of the places (3, n) are in the field of view and that far from its border."""
        sweep, angle, away = self._polar(*points)
        first, last = self.sweep_radians
        slack = (
            np.minimum(np.minimum(sweep - first, last - sweep), self.half_angle_radians - abs(angle)) * away
        )
        return np.asarray(np.minimum(slack, self.range_mm[1] - away) > margin_mm)

    def convert(self, heard: Floats, axes_zyx_mm: tuple[Floats, Floats, Floats]) -> NDArray[np.uint8]:
        """The volume (Z, Y, X) of what beams (sweep, angle, range) heard; 0 outside the field of view."""
        z, y, x = axes_zyx_mm
        volume = np.empty((len(z), len(y), len(x)), np.uint8)
        for index, level in enumerate(z):  # a slice at a time, to save memory
            polar = self._polar(level[None, None], y[:, None], x[None])
            steps = ((p - a[0]) / (a[1] - a[0]) for p, a in zip(polar, self._axes, strict=True))
            where = np.stack(np.broadcast_arrays(*steps))
            volume[index] = np.round(ndimage.map_coordinates(heard, where, np.float32, order=1, cval=0))
        return volume

    @property
    def _axes(self) -> tuple[Floats, Floats, Floats]:
        return self.sweeps, self.angles, self.ranges

    def _polar(self, z: Floats, y: Floats, x: Floats) -> tuple[Floats, Floats, Floats]:
        """Sweep, angle and range of places."""
        below, behind, aside = self.apex_zyx_mm[0] - z, y - self.apex_zyx_mm[1], x - self.apex_zyx_mm[2]
        level = np.hypot(below, behind)
        return np.arctan2(behind, below), np.arctan2(aside, level), np.hypot(aside, level)

    def listen(self, rng: Generator, echo_db: Floats, loss_db_per_mm: Floats) -> Floats:
        """Grey values 1 to 255 (sweep, angle, range): shadows, speckle and log-compression.

        Both arrays are what the tissue does: how strongly it answers, and how much more (or less) than usual
        it takes from the beam, for which the scanner makes up.
        """
        echo_db = echo_db + 0.7 * self._mirrors(loss_db_per_mm) * (-10 - echo_db)
        echo_db -= np.maximum(np.cumsum(loss_db_per_mm, axis=-1) * np.float32(self.step_mm), -4)
        echo_db -= self._contact(rng)[..., None]
        echo_db = np.maximum(echo_db, self._reverberation(rng))
        heard = self._speckle(rng, np.asarray(10 ** (echo_db / 20), np.float32))
        heard += np.float32(10 ** (_NOISE_DB / 10))
        grey = 255 * (1 + 10 * np.log10(heard) / _RANGE_DB)
        return np.asarray(np.clip(grey, 1, 255), np.float32)

    def _mirrors(self, loss: Floats) -> Floats:
        """0 to 1: walls of fluid and bone that face the probe throw the beam straight back."""
        return np.asarray(np.clip(abs(np.gradient(loss, self.step_mm, axis=-1)), 0, 1), np.float32)

    def _contact(self, rng: Generator) -> Floats:
        """What each beam loses before it enters: some at the rim, where the fontanel ends, or by poor contact."""
        rim = np.maximum(abs(self.angles[None] / self.half_angle_radians), abs(self.sweeps[:, None] / 0.9))
        sigma = 0.06 / float(self.angles[1] - self.angles[0])
        patches = ndimage.gaussian_filter(rng.standard_normal(self.shape[:2], np.float32), sigma)
        poor = np.clip(patches / patches.std() - 1.2 + 1.2 * rim**4, 0, 3)
        return np.asarray(5 * poor + 3 * rim**6, np.float32)

    def _reverberation(self, rng: Generator) -> Floats:
        """Bright bands under the probe, which fade with depth."""
        depth = self.ranges - self.ranges[0]
        bands = np.cos(2 * math.pi * depth / rng.uniform(1.0, 1.6))
        return np.asarray(-14 - 4.5 * depth + 3 * bands, np.float32)

    def _speckle(self, rng: Generator, amplitude: Floats) -> Floats:
        """The power of many small echoes that meet in each resolution cell."""
        steps = (self.angles[1] - self.angles[0], self.angles[1] - self.angles[0], self.step_mm)
        sigma = [
            max(s / float(by), 0.5)
            for s, by in zip((_BEAM_RADIANS, _BEAM_RADIANS, _PULSE_MM), steps, strict=True)
        ]
        impulse = np.zeros(33)
        impulse[16] = 1
        gain = math.prod((ndimage.gaussian_filter1d(impulse, s, truncate=3) ** 2).sum() for s in sigma)
        power = np.zeros_like(amplitude)
        for _ in range(2 * _LOOKS):  # real and imaginary part of each look
            echoes = rng.standard_normal(amplitude.shape, np.float32)
            echoes *= amplitude
            power += ndimage.gaussian_filter(echoes, sigma, truncate=3) ** 2
        return power * np.float32(1 / (2 * _LOOKS * gain))
