"""A fully connected conditional random field (Krähenbühl & Koltun 2011) with two labels, by exact mean field.

    E(x)  = Σ_i −log p_i(x_i) + Σ_{i<j} [x_i ≠ x_j] Σ_m w_m K_m(i, j) / sqrt(d_m(i) d_m(j)),   d_m(i) = Σ_j K_m(i, j)
    K_1   = exp(−|Δr|² / 2 s²)                      smooth: near pixels are alike
    K_2   = exp(−|Δr|² / 2 t² − |ΔI|² / 2 θ²)       alike: near pixels of like intensity are alike

With two labels and Potts compatibility the mean field (their eq. 4) is one line for q = Q(lesion):

    logit q ← logit p + Σ_m w_m K̂_m (2 q − 1),      K̂_m the normalised kernel, q = p to begin with

A pixel counts among its own neighbours (j = i), as in the authors' library, whose filter on a lattice does not take
it out again. Regions of a few dozen pixels a side need no lattice: the sums are exact.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from pwmlunet.config import Config

_MOST_BYTES = 2**26  # of kernels at a time: nine regions of 36 × 36 pixels
_CLOSEST = 1e-7  # to 0 and 1 that a probability is taken for: logits end at 16 in files too

_Near = tuple[Tensor, Tensor]
_Kernel = Callable[[Tensor], Tensor]
"""Σ_j K(i, j) v(j) for values v (N, Y, X)."""


@dataclass(frozen=True)
class DenseCrfConfig(Config):
    """A dense CRF over the surroundings of each lesion, slice by slice."""

    smooth_mm: float
    """Standard deviation of the first kernel, which makes near pixels alike."""
    smooth_weight: float
    """Its weight, in logits: what a pixel gains where all around it is lesion; 0 leaves the kernel out."""
    alike_mm: float
    """Standard deviation in space of the second kernel, which makes near pixels of like intensity alike."""
    alike_intensity: float
    """Its standard deviation in intensity, as a share of the range between the 0.5th and 99.5th percentile in the head."""
    alike_weight: float
    """Its weight, in logits; 0 leaves the kernel out."""
    n_iterations: int = 1
    """Steps of mean field."""
    may_delete: bool = False
    """Whether a lesion may vanish altogether; otherwise one that would keeps its former probabilities."""

    @classmethod
    def of_paper(cls, spacing_yx_mm: tuple[float, float]) -> Self:
        """The parameters of RS-RCNN, which are pixels and grey values from 0 to 255, on a grid of this spacing.

        Its grid has 512 × 512 pixels, and a head fills half of a side.
        """
        pixel_mm = float(spacing_yx_mm[0] * spacing_yx_mm[1]) ** 0.5
        return cls(2 * pixel_mm, 3.0, 4 * pixel_mm, 6 / 255, 10.0)

    def problems(self) -> Iterator[str]:
        """Values outside their range."""
        for name in ("smooth_mm", "alike_mm", "alike_intensity"):
            if getattr(self, name) <= 0:
                yield f"{name} must be positive, not {getattr(self, name):g}"
        for name in ("smooth_weight", "alike_weight"):
            if getattr(self, name) < 0:
                yield f"{name} cannot be negative, not {getattr(self, name):g}"
        if self.n_iterations < 1:
            yield f"n_iterations must be at least 1, not {self.n_iterations}"

    def in_words(self) -> str:
        """The CRF in words."""
        words = (
            f"dense CRF (smooth {self.smooth_mm:.3g} mm × {self.smooth_weight:.3g}, alike {self.alike_mm:.3g} mm and "
            f"{self.alike_intensity:.2g} of the range × {self.alike_weight:.3g}"
        )
        if self.n_iterations > 1:
            words += f", {self.n_iterations} steps"
        return f"{words}, may delete lesions)" if self.may_delete else f"{words})"


def mean_field(
    probability: Tensor,
    intensities: Tensor,
    valid: Tensor,
    spacing_yx_mm: tuple[float, float],
    config: DenseCrfConfig,
) -> Tensor:
    """The probabilities (N, Y, X) of regions after the CRF, in float32; those of invalid pixels as they were.

    Each region costs (Y X)² numbers: meant for some dozens of pixels a side. Regions of unequal size are padded.

    Args:
        probability: (N, Y, X).
        intensities: (N, C, Y, X), in units of the range that `alike_intensity` is a share of.
        valid: (N, Y, X), false where there is no pixel: those take no part.
        spacing_yx_mm: Of the grid.
        config: The kernels.
    """
    at_a_time = max(1, _MOST_BYTES // (4 * probability[0].numel() ** 2))
    batch = (probability.float(), intensities.float(), valid)
    parts = zip(*(torch.split(tensor, at_a_time) for tensor in batch), strict=True)
    return torch.cat([_mean_field(p, i, v, spacing_yx_mm, config) for p, i, v in parts])


def _mean_field(
    probability: Tensor,
    intensities: Tensor,
    valid: Tensor,
    spacing_yx_mm: tuple[float, float],
    config: DenseCrfConfig,
) -> Tensor:
    weighted: list[tuple[float, _Kernel]] = []
    if config.smooth_weight:
        smooth = _smooth(_nearness(probability, spacing_yx_mm, config.smooth_mm))
        weighted.append((config.smooth_weight, smooth))
    if config.alike_weight:
        near = _nearness(probability, spacing_yx_mm, config.alike_mm)
        weighted.append((config.alike_weight, _alike(near, intensities / config.alike_intensity)))
    terms = [(weight, kernel, _norm(kernel, valid)) for weight, kernel in weighted]
    logit = torch.logit(probability.double(), _CLOSEST)
    q = probability
    for _ in range(config.n_iterations):
        gain = sum(weight * norm * kernel(norm * (2 * q - 1)) for weight, kernel, norm in terms)
        q = torch.sigmoid(logit + gain).float()
    return torch.where(valid, q, probability)


def _nearness(probability: Tensor, spacing_yx_mm: tuple[float, float], deviation_mm: float) -> _Near:
    """The Gaussian of the distance along rows (Y, Y) and along columns (X, X); their product is that in the plane."""
    sides = zip(probability.shape[1:], spacing_yx_mm, strict=True)
    places = [torch.arange(n, device=probability.device) * (step / deviation_mm) for n, step in sides]
    near_y, near_x = (torch.exp(-((place[:, None] - place) ** 2) / 2) for place in places)
    return near_y, near_x


def _smooth(near: _Near) -> _Kernel:
    near_y, near_x = near
    return lambda values: near_y @ values @ near_x


def _alike(near: _Near, intensities: Tensor) -> _Kernel:
    """For intensities (N, C, Y, X) in units of their standard deviation."""
    squares = (
        (channel[:, :, None] - channel[:, None, :]).square_() for channel in intensities.flatten(2).unbind(1)
    )
    total = next(squares)  # (N, Y X, Y X)
    for square in squares:
        total += square
    kernel = total.mul_(-0.5).exp_().mul_(torch.kron(*near))
    return lambda values: (kernel @ values.flatten(1)[..., None]).view_as(values)


def _norm(kernel: _Kernel, valid: Tensor) -> Tensor:
    """1 / sqrt(d) (N, Y, X), and 0 where there is no pixel; d is at least 1, a pixel being its own neighbour."""
    return valid * kernel(valid.float()).clamp(min=1).rsqrt()
