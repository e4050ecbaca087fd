"""Small spots in an adult's head, bright on T2 FLAIR or dark on T1 FLAIR: lesions and what only looks like one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pwmlunet.demo.adult import CORTEX_MM, Floats, Head

_APART_MM = 4.0
"""Between spots in a slice, so that they do not touch in the coarsest pixels."""

_THROUGH = 0.35
"""A mm through slices keeps spots apart like so many in the plane: none lies straight above another."""

_CLEAR_MM = 5.0
"""Between the cortex and the middle of what lies under it."""

_LUMPS = 0.15

KINDS = ("FCI", "LACI")
FCI, LACI = 1, 2
"""Label values: focal cerebral ischemia and lacunar infarction."""


@dataclass(frozen=True, eq=False)
class Spot:
    """An ellipsoid with lumps in the plane."""

    radii_mm: tuple[float, float, float]
    """Through slices, and its longer and shorter one in the plane."""
    angle: float
    """Of its longer axis in the plane, in radians from x."""
    t2: float | None = None
    """Its signal on T2 FLAIR; none where it is not seen there."""
    t1: float | None = None
    core: float = 1.0
    """How large it is on T1 FLAIR, as a share of its radii."""
    kind: int = 0
    """Its label value; 0 for what is no lesion."""
    centre_zyx_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def is_seen(self, height_mm: float, thickness_mm: float) -> bool:
        """Whether a slice of that thickness reaches it."""
        return abs(self.centre_zyx_mm[0] - height_mm) < (1 + _LUMPS) * self.radii_mm[0] + thickness_mm

    @property
    def reach_mm(self) -> float:
        """No part is further from the centre in the plane."""
        return (1 + _LUMPS) * self.radii_mm[1]

    def cover(self, points: Floats, edge_mm: float, share: float = 1.0) -> Floats:
        """0 to 1: how far it covers places (3, ...), z, y, x in mm, when its radii are that share."""
        high, long, short = self.radii_mm
        z, y, x = (p - np.float32(c) for p, c in zip(points, self.centre_zyx_mm, strict=True))
        along = (np.cos(self.angle) * x + np.sin(self.angle) * y) / long
        across = (np.cos(self.angle) * y - np.sin(self.angle) * x) / short
        lumps = 1 + _LUMPS * np.cos(3 * np.arctan2(across, along) + 5 * self.angle)
        away = np.sqrt((z / high) ** 2 + along**2 + across**2)
        return np.asarray(np.clip((share * lumps - away) * short / edge_mm + 0.5, 0, 1), np.float32)


@dataclass(frozen=True, eq=False)
class Places:
    """Random places in a head, among which spots find theirs."""

    head: Head
    points: Floats
    """(3, n), z, y, x in mm: the heights are those of slices, nearly."""

    @cached_property
    def bent(self) -> Floats:
        """The places in the head that all resemble."""
        return self.head.bend(self.points)

    @cached_property
    def to_fluid(self) -> Floats:
        """The way in mm to the fluid around the brain, negative in it."""
        return self.head.to_fluid(self.points, self.bent)

    @cached_property
    def is_white(self) -> NDArray[np.bool_]:
        """Which have no cortex around them in the plane: at a sulcus's bend `to_fluid` is too large."""
        white = self.to_fluid > _CLEAR_MM
        for turn in np.linspace(0, 2 * np.pi, 6, endpoint=False):
            step = _CLEAR_MM * np.array([[0], [np.sin(turn)], [np.cos(turn)]], np.float32)
            white &= self.head.to_fluid(self.points + step, self.head.bend(self.points + step)) > CORTEX_MM
        return np.asarray(white)

    @cached_property
    def to_ventricle(self) -> Floats:
        """The way in mm to the lateral ventricles."""
        return self.head.to_ventricle(self.bent)

    @cached_property
    def in_cerebrum(self) -> NDArray[np.bool_]:
        """Which lie inside the skull, away from brain stem, cerebellum, callosum and third ventricle."""
        z, y, side = self.bent
        lateral = (side > 9) & ((z > 6) | ((z > -18) & (side > 24) & (y < 16)))
        return np.asarray(lateral & (self.head.to_skull(self.bent) > 0))

    @cached_property
    def is_bright(self) -> NDArray[np.bool_]:
        """Where normal white matter is bright on T2 FLAIR."""
        return np.asarray(self.head.glow(self.bent, self.to_ventricle) > 6)

    def tissue(self, room_mm: float) -> NDArray[np.bool_]:
        """Which lie in normal dark white matter or deep grey matter, with room to fluid, cortex and bright places."""
        clear = self.is_white & (self.to_fluid > room_mm + 4) & (self.to_ventricle > room_mm + 2)
        return np.asarray(self.in_cerebrum & clear & ~self.is_bright)

    def fluid(self) -> NDArray[np.bool_]:
        """Which lie in sulci and fissures of the cerebrum."""
        return np.asarray(self.in_cerebrum & (self.to_fluid < 0) & (self.head.to_skull(self.bent) > 2.5))

    def cortex(self) -> NDArray[np.bool_]:
        """Which lie in the cortex."""
        return np.asarray(self.in_cerebrum & (self.to_fluid > 0.5) & (self.to_fluid < 2.5))


def draw_places(rng: Generator, head: Head, heights_mm: Floats, n: int = 16_000) -> Places:
    """Random places about so many slices."""
    z = rng.choice(heights_mm, n) + rng.uniform(-0.8, 0.8, n)
    y, x = rng.uniform(-90, 90, n), rng.uniform(-70, 70, n)
    return Places(head, np.stack([z, y, x]).astype(np.float32))


@dataclass
class Placer:
    """Puts spots at places, apart from each other."""

    rng: Generator
    places: Places
    apart_mm: Floats
    """How far each place is from all spots so far."""

    def put(
        self, n: int, draw: Callable[[], Spot], odds: Callable[[Spot], NDArray[np.generic]]
    ) -> tuple[Spot, ...]:
        """At most `n` spots, each at a place chosen by its odds there."""
        spots = []
        for _ in range(n):
            spot = draw()
            weights = odds(spot) * (self.apart_mm > spot.reach_mm + _APART_MM)
            if not weights.any():
                break
            index = self.rng.choice(len(weights), p=weights / weights.sum())
            z, y, x = self.places.points[:, index].tolist()
            spots.append(replace(spot, centre_zyx_mm=(z, y, x)))
            self._keep_apart(spots[-1])
        return tuple(spots)

    def _keep_apart(self, spot: Spot) -> None:
        z, y, x = (p - c for p, c in zip(self.places.points, spot.centre_zyx_mm, strict=True))
        away = np.sqrt((_THROUGH * z) ** 2 + y**2 + x**2) - spot.reach_mm
        self.apart_mm = np.minimum(self.apart_mm, away)
