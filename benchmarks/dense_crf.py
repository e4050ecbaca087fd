"""What a dense CRF costs: milliseconds for a region, by its side and by how many are refined together.

python benchmarks/dense_crf.py [--threads 2]
"""

import argparse
import time

import torch

from pwmlunet.networks.dense_crf import DenseCrfConfig, mean_field

SIDES = (18, 36, 48)
BATCHES = (1, 16)
SPACING_YX_MM = (0.7, 0.7)
REPETITIONS = 5


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    print("| region | together | channels | ms a region |\n|---|---|---|---|")
    for side in SIDES:
        for n in BATCHES:
            for n_channels in (1, 2):
                print(f"| {side} × {side} | {n} | {n_channels} | {_milliseconds(side, n, n_channels):.1f} |")


def _milliseconds(side: int, n: int, n_channels: int) -> float:
    """The fastest of some repetitions: others are disturbed by what else runs."""
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(n, side, side, generator=generator)
    intensities = torch.rand(n, n_channels, side, side, generator=generator)
    valid = torch.ones(n, side, side, dtype=torch.bool)
    config = DenseCrfConfig.of_paper(SPACING_YX_MM)
    seconds = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        mean_field(probability, intensities, valid, SPACING_YX_MM, config)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / n * 1e3


if __name__ == "__main__":
    main()
