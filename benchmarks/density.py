"""What a prior density costs: fitted to large masks, then read as training and prediction read it.

python benchmarks/density.py [--subjects 19] [--shape 380 360 400]
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from pwmlunet.data.image import Geometry
from pwmlunet.data.store import Orientation, Rigid, WayBack
from pwmlunet.planning.density import DensityConfig, PlacedDensity, fit_density

SPACING_MM = 0.15
LESIONS = 8
RADIUS_MM = 1.0  # of a lesion of 4 mm³
READS = 100


def main() -> None:
    """Prints seconds for the fit and milliseconds for a slice and for a patch, turned and not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--subjects", type=int, default=19)
    parser.add_argument("--shape", type=int, nargs=3, default=[380, 360, 400], metavar=("Z", "Y", "X"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    z, y, x = arguments.shape
    shape = (z, y, x)
    grid = WayBack(Geometry(shape, (SPACING_MM,) * 3), Orientation(), ((0, z), (0, y), (0, x)), shape)
    making = 0.0

    def cases() -> Iterator[tuple[str, NDArray[np.bool_], WayBack]]:
        nonlocal making
        for number in range(arguments.subjects):
            start = time.perf_counter()
            mask = _mask(shape, np.random.default_rng(number))
            making += time.perf_counter() - start
            yield f"sub-{number:02d}", mask, grid

    start = time.perf_counter()
    density = fit_density(cases(), DensityConfig())
    seconds = time.perf_counter() - start - making
    facts = density.facts
    print(f"fit: {seconds:.1f} s, {facts.n_lesion_voxels} voxels, bandwidth {facts.bandwidth_mm:g} mm\n")
    print("| read | bandwidth, mm | slice, ms | patch 96 × 96, ms |\n|---|---|---|---|")
    turn = Rotation.from_euler("xyz", (3, 4, 5), degrees=True).as_matrix().ravel().tolist()
    turned = replace(grid, to_reference=Rigid(tuple(turn), (1.0, 2.0, 3.0)))
    for bandwidth_mm in (0.5, 1.5):
        density = fit_density(cases(), DensityConfig(bandwidth_mm=bandwidth_mm))
        for name, way_back in (("straight", grid), ("turned", turned)):
            placed = density.place(way_back)
            slice_ms, patch_ms = (_milliseconds(_reader(placed, size)) for size in ((y, x), (96, 96)))
            print(f"| {name} | {bandwidth_mm:g} | {slice_ms:.2f} | {patch_ms:.2f} |")


def _mask(shape: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Balls of several sizes at both sides of the middle."""
    mask = np.zeros(shape, bool)
    for _ in range(LESIONS):
        place = np.array(shape) * rng.normal((0.5, 0.5, rng.choice([0.35, 0.65])), (0.15, 0.1, 0.04))
        radius = RADIUS_MM / SPACING_MM * rng.lognormal(0, 0.35)
        around = tuple(
            slice(max(0, int(p - radius)), min(n, int(p + radius) + 2))
            for p, n in zip(place, shape, strict=True)
        )
        steps = np.ogrid[around]
        mask[around] |= sum((s - p) ** 2 for s, p in zip(steps, place, strict=True)) < radius**2
    return mask


def _reader(placed: PlacedDensity, size_yx: tuple[int, int]) -> Callable[[int], object]:
    return lambda number: placed.region([number], (0, size_yx[0]), (0, size_yx[1]))


def _milliseconds(read: Callable[[int], object]) -> float:
    read(0)
    start = time.perf_counter()
    for number in range(READS):
        read(number)
    return (time.perf_counter() - start) / READS * 1e3


if __name__ == "__main__":
    main()
