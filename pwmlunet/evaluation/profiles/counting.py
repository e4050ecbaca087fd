"""How a paper counts, as data: what it looks at in a case, and what it makes of all cases."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.dataset import Labels
from pwmlunet.evaluation.lesions import Detection, detection, find_touching, measure_lesions
from pwmlunet.evaluation.voxels import ratio

Numbers = dict[str, float | None]
"""What is counted in a case or a part of it, by name."""

Values = dict[str, tuple[float | None, int]]
"""Value and n of each figure, by name."""


@dataclass(frozen=True, eq=False)
class ProfileCase:
    """One case; voxels labelled "ignore" are in no mask."""

    subject: str
    """Whose image it is."""
    fold: str
    """In which fold it was held out; "" where nobody says."""
    reference: NDArray[np.bool_]
    """Where each target lies (K, Z, Y, X)."""
    prediction: NDArray[np.bool_]
    """Where each target was predicted (K, Z, Y, X)."""
    valid: NDArray[np.bool_]
    """Where a label is known (Z, Y, X)."""
    spacing_zyx_mm: tuple[float, float, float]
    """Of the image."""

    @property
    def masks(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Reference and prediction (Z, Y, X) of any target."""
        return np.asarray(self.reference.any(0)), np.asarray(self.prediction.any(0))

    @property
    def cropped_masks(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """The same inside the box of both and one voxel around it, where the image reaches so far."""
        reference, prediction = self.masks
        box = _box(reference | prediction)
        return reference[box], prediction[box]

    def only(self, target: int) -> "ProfileCase":
        """The case with one of its targets."""
        chosen = slice(target, target + 1)
        return replace(self, reference=self.reference[chosen], prediction=self.prediction[chosen])


@dataclass(frozen=True)
class Row:
    """What was counted in a case, or in a part of one."""

    subject: str
    fold: str
    numbers: Numbers


@dataclass(frozen=True)
class Line:
    """A figure as a paper prints it."""

    unit: str = ""
    over: str = "cases"
    """What its n counts."""
    honest: str = ""
    """The honest score to be set beside it, by its name in the summary's means or "pooled_" and one of `pooled`."""


@dataclass(frozen=True)
class Profile:
    """How a paper or a challenge counts."""

    name: str
    """For `pwml_evaluate --profile`."""
    source: str
    """Who counted so."""
    counts: str
    """How, in words."""
    differs: str
    """What the honest figure does otherwise, and what is left out here."""
    lines: Mapping[str, Line]
    """Its figures by name."""
    score: Callable[[ProfileCase], Sequence[Numbers]]
    """What is counted in a case: one row, or one for each part."""
    summarise: Callable[[Sequence[Row]], Values]
    """Value and n of each figure from the rows of all cases."""
    threshold: float | None = None
    """Where probabilities are cut; None where the masks are scored as they are."""
    has_folds: bool = False
    """Whether it takes the median over folds."""
    is_joint: bool = False
    """Whether all targets are counted together, and their confusion too."""


def profile_case(
    reference: NDArray[Any],
    prediction: NDArray[Any],
    labels: Labels,
    spacing_zyx_mm: tuple[float, float, float],
    subject: str,
    fold: str = "",
) -> ProfileCase:
    """The case of two masks (Z, Y, X) of label values; "ignore" is taken out of both."""
    valid = labels.valid(reference)
    masks = [labels.encode(mask) & valid for mask in (reference, prediction)]
    return ProfileCase(subject, fold, masks[0], masks[1], valid, spacing_zyx_mm)


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The box of a mask and one voxel around it; of an empty one, the first voxel."""
    if not mask.any():
        return (slice(0, 1),) * mask.ndim
    used = [np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis))) for axis in range(mask.ndim)]  # fmt: skip
    return tuple(slice(max(int(u[0]) - 1, 0), int(u[-1]) + 2) for u in used)


def dice_of(reference: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float | None:
    """Twice the common voxels over the sum of both; None where both are empty."""
    n = int(np.count_nonzero(reference)) + int(np.count_nonzero(prediction))
    return ratio(2 * int(np.count_nonzero(reference & prediction)), n)


def overlap(reference: NDArray[np.bool_], prediction: NDArray[np.bool_], valid: NDArray[np.bool_]) -> Numbers:
    """Dice, sensitivity and specificity."""
    both = int(np.count_nonzero(reference & prediction))
    missed, false = int(np.count_nonzero(reference)) - both, int(np.count_nonzero(prediction)) - both
    neither = int(np.count_nonzero(valid)) - both - missed - false
    return {
        "dice": dice_of(reference, prediction),
        "sensitivity": ratio(both, both + missed),
        "specificity": ratio(neither, neither + false),
    }


def touched(
    reference: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> Detection:
    """Lesions found where one voxel of overlap is enough."""
    lesions, predicted = (measure_lesions(mask, spacing) for mask in (reference, prediction))
    touching = find_touching(lesions, predicted)
    return detection(
        len(lesions.n_voxels),
        len(predicted.n_voxels),
        n_found=len(np.unique(touching.reference)),
        n_true=len(np.unique(touching.predicted)),
    )


def farthest(
    reference: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: tuple[float, float, float]
) -> float | None:
    """The Hausdorff distance of two masks as sets of voxels, as ITK's filter has it; None where one is empty.

    A voxel inside of the other mask is at distance 0, so that only the difference of the two counts.
    """
    from scipy.spatial import cKDTree

    if not reference.any() or not prediction.any():
        return None
    distances = [0.0]
    for mask, other in ((reference, prediction), (prediction, reference)):
        outside = np.argwhere(mask & ~other) * spacing
        if len(outside):
            distances.append(float(cKDTree(np.argwhere(other) * spacing).query(outside)[0].max()))
    return max(distances)


def mean_of(rows: Sequence[Row], name: str) -> tuple[float | None, int]:
    """The mean of a number over the rows in which it is defined, and how many those are."""
    values = [value for row in rows if (value := row.numbers[name]) is not None]
    return ratio(sum(values), len(values)), len(values)


def means_of(*names: str) -> Callable[[Sequence[Row]], Values]:
    """A summary that is the mean of each number over the rows in which it is defined."""
    return lambda rows: {name: mean_of(rows, name) for name in names}
