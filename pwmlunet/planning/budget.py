"""What a training step may use, and the largest network, batch and patch of a volume that fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from pwmlunet.networks.base import DenseConfig
from pwmlunet.networks.resunet_3d import ResUNet3dConfig
from pwmlunet.planning.memory import training_bytes

BATCH_3D = 2
"""Patches of a volume in a step: one patch holds as much as a batch of slices."""

_WIDTHS = (64, 48, 32, 24, 16, 12, 8)
_CPU_WIDTHS = (8,)
_WIDEST_3D = 32  # a kernel of 3 × 3 × 3 has three times the weights of one of 3 × 3
_SIDES = (128, 112, 96, 80, 64, 48, 32)  # voxels a side of a cube with as many voxels as the patch
_GB = 1e9


@dataclass(frozen=True)
class Step:
    """A network's width, the patches of a training step, and what that needs."""

    width: int
    batch_size: int
    needed_gb: float


@dataclass(frozen=True)
class Budget:
    """What a training step may use."""

    memory_gb: float
    widths: tuple[int, ...]
    reason: str

    @classmethod
    def find(cls, memory_gb: float | None) -> "Budget":
        """The given memory, else the GPU's when there is one, else a small plan for the CPU."""
        import torch

        if memory_gb is not None:
            return cls(memory_gb, _WIDTHS, f"{memory_gb:g} GB were asked for")
        if torch.cuda.is_available():
            total = torch.cuda.get_device_properties(0).total_memory / _GB
            return cls(0.9 * total, _WIDTHS, f"90 % of the GPU's {total:.0f} GB")
        return cls(2.0, _CPU_WIDTHS, "no GPU here: small enough to train a fold in minutes")

    def holds(self, step: Step) -> bool:
        """Whether a step fits."""
        return step.needed_gb <= self.memory_gb

    def first_that_fits(
        self,
        network: DenseConfig,
        patch_zyx: tuple[int, int, int],
        n_channels: int,
        choices: Sequence[tuple[int, int]],
    ) -> Step:
        """The first of some pairs of width and batch whose step fits; the last one where none does."""
        for width, batch_size in choices:
            wide = replace(network, width=width)
            step = Step(width, batch_size, _needed_gb(wide, n_channels, patch_zyx, batch_size))
            if self.holds(step):
                break
        return step

    def fit_volume(
        self,
        network: ResUNet3dConfig,
        spacing_zyx_mm: Sequence[float],
        shape_zyx: Sequence[int],
        n_channels: int,
        widest: int,
    ) -> tuple[Step, tuple[int, int, int]]:
        """The widest 3-D network with the largest patch that fits; the smallest of both where none does."""
        widths = [width for width in self.widths if width <= min(widest, _WIDEST_3D)] or [widest]
        choices = [(width, side) for width in widths for side in _SIDES if side >= 64 or width == widths[-1]]
        for width, side in choices:
            patch_zyx = patch_of_volume(network, spacing_zyx_mm, shape_zyx, side)
            step = self.first_that_fits(network, patch_zyx, n_channels, [(width, BATCH_3D)])
            if self.holds(step):
                break
        return step, patch_zyx


@lru_cache(maxsize=256)  # counting takes a tenth of a second, and one plan resembles the next
def _needed_gb(
    network: DenseConfig, n_channels: int, patch_zyx: tuple[int, int, int], batch_size: int
) -> float:
    return training_bytes(network, n_channels, 1, patch_zyx, batch_size) / _GB


def patch_of_volume(
    network: ResUNet3dConfig, spacing_zyx_mm: Sequence[float], shape_zyx: Sequence[int], side: int
) -> tuple[int, int, int]:
    """A patch of about side³ voxels and the same mm along each axis, in whole strides, not far beyond the grid."""
    side_mm = side * math.prod(spacing_zyx_mm) ** (1 / 3)
    strides = (network.slice_stride, network.stride, network.stride)
    z, y, x = (
        stride * max(1, min(round(side_mm / spacing / stride), math.ceil(length / stride)))
        for stride, spacing, length in zip(strides, spacing_zyx_mm, shape_zyx, strict=True)
    )
    return z, y, x
