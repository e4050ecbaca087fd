"""What two-stage networks add to convolutions: suppression, regions cut out of maps, masks put back.

python benchmarks/boxes.py [--threads 1 2] [--boxes 1000] [--channels 256] [--repeats 15]
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torch import Tensor

from pwmlunet.networks import boxes

SHAPE_YX = (256, 256)
SIDES = (4, 40)  # of boxes, in pixels
REGION, MASK = 7, 18  # bins along the sides of what the box head and the mask head read
PASTED, SLICES = 32, 8


def main() -> None:
    """Prints medians of wall and CPU milliseconds by number of threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--boxes", type=int, default=1000)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tasks = _tasks(arguments.boxes, arguments.channels)
    print("| what | threads | wall, ms | CPU, ms |\n|---|---|---|---|")
    for name, task in tasks.items():
        for n_threads in arguments.threads:
            torch.set_num_threads(n_threads)
            wall_ms, cpu_ms = _milliseconds(task, arguments.repeats)
            print(f"| {name} | {n_threads} | {wall_ms:.1f} | {cpu_ms:.1f} |")


def _tasks(n_boxes: int, n_channels: int) -> dict[str, Callable[[], object]]:
    one, many = _boxes(1, n_boxes), _boxes(SLICES, n_boxes)
    tasks: dict[str, Callable[[], object]] = {
        f"suppress {n_boxes} boxes": partial(_suppress, one),
        f"suppress {n_boxes} boxes in each of {SLICES} slices": partial(_suppress, many),
    }
    for stride in (2, 4):
        maps = torch.randn(1, n_channels, SHAPE_YX[0] // stride, SHAPE_YX[1] // stride)
        name = f"align {n_boxes} regions of {REGION} × {REGION} × {n_channels}, stride {stride}"
        tasks[name] = partial(_align, maps, one, stride)
        tasks[f"{name}, with backward"] = partial(_learn, maps, one, stride)
    masks, places = torch.rand(SLICES, PASTED, 1, MASK, MASK), _boxes(SLICES, PASTED)
    name = f"paste {PASTED} masks of {MASK} × {MASK} in each of {SLICES} slices"
    return tasks | {name: partial(boxes.paste, masks, places, SHAPE_YX)}


def _boxes(n_slices: int, n_boxes: int) -> Tensor:
    start = torch.rand(n_slices, n_boxes, 2) * torch.tensor(SHAPE_YX)
    stop = start + torch.empty(n_slices, n_boxes, 2).uniform_(*SIDES)
    return boxes.clip(torch.cat((start, stop), -1), SHAPE_YX)


def _suppress(given: Tensor) -> None:
    boxes.suppress(given, torch.ones(given.shape[:2], dtype=torch.bool), 0.5)


@torch.no_grad()
def _align(maps: Tensor, given: Tensor, stride: int) -> None:
    boxes.align(maps, given, REGION, stride)


def _learn(maps: Tensor, given: Tensor, stride: int) -> None:
    regions = boxes.align(maps.requires_grad_(), given, REGION, stride)
    torch.autograd.grad(regions, maps, torch.ones_like(regions))


def _milliseconds(task: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Medians of wall and CPU time, after one run that does not count."""
    task()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        task()
        walls.append((time.perf_counter() - wall) * 1e3)
        cpus.append((time.process_time() - cpu) * 1e3)
    return median(walls), median(cpus)


if __name__ == "__main__":
    main()
