"""The plain U-Net, slice by slice."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from pwmlunet.networks.base import DenseConfig, DenseNetwork
from pwmlunet.networks.blocks import convolution, head, plain_unit, to_slices, to_volume, up_convolution


@dataclass(frozen=True)
class UNetConfig(DenseConfig):
    """The plain U-Net, which sees one slice at a time."""

    head_convolutions: int = 1
    """1 × 1 convolutions at the end, 1 or 2; two have a ReLU between, and the first keeps the channels."""

    @property
    def n_slices(self) -> int:
        """One: neighbouring slices do not meet."""
        return 1

    def problems(self) -> Iterator[str]:
        """Values outside their range."""
        yield from super().problems()
        if self.head_convolutions not in (1, 2):
            yield f"head_convolutions must be 1 or 2, not {self.head_convolutions}"

    def build(self, n_channels: int, n_targets: int) -> DenseNetwork:
        """A new U-Net for C channels and K targets."""
        return UNet(self, n_channels, n_targets)


class UNet(DenseNetwork):
    """The U-Net of Ronneberger et al. 2015 with normalisation, and with padding so that sizes stay.

    Two 3 × 3 convolutions at each stage, max-pooling on the way down, 2 × 2 up-convolutions on the way up.
    """

    def __init__(self, config: UNetConfig, n_channels: int, n_targets: int) -> None:
        super().__init__()
        widths, norm = config.widths, config.norm
        upwards = [(below, above) for above, below in reversed(list(pairwise(widths)))]
        self.encoder = nn.ModuleList(plain_unit(n, m, norm) for n, m in pairwise((n_channels, *widths)))
        self.dropout = nn.Dropout2d(config.dropout)
        self.up = nn.ModuleList(up_convolution(below, above) for below, above in upwards)
        self.decoder = nn.ModuleList(plain_unit(2 * above, above, norm) for _, above in upwards)
        self.head = head(config.width, n_targets, prior_logit=config.prior_logit)
        if config.head_convolutions == 2:
            first = convolution(config.width, config.width, size=(1, 1))
            self.head = nn.Sequential(first, nn.ReLU(), self.head)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, Z, Y, X) for an image (B, C, Z, Y, X), each slice from itself alone."""
        return to_volume(self.decode(self.encode(to_slices(image))), len(image))

    def encode(self, slices: Tensor) -> list[Tensor]:
        """The maps of each stage for slices (B·Z, C, Y, X), full resolution first."""
        levels = [self.encoder[0](slices)]
        for stage in self.encoder[1:]:
            levels.append(stage(nn.functional.max_pool2d(levels[-1], 2)))
        return levels

    def decode(self, levels: list[Tensor]) -> Tensor:
        """Logits (B·Z, K, Y, X); takes the maps out of the list, so that each is freed when it has been used."""
        features = self.dropout(levels.pop())
        for up, stage in zip(self.up, self.decoder, strict=True):
            features = stage(torch.cat((up(features), levels.pop()), 1))
        logits: Tensor = self.head(features)
        return logits
