"""The rules for 3-D cranial ultrasound: a fan of speckle in a field of zeros."""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from pwmlunet.data.store import SliceAxis
from pwmlunet.errors import PwmlError
from pwmlunet.planning.fingerprint import Fingerprint
from pwmlunet.planning.plan import Decision
from pwmlunet.planning.preprocessing import Preparation
from pwmlunet.planning.rules import Rules, SlicedCase, in_mm

SLICE_AXIS: SliceAxis = "coronal"

_SMALLEST_LESION_MM3 = 1.7  # the Priority U-Net's data
_FEW_SUBJECTS, _FOLDS_OF_FEW, _FOLDS = 21, 10, 5  # ten folds: the Priority U-Net's
_LOSS = "100*sbfl + dice"
_SAME_SPACING = 0.05
_LARGE_VOXELS = 16_000_000  # from 64 MB a case in float32


class UltrasoundRules(Rules):
    """A probe on the anterior fontanel sees a fan; lesions are brighter speckle around the ventricles."""

    def __init__(self, fingerprint: Fingerprint, decisions: Sequence[Decision]) -> None:
        """The rules for a dataset.

        Raises:
            PwmlError: cases without a fan, or of another spacing than the others.
        """
        self.is_flat = fingerprint.cases[0].geometry.is_2d
        super().__init__(fingerprint, "z" if self.is_flat else SLICE_AXIS, decisions)
        if problems := [problem for case in self.cases for problem in self._problems(case)]:
            raise PwmlError.listing(f"{fingerprint.dataset} is ultrasound and has problems", problems)
        reason = "2-D images" if self.is_flat else "through the fontanel, as such images are read; each file's own directions say which of its axes that is"  # fmt: skip
        self.decide("slice axis", self.slice_axis, reason)

    def _problems(self, case: SlicedCase) -> Iterator[str]:
        if not case.has_fan:
            yield f"case {case.name}: no fan is seen in a field of zeros: export it with zeros around the fan, or leave it out"  # fmt: skip
        if not np.allclose(case.spacing_zyx_mm, self.spacing_zyx_mm, rtol=_SAME_SPACING, atol=0):
            yield f"case {case.name}: its spacing is {in_mm(case.spacing_zyx_mm)} mm, that of most cases {in_mm(self.spacing_zyx_mm)} mm (slices, rows, columns): resample its files, or leave it out"  # fmt: skip

    @property
    def leading(self) -> tuple[str, ...]:
        """The networks of the paper: whole slices of a trident would leave them narrow."""
        return "priority_2d", "unet_2d"

    def preparation(self) -> Preparation:
        """The box of the fan, voxel by voxel, its intensities between percentiles."""
        spacing = in_mm(self.spacing_zyx_mm)
        self.decide("intensities", "0.5th to 99.5th percentile in the fan, to 0 to 1", "gain differs from probe to probe; the zeros around the fan are no tissue")  # fmt: skip
        self.decide("crop", "box of the fan", "the probe saw nothing beyond it")
        self.decide("in-plane grid", "native", f"nothing is resampled: speckle is the image's texture and would be blurred, the smallest lesions need every voxel, and all cases have the same spacing ({spacing} mm within {_SAME_SPACING:.0%})")  # fmt: skip
        z, y, x = (round(float(mm), 6) for mm in self.spacing_zyx_mm)
        return Preparation(
            self.slice_axis,
            "fan",
            ("percentiles_head",) * len(self.channel_names),
            expected_spacing_zyx_mm=(z, y, x),
            stored_as=self._stored_as(),
        )

    def _stored_as(self) -> Literal["float32", "float16"]:
        largest = max(math.prod(case.head_shape_zyx) for case in self.cases) * len(self.channel_names)
        if largest < _LARGE_VOXELS:
            return "float32"
        self.decide("stored as", "float16", f"{largest / 1e6:.0f} million voxels a case: half the disk and half the reading, and values from 0 to 1 lose nothing that is seen")  # fmt: skip
        return "float16"

    def patch(self, preparation: Preparation, stride: int) -> tuple[int, int]:
        """Whole slices: the largest fan, rounded up to the stride."""
        rows, columns = (max(case.head_shape_zyx[axis] for case in self.cases) for axis in (1, 2))
        y, x = (math.ceil(side / stride) * stride for side in (rows, columns))
        self.decide("patch", f"{y} × {x}", f"whole slices of the largest fan, {rows} × {columns}: where a bright spot lies in the brain says whether it may be a lesion")  # fmt: skip
        return y, x

    def n_folds(self) -> int:
        """Ten for few subjects, of which nine tenths teach then."""
        n_subjects = len({case.subject for case in self.cases})
        n_folds = min(_FOLDS_OF_FEW if n_subjects <= _FEW_SUBJECTS else _FOLDS, max(2, n_subjects))
        few = n_subjects <= _FEW_SUBJECTS
        reason = (
            "so few that each fold shall hold out as few as it can"
            if few
            else "enough to learn from four fifths"
        )
        self.decide("folds", str(n_folds), f"{n_subjects} subjects, {reason}")
        return n_folds

    def smallest_lesion_mm3(self) -> float:
        """The paper's 1.7 mm³, never above the smallest training lesion; nothing where that means nothing."""
        if self.is_flat:
            self.decide("smallest lesion", "one pixel", "2-D images: a lesion's volume is not known, so none is removed")  # fmt: skip
            return 0.0
        smallest = min(lesion.volume_mm3 for lesion in self.lesions)
        voxel_mm3 = float(np.prod(self.spacing_zyx_mm))
        if min(_SMALLEST_LESION_MM3, smallest) <= voxel_mm3:
            self.decide("smallest lesion", "one voxel", f"a voxel holds {voxel_mm3:.3g} mm³: no component is smaller than a lesion, so none is removed")  # fmt: skip
            return 0.0
        if smallest < _SMALLEST_LESION_MM3:
            least = math.floor(smallest * (1 - 1e-6) * 1e4) / 1e4  # a little less: the lesion itself stays
            self.decide("smallest lesion", f"{least:.3g} mm³", f"the smallest training lesion, which lies below the paper's {_SMALLEST_LESION_MM3} mm³")  # fmt: skip
            return least
        self.decide("smallest lesion", f"{_SMALLEST_LESION_MM3} mm³", f"the paper's; the smallest training lesion has {smallest:.3g} mm³")  # fmt: skip
        return _SMALLEST_LESION_MM3

    def loss(self) -> str:
        """The self-balancing focal loss, by which networks begin, and Dice, by which they invent fewer lesions."""
        self.decide("loss", _LOSS, "alone, sbfl invents more lesions in speckle, and with sbfl_dice some networks never begin: Dice that is near 0 hardly has a gradient (documentation/results.md); two_stage keeps sbfl, beside its losses of boxes")  # fmt: skip
        return _LOSS

    def default(self, *, prior_helps: bool) -> str:
        """The U-Net, with the prior as log-odds where one is likely to help."""
        if not prior_helps:
            self.decide("default", "unet_2d", "a prior is not known to help here")
            return "unet_2d"
        self.decide("default", "log_odds_2d", "lesions are concentrated enough for a prior; of the ways it may enter, log-odds found most on synthetic volumes, the paper's gates (priority_2d) no more than no prior (documentation/results.md)")  # fmt: skip
        return "log_odds_2d"
