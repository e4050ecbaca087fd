"""Losses from logits, by name, and their weighted sums.

Each is a criterion: a scalar from logits and target (B, K, Z, Y, X) and valid (B, 1, Z, Y, X). Voxels with
valid = 0 count nowhere, neither in sums nor in means; a batch without valid voxels gives 0 and gradients
of 0. All compute in float32 at least, whatever precision the logits have, and stay finite for any logit.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pwmlunet.config import did_you_mean
from pwmlunet.errors import PwmlError
from pwmlunet.networks.base import Criterion

SMOOTHING = 1.0
"""Voxels added above and below in overlaps. With one, an empty target still teaches the network to lower its
probabilities; with 1e-5 that gradient vanishes as soon as they add up to more than 1e-5 voxels."""

FOCAL_ALPHA = 0.9
"""Weight of lesion voxels in the focal loss (TS-CNN, rows B to F)."""

TVERSKY_ALPHA, TVERSKY_BETA, TVERSKY_GAMMA = 0.3, 0.7, 4 / 3
"""Weights of false positives and of false negatives, and the focus (Abraham & Khan 2019)."""

SMALLEST = 1e-7
"""What a divisor or a base under a root is kept above, so that gradients stay finite."""


def bce(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Binary cross-entropy, mean over valid voxels and targets."""
    logits, target, valid = _prepare(logits, target, valid)
    return _mean(F.binary_cross_entropy_with_logits(logits, target, reduction="none"), valid)


def focal(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Focal loss with γ = 1 and α = 0.9 (Lin et al. 2017, eq. 5; values of TS-CNN), mean over valid voxels."""
    logits, target, valid = _prepare(logits, target, valid)
    background, lesion = _focal_terms(logits, target)
    return _mean(FOCAL_ALPHA * lesion + (1 - FOCAL_ALPHA) * background, valid)


def sbfl(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Self-balancing focal loss (TS-CNN and Priority U-Net): gradients flow through the balance too."""
    return _self_balancing(logits, target, valid, detached=False)


def sbfl_detached(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Self-balancing focal loss whose balance is a constant to the gradient."""
    return _self_balancing(logits, target, valid, detached=True)


def dice(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 − soft Dice over the whole batch, mean over targets (Milletari et al. 2016, without squares).

    Over the batch, as most patches hold no lesion voxel or a handful: Dice of one patch would jump between
    0 and 1 with a single voxel, and weigh a patch with one lesion as much as one with ten.
    """
    true_positive, false_positive, false_negative = _overlap(logits, target, valid)
    errors = false_positive + false_negative
    return (errors / (2 * true_positive + errors + SMOOTHING)).mean()


def focal_tversky(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """(1 − Tversky index)^(1/γ) over the whole batch, mean over targets (Abraham & Khan 2019).

    γ = 4/3, so the exponent is 3/4: it raises the loss of targets that are nearly right. α = 0.3 weighs
    false positives and β = 0.7 false negatives; the paper gives the same weights the opposite letters.
    """
    true_positive, false_positive, false_negative = _overlap(logits, target, valid)
    errors = TVERSKY_ALPHA * false_positive + TVERSKY_BETA * false_negative
    rest = errors / (true_positive + errors + SMOOTHING)  # 1 − Tversky index
    focused = rest.clamp_min(SMALLEST) ** (1 / TVERSKY_GAMMA)
    return torch.where(rest > SMALLEST, focused, rest).mean()  # the root's slope at 0 is infinite


def _prepare(logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All three in float32, or in float64 where the logits are; `valid` for every target."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), target.to(dtype), valid.to(dtype).expand_as(target)


def _mean(loss: Tensor, valid: Tensor) -> Tensor:
    """The mean over valid voxels, 0 where there are none."""
    return (loss * valid).sum() / valid.sum().clamp_min(1)


def _per_target(values: Tensor) -> Tensor:
    """Sums over everything but targets: (B, K, Z, Y, X) → (K,)."""
    return values.transpose(0, 1).flatten(1).sum(1)


def _focal_terms(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """L0 = −(1−y) p log(1−p) of the background and L1 = −y (1−p) log p of the lesions (γ = 1)."""
    background = (1 - target) * torch.sigmoid(logits) * F.softplus(logits)
    lesion = target * torch.sigmoid(-logits) * F.softplus(-logits)
    return background, lesion


def _self_balancing(logits: Tensor, target: Tensor, valid: Tensor, *, detached: bool) -> Tensor:
    """Mean of β L1 + (1−β) L0 with β = 0.4 ΣL0 / (ΣL0 + ΣL1) + 0.5, one β for each target.

    The more of the loss comes from the background, the more weight lesions get (0.5 to 0.9). From the
    authors' code: the printed formula of Liu et al. 2019 has the prediction where the target belongs. Their
    ε = 1e-7 in the logarithms is not needed with logits.
    """
    logits, target, valid = _prepare(logits, target, valid)
    background, lesion = (_per_target(term * valid) for term in _focal_terms(logits, target))
    balance = 0.4 * background / (background + lesion).clamp_min(SMALLEST) + 0.5
    balance = balance.detach() if detached else balance
    return (balance * lesion + (1 - balance) * background).sum() / valid.sum().clamp_min(1)


def _overlap(logits: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Soft true positives, false positives and false negatives in voxels, each (K,)."""
    logits, target, valid = _prepare(logits, target, valid)
    probability = torch.sigmoid(logits)
    inside, outside = target * valid, (1 - target) * valid
    return (
        _per_target(probability * inside),
        _per_target(probability * outside),
        _per_target(torch.sigmoid(-logits) * inside),
    )


@dataclass(frozen=True)
class WeightedSum:
    """A criterion that is a sum of others."""

    terms: tuple[tuple[float, Criterion], ...]

    def __call__(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """The sum of weight × loss."""
        losses = [weight * loss(logits, target, valid) for weight, loss in self.terms]
        return torch.stack(losses).sum()


LOSSES: dict[str, Criterion] = {
    "bce": bce,
    "bce_dice": WeightedSum(((1.0, bce), (1.0, dice))),
    "dice": dice,
    "focal": focal,
    "focal_tversky": focal_tversky,
    "sbfl": sbfl,
    "sbfl_detached": sbfl_detached,
    "sbfl_dice": WeightedSum(((1.0, sbfl), (1.0, dice))),
}


def parse_loss(text: str) -> Criterion:
    """The criterion that a sum such as "sbfl + 0.5*dice" describes: names of `LOSSES`, each with a weight."""
    terms = tuple(_parse_term(term.strip(), text) for term in text.split("+"))
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else WeightedSum(terms)


def _parse_term(term: str, text: str) -> tuple[float, Criterion]:
    match = re.fullmatch(r"(?:(\d+\.?\d*|\.\d+)\s*\*\s*)?([A-Za-z_]\w*)", term)
    if match is None:
        raise PwmlError(f'loss {text!r}: cannot read {term!r}: write it like "sbfl + 0.5*dice"')
    weight, name = float(match[1] or 1), match[2]
    if name not in LOSSES:
        raise PwmlError(f"loss {text!r}: unknown loss {name!r}{did_you_mean(name, LOSSES)}")
    if not 0 < weight < math.inf:
        raise PwmlError(f"loss {text!r}: the weight of {name!r} must be above 0")
    return weight, LOSSES[name]
