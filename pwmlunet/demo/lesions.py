"""Lesions: how many a subject has, and the size and shape of bright blobs in three dimensions."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage, special
from scipy.spatial.transform import Rotation

Floats = NDArray[np.float32]

CASES_PER_HEALTHY = 5
"""One subject in this many has no lesion."""

VOLUMES_MM3 = (1.75, 61.0)
"""The smallest and the largest lesion of the Priority U-Net's dataset."""

_LOG_MEAN, _LOG_SIGMA = -1.2765, 1.9973
"""A lognormal cut off at those two has that dataset's median, 4 mm3, and 62.5 % of the volume in a quarter of it."""

_N_BULGES, _BULGE = 3, 0.6


def draw_number(rng: Generator, least: int, most: int) -> int:
    """How many lesions a random subject has: none in one case of five."""
    return 0 if rng.random() < 1 / CASES_PER_HEALTHY else int(rng.integers(least, most + 1))


def draw_volume_mm3(rng: Generator) -> float:
    """The volume of a lesion: few are large, and those hold most of the volume."""
    low, high = special.ndtr((np.log(VOLUMES_MM3) - _LOG_MEAN) / _LOG_SIGMA)
    return float(np.exp(_LOG_MEAN + _LOG_SIGMA * special.ndtri(rng.uniform(low, high))))


@dataclass(frozen=True, eq=False)
class Blob:
    """A stretched ball with bulges; a line from its centre leaves it once, so that it is one piece."""

    centre_zyx_mm: Floats
    volume_mm3: float
    echo_db: float
    """Its brightness under white."""
    shape: Floats
    """(3, 3), determinant 1: makes a ball of the blob without its bulges."""
    bulges: Floats
    """(n, 3): unit vectors of the directions, seen on that ball, in which it bulges."""

    @property
    def radius_mm(self) -> float:
        """Of the ball without bulges."""
        ball = np.random.default_rng(0).standard_normal((3, 2000))
        share = (self._bulge(ball / np.linalg.norm(ball, axis=0)) ** 3).mean()
        return float(np.cbrt(3 / (4 * math.pi) * self.volume_mm3 / share))

    @property
    def reach_mm(self) -> float:
        """No part is further from the centre."""
        stretch = 1 / np.linalg.svd(self.shape, compute_uv=False).min()
        return float((1 + _BULGE) * self.radius_mm * stretch)

    def depth_mm(self, points: Floats) -> Floats:
        """About how deep inside places (3, ...), z, y, x in mm, lie; negative outside."""
        return np.asarray(self.radius_mm - self._distance(points), np.float32)

    def draw(self, points: Floats, voxel_mm3: float) -> NDArray[np.bool_]:
        """Which voxels at `points` (3, Z, Y, X) are the blob's: as many as its volume takes, in one piece."""
        smallest = math.ceil(VOLUMES_MM3[0] / voxel_mm3 - 1e-9)
        size = max(round(self.volume_mm3 / voxel_mm3), smallest)
        distance = self._distance(points)
        inside = distance <= np.partition(distance.ravel(), size - 1)[size - 1]
        pieces, _ = ndimage.label(inside, np.ones((3, 3, 3)))
        return np.asarray(pieces == pieces.flat[distance.argmin()])

    def _distance(self, points: Floats) -> Floats:
        """From the centre, in units in which the surface is a ball's."""
        offset = points - self.centre_zyx_mm.reshape(3, *[1] * (points.ndim - 1))
        on_ball = np.tensordot(self.shape, offset, 1)
        away = np.sqrt((on_ball**2).sum(0)) + np.float32(1e-6)
        return np.asarray(away / self._bulge(on_ball / away), np.float32)

    def _bulge(self, directions: Floats) -> Floats:
        """How far it reaches in directions (3, ...), 1 where it does not bulge."""
        towards = np.tensordot(self.bulges, directions, 1).clip(0)
        return np.asarray(1 + _BULGE * (towards**4).max(0), np.float32)


def draw_blob(rng: Generator, *, volume_mm3: float, echo_db: float) -> Blob:
    """A blob of random shape about 0."""
    stretch = np.exp(rng.uniform(-0.3, 0.3, 3))
    turn = Rotation.random(random_state=rng).as_matrix()
    shape = np.diag(stretch / np.cbrt(stretch.prod())) @ turn
    bulges = rng.standard_normal((_N_BULGES, 3))
    bulges /= np.linalg.norm(bulges, axis=1, keepdims=True)
    return Blob(
        np.zeros(3, np.float32), volume_mm3, echo_db, shape.astype(np.float32), bulges.astype(np.float32)
    )
