"""RS-RCNN: regions are proposed, judged, and segmented together with their surroundings."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pwmlunet.networks import boxes
from pwmlunet.networks.base import Batch, Criterion, DenseConfig, SegmentationNetwork
from pwmlunet.networks.blocks import to_slices, to_volume
from pwmlunet.networks.pyramid import Pyramid, ResNetPyramid, SmallPyramid
from pwmlunet.networks.region_heads import ProposalHead, RegionHeads
from pwmlunet.networks.region_losses import N_SEGMENTED, choose_regions, proposal_losses, region_losses

N_CANDIDATES = 512
"""Boxes of a slice that enter the suppression; a slice of lesions of a few pixels has no more to offer."""

N_LISTED = 100
"""Proposals of a slice that are told of, however few are judged: so one sees whether judging more would find more."""

MOST_LESIONS = 256
"""Lesions of a slice that regions are matched to, more than slices have; of more, the largest."""

PROPOSAL_OVERLAP, REGION_OVERLAP = 0.7, 0.3
"""Overlaps above which the lower-scored of two proposals, and of two judged regions, is dropped (He et al. 2017)."""

_BOX_SIDE, _MASK_SIDE = 7, 14  # cells of an aligned region, that of the mask before its enlargement


@dataclass(frozen=True)
class TwoStageConfig(DenseConfig):
    """RS-RCNN. With width 64 it has the paper's sizes: 256 features, 1024 channels in the box head."""

    backbone: Literal["small", "resnet50", "resnet101"] = "small"
    """What makes the features: the trident's encoder, or a ResNet, which needs n_stages 6."""
    finest_stride: int = 2
    """Pixels of the prepared grid for a cell of the finest features that regions are taken from; 4 for a ResNet."""
    anchor_sizes: tuple[float, ...] = (8.0, 16.0, 32.0, 64.0, 128.0)
    """Sides of the square anchors in pixels of the prepared grid, one for each level of features, finest first."""
    score_relu: bool = True
    """Whether the scores of proposals pass a ReLU (the heuristic RPN)."""
    enlargement: float = 1.3
    """By what a region is enlarged about its centre before anything is read from it (k; 1 leaves it as it is)."""
    mask_head: Literal["lrs", "mask_rcnn"] = "lrs"
    """What segments a region: the light head (LRS-Net), or Mask R-CNN's."""
    n_proposals: int = 50
    """Proposals of a slice that are judged (50 in the paper, 100 in its code)."""
    n_regions: int = 32
    """Judged regions of a slice that are segmented, the surest first."""

    @property
    def n_slices(self) -> int:
        """One: neighbouring slices do not meet."""
        return 1

    def problems(self) -> Iterator[str]:
        """Values outside their range."""
        yield from super().problems()
        if self.backbone != "small" and (self.n_stages, self.finest_stride) != (6, 4):
            yield f"backbone {self.backbone} needs n_stages 6 and finest_stride 4"
        if self.finest_stride not in [2**stage for stage in range(self.n_stages)]:
            yield f"finest_stride must be a power of two up to {self.stride}, not {self.finest_stride}"
        if not self.anchor_sizes or min(self.anchor_sizes) <= 0:
            yield f"anchor_sizes must be positive numbers, one for each level, not {list(self.anchor_sizes)}"
        if not 1 <= self.enlargement <= 4:
            yield f"enlargement must be from 1 to 4, not {self.enlargement}"
        if self.n_proposals < 1 or self.n_regions < 1:
            yield "n_proposals and n_regions must be at least 1"

    @property
    def n_features(self) -> int:
        """Channels of each level of features."""
        return 4 * self.width

    @property
    def mask_side(self) -> int:
        """N, the cells along each side of a region that is segmented: as fine as without its enlargement."""
        return round(_MASK_SIDE * self.enlargement)

    def build(self, n_channels: int, n_targets: int) -> "TwoStage":
        """A new RS-RCNN for C channels and K targets."""
        return TwoStage(self, n_channels, n_targets)


@dataclass(frozen=True, eq=False)
class Regions:
    """Where lesions may lie in N slices; boxes (y0, x0, y1, x1) in pixels, each list by falling score."""

    proposals: Tensor
    """(N, P, 4), before anything is read from them; the first `n_proposals` were judged."""
    proposal_scores: Tensor
    """(N, P); 0 where a slice has fewer."""
    boxes: Tensor
    """(N, R, 4), moved by the box head."""
    scores: Tensor
    """(N, R), the box head's probability; 0 where a slice has fewer."""
    masks: Tensor
    """(N, R, K, M, M), probabilities in the enlarged boxes of lesions that are there."""


class TwoStage(SegmentationNetwork):
    """The refined-segmentation R-CNN RS-RCNN (Liu et al. 2019; `documentation/methods.md`).

    A pixel's probability is the score of a region that covers it times the region's mask there, the largest over
    the regions. All has fixed shapes: a slice with fewer regions is filled up with empty ones, which count nowhere.
    """

    def __init__(self, config: TwoStageConfig, n_channels: int, n_targets: int) -> None:
        super().__init__()
        self.config = config
        self.backbone = _pyramid(config, n_channels)
        self.rpn = ProposalHead(
            config.n_features,
            8 * config.width,
            relu=config.score_relu,
            prior_logit=config.prior_logit,
        )
        self.roi_heads = RegionHeads(
            config.n_features,
            16 * config.width,
            n_targets,
            box_side=_BOX_SIDE,
            light=config.mask_head == "lrs",
            prior_logit=config.prior_logit,
        )

    # segmenting

    def segment(self, image: Tensor) -> Tensor:
        """The probabilities of the regions of each slice."""
        shape_yx = (image.shape[-2], image.shape[-1])
        return to_volume(self.paint(self.find_regions(image), shape_yx), len(image))

    def paint(self, regions: Regions, shape_yx: tuple[int, int]) -> Tensor:
        """The largest product of score and mask over the regions of each slice, 0 where there are none: (N, K, Y, X)."""
        values = regions.scores[..., None, None, None] * regions.masks
        return boxes.paste(values, self.enlarge(regions.boxes, shape_yx), shape_yx)

    def enlarge(self, found: Tensor, shape_yx: tuple[int, int]) -> Tensor:
        """Boxes (N, R, 4) with the surroundings that are read and painted with them."""
        return boxes.enlarge(found, self.config.enlargement, shape_yx)

    def find_regions(self, image: Tensor) -> Regions:
        """The regions of every slice of an image (B, C, Z, Y, X), N = B·Z."""
        shape_yx = (image.shape[-2], image.shape[-1])
        maps = self.backbone(to_slices(image))
        logits, codes = self.rpn(maps)
        n = self.config.n_proposals
        listed, listed_scores = self._propose(logits, codes, self._anchors(maps), shape_yx, max(n, N_LISTED))
        proposals, exists = listed[:, :n], listed_scores[:, :n] > 0
        logits, codes = self._judge(maps, proposals, shape_yx)
        found = boxes.clip(boxes.decode(codes, proposals), shape_yx)
        scores = torch.sigmoid(logits) * exists
        found, scores = _surest(found, scores, self.config.n_regions, REGION_OVERLAP)
        masks = torch.sigmoid(self._masks(maps, found, shape_yx))
        return Regions(listed, listed_scores, found, scores, masks)

    def _anchors(self, maps: list[Tensor]) -> Tensor:
        """The anchors (A, 4) of all levels."""
        levels = zip(maps, self.backbone.strides, self.config.anchor_sizes, strict=True)
        shapes = [((m.shape[-2], m.shape[-1]), stride, size) for m, stride, size in levels]
        return torch.cat([boxes.anchors(*level, device=maps[0].device) for level in shapes])

    @torch.no_grad()
    def _propose(
        self, logits: Tensor, codes: Tensor, anchors: Tensor, shape_yx: tuple[int, int], n: int
    ) -> tuple[Tensor, Tensor]:
        """The n best proposals (N, P, 4) and their scores (N, P); nothing is learned through them."""
        logits, top = logits.topk(min(N_CANDIDATES, len(anchors)))
        codes = codes.gather(1, top[..., None].expand(-1, -1, 4))
        found = boxes.clip(boxes.decode(codes, anchors[top]), shape_yx)
        return _surest(found, torch.sigmoid(logits), n, PROPOSAL_OVERLAP)

    def _judge(self, maps: list[Tensor], found: Tensor, shape_yx: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Logits (N, R) that regions are lesions, and codes (N, R, 4) of where they lie more exactly."""
        return self.roi_heads.judge(self._read(maps, found, shape_yx, _BOX_SIDE))

    def _masks(self, maps: list[Tensor], found: Tensor, shape_yx: tuple[int, int]) -> Tensor:
        """Logits (N, R, K, M, M) in the enlarged regions."""
        return self.roi_heads.segment(self._read(maps, found, shape_yx, self.config.mask_side))

    def _read(self, maps: list[Tensor], found: Tensor, shape_yx: tuple[int, int], side: int) -> Tensor:
        """Features (N, R, F, side, side) of the enlarged regions.

        Always of the finest level: Mask R-CNN takes others for regions of more than 112 pixels.
        """
        return boxes.align(maps[0], self.enlarge(found, shape_yx), side, self.backbone.strides[0])

    # learning

    def losses(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        """Cross-entropy of proposals and regions, smooth L1 of their boxes, and the criterion in lesions' regions."""
        target, valid = to_slices(batch.target), to_slices(batch.valid)  # (N, K, Y, X), (N, 1, Y, X)
        shape_yx = (target.shape[-2], target.shape[-1])
        maps = self.backbone(to_slices(batch.image))
        lesions = boxes.components((target * valid).amax(1) > 0.5, MOST_LESIONS)
        logits, codes = self.rpn(maps)
        anchors = self._anchors(maps)
        losses = proposal_losses(logits, codes, anchors, lesions, valid)
        proposals, scores = self._propose(logits, codes, anchors, shape_yx, self.config.n_proposals)
        chosen = choose_regions(proposals, scores, lesions, valid)
        logits, codes = self._judge(maps, chosen.boxes, shape_yx)
        losses |= region_losses(logits, codes, chosen)
        found, positive = chosen.boxes[:, :N_SEGMENTED], chosen.positive[:, :N_SEGMENTED]
        return losses | {"mask": self._mask_loss(maps, found, positive, target, valid, criterion)}

    def _mask_loss(
        self,
        maps: list[Tensor],
        found: Tensor,
        positive: Tensor,
        target: Tensor,
        valid: Tensor,
        criterion: Criterion,
    ) -> Tensor:
        """The criterion in the regions (N, R) of lesions; whatever lesion lies there is to be found."""
        shape_yx = (target.shape[-2], target.shape[-1])
        logits = self._masks(maps, found, shape_yx).flatten(0, 1)  # (N·R, K, M, M)
        wanted = torch.cat((target, valid), 1)
        wanted = boxes.align(wanted, self.enlarge(found, shape_yx), logits.shape[-1], 1).flatten(0, 1)
        counted = (wanted[:, -1:] > 0.5) & positive.flatten()[:, None, None, None]
        return criterion(logits[:, :, None], wanted[:, :-1, None], counted[:, :, None].to(logits))


def _pyramid(config: TwoStageConfig, n_channels: int) -> Pyramid:
    n_levels = len(config.anchor_sizes)
    if config.backbone == "small":
        return SmallPyramid(
            n_channels,
            width=config.width,
            n_stages=config.n_stages,
            norm=config.norm,
            dropout=config.dropout,
            finest_stride=config.finest_stride,
            n_levels=n_levels,
        )
    return ResNetPyramid(
        n_channels,
        depth=50 if config.backbone == "resnet50" else 101,
        width=config.width,
        norm=config.norm,
        dropout=config.dropout,
        n_levels=n_levels,
    )


def _surest(found: Tensor, scores: Tensor, n: int, most_overlap: float) -> tuple[Tensor, Tensor]:
    """The n surest boxes (N, n, 4) of which no two overlap more, and their scores, 0 where there are fewer."""
    scores, order = scores.sort(descending=True, stable=True)
    found = found.gather(1, order[..., None].expand(-1, -1, 4))
    has_area = ((found[..., 2:] - found[..., :2]) > 0).all(-1)
    kept = boxes.suppress(found, has_area & (scores > 0), most_overlap)
    scores, order = (scores * kept).sort(descending=True, stable=True)
    found = found.gather(1, order[..., None].expand(-1, -1, 4))
    return found[:, :n], scores[:, :n]
