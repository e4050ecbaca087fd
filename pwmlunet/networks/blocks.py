"""The pieces that 2-D networks are made of, and the way from volumes to slices and back."""

import math

from torch import Tensor, nn

from pwmlunet.networks.base import Norm


def convolution(n_in: int, n_out: int, *, size: int = 3, stride: int = 1) -> nn.Conv2d:
    """A convolution with bias and zero padding: keeps the size, or divides it by the stride."""
    layer = nn.Conv2d(n_in, n_out, size, stride, padding=size // 2)
    _initialise(layer, fan_in=n_in * size**2)
    return layer


def up_convolution(n_in: int, n_out: int) -> nn.ConvTranspose2d:
    """A 2 × 2 up-convolution, which doubles the size; each voxel is made from one voxel below."""
    layer = nn.ConvTranspose2d(n_in, n_out, 2, stride=2)
    _initialise(layer, fan_in=n_in)
    return layer


def head(n_in: int, n_out: int, *, prior_logit: float) -> nn.Conv2d:
    """A 1 × 1 convolution to logits that start near `prior_logit` (Lin et al. 2017, section 4.1)."""
    layer = nn.Conv2d(n_in, n_out, 1)
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, prior_logit)
    return layer


def _initialise(layer: nn.Conv2d | nn.ConvTranspose2d, *, fan_in: int) -> None:
    """Weights that keep the variance through a ReLU (He et al. 2015, eq. 10) and biases of zero."""
    nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_in))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def normalisation(norm: Norm, n_channels: int) -> nn.Module:
    """Batch or instance normalisation with a learned scale and offset."""
    return nn.BatchNorm2d(n_channels) if norm == "batch" else nn.InstanceNorm2d(n_channels, affine=True)


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


def _pre_activated(n_in: int, n_out: int, norm: Norm, *, stride: int = 1) -> list[nn.Module]:
    """Two times normalisation, ReLU, 3 × 3 convolution; the first convolution has the stride."""
    return [
        *(normalisation(norm, n_in), relu(), convolution(n_in, n_out, stride=stride)),
        *(normalisation(norm, n_out), relu(), convolution(n_out, n_out)),
    ]


def stem_unit(n_in: int, n_out: int, norm: Norm) -> BranchSum:
    """The first unit, from image channels: its main branch convolves before it normalises."""
    main = [convolution(n_in, n_out), normalisation(norm, n_out), relu(), convolution(n_out, n_out)]
    shortcut = [normalisation(norm, n_in), convolution(n_in, n_out, size=1)]
    return BranchSum(nn.Sequential(*main), nn.Sequential(*shortcut))


def encoder_unit(n_in: int, n_out: int, norm: Norm) -> BranchSum:
    """A pre-activation residual unit that halves the size; its shortcut is activated too."""
    shortcut = [normalisation(norm, n_in), relu(), convolution(n_in, n_out, size=1, stride=2)]
    return BranchSum(nn.Sequential(*_pre_activated(n_in, n_out, norm, stride=2)), nn.Sequential(*shortcut))


def identity_unit(n_channels: int, norm: Norm) -> BranchSum:
    """A pre-activation residual unit whose shortcut is its input."""
    return BranchSum(nn.Sequential(*_pre_activated(n_channels, n_channels, norm)), nn.Identity())


def decoder_unit(n_in: int, n_out: int, norm: Norm) -> BranchSum:
    """A pre-activation residual unit whose shortcut is normalised and projected, without ReLU."""
    shortcut = [normalisation(norm, n_in), convolution(n_in, n_out, size=1)]
    return BranchSum(nn.Sequential(*_pre_activated(n_in, n_out, norm)), nn.Sequential(*shortcut))


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
