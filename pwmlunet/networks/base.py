"""The contract that every network fulfils: losses to train with, probabilities to segment with."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pwmlunet.config import Config

Criterion = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A scalar from logits, target and valid, all as in `Batch`."""

Norm = Literal["batch", "instance"]


@dataclass
class Batch:
    """Patches to learn from; a network that makes a slice from T slices labels Z' = Z − T + 1 of Z."""

    image: Tensor
    """(B, C, Z, Y, X), normalised intensities; for a network that takes a prior (B, C + 1, Z, Y, X), with the prior
    density of lesions, 0 to 1, as the last channel."""
    target: Tensor
    """(B, K, Z', Y, X), 1 inside the target and 0 outside, in floating point."""
    valid: Tensor
    """(B, 1, Z', Y, X), 0 where the label is unknown ("ignore") and 1 elsewhere, in floating point."""


class SegmentationNetwork(nn.Module, ABC):
    """Anything that learns from a `Batch` and finds targets in an image."""

    @abstractmethod
    def losses(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """Scalars by name; training minimises their sum."""

    @abstractmethod
    def segment(self, image: Tensor) -> Tensor:
        """Probabilities (B, K, Z − T + 1, Y, X) in float32 for an image (B, C, Z, Y, X), as in `Batch`.

        One pass over the image as it is: no tiles, no flips, and no change between training and evaluation mode.
        Y and X must be multiples of the config's `stride`, and Z of its `slice_stride` where that is not 1.
        """


class DenseNetwork(SegmentationNetwork, ABC):
    """A network whose `forward` returns one logit for each voxel and target."""

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, K, Z − T + 1, Y, X) for an image (B, C, Z, Y, X)."""

    def losses(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """The criterion on the logits, as "segmentation"."""
        return {"segmentation": criterion(self(batch.image), batch.target, batch.valid)}

    def segment(self, image: Tensor) -> Tensor:
        """The logistic function of the logits."""
        logits: Tensor = self(image)
        return torch.sigmoid(logits.float())


@dataclass(frozen=True)
class NetworkConfig(Config, ABC):
    """What a network is built from; its "type" in JSON is its name in `NETWORKS`."""

    @classmethod
    def variants(cls) -> Mapping[str, type["NetworkConfig"]]:
        """The table `NETWORKS`."""
        from pwmlunet.networks import NETWORKS  # the table imports the variants, which import this class

        return NETWORKS

    @property
    @abstractmethod
    def n_slices(self) -> int:
        """T, the slices that one slice of the output is made from; 1 for a network of volumes, which labels them all."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """The in-plane size of the deepest voxel: Y and X of an image must be multiples of it."""

    @property
    def slice_stride(self) -> int:
        """The slices of the deepest voxel, more than one in volumes alone: Z of an image must be a multiple of it."""
        return 1

    @property
    def takes_prior(self) -> bool:
        """Whether the image's last channel is a prior density of lesions."""
        return False

    @abstractmethod
    def build(self, n_channels: int, n_targets: int) -> SegmentationNetwork:
        """A new network with random weights for C channels and K targets; a prior is not counted in C."""


@dataclass(frozen=True)
class DenseConfig(NetworkConfig, ABC):
    """The choices that every encoder and decoder with shortcuts between them shares."""

    width: int = 32
    """Channels at full resolution; each stage below has twice as many."""
    n_stages: int = 4
    """Resolutions, the full one included; each has half the in-plane size of the one above."""
    norm: Norm = "batch"
    """Normalisation: "batch" over the batch, or "instance" over each slice, for batches of a few patches."""
    dropout: float = 0.0
    """Share of the deepest feature maps that a training step leaves out, 0 to below 1."""
    prior_probability: float = 0.01
    """Probability that an untrained network gives every voxel (Lin et al. 2017, RetinaNet, section 4.1).

    Near the share of lesion voxels, so that the first steps are not spent on unlearning a half.
    """

    @property
    def stride(self) -> int:
        """Two to the number of halvings."""
        return int(2 ** (self.n_stages - 1))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage, full resolution first."""
        return tuple(self.width * 2**stage for stage in range(self.n_stages))

    @property
    def prior_logit(self) -> float:
        """The logit of `prior_probability`."""
        return math.log(self.prior_probability / (1 - self.prior_probability))

    def problems(self) -> Iterator[str]:
        """Values outside their range."""
        if self.width < 1:
            yield f"width must be at least 1, not {self.width}"
        if not 2 <= self.n_stages <= 7:
            yield f"n_stages must be 2 to 7, not {self.n_stages}"
        if not 0 <= self.dropout < 1:
            yield f"dropout must be at least 0 and below 1, not {self.dropout}"
        if not 0 < self.prior_probability < 1:
            yield f"prior_probability must be between 0 and 1, not {self.prior_probability}"
