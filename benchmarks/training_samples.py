"""Times what feeds a network in training: augmented patches a second on one thread, and seconds a step.

    python benchmarks/training_samples.py [--nnunet-bin DIR] [--patch 128 128] [--steps]

See benchmarks/README.md. Prints one table in Markdown.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from against_nnunet import nnunet
from measuring import measure
from stages import Tool, make_inputs, ours
from tiny_lesions import NAME

from pwmlunet.data.store import CaseStore
from pwmlunet.networks.base import Batch
from pwmlunet.networks.trident import TridentConfig
from pwmlunet.planning.plan import read_labels
from pwmlunet.training.augmentation import Augmenter
from pwmlunet.training.batches import to_batch
from pwmlunet.training.config import RECIPES
from pwmlunet.training.losses import parse_loss
from pwmlunet.training.sampling import PatchLoader, PatchSampler, PatchShape, training_case
from pwmlunet.training.trainer import make_optimiser

_BATCH = 8
_SLICES = 3


def main() -> None:
    """Prepares the dataset, then draws patches for a while with each tool in turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "pwmlunet_benchmarks")
    parser.add_argument("--nnunet-bin", type=Path, default=os.environ.get("NNUNET_BIN"))
    parser.add_argument("--patch", type=int, nargs=2, default=[128, 128], metavar=("Y", "X"))
    parser.add_argument("--seconds", type=float, default=5, help="how long each measurement draws")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--shape", type=int, nargs=3, default=[24, 256, 256], metavar=("Z", "Y", "X"))
    parser.add_argument("--steps", action="store_true", help="also time training steps of the CPU's network")
    arguments = parser.parse_args()
    inputs = make_inputs(arguments.folder, n_training=arguments.cases, n_predicted=3, shape_zyx=arguments.shape)  # fmt: skip
    tool = ours(arguments.folder, inputs)
    _prepare(tool)
    torch.set_num_threads(1)
    patch = (arguments.patch[0], arguments.patch[1])
    peer: Tool | None = None
    if arguments.nnunet_bin:
        peer = nnunet(Path(arguments.nnunet_bin), arguments.folder, inputs)
        _prepare(peer)
    print("| tool | patch | samples a CPU second | samples a second | million voxels a CPU second |")
    print("|---|---|---|---|---|")
    for _ in range(arguments.repetitions):
        batches = augmented_batches(tool.preprocessed, patch)
        _print_samples("pwmlunet", f"{_SLICES} × {patch[0]} × {patch[1]}", *_rate(batches, arguments.seconds))
        if peer:
            found = _samples_of_nnunet(peer, arguments.seconds)
            _print_samples("nnU-Net", " × ".join(str(n) for n in found["shape"]), found["samples"], found["wall_seconds"], found["cpu_seconds"])  # fmt: skip
    if not peer:
        print("\nnnU-Net is left out: neither --nnunet-bin nor $NNUNET_BIN is given")
    if arguments.steps:
        step = training_step(augmented_batches(tool.preprocessed, patch))
        n, wall, cpu = _rate(iter(step, None), arguments.seconds)
        print(f"\na training step of {_BATCH} patches, trident of width 8, one thread: {wall / (n / _BATCH):.2f} s, {cpu / (n / _BATCH):.2f} s CPU")  # fmt: skip


def _prepare(tool: Tool) -> None:
    if not tool.preprocessed.is_dir():
        measure(tool.commands["plan"], tool.environment)


def augmented_batches(preprocessed: Path, patch_yx: tuple[int, int]) -> Iterator[Batch]:
    """Batches of the default recipe as training gets them, but for the network: drawn, cut and augmented."""
    labels = read_labels(preprocessed / "dataset.json")
    store = CaseStore(preprocessed / "slices")
    cases = [training_case(store.read(name), labels) for name in store.names()]
    recipe = RECIPES["default"]
    sampler = PatchSampler(cases, (1, *patch_yx), recipe.lesion_share)
    loader = PatchLoader(sampler, PatchShape((1, *patch_yx), _SLICES, 1), batch_size=_BATCH, seed=0)
    augmenter = Augmenter(recipe.augmentation)
    for number in count():
        batch = to_batch(loader.generate_train_batch(), labels, torch.device("cpu"))
        yield augmenter(batch, torch.Generator().manual_seed(number))


def training_step(batches: Iterator[Batch]) -> Callable[[], Batch]:
    """A function that draws a batch, learns from it and returns it."""
    network = TridentConfig(width=8).build(1, 1)
    recipe = replace(RECIPES["default"], configuration="trident")
    optimiser, criterion = make_optimiser(network, recipe), parse_loss(recipe.loss)

    def step() -> Batch:
        batch = next(batches)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(network.losses(batch, criterion).values())).sum().backward()
        optimiser.step()
        return batch

    return step


def _rate(batches: Iterator[Batch], seconds: float) -> tuple[int, float, float]:
    """Patches drawn within the seconds, and the wall and CPU seconds that they took; the first batch is free."""
    next(batches)
    n, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        n += len(next(batches).image)
    return n, time.perf_counter() - start, time.process_time() - cpu


def _samples_of_nnunet(tool: Tool, seconds: float) -> dict[str, float]:
    """The same for nnU-Net's own loader and augmentation, in one process and one thread."""
    environment = {**tool.environment, "nnUNet_n_proc_DA": "0", "OMP_NUM_THREADS": "1"}
    command = [*tool.untrained[:2], "samples", NAME, str(seconds)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _print_samples(name: str, patch: str, n: int, wall: float, cpu: float) -> None:
    voxels = torch.Size(int(size) for size in patch.split(" × ")).numel()
    print(f"| {name} | {patch} | {n / cpu:.0f} | {n / wall:.0f} | {n / cpu * voxels / 1e6:.1f} |", flush=True)


if __name__ == "__main__":
    main()
