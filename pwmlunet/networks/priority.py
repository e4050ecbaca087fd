"""Priority U-Net: a prior density of lesions weighs what the encoder hands to the decoder."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from pwmlunet.networks.base import DenseNetwork
from pwmlunet.networks.blocks import to_slices, to_volume
from pwmlunet.networks.unet import UNet, UNetConfig

LEAST_DENSITY = 1e-3
"""Density below which the log-odds do not fall further: a finite penalty of 6.9, which evidence can outweigh."""


@dataclass(frozen=True)
class PriorityConfig(UNetConfig):
    """The U-Net with a prior density of lesions as the last channel of its image."""

    enters: Literal["gates", "channel", "log_odds"] = "gates"
    """How the prior enters: "gates" multiply each shortcut by the density (the paper), "channel" shows it beside
    the image, "log_odds" adds its logarithm to the network's logits."""

    @property
    def takes_prior(self) -> bool:
        """Always."""
        return True

    def build(self, n_channels: int, n_targets: int) -> "PriorityUNet":
        """A new Priority U-Net for C channels beside the prior and K targets."""
        return PriorityUNet(self, n_channels, n_targets)


class PriorityUNet(DenseNetwork):
    """The Priority U-Net (`documentation/methods.md`): a U-Net and a density, which has no weights of its own."""

    def __init__(self, config: PriorityConfig, n_channels: int, n_targets: int) -> None:
        super().__init__()
        self.enters = config.enters
        self.unet = UNet(config, n_channels + (config.enters == "channel"), n_targets)

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, Z, Y, X) for an image and its prior (B, C + 1, Z, Y, X), slice by slice."""
        slices = to_slices(image)
        if self.enters == "channel":
            logits = self.unet.decode(self.unet.encode(slices))
        elif self.enters == "gates":
            logits = self.unet.decode(gate(self.unet.encode(slices[:, :-1]), slices[:, -1:]))
        else:
            log_density = slices[:, -1:].float().clamp_min(LEAST_DENSITY).log()
            logits = self.unet.decode(self.unet.encode(slices[:, :-1])) + log_density
        return to_volume(logits, len(image))


def gate(levels: list[Tensor], density: Tensor) -> list[Tensor]:
    """The same list with each skip multiplied by the mean density of its pixels; the deepest is no skip.

    Args:
        levels: Maps (B·Z, C, Y, X), full resolution first, each half the size of the one before.
        density: (B·Z, 1, Y, X) at full resolution.
    """
    for index in range(len(levels) - 1):
        levels[index] = levels[index] * F.avg_pool2d(density, 2**index).to(levels[index])
    return levels
