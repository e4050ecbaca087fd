"""Slices onto another in-plane grid, and back."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate


def resize_images(images: NDArray[Any], shape_yx: tuple[int, int]) -> NDArray[np.float32]:
    """Images (..., Y, X) on another grid: cubic where it is finer, mean over the area where it is coarser."""
    if tuple(images.shape[-2:]) == shape_yx:
        return np.asarray(images, np.float32)
    tensor = torch.from_numpy(np.ascontiguousarray(images, np.float32))
    return np.asarray(_resize(tensor, shape_yx).numpy())


def _resize(tensor: Tensor, shape_yx: tuple[int, int]) -> Tensor:
    if shape_yx[0] < tensor.shape[-2] or shape_yx[1] < tensor.shape[-1]:
        return area_mean(tensor, shape_yx)
    slices = tensor.reshape(-1, 1, *tensor.shape[-2:])
    resized = interpolate(slices, shape_yx, mode="bicubic", align_corners=False)
    return resized.reshape(*tensor.shape[:-2], *shape_yx)


def resize_mask(mask: NDArray[np.uint8], shape_yx: tuple[int, int]) -> NDArray[np.uint8]:
    """A mask (Z, Y, X) on another grid.

    On a finer grid each pixel becomes a block, so that a lesion of one pixel keeps its area. On a coarser
    one a value stays where it covers at least half of the new pixel.
    """
    if tuple(mask.shape[-2:]) == shape_yx:
        return mask
    tensor = torch.from_numpy(np.ascontiguousarray(mask))
    resized = interpolate(tensor[None], shape_yx, mode="nearest-exact")[0]
    if shape_yx[0] < mask.shape[-2] or shape_yx[1] < mask.shape[-1]:
        for value in np.unique(mask):
            resized[area_mean((tensor == value).float(), shape_yx) >= 0.5] = int(value)
    return np.asarray(resized.numpy())


def area_mean(tensor: Tensor, shape_yx: tuple[int, int]) -> Tensor:
    """The mean of (..., Y, X) over the area that each pixel of a grid of `shape_yx` covers, exactly."""
    rows = _overlaps(tensor.shape[-2], shape_yx[0]).to(tensor)
    columns = _overlaps(tensor.shape[-1], shape_yx[1]).to(tensor)
    return rows @ tensor @ columns.T


def _overlaps(n_from: int, n_to: int) -> Tensor:
    """(n_to, n_from): the share of each old pixel in each new one along an axis; rows sum to 1."""
    edges = torch.linspace(0, n_from, n_to + 1, dtype=torch.float64)
    old = torch.arange(n_from, dtype=torch.float64)
    shared = torch.minimum(edges[1:, None], old + 1) - torch.maximum(edges[:-1, None], old)
    return shared.clamp(min=0) * n_to / n_from
