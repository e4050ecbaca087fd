"""Feature pyramids: what a slice is turned into before regions are looked for, maps at several resolutions."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from pwmlunet.networks.base import Norm
from pwmlunet.networks.blocks import encoder_unit, normalisation, relu, stem_unit

_N_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # by depth (He et al. 2016, table 1)
_EXPANSION = 4  # of a bottleneck's last convolution (He et al. 2016, figure 5)


class Pyramid(nn.Module, ABC):
    """Maps of the same slices with the same number of features, each half the size of the one before."""

    strides: tuple[int, ...]
    """Pixels of the slice in a pixel of each map, finest first."""
    n_features: int
    """Channels of each map."""

    def __init__(
        self,
        body: nn.Module,
        widths: Sequence[int],
        *,
        width: int,
        finest_stride: int,
        n_levels: int,
        dropout: float,
    ) -> None:
        """For a body whose maps have these widths, finest first; of the deepest a share is left out of a training step."""
        super().__init__()
        self.n_features = 4 * width
        self.strides = tuple(finest_stride * 2**level for level in range(n_levels))
        self.body = body
        self.dropout = nn.Dropout2d(dropout)
        self.fpn = FeaturePyramid(widths, self.n_features, n_levels)

    def forward(self, slices: Tensor) -> list[Tensor]:
        """Maps (N, F, ⌈Y/s⌉, ⌈X/s⌉) of slices (N, C, Y, X) for each stride s, finest first; any Y and X."""
        *finer, deepest = self.stages(slices)
        maps: list[Tensor] = self.fpn([*finer, self.dropout(deepest)])
        return maps

    @abstractmethod
    def stages(self, slices: Tensor) -> list[Tensor]:
        """The body's own maps, finest first."""


class SmallPyramid(Pyramid):
    """The pyramid of TS-CNN's encoder, whose first stages keep the resolution that small lesions need."""

    def __init__(
        self,
        n_channels: int,
        *,
        width: int,
        n_stages: int,
        norm: Norm,
        dropout: float,
        finest_stride: int,
        n_levels: int,
    ) -> None:
        widths = [width * 2**stage for stage in range(n_stages)]
        first = [2**stage for stage in range(n_stages)].index(finest_stride)
        deeper = [encoder_unit(n_in, n_out, norm) for n_in, n_out in pairwise(widths)]
        body = nn.ModuleList([stem_unit(n_channels, width, norm), *deeper])
        super().__init__(
            body,
            widths[first:],
            width=width,
            finest_stride=finest_stride,
            n_levels=n_levels,
            dropout=dropout,
        )
        self.first = first

    def stages(self, slices: Tensor) -> list[Tensor]:
        """The maps of each stage from the finest stride on."""
        features, maps = slices, []
        for stage, unit in enumerate(self.body.children()):
            features = unit(features)
            if stage >= self.first:
                maps.append(features)
        return maps


class ResNetPyramid(Pyramid):
    """The pyramid of a ResNet (He et al. 2016), the backbone of Mask R-CNN; 64 is its published width.

    Modules have the names that torchvision gives them, so that its weights fit.
    """

    def __init__(
        self, n_channels: int, *, depth: int, width: int, norm: Norm, n_levels: int, dropout: float = 0.0
    ) -> None:
        widths = [_EXPANSION * width * 2**stage for stage in range(4)]
        body = _ResNet(n_channels, _N_BLOCKS[depth], width, norm)
        super().__init__(body, widths, width=width, finest_stride=4, n_levels=n_levels, dropout=dropout)

    def stages(self, slices: Tensor) -> list[Tensor]:
        """The maps of the four stages, at a 4th to a 32nd of the resolution."""
        maps: list[Tensor] = self.body(slices)
        return maps


class FeaturePyramid(nn.Module):
    """Deep maps, which know what, are added to fine ones, which know where (Lin et al. 2017, figure 3).

    Every map of the body takes part; with fewer levels the coarsest are not returned, with more the last
    one is thinned out. There is no normalisation and no ReLU.
    """

    def __init__(self, widths: Sequence[int], n_features: int, n_levels: int) -> None:
        super().__init__()
        self.n_levels = n_levels
        self.inner_blocks = nn.ModuleList(_linear(n_in, n_features, 1) for n_in in widths)
        self.layer_blocks = nn.ModuleList(_linear(n_features, n_features, 3) for _ in widths[:n_levels])

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        """As many maps as there are levels, finest first, of the body's maps, finest first."""
        maps: list[Tensor] = []
        for inner, stage in zip(reversed(self.inner_blocks), reversed(stages), strict=True):
            features = inner(stage)
            if maps:
                features = features + nn.functional.interpolate(maps[0], features.shape[-2:])
            maps.insert(0, features)
        levels: list[Tensor] = [layer(map_) for layer, map_ in zip(self.layer_blocks, maps, strict=False)]
        while len(levels) < self.n_levels:
            levels.append(nn.functional.max_pool2d(levels[-1], 1, stride=2))
        return levels


class _ResNet(nn.Module):
    """A ResNet's four stages; the stride is in the 3 × 3 convolution of a stage's first block."""

    def __init__(self, n_channels: int, n_blocks: Sequence[int], width: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = _bare(n_channels, width, 7, stride=2)
        self.bn1 = normalisation(norm, width)
        self.relu = relu()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        n_first, n_second, n_third, n_fourth = n_blocks
        self.layer1 = _stage(width, width, n_first, norm, stride=1)
        self.layer2 = _stage(_EXPANSION * width, 2 * width, n_second, norm, stride=2)
        self.layer3 = _stage(_EXPANSION * 2 * width, 4 * width, n_third, norm, stride=2)
        self.layer4 = _stage(_EXPANSION * 4 * width, 8 * width, n_fourth, norm, stride=2)

    def forward(self, slices: Tensor) -> list[Tensor]:
        features = self.maxpool(self.relu(self.bn1(self.conv1(slices))))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = layer(features)
            maps.append(features)
        return maps


def _stage(n_in: int, n_inner: int, n_blocks: int, norm: Norm, stride: int) -> nn.Sequential:
    """Bottlenecks in a row, of which the first has the stride."""
    further = [_Bottleneck(_EXPANSION * n_inner, n_inner, norm) for _ in range(n_blocks - 1)]
    return nn.Sequential(_Bottleneck(n_in, n_inner, norm, stride), *further)


class _Bottleneck(nn.Module):
    """1 × 1, 3 × 3 and 1 × 1 convolutions beside a shortcut, which is projected where its shape changes."""

    def __init__(self, n_in: int, n_inner: int, norm: Norm, stride: int = 1) -> None:
        super().__init__()
        n_out = _EXPANSION * n_inner
        self.conv1, self.bn1 = _bare(n_in, n_inner, 1), normalisation(norm, n_inner)
        self.conv2, self.bn2 = _bare(n_inner, n_inner, 3, stride), normalisation(norm, n_inner)
        self.conv3, self.bn3 = _bare(n_inner, n_out, 1), normalisation(norm, n_out)
        self.relu = relu()
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.downsample = nn.Sequential(_bare(n_in, n_out, 1, stride), normalisation(norm, n_out))

    def forward(self, features: Tensor) -> Tensor:
        inner = self.relu(self.bn1(self.conv1(features)))
        inner = self.relu(self.bn2(self.conv2(inner)))
        total: Tensor = self.relu(self.bn3(self.conv3(inner)) + self.downsample(features))
        return total


def _bare(n_in: int, n_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without bias, which the normalisation after it would take away."""
    layer = nn.Conv2d(n_in, n_out, size, stride, padding=size // 2, bias=False)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (n_in * size**2)))  # He et al. 2015, eq. 10
    return layer


def _linear(n_in: int, n_out: int, size: int) -> nn.Conv2d:
    """A convolution with bias that keeps the variance with no ReLU before it."""
    layer = nn.Conv2d(n_in, n_out, size, padding=size // 2)
    nn.init.normal_(layer.weight, std=math.sqrt(1 / (n_in * size**2)))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer
