"""The pieces that networks are made of, in slices and in volumes, and the way from volumes to slices and back.

Kernels and strides are (y, x) or (z, y, x): the number of axes says whether a piece works on slices
(B, C, Y, X) or on volumes (B, C, Z, Y, X).
"""

import math
from collections.abc import Callable

from torch import Tensor, nn

from pwmlunet.networks.base import Norm

Size = tuple[int, ...]

SQUARE: Size = (3, 3)
HALF: Size = (2, 2)

_Layer = nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d

_CONVOLUTIONS: dict[int, Callable[..., _Layer]] = {2: nn.Conv2d, 3: nn.Conv3d}
_UP_CONVOLUTIONS: dict[int, Callable[..., _Layer]] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMALISATIONS: dict[tuple[Norm, int], Callable[..., nn.Module]] = {
    ("batch", 2): nn.BatchNorm2d,
    ("batch", 3): nn.BatchNorm3d,
    ("instance", 2): nn.InstanceNorm2d,
    ("instance", 3): nn.InstanceNorm3d,
}


def convolution(n_in: int, n_out: int, *, size: Size = SQUARE, stride: int | Size = 1) -> nn.Module:
    """A convolution with bias and zero padding: keeps the size, or divides it by the stride."""
    padding = tuple(length // 2 for length in size)
    layer = _CONVOLUTIONS[len(size)](n_in, n_out, size, stride, padding=padding)
    _initialise(layer, fan_in=n_in * math.prod(size))
    return layer


def up_convolution(n_in: int, n_out: int, stride: Size = HALF) -> nn.Module:
    """An up-convolution that multiplies the size by the stride; each voxel is made from one voxel below."""
    layer = _UP_CONVOLUTIONS[len(stride)](n_in, n_out, stride, stride=stride)
    _initialise(layer, fan_in=n_in)
    return layer


def head(n_in: int, n_out: int, *, prior_logit: float, n_axes: int = 2) -> nn.Module:
    """A convolution of single voxels to logits that start near `prior_logit` (Lin et al. 2017, section 4.1)."""
    layer = _CONVOLUTIONS[n_axes](n_in, n_out, 1)
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, prior_logit)
    return layer


def _initialise(layer: _Layer, *, fan_in: int) -> None:
    """Weights that keep the variance through a ReLU (He et al. 2015, eq. 10) and biases of zero."""
    nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def normalisation(norm: Norm, n_channels: int, n_axes: int = 2) -> nn.Module:
    """Batch or instance normalisation with a learned scale and offset."""
    return _NORMALISATIONS[norm, n_axes](n_channels, affine=True)


def relu() -> nn.ReLU:
    """A ReLU in place: it only ever follows a normalisation, which keeps its input and not its output."""
    return nn.ReLU(inplace=True)


class BranchSum(nn.Module):
    """The sum of two branches: a residual unit's convolutions and its shortcut (He et al. 2016)."""

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, features: Tensor) -> Tensor:
        """Both branches of the features, added."""
        total: Tensor = self.main(features) + self.shortcut(features)
        return total


def _activated(n_in: int, n_out: int, norm: Norm, size: Size, stride: int | Size = 1) -> list[nn.Module]:
    """Normalisation, ReLU and a convolution."""
    return [
        *(normalisation(norm, n_in, len(size)), relu()),
        convolution(n_in, n_out, size=size, stride=stride),
    ]


def _projection(n_in: int, n_out: int, norm: Norm, n_axes: int) -> nn.Sequential:
    """A shortcut to another number of channels: normalised, without ReLU."""
    voxel = (1,) * n_axes
    return nn.Sequential(normalisation(norm, n_in, n_axes), convolution(n_in, n_out, size=voxel))


def stem_unit(n_in: int, n_out: int, norm: Norm, *, size: Size = SQUARE) -> BranchSum:
    """The first unit, from image channels: its main branch convolves before it normalises."""
    main = [convolution(n_in, n_out, size=size), *_activated(n_out, n_out, norm, size)]
    return BranchSum(nn.Sequential(*main), _projection(n_in, n_out, norm, len(size)))


def encoder_unit(n_in: int, n_out: int, norm: Norm, *, size: Size = SQUARE, stride: Size = HALF) -> BranchSum:
    """A pre-activation residual unit that divides the size by the stride; its shortcut is activated too."""
    shortcut = _activated(n_in, n_out, norm, (1,) * len(size), stride)
    main = [*_activated(n_in, n_out, norm, size, stride), *_activated(n_out, n_out, norm, size)]
    return BranchSum(nn.Sequential(*main), nn.Sequential(*shortcut))


def identity_unit(n_channels: int, norm: Norm) -> BranchSum:
    """A pre-activation residual unit of slices whose shortcut is its input."""
    main = [_activated(n_channels, n_channels, norm, SQUARE) for _ in range(2)]
    return BranchSum(nn.Sequential(*main[0], *main[1]), nn.Identity())


def decoder_unit(n_in: int, n_out: int, norm: Norm, *, size: Size = SQUARE) -> BranchSum:
    """A pre-activation residual unit whose shortcut is normalised and projected, without ReLU."""
    shortcut = _projection(n_in, n_out, norm, len(size))
    main = [*_activated(n_in, n_out, norm, size), *_activated(n_out, n_out, norm, size)]
    return BranchSum(nn.Sequential(*main), shortcut)


def plain_unit(n_in: int, n_out: int, norm: Norm) -> nn.Sequential:
    """Two times 3 × 3 convolution, normalisation, ReLU (Ronneberger et al. 2015, with normalisation)."""
    return nn.Sequential(
        *(convolution(n_in, n_out), normalisation(norm, n_out), relu()),
        *(convolution(n_out, n_out), normalisation(norm, n_out), relu()),
    )


def to_slices(volume: Tensor) -> Tensor:
    """Every slice as an image of its own: (B, C, Z, Y, X) → (B·Z, C, Y, X); a view if C or Z is 1."""
    return volume.transpose(1, 2).flatten(0, 1)


def to_volume(slices: Tensor, n_batch: int) -> Tensor:
    """The inverse of `to_slices`: (B·Z, C, Y, X) → (B, C, Z, Y, X), a view."""
    return slices.reshape(n_batch, -1, *slices.shape[1:]).transpose(1, 2)


def windows(slices: Tensor, n_batch: int, n_slices: int) -> Tensor:
    """The maps of each run of T slices, joined on channels: (B·Z, C, Y, X) → (B·(Z−T+1), T·C, Y, X).

    A view if Z = T (training) or B = 1 (prediction); its memory may overlap, so nothing may write to it.
    """
    volume = slices.reshape(n_batch, -1, *slices.shape[1:])  # (B, Z, C, Y, X)
    runs = volume.unfold(1, n_slices, 1)  # (B, Z−T+1, C, Y, X, T)
    return runs.movedim(-1, 2).flatten(2, 3).flatten(0, 1)
