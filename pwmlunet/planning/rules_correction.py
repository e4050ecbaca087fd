"""The rules for two stages: what the first network sees, and what the network that corrects it sees of a candidate."""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.networks.correction import CorrectionConfig
from pwmlunet.planning.fingerprint import LesionFacts
from pwmlunet.planning.rules import FEWEST_SLICES_3D, Rules, in_mm

_HARDLY_SEEN = 1 / 3  # of a class's |log contrast| in the channel that shows it best
_DIAMETERS = 4.0  # the paper's 14.4 mm, around lesions of 3 to 5 mm
_LARGE_LESION, _ROOM = 95, 1.5  # percentile of lesions' extents, and what the region has beside such a lesion
_NEARLY_CUBES = 1.5


def tells_kinds_apart(rules: Rules) -> bool:
    """Whether lesions are of several kinds that exclude each other."""
    return not rules.are_regions and len({lesion.target for lesion in rules.lesions}) > 1


def primary_channels(rules: Rules) -> tuple[int, ...] | None:
    """Numbers of the channels that the first of two stages sees: those that show every kind of lesion; none means all."""
    names = rules.channel_names
    if len(names) == 1:
        return None
    if not tells_kinds_apart(rules):
        rules.decide("channels of the first network", "all", "with one kind of lesion nothing is gained by holding a channel back, and a change between two times is seen in both only")  # fmt: skip
        return None
    classes = sorted({lesion.target for lesion in rules.lesions})
    strengths = np.array([_strengths([lesion for lesion in rules.lesions if lesion.target == name], len(names)) for name in classes])  # fmt: skip
    is_seen = strengths > _HARDLY_SEEN * strengths.max(1, keepdims=True)
    showing_all = np.flatnonzero(is_seen.all(0)).tolist()
    seen = "; ".join(f"{c} in {join(names[i] for i in np.flatnonzero(row))}" for c, row in zip(classes, is_seen, strict=True))  # fmt: skip
    if not showing_all or len(showing_all) == len(names):
        why = "each channel shows every kind" if showing_all else "no channel shows every kind"
        rules.decide("channels of the first network", "all", f"{why} (clearly seen: {seen})")
        return None
    kept, held_back = ([names[i] for i in range(len(names)) if (i in showing_all) == wanted] for wanted in (True, False))  # fmt: skip
    rules.decide("channels of the first network", join(kept), f"primary_2d finds lesions of any kind where every kind is seen; {join(held_back)}, which hardly shows some, tells the kind and is left to the correction network (clearly seen: {seen})")  # fmt: skip
    return tuple(showing_all)


def _strengths(lesions: list[LesionFacts], n_channels: int) -> NDArray[np.float64]:
    """The median contrast of lesions of one class in each channel, as a distance from none on a logarithmic scale."""
    measured = [lesion.contrasts or (lesion.contrast,) * n_channels for lesion in lesions]
    return np.asarray(np.abs(np.median(np.log(np.maximum(measured, 1e-3)), axis=0)))


def correction(rules: Rules, n_neighbours: int) -> CorrectionConfig:
    """What the correction network sees of a candidate; `n_neighbours` is T of a trident there."""
    if len(rules.channel_names) > 1:
        rules.decide("channels of the correction network", "all", f"it looks at few candidates, and what one channel hides another may show: {join(rules.channel_names)}")  # fmt: skip
    return CorrectionConfig(region_mm=_region_mm(rules), views=_views(rules, n_neighbours))


def _region_mm(rules: Rules) -> float:
    """A square in which most lesions lie with what is around them."""
    sizes = [
        (lesion.diameter_zyx_voxels[0] * math.sqrt(y * x), max(lesion.extent_zyx[1] * y, lesion.extent_zyx[2] * x))
        for case in rules.cases
        for _, y, x in [case.spacing_zyx_mm]
        for lesion in case.lesions
    ]  # fmt: skip
    diameters, extents = zip(*sizes, strict=True)
    usual, large = float(np.median(diameters)), float(np.percentile(extents, _LARGE_LESION))
    side = float(f"{max(_DIAMETERS * usual, _ROOM * large):.2g}")
    rules.decide("region of the correction network", f"{side:g} mm", f"a lesion is {usual:.2g} mm wide in its slice and {_LARGE_LESION} % reach over {large:.2g} mm or less: {_DIAMETERS:g} widths show what lies around one, and {_ROOM:g} times its reach holds a large one")  # fmt: skip
    return side


def _views(rules: Rules, n_neighbours: int) -> Literal["slice", "slices", "planes"]:
    """Planes through nearly cubic voxels, else the slices beside the candidate's where they show something of it."""
    topic, spacing = "views of the correction network", rules.spacing_zyx_mm
    n_slices = int(np.median([case.shape_zyx[0] for case in rules.cases]))
    if n_slices >= FEWEST_SLICES_3D and spacing.max() <= _NEARLY_CUBES * spacing.min():
        rules.decide(topic, "three planes at right angles", f"voxels of {in_mm(spacing)} mm are nearly cubes: a candidate is as sharp from each side")  # fmt: skip
        return "planes"
    if n_neighbours > 1:
        rules.decide(topic, "its slice and the two beside it", f"slices {spacing[0]:.3g} mm apart show parts of the same lesion, as they do to a trident")  # fmt: skip
        return "slices"
    rules.decide(topic, "its slice", f"slices {spacing[0]:.3g} mm apart share little" if n_slices > 1 else "there are no slices beside it")  # fmt: skip
    return "slice"
