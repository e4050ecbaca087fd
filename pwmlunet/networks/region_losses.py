"""What a two-stage network learns from: anchors and regions matched to lesions, and their losses."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pwmlunet.networks import boxes

POSITIVE, NEGATIVE = 0.5, 0.1
"""Overlaps with a lesion from which an anchor or a region is one, and below which it is none; between them it counts nowhere.

Mask R-CNN has .7 and .3 for anchors, .5 and .5 for regions. A box that lies a pixel off a lesion of four pixels overlaps
it by less than a half, and holds it: called background, such boxes kept the scores of lesions below .4.
"""

N_ANCHORS = 256
"""Anchors of a slice that a step takes for background, at most; and half as many, at most, for lesions."""

N_LEARNED, N_SEGMENTED = 48, 16
"""Regions of a slice that the box head learns from, and the most of them that are lesions and teach the mask head."""


@dataclass(frozen=True, eq=False)
class ChosenRegions:
    """Regions that a step learns from, those of lesions first."""

    boxes: Tensor
    """(N, R, 4)."""
    lesions: Tensor
    """(N, R, 4), the box of the lesion that each overlaps most."""
    positive: Tensor
    """(N, R), whether it is that lesion's."""
    counted: Tensor
    """(N, R), whether it counts at all."""


@torch.no_grad()
def choose_regions(proposals: Tensor, scores: Tensor, lesions: Tensor, valid: Tensor) -> ChosenRegions:
    """Regions at random, lesions first and at most a third of them; the lesions' own boxes are among those drawn from."""
    candidates = torch.cat((proposals, lesions), 1)
    exists = torch.cat((scores > 0, lesions[..., 2] > lesions[..., 0]), 1) & _known(candidates, valid)
    best, which = boxes.overlap(candidates, lesions).max(-1)
    positive = draw_some(exists & (best >= POSITIVE), N_SEGMENTED)
    negative = exists & (best < NEGATIVE)
    keys = torch.rand_like(best) + 2 * positive + 1 * negative
    chosen = keys.topk(min(N_LEARNED, keys.shape[1])).indices

    matched = lesions.gather(1, which[..., None].expand(-1, -1, 4))
    return ChosenRegions(
        boxes=candidates.gather(1, chosen[..., None].expand(-1, -1, 4)),
        lesions=matched.gather(1, chosen[..., None].expand(-1, -1, 4)),
        positive=positive.gather(1, chosen),
        counted=(positive | negative).gather(1, chosen),
    )


def proposal_losses(
    logits: Tensor, codes: Tensor, anchors: Tensor, lesions: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    """Of the anchors (A, 4): a lesion smaller than any of them has the best one as its own.

    Lesions weigh as much as background, however few of the anchors are theirs.
    """
    with torch.no_grad():
        overlaps = torch.stack(
            [boxes.overlap(anchors, one) for one in lesions]
        )  # (N, A, G), in little memory
        best, which = overlaps.max(-1)
        is_best = (overlaps == overlaps.amax(1, keepdim=True)) & (overlaps > 0)
        known = _known(anchors.expand(len(lesions), -1, -1), valid)
        positive = draw_some(known & ((best >= POSITIVE) | is_best.any(-1)), N_ANCHORS // 2)
        negative = draw_some(known & (best < NEGATIVE) & ~is_best.any(-1), N_ANCHORS)
        matched = lesions.gather(1, which[..., None].expand(-1, -1, 4))
    entropy = _cross_entropy(logits, positive)
    return {
        "proposal": (_mean(entropy, positive) + _mean(entropy, negative)) / 2,
        "proposal_box": _box_loss(codes, anchors.expand_as(matched), matched, positive),
    }


def region_losses(logits: Tensor, codes: Tensor, chosen: ChosenRegions) -> dict[str, Tensor]:
    """Of what the box head says of regions: logits (N, R) and codes (N, R, 4)."""
    return {
        "region": _mean(_cross_entropy(logits, chosen.positive), chosen.counted),
        "region_box": _box_loss(codes, chosen.boxes, chosen.lesions, chosen.positive),
    }


def _known(found: Tensor, valid: Tensor) -> Tensor:
    """Whether the label is known at the centre of boxes (N, R, 4)."""
    height, width = valid.shape[-2:]
    y, x = ((found[..., :2] + found[..., 2:]) / 2).long().unbind(-1)
    places = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    return valid.flatten(1).gather(1, places) > 0.5


def draw_some(able: Tensor, n: int) -> Tensor:
    """At most n in each row of those able (N, A), at random."""
    keys = torch.rand(able.shape, device=able.device).masked_fill(~able, -1)
    least = keys.topk(min(n, able.shape[1])).values[:, -1:]
    return able & (keys >= least)


def _cross_entropy(logits: Tensor, positive: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, positive.to(logits), reduction="none")


def _box_loss(codes: Tensor, found: Tensor, lesions: Tensor, positive: Tensor) -> Tensor:
    """Smooth L1 (Girshick 2015, eq. 3) between codes and where lesions lie from the boxes, mean over the sides."""
    loss = F.smooth_l1_loss(codes, boxes.encode(lesions, found), reduction="none").mean(-1)
    return _mean(loss, positive)


def _mean(loss: Tensor, counted: Tensor) -> Tensor:
    """The mean over what counts, 0 where nothing does."""
    return (loss * counted).sum() / counted.sum().clamp_min(1)
