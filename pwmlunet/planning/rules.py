"""The rules that hold for every kind of image: each looks at the facts, decides, and says why."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.data.store import SliceAxis, orientation_of
from pwmlunet.networks.resunet_3d import ResUNet3dConfig
from pwmlunet.networks.two_stage import TwoStageConfig
from pwmlunet.planning.concentration import FEWEST_SUBJECTS, Concentration, concentration
from pwmlunet.planning.cropping import Box
from pwmlunet.planning.density import DensityConfig
from pwmlunet.planning.fingerprint import CaseFingerprint, Fingerprint, LesionFacts
from pwmlunet.planning.plan import Decision
from pwmlunet.planning.preprocessing import Preparation

T = TypeVar("T")

FEWEST_SLICES_3D = 8
"""With fewer slices there is hardly a third dimension to learn from; a trident sees up to five."""

_ALIKE_WITHIN_MM = 0.5  # slices nearer than that differ by noise alone
_NEIGHBOURS_WITHIN_MM = 4.5  # slices farther apart show other anatomy
_DEEPEST_SLICES = 4  # slices that the deepest map of a 3-D network keeps at least
_FINEST_STRIDE = 2  # of the maps that regions are proposed from
_ANCHORED_LESIONS = (0.1, 0.95)  # quantiles of size: between them anchors are as large as lesions
_LEAST_ANCHOR_STEP = 1.25  # nearer sizes would propose the same boxes
_SLAB_MM = 3.0  # 20 slices of 0.15 mm, the Priority U-Net's


@dataclass(frozen=True)
class SlicedCase:
    """A case's facts along slices, rows and columns of the grid, whatever the file's order of axes."""

    name: str
    subject: str
    shape_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    head_box_zyx: Box
    head_mm3: float
    has_fan: bool
    lesions: tuple[LesionFacts, ...]

    @classmethod
    def of(cls, case: CaseFingerprint, slice_axis: SliceAxis) -> "SlicedCase":
        """The facts of a case whose slices lie so."""
        orientation = orientation_of(case.geometry, slice_axis)
        order, shape_zyx = orientation.order, _reordered(case.geometry.shape_zyx, orientation.order)
        turn = list(zip(shape_zyx, orientation.flipped, strict=True))
        box_z, box_y, box_x = (
            (n - stop, n - start) if flipped else (start, stop)
            for (start, stop), (n, flipped) in zip(_reordered(case.head_box_zyx, order), turn, strict=True)
        )

        def turned(lesion: LesionFacts) -> LesionFacts:
            z, y, x = (
                n - 1 - place if flipped else place
                for place, (n, flipped) in zip(_reordered(lesion.centre_zyx, order), turn, strict=True)
            )
            extent, diameter = lesion.extent_zyx, lesion.diameter_zyx_voxels
            return replace(
                lesion,
                extent_zyx=_reordered(extent, order),
                diameter_zyx_voxels=_reordered(diameter, order),
                centre_zyx=(z, y, x),
            )

        return cls(
            case.name,
            case.subject,
            shape_zyx,
            _reordered(case.geometry.spacing_zyx_mm, order),
            (box_z, box_y, box_x),
            case.head_voxels * math.prod(case.geometry.spacing_zyx_mm),
            case.has_fan,
            tuple(turned(lesion) for lesion in case.lesions),
        )

    @property
    def head_shape_zyx(self) -> tuple[int, int, int]:
        """Size of the box around the head or fan."""
        (z0, z1), (y0, y1), (x0, x1) = self.head_box_zyx
        return z1 - z0, y1 - y0, x1 - x0

    @property
    def head_side(self) -> int:
        """The longer side of that box in the plane."""
        return max(self.head_shape_zyx[1:])

    def lesion_points_mm(self) -> NDArray[np.float64]:
        """Where lesions lie (N, 3), from the middle of the box around the head."""
        middle = [(start + stop - 1) / 2 for start, stop in self.head_box_zyx]
        centres = np.array([lesion.centre_zyx for lesion in self.lesions]).reshape(-1, 3)
        return np.asarray((centres - middle) * self.spacing_zyx_mm)


def in_mm(spacing_zyx_mm: Sequence[float]) -> str:
    """A spacing in words, without its unit."""
    return " × ".join(f"{mm:.3g}" for mm in spacing_zyx_mm)


def _reordered(values: tuple[T, T, T], order: tuple[int, int, int]) -> tuple[T, T, T]:
    return values[order[0]], values[order[1]], values[order[2]]


class Rules(ABC):
    """One rule a method; each writes its decision down."""

    def __init__(
        self, fingerprint: Fingerprint, slice_axis: SliceAxis, decisions: Sequence[Decision]
    ) -> None:
        self.channel_names = fingerprint.channel_names
        self.are_regions = fingerprint.are_regions
        self.cases = [SlicedCase.of(case, slice_axis) for case in fingerprint.cases]
        self.lesions = [lesion for case in self.cases for lesion in case.lesions]
        self.spacing_zyx_mm = np.median([case.spacing_zyx_mm for case in self.cases], axis=0)
        self.slice_axis = slice_axis
        self.decisions = list(decisions)

    def decide(self, topic: str, choice: str, reason: str) -> None:
        """Writes a decision down."""
        self.decisions.append(Decision(topic, choice, reason))

    @property
    @abstractmethod
    def leading(self) -> tuple[str, ...]:
        """Of the configurations with one of these names the first that is planned decides the networks' width."""

    @abstractmethod
    def preparation(self) -> Preparation:
        """How cases are brought onto the network's grid."""

    @abstractmethod
    def patch(self, preparation: Preparation, stride: int) -> tuple[int, int]:
        """The patch of networks of slices: whole multiples of the stride."""

    @abstractmethod
    def n_folds(self) -> int:
        """How many parts the subjects are divided into."""

    @abstractmethod
    def smallest_lesion_mm3(self) -> float:
        """Below which size a predicted lesion is removed."""

    @abstractmethod
    def loss(self) -> str:
        """What networks are trained by, but for the two-stage one, whose boxes have losses of their own beside it."""

    @abstractmethod
    def default(self, *, prior_helps: bool) -> str:
        """The configuration that is meant where none is named."""

    def scale(self, preparation: Preparation) -> float:
        """Grid pixels for a pixel of the median case."""
        if preparation.spacing_yx_mm is not None:
            return float(np.mean(self.spacing_zyx_mm[1:] / preparation.spacing_yx_mm))
        if preparation.long_side is None:
            return 1.0
        return preparation.long_side / (self.median_side * (1 + 2 * preparation.margin))

    @property
    def median_side(self) -> float:
        """The median over the cases of the longer side of the head in the plane, in pixels."""
        return float(np.median([case.head_side for case in self.cases]))

    def grid_shape_zyx(self, preparation: Preparation) -> tuple[int, int, int]:
        """The median case's grid."""
        shapes = [case.head_shape_zyx if preparation.crop == "fan" else case.shape_zyx for case in self.cases]
        n_slices = int(np.median([shape[0] for shape in shapes]))
        if preparation.long_side is not None:
            return n_slices, preparation.long_side, preparation.long_side
        scale = self.scale(preparation)
        rows, columns = np.median([case.head_shape_zyx[1:] for case in self.cases], axis=0)
        return n_slices, round(scale * float(rows)), round(scale * float(columns))

    def grid_spacing_zyx_mm(self, preparation: Preparation) -> tuple[float, float, float]:
        """The median case's spacing on the grid."""
        z, y, x = (float(mm) for mm in self.spacing_zyx_mm)
        scale = self.scale(preparation)
        return z, y / scale, x / scale

    def neighbours(self) -> tuple[int, int]:
        """T and its step, from the slice spacing and how far lesions reach through slices."""
        spacing = float(self.spacing_zyx_mm[0])
        extent = float(np.median([lesion.extent_zyx[0] for lesion in self.lesions]))
        if max(case.shape_zyx[0] for case in self.cases) == 1:
            self.decide("slices of a trident", "1", "every case is a single slice")
            return 1, 1
        if spacing > _NEIGHBOURS_WITHIN_MM:
            self.decide("slices of a trident", "1", f"slices {spacing:.3g} mm apart share little")
            return 1, 1
        n_slices = 5 if extent >= 6 else 3
        step = max(1, round(extent / (n_slices - 1)))
        between = "; those between them show nearly the same" if spacing < _ALIKE_WITHIN_MM else ""
        self.decide("slices of a trident", f"{n_slices}, every {step}", f"slices are {spacing:.3g} mm apart and the median lesion spans {extent:g}: the outer slices lie at its border{between}")  # fmt: skip
        return n_slices, step

    def n_stages(self, preparation: Preparation) -> int:
        """The deepest stride stays under twice a lesion's diameter, and sees at least 8 pixels at once."""
        diameter = float(np.median([lesion.diameter_zyx_voxels[0] for lesion in self.lesions]))
        on_grid = diameter * self.scale(preparation)
        stride = min(32, max(8, 2 ** math.floor(math.log2(max(1.0, 2 * on_grid)))))
        self.decide("depth", f"deepest stride {stride}", f"a lesion is {on_grid:.1f} pixels wide on the grid; more poolings would only dilute it")  # fmt: skip
        return 1 + int(math.log2(stride))

    def volume(self, preparation: Preparation, n_stages: int) -> ResUNet3dConfig | None:
        """The 3-D network, which halves slices only where they are not much thicker than pixels; none for few slices."""
        n_slices, _, _ = self.grid_shape_zyx(preparation)
        if n_slices < FEWEST_SLICES_3D:
            self.decide("3-D network", "none", f"a volume to learn from has {FEWEST_SLICES_3D} slices or more, the median case {n_slices}")  # fmt: skip
            return None
        z_mm, y_mm, x_mm = self.grid_spacing_zyx_mm(preparation)
        ratio = 2 * z_mm / (y_mm + x_mm)
        n_flat = sum(ratio / 2**halving >= 2 for halving in range(n_stages - 1))
        n_kept = n_stages - 1 - int(math.log2(n_slices / _DEEPEST_SLICES))
        return ResUNet3dConfig(n_stages=n_stages, n_flat_stages=max(n_flat, n_kept))

    def two_stage(self, preparation: Preparation, patch: tuple[int, int], n_stages: int) -> TwoStageConfig:
        """The two-stage network, whose anchors rise with its levels from small lesions to large ones."""
        n_levels = n_stages - int(math.log2(_FINEST_STRIDE))
        boxes = [math.sqrt(lesion.extent_zyx[1] * lesion.extent_zyx[2]) for lesion in self.lesions]
        low, high = (self.scale(preparation) * np.quantile(boxes, _ANCHORED_LESIONS)).tolist()
        sizes = _anchor_sizes(low, high, n_levels, largest=min(patch))
        share = " to ".join(f"{100 * quantile:.0f}th" for quantile in _ANCHORED_LESIONS)
        self.decide("anchors", f"{join(f'{size:g}' for size in sizes)} pixels", f"lesions' boxes are {low:.3g} to {high:.3g} pixels on the grid ({share} percentile of the root of their area); one for each level of features from stride {_FINEST_STRIDE} on, none larger than the patch")  # fmt: skip
        return TwoStageConfig(n_stages=n_stages, finest_stride=_FINEST_STRIDE, anchor_sizes=sizes)

    def prior(self, preparation: Preparation) -> tuple[DensityConfig | None, bool]:
        """How a prior density is made, none where it cannot be, and whether it is likely to help."""
        points = self._points_by_subject(preparation)
        if len(points) < 2:
            self.decide("prior density", "none", "lesions of one subject say nothing about another's")
            return None, False
        found = concentration(points, float(np.median([case.head_mm3 for case in self.cases])))
        self.decide(
            "prior density", "likely to help" if found.helps else "not known to help", _in_words(found)
        )
        return DensityConfig(slab_slices=max(1, round(_SLAB_MM / self.spacing_zyx_mm[0]))), found.helps

    def _points_by_subject(self, preparation: Preparation) -> list[NDArray[np.float64]]:
        """Where the lesions of each subject with lesions lie, in mm of the median head where heads are made equal.

        Cases of a single slice are compared in the plane.
        """
        first_axis = 1 if max(case.shape_zyx[0] for case in self.cases) == 1 else 0
        points: dict[str, list[NDArray[np.float64]]] = {}
        for case in self.cases:
            size = self.median_side / case.head_side if preparation.long_side is not None else 1.0
            if case.lesions:
                places = case.lesion_points_mm() * (1.0, size, size)
                points.setdefault(case.subject, []).append(places[:, first_axis:])
        return [np.concatenate(of_cases) for of_cases in points.values()]


def _anchor_sizes(low: float, high: float, n_levels: int, *, largest: int) -> tuple[float, ...]:
    """So many sizes from low to high by equal factors, rounded, no larger than the patch.

    Where lesions are alike the range grows downwards, to the slices at a lesion's ends, but not below a pixel.
    """
    spread = _LEAST_ANCHOR_STEP ** (n_levels - 1)
    high = min(high, largest)
    low = max(1.0, min(low, high / spread))
    sizes = np.geomspace(low, max(high, low * spread), n_levels)
    return tuple(round(size, 1 if size < 10 else 0) for size in sizes.tolist())


def _in_words(found: Concentration) -> str:
    assert found.gain is not None and found.interval is not None
    few = f"; an interval needs {FEWEST_SUBJECTS} subjects" if found.n_subjects < FEWEST_SUBJECTS else ""
    return f"a lesion is {found.gain:+.2f} nats ({found.interval.low:+.2f} to {found.interval.high:+.2f}) likelier where lesions of other subjects lie than anywhere in the head, over {found.n_subjects} subjects with lesions{few}"  # fmt: skip
