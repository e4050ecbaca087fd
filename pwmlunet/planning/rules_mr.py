"""The rules for MR, and for whatever else is no ultrasound: a head in a field of view."""

import math

import numpy as np

from pwmlunet.data.store import SliceAxis
from pwmlunet.planning.fingerprint import Fingerprint
from pwmlunet.planning.plan import Decision
from pwmlunet.planning.preprocessing import Preparation
from pwmlunet.planning.rules import Rules, in_mm

_TINY_LESION_VOXELS = 10
_LITTLE_OF_THE_FIELD = 0.75
_PAPER_SIDE = 256  # Liu et al. 2019
_MOST_ENLARGEMENT = 2.5  # beyond it interpolation adds cost and no detail
_LEAST_ENLARGEMENT = 1.9  # from 2 × on every one-pixel lesion comes back from the grid, below not every one
_FOLDS = 5


def find_slice_axis(fingerprint: Fingerprint) -> tuple[SliceAxis, Decision]:
    """The file's axis whose spacing is much coarser than the others, z where none is."""
    axes: tuple[SliceAxis, SliceAxis, SliceAxis] = ("z", "y", "x")
    spacing = np.median([case.geometry.spacing_zyx_mm for case in fingerprint.cases], axis=0)
    index = int(np.argmax(spacing))
    flat = fingerprint.cases[0].geometry.is_2d
    if flat or spacing[index] < 1.5 * np.delete(spacing, index).max():
        reason = "2-D images" if flat else f"no axis is much coarser ({in_mm(spacing)} mm)"
        return "z", Decision("slice axis", "z", f"the file's own slices: {reason}")
    reason = f"the thickest spacing ({in_mm(spacing)} mm along z, y, x)"
    return axes[index], Decision("slice axis", axes[index], reason)


class MrRules(Rules):
    """Heads lie in a field of view of any size; lesions are a few pixels wide."""

    @property
    def leading(self) -> tuple[str, ...]:
        """The trident, which needs the most: the same batch of the others fits too."""
        return ("trident",)

    def preparation(self) -> Preparation:
        """Z-scores in the head, cropped to a square around it and enlarged where it fills little of the field."""
        normalisation = ("zscore_head",) * len(self.channel_names)
        self.decide("intensities", "z-score in the head", "scanners scale T1 and FLAIR freely; the head's own mean and spread do not depend on the field of view")  # fmt: skip
        share = float(np.median([case.head_side / max(case.shape_zyx[1:]) for case in self.cases]))
        self.decide("through slices", "never resampled", "slices of other thickness stay as they are; interpolating between them would smear a lesion of one slice")  # fmt: skip
        if share >= _LITTLE_OF_THE_FIELD:
            self.decide("crop", "box of what is not background", f"the head fills {share:.0%} of the field")
            return Preparation(
                self.slice_axis, "nonzero", normalisation, spacing_yx_mm=self._common_spacing()
            )
        side = self._grid_side()
        largest = max(case.head_side for case in self.cases)
        if side < _LEAST_ENLARGEMENT * largest:
            self.decide("crop", "square around the head, its own pixels", f"the head fills {share:.0%} of the field; heads of up to {largest} pixels would be enlarged less than {_LEAST_ENLARGEMENT:g} ×, which blurs some lesions of one pixel away")  # fmt: skip
            return Preparation(self.slice_axis, "head_square", normalisation)
        enlarged = side / self.median_side
        voxels = float(np.median([lesion.n_voxels for lesion in self.lesions]))
        self.decide("crop", f"square around the head, resized to {side} × {side}", f"the head fills {share:.0%} of the field: enlarging it {enlarged:.1f} × lets a network of few poolings see a lesion of {voxels:g} voxels")  # fmt: skip
        return Preparation(self.slice_axis, "head_square", normalisation, long_side=side)

    def _grid_side(self) -> int:
        """256 as in the paper, less where heads are so small that this would enlarge them too much."""
        side = min(_PAPER_SIDE, _MOST_ENLARGEMENT * self.median_side)
        return math.ceil(side / 32) * 32

    def _common_spacing(self) -> tuple[float, float] | None:
        spacings = np.array([case.spacing_zyx_mm[1:] for case in self.cases])
        if np.ptp(spacings, axis=0).max() <= 0.1 * spacings.mean():
            self.decide("in-plane grid", "native", "all cases have nearly the same spacing")
            return None
        smallest = min(lesion.n_voxels for lesion in self.lesions)
        tiny = smallest < _TINY_LESION_VOXELS
        y, x = (float(v) for v in (spacings.min(0) if tiny else np.median(spacings, axis=0)))
        reason = f"the smallest lesion has {smallest} voxels: never coarser than any case" if tiny else "the median"  # fmt: skip
        self.decide("in-plane grid", f"{y:.3g} × {x:.3g} mm", reason)
        return y, x

    def patch(self, preparation: Preparation, stride: int) -> tuple[int, int]:
        """Half the grid, as Liu et al.; at least 96 pixels, which a smaller grid is padded to."""
        _, rows, columns = self.grid_shape_zyx(preparation)
        y, x = (max(96, min(192, round(side / 2 / 32) * 32)) for side in (rows, columns))
        self.decide("patch", f"{y} × {x}", f"half of the {rows} × {columns} grid: lesions fill more of it, and an encoder sees fewer pixels that teach nothing")  # fmt: skip
        return y, x

    def n_folds(self) -> int:
        """Five, as usual."""
        return _FOLDS

    def smallest_lesion_mm3(self) -> float:
        """Nothing is removed: lesions of one voxel are real."""
        return 0.0

    def loss(self) -> str:
        """The self-balancing focal loss."""
        self.decide("loss", "sbfl", "it finds lesions of a few voxels early; of the losses tried on real slices none was better for certain (documentation/results.md)")  # fmt: skip
        return "sbfl"

    def default(self, *, prior_helps: bool) -> str:
        """The residual U-Net on single slices."""
        name = "resunet_2d"
        self.decide("default", name, "in the same time of training it found more of the real lesions than the trident (documentation/results.md)")  # fmt: skip
        return name
