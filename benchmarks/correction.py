"""What the correction network costs: learning five folds of 2,000 candidates, and classifying 200 of them.

OMP_NUM_THREADS=2 python benchmarks/correction.py [--threads 2] [--steps 20] [--views slices]
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from pwmlunet.inference.device import keep_freed_memory
from pwmlunet.networks.correction import CorrectionConfig, classify
from pwmlunet.training.correction_learning import REACH, CorrectionRecipe, learn

N_LEARNED, N_CLASSIFIED, N_FOLDS, N_CHANNELS, N_CLASSES = 1600, 200, 5, 2, 3


def main() -> None:
    """Prints wall and CPU seconds; those of learning are of a few steps, multiplied to all steps of five folds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20, help="that are measured")
    parser.add_argument("--views", choices=("slice", "slices", "planes"), default="slice")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    config = CorrectionConfig(views=arguments.views)
    recipe, cpu = CorrectionRecipe(), torch.device("cpu")
    regions = _regions(N_LEARNED, config, round(REACH * config.region_pixels))
    classes = torch.arange(N_LEARNED) % N_CLASSES

    def learning(n_steps: int) -> None:
        learn(config, regions, classes, N_CLASSES, replace(recipe, steps=n_steps), seed=0, device=cpu)

    learning(1)  # the first step prepares
    factor = N_FOLDS * recipe.steps / arguments.steps
    network = config.build(N_CHANNELS, N_CLASSES)
    shown = _regions(N_CLASSIFIED, config, config.region_pixels)
    print("| what | wall seconds | CPU seconds |\n|---|---|---|")
    _print(f"{N_FOLDS} folds of {recipe.steps} steps", lambda: learning(arguments.steps), factor)
    _print(f"{N_CLASSIFIED} candidates classified", lambda: classify(network, shown), 1)


def _regions(n: int, config: CorrectionConfig, n_pixels: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (n, config.n_views, N_CHANNELS + config.n_maps, n_pixels, n_pixels)
    return torch.rand(shape, generator=generator, dtype=torch.float16)


def _print(what: str, task: Callable[[], object], factor: float) -> None:
    """A row of the table."""
    wall, used = time.perf_counter(), os.times()
    task()
    wall, now = time.perf_counter() - wall, os.times()
    cpu = now.user + now.system - used.user - used.system
    print(f"| {what} | {factor * wall:.1f} | {factor * cpu:.1f} |")


if __name__ == "__main__":
    main()
