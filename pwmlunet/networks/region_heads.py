"""The heads of a two-stage network: what proposes regions, judges them and segments them."""

from collections import OrderedDict
from typing import TypeVar

import torch
from torch import Tensor, nn

from pwmlunet.networks.blocks import convolution, up_convolution
from pwmlunet.networks.boxes import RATIOS

OUTPUT_STD = 0.01
"""Spread of the weights that make scores, codes and masks (Lin et al. 2017, section 4.1)."""

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class ProposalHead(nn.Module):
    """The region proposal network (Ren et al. 2015); with a ReLU on its scores the heuristic one of RS-RCNN."""

    def __init__(self, n_in: int, n_hidden: int, *, relu: bool, prior_logit: float) -> None:
        super().__init__()
        self.relu = relu
        self.conv = convolution(n_in, n_hidden)
        self.scores = _output(nn.Conv2d(n_hidden, 2 * len(RATIOS), 1))
        self.codes = _output(nn.Conv2d(n_hidden, 4 * len(RATIOS), 1))
        assert self.scores.bias is not None
        with torch.no_grad():  # both scores above 0, where a ReLU lets a gradient pass
            self.scores.bias.copy_(
                torch.tensor([1 - min(prior_logit, 0), 1 + max(prior_logit, 0)] * len(RATIOS))
            )

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (N, A) and codes (N, A, 4) of the anchors of all levels (N, F, Y, X), in float32."""
        scores, codes = [], []
        for features in maps:
            hidden = self.conv(features).relu()
            scores.append(_by_anchor(self.scores(hidden), 2))
            codes.append(_by_anchor(self.codes(hidden), 4))
        both = torch.cat(scores, 1).float()
        both = both.relu() if self.relu else both
        return both[..., 1] - both[..., 0], torch.cat(codes, 1).float()


class BoxHead(nn.Module):
    """Two fully connected layers that judge an aligned region (He et al. 2017)."""

    def __init__(self, n_in: int, side: int, n_hidden: int, prior_logit: float) -> None:
        super().__init__()
        self.fc6 = nn.Linear(n_in * side**2, n_hidden)
        self.fc7 = nn.Linear(n_hidden, n_hidden)
        self.scores = _output(nn.Linear(n_hidden, 2))
        self.codes = _output(nn.Linear(n_hidden, 4))
        with torch.no_grad():
            self.scores.bias[1] = prior_logit

    def forward(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, R) and codes (N, R, 4) of regions (N, R, F, side, side), in float32."""
        hidden = self.fc7(self.fc6(read.flatten(2)).relu()).relu()
        scores = self.scores(hidden).float()
        return scores[..., 1] - scores[..., 0], self.codes(hidden).float()


class RegionHeads(nn.Module):
    """What is made of aligned regions: a score, a better box, and a mask.

    The mask is that of LRS-Net (`light`), two convolutions and an output as fine as what is read, or of Mask R-CNN,
    four convolutions and an up-convolution that makes it twice as fine.
    """

    def __init__(
        self, n_in: int, n_hidden: int, n_targets: int, *, box_side: int, light: bool, prior_logit: float
    ) -> None:
        super().__init__()
        self.box_head = BoxHead(n_in, box_side, n_hidden, prior_logit)
        self.mask_head = _convolutions(n_in, 2 if light else 4)
        fine = {} if light else {"conv5_mask": up_convolution(n_in, n_in), "relu": nn.ReLU(inplace=True)}
        output = {"mask_fcn_logits": _output(nn.Conv2d(n_in, n_targets, 1))}
        self.mask_predictor = nn.Sequential(OrderedDict(fine | output))

    def judge(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, R) and codes (N, R, 4) of regions (N, R, F, side, side), in float32."""
        judged: tuple[Tensor, Tensor] = self.box_head(read)
        return judged

    def segment(self, read: Tensor) -> Tensor:
        """Logits (N, R, K, M, M) of regions (N, R, F, side, side), in float32."""
        logits: Tensor = self.mask_predictor(self.mask_head(read.flatten(0, 1)))
        return logits.float().reshape(*read.shape[:2], *logits.shape[1:])


def _convolutions(n_channels: int, n: int) -> nn.Sequential:
    layers = OrderedDict[str, nn.Module]()
    for number in range(1, n + 1):
        layers[f"mask_fcn{number}"] = convolution(n_channels, n_channels)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def _output(layer: Layer) -> Layer:
    """The layer with small weights and no offset."""
    nn.init.normal_(layer.weight, std=OUTPUT_STD)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _by_anchor(maps: Tensor, n: int) -> Tensor:
    """(N, ratios · n, Y, X) → (N, Y · X · ratios, n): by row, column and ratio, as anchors are."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, n)
