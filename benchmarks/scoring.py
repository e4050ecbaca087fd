"""What `pwml_evaluate` costs: many ordinary cases, and one large volume with a hundred lesions.

python benchmarks/scoring.py [--folder /tmp/pwmlunet_benchmarks/scoring] [--repetitions 3]
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

import numpy as np
from measuring import measure
from numpy.typing import NDArray

from pwmlunet.data.image import Geometry, write_image
from pwmlunet.evaluation.probabilities import write_probability

SETS = {
    "20 cases of 24 × 256 × 256": (20, (24, 256, 256), (3.0, 0.7, 0.7), 10),
    "1 case of 360 × 400 × 380": (1, (360, 400, 380), (0.5, 0.5, 0.5), 100),
}
"""How many cases, their shape, spacing and lesions."""

REACH = 6  # half the side of the box in which a lesion is drawn, in voxels


def main() -> None:
    """Makes what is missing and prints wall seconds and peak GB, with and without probabilities."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/pwmlunet_benchmarks/scoring"))
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    print("| cases | probabilities | wall s | CPU s | GB |\n|---|---|---|---|---|")
    for number, (name, sizes) in enumerate(SETS.items()):
        home = arguments.folder / f"set_{number}"
        if not (home / "done").exists():
            _make_set(home, *sizes)
        for kind in ("no", "yes"):
            costs = [_cost(home, f"predicted_{kind}") for _ in range(arguments.repetitions)]
            print(
                f"| {name} | {kind} | {' | '.join(f'{statistics.median(c):.2f}' for c in zip(*costs, strict=True))} |"
            )


def _cost(home: Path, prediction: str) -> tuple[float, float, float]:
    command = [str(Path(sys.executable).parent / "pwml_evaluate"), "-r", str(home / "reference")]
    command += ["-p", str(home / prediction), "-o", str(home / "scores" / "summary.json")]
    cost = measure(command, dict(os.environ))
    return cost.wall_seconds, cost.cpu_seconds, cost.peak_gb


def _make_set(
    home: Path, n_cases: int, shape: tuple[int, int, int], spacing: tuple[float, float, float], n_lesions: int
) -> None:
    geometry = Geometry(shape, spacing)
    for number in range(n_cases):
        rng = np.random.default_rng(number)
        name = f"case_{number:03d}"
        places = rng.integers(REACH + 1, np.array(shape) - REACH - 1, (n_lesions, 3))
        reference = _bumps(places, shape, rng) > 0.5
        kept = places[: n_lesions - n_lesions // 5] + np.array((0, 1, 0))
        false = rng.integers(REACH + 1, np.array(shape) - REACH - 1, (n_lesions // 5, 3))
        probability = _bumps(np.concatenate([kept, false]), shape, rng)
        write_image(home / "reference" / f"{name}.nii.gz", reference.astype(np.uint8), geometry)
        for kind in ("no", "yes"):
            mask = (probability > 0.5).astype(np.uint8)
            write_image(home / f"predicted_{kind}" / f"{name}.nii.gz", mask, geometry)
        write_probability(home / "predicted_yes" / f"{name}.npz", probability[None])
    (home / "done").touch()


def _bumps(
    places: NDArray[np.int64], shape: tuple[int, int, int], rng: np.random.Generator
) -> NDArray[np.float32]:
    """An image of smooth spots of several sizes, 1 in their middle and above 0 everywhere."""
    image = rng.uniform(0, 0.01, shape).astype(np.float32)
    steps = np.mgrid[tuple(slice(-REACH, REACH + 1) for _ in shape)]
    for place in places:
        width = rng.uniform(1, 3)
        around = tuple(slice(p - REACH, p + REACH + 1) for p in place)
        image[around] = np.maximum(image[around], np.exp(-(steps**2).sum(0) / 2 / width**2))
    return image


if __name__ == "__main__":
    main()
