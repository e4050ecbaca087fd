"""The two-stage network beside a trident of as many parameters: a training step, and prediction by slice.

python benchmarks/two_stage.py [--width 8] [--threads 1] [--repeats 15]
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median

import torch

from pwmlunet.networks.base import Batch, NetworkConfig, SegmentationNetwork
from pwmlunet.networks.trident import TridentConfig
from pwmlunet.networks.two_stage import TwoStageConfig
from pwmlunet.training.losses import sbfl

BATCH, PATCH, SLICES, SIDE = 8, 128, 8, 256


def main() -> None:
    """Prints medians over alternating repeats, with the ratio to the trident."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--width", type=int, default=8, help="of the trident")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    trident = TridentConfig(width=arguments.width)
    coarse = TwoStageConfig(n_stages=4, anchor_sizes=(5.0, 9.0, 16.0))
    fine = replace(coarse, finest_stride=1, anchor_sizes=(4.0, 7.0, 12.0, 20.0))
    configs: dict[str, NetworkConfig] = {
        "trident": trident,
        "two-stage, stride 2": _as_large(coarse, trident),
        "two-stage, stride 1": _as_large(fine, trident),
    }
    networks = {name: config.build(1, 1) for name, config in configs.items()}
    depths = {name: config.n_slices for name, config in configs.items()}
    rows = {
        f"step of {BATCH} × {PATCH} × {PATCH}": _times(networks, depths, _learn, arguments.repeats),
        f"slice of {SIDE} × {SIDE}": _times(networks, depths, _segment, arguments.repeats),
    }
    print(f"| what | {' | '.join(f'{n}, {_size(networks[n]) / 1e6:.2f} M' for n in networks)} |")
    print(f"|---|{'---|' * len(networks)}")
    for what, times in rows.items():
        cells = [f"{1e3 * t:.0f} ms ({t / times['trident']:.2f})" for t in times.values()]
        print(f"| {what} | {' | '.join(cells)} |")


def _as_large(config: TwoStageConfig, other: NetworkConfig) -> TwoStageConfig:
    """The config with the width that comes nearest to the other's number of parameters."""
    wanted = _size(other.build(1, 1))
    widths = range(4, 65)
    return replace(
        config, width=min(widths, key=lambda w: abs(_size(_meta(replace(config, width=w))) - wanted))
    )


def _meta(config: NetworkConfig) -> SegmentationNetwork:
    with torch.device("meta"):
        return config.build(1, 1)


def _size(network: SegmentationNetwork) -> int:
    return sum(p.numel() for p in network.parameters())


def _learn(network: SegmentationNetwork, n_slices: int) -> float:
    """Seconds of forward and backward of a batch, in bfloat16 as training on a CPU is."""
    image = torch.randn(BATCH, 1, n_slices, PATCH, PATCH)
    target = torch.zeros(BATCH, 1, 1, PATCH, PATCH)
    target[: BATCH // 2, ..., 40:45, 50:55] = 1
    batch = Batch(image, target, torch.ones_like(target))
    network.train()
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.stack(list(network.losses(batch, sbfl).values())).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


@torch.inference_mode()
def _segment(network: SegmentationNetwork, n_slices: int) -> float:
    """Seconds for one slice of a run of slices."""
    image = torch.randn(1, 1, SLICES + n_slices - 1, SIDE, SIDE)
    network.eval()
    start = time.perf_counter()
    network.segment(image)
    return (time.perf_counter() - start) / SLICES


def _times(
    networks: Mapping[str, SegmentationNetwork],
    depths: Mapping[str, int],
    task: Callable[[SegmentationNetwork, int], float],
    repeats: int,
) -> dict[str, float]:
    """Medians by network, which take turns; a first round does not count."""
    seconds = {name: [task(network, depths[name])] for name, network in networks.items()}
    for _ in range(repeats):
        for name, network in networks.items():
            seconds[name].append(task(network, depths[name]))
    return {name: median(times[1:]) for name, times in seconds.items()}


if __name__ == "__main__":
    main()
