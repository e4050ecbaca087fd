"""Lesion copy-paste: a lesion of one patch of a batch is laid into another that has none."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from pwmlunet.networks.base import Batch

_HALF = 12  # pixels from a lesion's pixel to the edge of what is copied
_LIKE = 0.3  # standard deviations between the tissue around the lesion and where it goes
_SOFT = 5  # pixels over which the copy fades


def paste_lesions(batch: Batch, probability: float, generator: torch.Generator) -> Batch:
    """The batch with lesions pasted into that share of its patches without any; one target at a time.

    What the lesion adds to the tissue around it is added to tissue of like intensity, in all slices.
    """
    has_lesion = batch.target.flatten(1).amax(1) > 0
    donors, empty = (torch.nonzero(which).flatten().tolist() for which in (has_lesion, ~has_lesion))
    pasted = Batch(batch.image.clone(), batch.target.clone(), batch.valid)
    for index in empty if donors else ():
        donor = donors[int(torch.randint(len(donors), (1,), generator=generator))]
        if torch.rand(1, generator=generator) < probability:
            _paste(batch, donor, pasted, index, generator)
    return pasted


def _paste(batch: Batch, donor: int, pasted: Batch, index: int, generator: torch.Generator) -> None:
    lesions = batch.target[donor, :, 0]  # (K, Y, X)
    height, width = lesions.shape[-2:]
    k, y, x = _draw(lesions > 0, generator)
    if not _fits(y, x, height, width):
        return
    window = _window(y, x)
    lesion = lesions[k][window]
    weight = _fading(lesion)
    source = batch.image[donor][..., window[0], window[1]]  # (C, T, h, w)
    around = _surroundings(source, lesion)
    middle = batch.image.shape[2] // 2
    smooth = avg_pool2d(batch.image[index, :1, middle], 5, 1, 2)[0]
    like = (smooth - around[0, middle]).abs() < _LIKE
    like &= batch.valid[index, 0, 0] > 0
    inside = torch.zeros_like(like)
    inside[_HALF : height - _HALF, _HALF : width - _HALF] = True
    if not (like & inside).any():
        return
    _, to_y, to_x = _draw((like & inside)[None], generator)
    there = _window(to_y, to_x)
    pasted.image[index][..., there[0], there[1]] += weight * (source - around[..., None, None])
    pasted.target[index, k, 0][there] = lesion


def _draw(where: Tensor, generator: torch.Generator) -> tuple[int, int, int]:
    """A true place at random."""
    places = torch.nonzero(where)
    first, y, x = places[int(torch.randint(len(places), (1,), generator=generator))].tolist()
    return first, y, x


def _fits(y: int, x: int, height: int, width: int) -> bool:
    return _HALF <= y < height - _HALF and _HALF <= x < width - _HALF


def _window(y: int, x: int) -> tuple[slice, slice]:
    return slice(y - _HALF, y + _HALF), slice(x - _HALF, x + _HALF)


def _fading(lesion: Tensor) -> Tensor:
    """1 on the lesion and next to it, falling to 0 around."""
    near = max_pool2d(lesion[None], 3, 1, 1)
    return torch.maximum(avg_pool2d(near, _SOFT, 1, _SOFT // 2), lesion[None])[0]


def _surroundings(source: Tensor, lesion: Tensor) -> Tensor:
    """Mean (C, T) of a ring around the lesion."""
    ring = max_pool2d(lesion[None], 9, 1, 4)[0] - max_pool2d(lesion[None], 5, 1, 2)[0]
    return (source * ring).sum((-2, -1)) / ring.sum().clamp(min=1)
