"""TS-CNN: neighbouring slices share an encoder and meet in the decoder."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pwmlunet.networks.base import DenseConfig, DenseNetwork, Norm
from pwmlunet.networks.blocks import (
    decoder_unit,
    encoder_unit,
    head,
    identity_unit,
    stem_unit,
    to_slices,
    to_volume,
    up_convolution,
    windows,
)


@dataclass(frozen=True)
class TridentConfig(DenseConfig):
    """TS-CNN ("Trident"); with one slice it is the residual U-Net."""

    n_slices: int = 3
    """T, the odd number of neighbouring slices that the label of the middle one is read from."""

    def problems(self) -> Iterator[str]:
        """Values outside their range."""
        yield from super().problems()
        if self.n_slices < 1 or self.n_slices % 2 == 0:
            yield f"n_slices must be odd (a middle slice and its neighbours), not {self.n_slices}"

    def build(self, n_channels: int, n_targets: int) -> "Trident":
        """A new trident for C channels and K targets."""
        return Trident(self, n_channels, n_targets)


class Trident(DenseNetwork):
    """The trident segmentation network TS-CNN (Liu et al. 2019; `documentation/methods.md`).

    The encoder runs once for each slice, so its batch statistics are those of all B·Z slices. At every
    resolution the maps of T neighbouring slices are joined on channels, and the decoder makes one slice of
    each such window. It takes any Z ≥ T: a long run of slices costs one encoder pass each, not T.

    With T = 3, four stages and width k, the up-convolutions make 12k, 4k and 2k channels. In general the
    deepest one halves its channels and the others keep them, which fits both published sizes: 67 349 315
    parameters (T = 3, k = 64) and 16.46 million (T = 1). Strided convolutions are padded on all sides;
    the authors' framework pads below and to the right only.
    """

    def __init__(self, config: TridentConfig, n_channels: int, n_targets: int) -> None:
        super().__init__()
        self.n_slices = config.n_slices
        deeper = [encoder_unit(n_in, n_out, config.norm) for n_in, n_out in pairwise(config.widths)]
        self.encoder = nn.ModuleList([stem_unit(n_channels, config.width, config.norm), *deeper])
        self.dropout = nn.Dropout2d(config.dropout)
        self.decoder = nn.ModuleList(_decoder_stages(config))
        self.head = head(config.width, n_targets, prior_logit=config.prior_logit)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, Z − T + 1, Y, X) for an image (B, C, Z, Y, X) with Z ≥ T."""
        n_batch = len(image)
        features = to_slices(image)
        levels = []
        for stage in self.encoder:
            features = stage(features)
            levels.append(windows(features, n_batch, self.n_slices))  # (B·(Z−T+1), T·C, Y, X)
        features = self.dropout(levels.pop())
        for stage in self.decoder:
            features = stage(features, levels.pop())
        return to_volume(self.head(features), n_batch)


class _DecoderStage(nn.Module):
    """Doubles the size, joins the encoder's maps of that size, and reduces both to `n_out` channels."""

    def __init__(self, n_in: int, n_up: int, n_skip: int, n_out: int, norm: Norm) -> None:
        super().__init__()
        self.up = up_convolution(n_in, n_up)
        self.units = nn.Sequential(
            identity_unit(n_up + n_skip, norm), decoder_unit(n_up + n_skip, n_out, norm)
        )

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        features: Tensor = self.units(torch.cat((self.up(below), skip), 1))
        return features


def _decoder_stages(config: TridentConfig) -> Iterator[_DecoderStage]:
    """The stages from the deepest up."""
    n_in = config.n_slices * config.widths[-1]
    n_up = n_in // 2
    for width in reversed(config.widths[:-1]):
        yield _DecoderStage(n_in, n_up, config.n_slices * width, width, config.norm)
        n_in = n_up = width
