"""The rules: from the facts of a dataset and a memory budget to a plan, with the reasons."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.store import Axis, slice_order
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.sizes import quartiles_mm3
from pwmlunet.networks.base import DenseConfig
from pwmlunet.networks.trident import TridentConfig
from pwmlunet.networks.unet import UNetConfig
from pwmlunet.planning.fingerprint import ChannelFacts, Fingerprint
from pwmlunet.planning.memory import training_bytes
from pwmlunet.planning.plan import Configuration, Decision, ExpectedInput, Plan
from pwmlunet.planning.preprocessing import Preparation

PARENTS = {"resunet_2d": "trident"}
"""Configurations that plan.json writes as differences from another."""

_TINY_LESION_VOXELS = 10
_LITTLE_OF_THE_FIELD = 0.75
_PAPER_SIDE = 256  # Liu et al. 2019
_MOST_ENLARGEMENT = 2.5  # beyond it interpolation adds cost and no detail
_LEAST_ENLARGEMENT = 1.9  # from 2 × on every one-pixel lesion comes back from the grid, below not every one
_PAPER_BATCH = 8  # Liu et al. 2019
_NEIGHBOURS_WITHIN_MM = 4.5  # slices farther apart show other anatomy
_WIDTHS = (64, 48, 32, 24, 16, 12, 8)
_CPU_WIDTHS = (8,)
_GB = 1e9


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


def make_plan(fingerprint: Fingerprint, budget: Budget) -> Plan:
    """The plan for a dataset.

    Raises:
        PwmlError: no network fits the budget.
    """
    rules = _Rules(fingerprint, budget)
    preparation = rules.preparation()
    n_slices, step = rules.neighbours()
    patch = rules.patch(preparation)
    n_stages = rules.n_stages(preparation)
    trident = TridentConfig(n_slices=max(3, n_slices), n_stages=n_stages)
    networks: dict[str, DenseConfig] = {
        "trident": trident,
        "resunet_2d": replace(trident, n_slices=1),
        "unet_2d": UNetConfig(n_stages=n_stages),
    }
    width, batch_size = rules.width_and_batch(trident, patch)
    configurations = {
        name: Configuration("slices", patch, batch_size, replace(network, width=width), step)
        for name, network in networks.items()
    }
    return Plan(
        fingerprint.dataset,
        fingerprint.channel_names,
        rules.default(),
        {"slices": preparation},
        configurations,
        _expected_input(fingerprint),
        tuple(rules.decisions),
    )


class _Rules:
    """One rule a method; each writes its decision down."""

    def __init__(self, fingerprint: Fingerprint, budget: Budget) -> None:
        self.fingerprint = fingerprint
        self.budget = budget
        self.decisions: list[Decision] = []
        self.median_voxels = float(np.median([lesion.n_voxels for lesion in fingerprint.lesions]))
        self.spacing_zyx_mm = np.median([c.geometry.spacing_zyx_mm for c in fingerprint.cases], axis=0)
        self.slice_axis = self._slice_axis()
        self.through, *self.in_plane = slice_order(self.slice_axis)  # of the file's axes z, y, x

    def decide(self, topic: str, choice: str, reason: str) -> None:
        self.decisions.append(Decision(topic, choice, reason))

    def preparation(self) -> Preparation:
        normalisation = ("zscore_head",) * len(self.fingerprint.channel_names)
        self.decide("intensities", "z-score in the head", "scanners scale T1 and FLAIR freely; the head's own mean and spread do not depend on the field of view")  # fmt: skip
        share = float(np.median([self._head_side(i) / self._field_side(i) for i in range(self.n_cases)]))
        self.decide("through slices", "never resampled", "slices of other thickness stay as they are; interpolating between them would smear a lesion of one slice")  # fmt: skip
        if share >= _LITTLE_OF_THE_FIELD:
            self.decide("crop", "box of what is not background", f"the head fills {share:.0%} of the field")
            return Preparation(
                self.slice_axis, "nonzero", normalisation, spacing_yx_mm=self._common_spacing()
            )
        side = self._grid_side()
        largest = max(self._head_side(i) for i in range(self.n_cases))
        if side < _LEAST_ENLARGEMENT * largest:
            self.decide("crop", "square around the head, its own pixels", f"the head fills {share:.0%} of the field; heads of up to {largest} pixels would be enlarged less than {_LEAST_ENLARGEMENT:g} ×, which blurs some lesions of one pixel away")  # fmt: skip
            return Preparation(self.slice_axis, "head_square", normalisation)
        enlarged = side / float(np.median([self._head_side(i) for i in range(self.n_cases)]))
        self.decide("crop", f"square around the head, resized to {side} × {side}", f"the head fills {share:.0%} of the field: enlarging it {enlarged:.1f} × lets a network of few poolings see a lesion of {self.median_voxels:g} voxels")  # fmt: skip
        return Preparation(self.slice_axis, "head_square", normalisation, long_side=side)

    @property
    def n_cases(self) -> int:
        return len(self.fingerprint.cases)

    def _slice_axis(self) -> Axis:
        index = int(np.argmax(self.spacing_zyx_mm))
        others = np.delete(self.spacing_zyx_mm, index)
        flat = self.fingerprint.cases[0].geometry.is_2d
        if flat or self.spacing_zyx_mm[index] < 1.5 * others.max():
            reason = "2-D images" if flat else f"no axis is much coarser ({_mm(self.spacing_zyx_mm)} mm)"
            self.decide("slice axis", "z", f"the file's own slices: {reason}")
            return "z"
        axes: tuple[Axis, Axis, Axis] = ("z", "y", "x")
        axis = axes[index]
        self.decide("slice axis", axis, f"the thickest spacing ({_mm(self.spacing_zyx_mm)} mm along z, y, x)")
        return axis

    def _head_side(self, index: int) -> int:
        box = self.fingerprint.cases[index].head_box_zyx
        return max(box[i][1] - box[i][0] for i in self.in_plane)

    def _field_side(self, index: int) -> int:
        return max(self.fingerprint.cases[index].geometry.shape_zyx[i] for i in self.in_plane)

    def _grid_side(self) -> int:
        """256 as in the paper, less where heads are so small that this would enlarge them too much."""
        median = float(np.median([self._head_side(i) for i in range(self.n_cases)]))
        side = min(_PAPER_SIDE, _MOST_ENLARGEMENT * median)
        return math.ceil(side / 32) * 32

    def _common_spacing(self) -> tuple[float, float] | None:
        spacings = np.array([c.geometry.spacing_zyx_mm for c in self.fingerprint.cases])[:, self.in_plane]
        if np.ptp(spacings, axis=0).max() <= 0.1 * spacings.mean():
            self.decide("in-plane grid", "native", "all cases have nearly the same spacing")
            return None
        smallest = min(lesion.n_voxels for lesion in self.fingerprint.lesions)
        tiny = smallest < _TINY_LESION_VOXELS
        y, x = (float(v) for v in (spacings.min(0) if tiny else np.median(spacings, axis=0)))
        reason = f"the smallest lesion has {smallest} voxels: never coarser than any case" if tiny else "the median"  # fmt: skip
        self.decide("in-plane grid", f"{y:.3g} × {x:.3g} mm", reason)
        return y, x

    def scale(self, preparation: Preparation) -> float:
        """Grid pixels for a pixel of the median case."""
        if preparation.spacing_yx_mm is not None:
            return float(np.mean(self.spacing_zyx_mm[self.in_plane] / preparation.spacing_yx_mm))
        if preparation.long_side is None:
            return 1.0
        side = float(np.median([self._head_side(i) for i in range(self.n_cases)]))
        return preparation.long_side / (side * (1 + 2 * preparation.margin))

    def neighbours(self) -> tuple[int, int]:
        """T and its step, from the slice spacing and how far lesions reach through slices."""
        axis = self.through
        spacing = float(self.spacing_zyx_mm[axis])
        extent = float(np.median([lesion.extent_zyx[axis] for lesion in self.fingerprint.lesions]))
        if max(c.geometry.shape_zyx[axis] for c in self.fingerprint.cases) == 1:
            self.decide("slices of a trident", "1", "every case is a single slice")
            return 1, 1
        if spacing > _NEIGHBOURS_WITHIN_MM:
            self.decide("slices of a trident", "1", f"slices {spacing:.3g} mm apart share little")
            return 1, 1
        n_slices = 5 if extent >= 6 else 3
        step = max(1, round(extent / (n_slices - 1)))
        self.decide("slices of a trident", f"{n_slices}, every {step}", f"slices are {spacing:.3g} mm apart and the median lesion spans {extent:g}: the outer slices lie at its border")  # fmt: skip
        return n_slices, step

    def patch(self, preparation: Preparation) -> tuple[int, int]:
        """Half the grid, as Liu et al.; at least 96 pixels, which a smaller grid is padded to."""
        if preparation.long_side is not None:
            sides = [preparation.long_side, preparation.long_side]
        else:
            boxes = [case.head_box_zyx for case in self.fingerprint.cases]
            scale = self.scale(preparation)
            sides = [
                round(scale * float(np.median([b[i][1] - b[i][0] for b in boxes]))) for i in self.in_plane
            ]
        y, x = (max(96, min(192, round(side / 2 / 32) * 32)) for side in sides)
        self.decide("patch", f"{y} × {x}", f"half of the {sides[0]} × {sides[1]} grid: lesions fill more of it, and an encoder sees fewer pixels that teach nothing")  # fmt: skip
        return y, x

    def n_stages(self, preparation: Preparation) -> int:
        """The deepest stride stays under twice a lesion's diameter, and sees at least 8 pixels at once."""
        diameters = [lesion.diameter_zyx_voxels[self.through] for lesion in self.fingerprint.lesions]
        diameter = float(np.median(diameters))
        on_grid = diameter * self.scale(preparation)
        stride = min(32, max(8, 2 ** math.floor(math.log2(max(1.0, 2 * on_grid)))))
        self.decide("depth", f"deepest stride {stride}", f"a lesion is {on_grid:.1f} pixels wide on the grid; more poolings would only dilute it")  # fmt: skip
        return 1 + int(math.log2(stride))

    def width_and_batch(self, network: TridentConfig, patch: tuple[int, int]) -> tuple[int, int]:
        """The widest network whose step fits the budget, with the paper's batch if possible."""
        n_channels = len(self.fingerprint.channel_names)
        for width in self.budget.widths:
            for batch_size in (_PAPER_BATCH, 4, 2) if width == self.budget.widths[-1] else (_PAPER_BATCH,):
                patch_zyx = (network.n_slices, *patch)
                needed = training_bytes(
                    replace(network, width=width),
                    n_channels=n_channels,
                    n_targets=1,
                    patch_zyx=patch_zyx,
                    batch_size=batch_size,
                )
                if needed <= self.budget.memory_gb * _GB:
                    self.decide("width and batch", f"{width} channels, batch {batch_size}", f"{needed / _GB:.2f} GB a step, measured, of {self.budget.memory_gb:.3g} GB ({self.budget.reason})")  # fmt: skip
                    return width, batch_size
        raise PwmlError(f"the smallest network needs {needed / _GB:.2f} GB a step: raise --memory-gb")

    def default(self) -> str:
        name = "resunet_2d"
        self.decide("default", name, "in the same time of training it found more of the real lesions than the trident (documentation/results.md)")  # fmt: skip
        return name


def _mm(spacing: NDArray[np.float64]) -> str:
    return " × ".join(f"{s:.3g}" for s in spacing)


def _expected_input(fingerprint: Fingerprint) -> ExpectedInput:
    spacings = [case.geometry.spacing_zyx_mm for case in fingerprint.cases]
    (z0, y0, x0), (z1, y1, x1) = np.min(spacings, axis=0).tolist(), np.max(spacings, axis=0).tolist()
    n_channels = len(fingerprint.channel_names)
    channels = tuple(_median_facts([c.channels[i] for c in fingerprint.cases]) for i in range(n_channels))
    volumes: dict[str, list[float]] = {}
    for lesion in fingerprint.lesions:
        volumes.setdefault(lesion.target, []).append(lesion.volume_mm3)
    quartiles = {target: quartiles_mm3(sizes) for target, sizes in volumes.items()}
    return ExpectedInput((z0, y0, x0), (z1, y1, x1), channels, quartiles)


def _median_facts(facts: Sequence[ChannelFacts]) -> ChannelFacts:
    rows = [(f.mean, f.std, *f.percentiles) for f in facts]
    mean, std, low, middle, high = np.median(rows, axis=0).tolist()
    return ChannelFacts(mean, std, (low, middle, high))
