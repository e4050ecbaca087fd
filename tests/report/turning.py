"""Grids that are turned in all ways."""

from itertools import permutations, product

import numpy as np

from pwmlunet.data.image import Geometry

SHAPE = (40, 70, 55)
DIRECTIONS = [
    (order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
][::5]  # fmt: skip


def turned(order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, float, float]) -> Geometry:
    """A grid whose axes x, y, z run along these axes of the patient, slightly oblique."""
    matrix = np.zeros((3, 3))
    matrix[list(order), range(3)] = signs
    angle = 0.15
    tilt = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return Geometry(SHAPE, spacing, (5.0, 6.0, 7.0), tuple((tilt @ matrix).ravel().tolist()))
