"""The residual 3-D U-Net, which can leave thick slices alone while it halves them in the plane."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pwmlunet.networks.base import Batch, Criterion, DenseConfig, DenseNetwork, Norm
from pwmlunet.networks.blocks import Size, decoder_unit, encoder_unit, head, stem_unit, up_convolution


@dataclass(frozen=True)
class ResUNet3dConfig(DenseConfig):
    """The residual U-Net of volumes: neighbouring slices meet in its convolutions."""

    norm: Norm = "instance"
    """Normalisation: "batch" over the batch, or "instance" over each patch, since few 3-D patches fit into one."""
    n_flat_stages: int = 0
    """Halvings, from the top, that leave the slices alone because they are thick: above them kernels are flat too."""
    deep_supervision: bool = True
    """Whether the decoder learns at each of its resolutions instead of the full one alone."""

    @property
    def n_slices(self) -> int:
        """One: each slice of the image is labelled."""
        return 1

    @property
    def slice_stride(self) -> int:
        """Two to the number of halvings that are not flat."""
        return int(2 ** (self.n_stages - 1 - self.n_flat_stages))

    @property
    def kernels(self) -> tuple[Size, ...]:
        """Kernel (z, y, x) of each stage, full resolution first."""
        return tuple((1 if stage < self.n_flat_stages else 3, 3, 3) for stage in range(self.n_stages))

    @property
    def strides(self) -> tuple[Size, ...]:
        """Stride (z, y, x) of each halving, full resolution first."""
        return tuple((1 if stage < self.n_flat_stages else 2, 2, 2) for stage in range(self.n_stages - 1))

    def problems(self) -> Iterator[str]:
        """Values outside their range."""
        yield from super().problems()
        if not 0 <= self.n_flat_stages < self.n_stages:
            yield f"n_flat_stages must be 0 to {self.n_stages - 1} with {self.n_stages} stages, not {self.n_flat_stages}"  # fmt: skip

    def build(self, n_channels: int, n_targets: int) -> "ResUNet3d":
        """A new residual 3-D U-Net for C channels and K targets."""
        return ResUNet3d(self, n_channels, n_targets)


class ResUNet3d(DenseNetwork):
    """A U-Net of volumes (Çiçek et al. 2016) from the trident's pre-activation residual units.

    Strided convolutions on the way down, up-convolutions of the same stride on the way up, one residual unit at
    each stage either way. With deep supervision every map of the decoder has a head of its own.
    """

    def __init__(self, config: ResUNet3dConfig, n_channels: int, n_targets: int) -> None:
        super().__init__()
        self.strides = config.strides
        self.encoder = nn.ModuleList(_encoder_stages(config, n_channels))
        self.dropout = nn.Dropout3d(config.dropout)
        self.decoder = nn.ModuleList(_decoder_stages(config))
        n_heads = len(self.decoder) if config.deep_supervision else 1
        self.heads = nn.ModuleList(
            head(width, n_targets, prior_logit=config.prior_logit, n_axes=3)
            for width in config.widths[:n_heads]
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, Z, Y, X) for an image (B, C, Z, Y, X)."""
        logits: Tensor = self.heads[0](self._maps(image)[0])
        return logits

    def losses(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """The criterion as "segmentation" and on each smaller map of the decoder as "deep_1", "deep_2", ….

        Each map weighs half as much as the one above it, and all weights add up to 1 (Isensee et al. 2021).
        """
        shares = [2.0**-level for level in range(len(self.heads))]
        losses, target, valid = {}, batch.target, batch.valid
        for level, (maps, layer) in enumerate(zip(self._maps(batch.image), self.heads, strict=False)):
            if level > 0:
                target, valid = shrink_target(target, valid, self.strides[level - 1])
            loss = criterion(layer(maps), target, valid)
            losses[f"deep_{level}" if level else "segmentation"] = loss * (shares[level] / sum(shares))
        return losses

    def _maps(self, image: Tensor) -> list[Tensor]:
        """The maps of each stage of the decoder, full resolution first."""
        levels, features = [], image
        for stage in self.encoder:
            features = stage(features)
            levels.append(features)
        features = self.dropout(levels.pop())
        maps: list[Tensor] = []
        for stage in self.decoder:
            features = stage(features, levels.pop())
            maps.insert(0, features)
        return maps


def shrink_target(target: Tensor, valid: Tensor, stride: Size) -> tuple[Tensor, Tensor]:
    """Target and valid of a smaller map: the largest target of each block, so that the tiniest lesion stays.

    Ignored voxels are no target. A block counts if it holds a target voxel, whatever the others are, or if all
    of its voxels are known.
    """
    target = F.max_pool3d(target * valid, stride)
    all_known = -F.max_pool3d(-valid, stride)
    holds_target = (target.amax(1, keepdim=True) >= 0.5).to(valid)
    return target, torch.maximum(all_known, holds_target)


class _DecoderStage(nn.Module):
    """Multiplies the size by the stride, joins the encoder's maps of that size, and reduces both to `n_out`."""

    def __init__(self, n_in: int, n_out: int, norm: Norm, *, size: Size, stride: Size) -> None:
        super().__init__()
        self.up = up_convolution(n_in, n_out, stride)
        self.unit = decoder_unit(2 * n_out, n_out, norm, size=size)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        features: Tensor = self.unit(torch.cat((self.up(below), skip), 1))
        return features


def _encoder_stages(config: ResUNet3dConfig, n_channels: int) -> Iterator[nn.Module]:
    """The stages from the full resolution down."""
    widths, kernels, norm = config.widths, config.kernels, config.norm
    yield stem_unit(n_channels, widths[0], norm, size=kernels[0])
    for index, stride in enumerate(config.strides):
        n_in, n_out = widths[index : index + 2]
        yield encoder_unit(n_in, n_out, norm, size=kernels[index + 1], stride=stride)


def _decoder_stages(config: ResUNet3dConfig) -> Iterator[_DecoderStage]:
    """The stages from the deepest up."""
    for index, stride in reversed(list(enumerate(config.strides))):
        n_out, n_in = config.widths[index : index + 2]
        yield _DecoderStage(n_in, n_out, config.norm, size=config.kernels[index], stride=stride)
