"""The correction network: looks at one candidate and says whether it is a lesion, and of which class."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pwmlunet.config import Config
from pwmlunet.networks.blocks import convolution, normalisation, relu

_N_GROUPS = 3
_BATCH = 256  # regions that are classified together


@dataclass(frozen=True)
class CorrectionConfig(Config):
    """What a correction network sees of a candidate, and its sizes; the paper's where the data do not ask for others."""

    channels: tuple[int, ...] | None = None
    """Numbers of the dataset's channels that it sees, from 0; null for all."""
    region_mm: float = 14.4
    """Side of the square around the candidate's centroid (32 pixels of 0.45 mm in the paper)."""
    region_pixels: int = 64
    """Pixels along each side that the square is brought to."""
    gamma: float = 1.5
    """Exponent of the intensities, which lie in [0, 1]; above 1 it stretches what is bright."""
    views: Literal["slice", "slices", "planes"] = "slice"
    """The centroid's slice; that and the slices beside it; or three planes at right angles through the centroid."""
    sees_mask: bool = True
    """Whether the candidate's mask is a channel."""
    sees_probability: bool = True
    """Whether the first network's probability, the largest over the targets, is a channel."""
    width: int = 16
    """Channels of the first group of convolutions; the second and the third have twice as many as the one before."""
    pooling: Literal["max", "average"] = "max"
    """What halves the maps after each group; the paper says both."""
    n_hidden: int = 64
    """Outputs of the first fully connected layer."""
    dropout: float = 0.5
    """Share of the inputs of both fully connected layers that a training step leaves out, 0 to below 1."""

    def problems(self) -> Iterator[str]:
        """Values outside their range."""
        seen = self.channels
        if seen is not None and (not seen or min(seen) < 0 or len(set(seen)) < len(seen)):
            yield f"channels must be different numbers from 0, at least one, or null for all, not {list(seen)}"
        for name in ("region_mm", "gamma"):
            if getattr(self, name) <= 0:
                yield f"{name} must be positive, not {getattr(self, name)}"
        if self.region_pixels < 2**_N_GROUPS:
            yield f"region_pixels must be at least {2**_N_GROUPS}, not {self.region_pixels}"
        for name in ("width", "n_hidden"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, not {getattr(self, name)}"
        if not 0 <= self.dropout < 1:
            yield f"dropout must be at least 0 and below 1, not {self.dropout}"

    @property
    def n_views(self) -> int:
        """V, the pictures of a candidate: 1 or 3."""
        return 1 if self.views == "slice" else 3

    @property
    def n_maps(self) -> int:
        """Channels that a region has beside those of the image: its mask, its probability."""
        return self.sees_mask + self.sees_probability

    def split(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """The image channels of regions (N, V, C', P, P), and their mask and probability: views."""
        n_image = regions.shape[2] - self.n_maps
        return regions[:, :, :n_image], regions[:, :, n_image:]

    def build(self, n_channels: int, n_classes: int) -> "CorrectionNetwork":
        """A new network with random weights for regions of so many image channels, and classes of which 0 is no lesion."""
        return CorrectionNetwork(self, n_channels, n_classes)


class CorrectionNetwork(nn.Module):
    """The secondary network of system 4 (`documentation/methods.md`), for any number of views, channels and classes.

    3 × 3 convolutions with batch normalisation and ReLU in groups of 2, 2 and 1, each group followed by 2 × 2 pooling;
    two fully connected layers. Views and channels are all channels of the first convolution.
    """

    def __init__(self, config: CorrectionConfig, n_channels: int, n_classes: int) -> None:
        super().__init__()
        self.config = config
        w = config.width
        n_inputs = config.n_views * (n_channels + config.n_maps)
        self.groups = nn.Sequential(
            *(*_unit(n_inputs, w), *_unit(w, w), _halving(config)),
            *(*_unit(w, 2 * w), *_unit(2 * w, 2 * w), _halving(config)),
            *(*_unit(2 * w, 4 * w), _halving(config)),
        )
        side = config.region_pixels // 2**_N_GROUPS
        self.classifier = nn.Sequential(
            nn.Flatten(),
            *(nn.Dropout(config.dropout), nn.Linear(4 * w * side**2, config.n_hidden), relu()),
            *(nn.Dropout(config.dropout), nn.Linear(config.n_hidden, n_classes)),
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a CPU

    def forward(self, regions: Tensor) -> Tensor:
        """Logits (N, n_classes) for regions (N, V, C', P, P): image channels in [0, 1], then mask, then probability."""
        image, maps = self.config.split(regions.float())
        seen = torch.cat((image.clamp(0, 1) ** self.config.gamma, maps), 2)
        logits: Tensor = self.classifier(self.groups(seen.flatten(1, 2)))
        return logits


@torch.inference_mode()
def classify(network: CorrectionNetwork, regions: Tensor) -> Tensor:
    """The probability of each class, (N, n_classes) in float32 on the CPU, for regions (N, V, C', P, P)."""
    network.eval()
    device = next(network.parameters()).device
    logits = [network(batch.to(device)).float().cpu() for batch in torch.split(regions, _BATCH)]
    return torch.cat(logits).softmax(1)


def _unit(n_in: int, n_out: int) -> list[nn.Module]:
    """A convolution, batch normalisation and ReLU."""
    return [convolution(n_in, n_out), normalisation("batch", n_out), relu()]


def _halving(config: CorrectionConfig) -> nn.Module:
    return nn.MaxPool2d(2) if config.pooling == "max" else nn.AvgPool2d(2)
