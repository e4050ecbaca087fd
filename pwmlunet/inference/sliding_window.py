"""A network over a whole volume: runs of slices, tiles, flips, and their weighted mean."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from pwmlunet.inference.device import autocast
from pwmlunet.networks.base import SegmentationNetwork
from pwmlunet.planning.density import PlacedDensity
from pwmlunet.planning.plan import Configuration

_VOXELS_A_PASS = {"cpu": 2**17, "cuda": 2**22}
_FLIPS = ((), (-1,), (-2,), (-2, -1))


@dataclass(frozen=True)
class Window:
    """How a network is led over a volume."""

    configuration: Configuration
    flips: bool = True
    """Whether the mean over four mirrored versions is taken."""
    dtype: torch.dtype = torch.float32
    """The format of the network's arithmetic."""


@dataclass(frozen=True, eq=False)
class PlacedNetwork:
    """A network, and the prior density it takes, laid over the volume."""

    network: SegmentationNetwork
    prior: PlacedDensity | None = None


@dataclass(frozen=True)
class _Run:
    """Slices that a network sees in one pass, and what it says about some of them."""

    outputs: list[int]
    """The slices to predict."""
    inputs: list[int]
    """The slices to show for them; beyond the first and last, these are repeated."""
    weights: list[float]
    """What counts of each predicted slice; over all runs the weights of a slice add up to 1."""


@torch.inference_mode()
def predict_volume(
    networks: Sequence[PlacedNetwork],
    image: NDArray[np.floating[Any]],
    window: Window,
    device: torch.device,
    slices: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Mean probabilities (K, Z, Y, X) of the networks for an image (C, Z, Y, X), and their spread, on the CPU.

    The spread is the standard deviation over the networks at each voxel, None for one network; where runs of
    slices overlap, the mean of the runs' spreads. Slices beyond the first and last repeat these, so that a
    volume of one slice can be predicted. The image, which may be a file's, is read by runs of slices.

    Args:
        networks: The networks.
        image: Of any floating type.
        window: How they are led over it.
        device: What they compute on.
        slices: First and end of the slices to predict; all of them by default.
    """
    configuration = window.configuration
    start, stop = slices or (0, image.shape[1])
    rows, columns = image.shape[-2:]
    padding = (0, -columns % configuration.network.stride, 0, -rows % configuration.network.stride)
    voxels = (rows + padding[3]) * (columns + padding[1])
    most = max(1, _VOXELS_A_PASS.get(device.type, 2**17) // voxels)
    results: list[Tensor] = []
    for run in _runs(image.shape[1], (start, stop), configuration, most):
        shown = torch.from_numpy(np.asarray(image[:, run.inputs], np.float32)).to(device)
        shown = pad(shown, padding, mode="replicate")
        each = torch.stack(
            [_predict_run(n.network, _with_prior(shown, n.prior, run), window) for n in networks]
        )
        each = each[:, :, : len(run.outputs), :rows, :columns].cpu()
        found = [each.mean(0), each.std(0, correction=0)][: len(networks)]
        if not results:
            results = [torch.zeros(each.shape[1], stop - start, rows, columns) for _ in found]
        weights = torch.tensor(run.weights)[:, None, None]
        for result, values in zip(results, found, strict=True):
            result[:, [z - start for z in run.outputs]] += values * weights
    mean, *spread = results
    return mean, spread[0] if spread else None


def _with_prior(shown: Tensor, prior: PlacedDensity | None, run: _Run) -> Tensor:
    """What is shown (C, Z, Y, X) with the prior density as one more channel."""
    if prior is None:
        return shown
    density = prior.region(run.inputs, (0, shown.shape[-2]), (0, shown.shape[-1]))
    return torch.cat((shown, torch.from_numpy(density)[None].to(shown)))


def _runs(n_slices: int, wanted: tuple[int, int], configuration: Configuration, most: int) -> Iterator[_Run]:
    """The runs that predict the wanted slices of a volume."""

    def kept(places: Sequence[int]) -> list[int]:
        return [min(max(z, 0), n_slices - 1) for z in places]

    depth = configuration.patch_slices
    if depth > 1:
        yield from _overlapping(wanted, depth, kept)
        return
    step, reach = configuration.slice_step, configuration.network.n_slices // 2
    for first in range(wanted[0], min(wanted[0] + step, wanted[1])):
        outputs = list(range(first, wanted[1], step))
        for start in range(0, len(outputs), most):
            part = outputs[start : start + most]
            before = [part[0] - step * i for i in range(reach, 0, -1)]
            after = [part[-1] + step * i for i in range(1, reach + 1)]
            yield _Run(part, kept([*before, *part, *after]), [1.0] * len(part))


def _overlapping(
    wanted: tuple[int, int], depth: int, kept: Callable[[Sequence[int]], list[int]]
) -> Iterator[_Run]:
    """Runs of `depth` slices for a network of volumes, which overlap by half; the middle of each counts most."""
    starts = [wanted[0] + start for start in tile_starts(wanted[1] - wanted[0], depth, depth // 2)]
    bell = _bell(depth)
    norm = torch.zeros(wanted[1] + depth)
    for start in starts:
        norm[start : start + depth] += bell
    for start in starts:
        outputs = list(range(start, min(start + depth, wanted[1])))
        weights = (bell / norm[start : start + depth])[: len(outputs)].tolist()
        yield _Run(outputs, kept(range(start, start + depth)), weights)


def _predict_run(network: SegmentationNetwork, part: Tensor, window: Window) -> Tensor:
    """Probabilities (K, Z', Y, X) for (C, Z, Y, X).

    One flip at a time: a batch of all four would leave room for a quarter of the slices, and a trident pays
    for T − 1 more slices in each pass.
    """
    flips = _FLIPS if window.flips else _FLIPS[:1]
    total = torch.zeros(())
    for axes in flips:
        with autocast(part.device, window.dtype):
            probability = _segment(network, part[None].flip(axes), window.configuration)
        total = total + probability[0].float().flip(axes)
    return total / len(flips)


def _segment(network: SegmentationNetwork, batch: Tensor, configuration: Configuration) -> Tensor:
    if configuration.tiles == "slice":
        return network.segment(batch)
    if configuration.tiles == "trident":
        return _running_average(network, batch, configuration.patch_size_yx)
    return _weighted_mean(network, batch, configuration.patch_size_yx)


def _weighted_mean(network: SegmentationNetwork, batch: Tensor, patch_yx: tuple[int, int]) -> Tensor:
    """Tiles that overlap by half, each weighted by a Gaussian about its centre."""
    weights = _bell(patch_yx[0])[:, None] * _bell(patch_yx[1])[None]
    weights = weights.to(batch)
    total = torch.zeros(())
    norm = torch.zeros(batch.shape[-2:]).to(batch)
    for y in tile_starts(batch.shape[-2], patch_yx[0], patch_yx[0] // 2):
        for x in tile_starts(batch.shape[-1], patch_yx[1], patch_yx[1] // 2):
            rows, columns = slice(y, y + patch_yx[0]), slice(x, x + patch_yx[1])
            tile = network.segment(batch[..., rows, columns])
            if not total.ndim:
                total = _like(tile, batch)
            cut = weights[: tile.shape[-2], : tile.shape[-1]]
            total[..., rows, columns] += tile * cut
            norm[rows, columns] += cut
    return total / norm


def tile_starts(size: int, patch: int, step: int) -> list[int]:
    """Starts of tiles at most `step` apart that cover an axis; the last ends at its end."""
    last = max(size - patch, 0)
    n_tiles = 1 + -(-last // step)
    return [round(i * last / max(n_tiles - 1, 1)) for i in range(n_tiles)]


def _bell(size: int) -> Tensor:
    """A Gaussian with a standard deviation of an eighth of its length (Isensee et al. 2021)."""
    place = (torch.arange(size) - (size - 1) / 2) / (size / 8)
    return torch.exp(-0.5 * place**2).clamp(min=1e-4)


def _running_average(network: SegmentationNetwork, batch: Tensor, patch_yx: tuple[int, int]) -> Tensor:
    """Three tiles an axis, each averaged with what lies there already (the public code of Liu et al. 2019).

    A pixel under several tiles leans towards the last: `tiles = "patch"` has no such order.
    """
    size_yx = (batch.shape[-2], batch.shape[-1])
    starts = [
        sorted({min(i * (size // 3), max(size - patch, 0)) for i in range(3)})
        if size // 3 <= patch and size - patch <= 2 * (size // 3)
        else tile_starts(size, patch, patch // 2)  # three tiles would not cover a slice this large
        for size, patch in zip(size_yx, patch_yx, strict=True)
    ]
    seen = torch.zeros(size_yx, dtype=torch.bool, device=batch.device)
    result = torch.zeros(())
    for y in starts[0]:
        for x in starts[1]:
            rows, columns = slice(y, y + patch_yx[0]), slice(x, x + patch_yx[1])
            tile = network.segment(batch[..., rows, columns])
            if not result.ndim:
                result = _like(tile, batch)
            before = result[..., rows, columns]
            result[..., rows, columns] = torch.where(seen[rows, columns], (before + tile) / 2, tile)
            seen[rows, columns] = True
    return result


def _like(tile: Tensor, batch: Tensor) -> Tensor:
    """Zeros for whole slices with the tile's targets and slices."""
    return tile.new_zeros(*tile.shape[:3], *batch.shape[-2:])
