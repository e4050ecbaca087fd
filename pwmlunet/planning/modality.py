"""What kind of images a dataset holds: known by the names of its channels, else by what is seen."""

import re
from collections.abc import Sequence

from pwmlunet.config import join
from pwmlunet.data.image import Geometry

_ULTRASOUND = re.compile(r"(?:^|[^a-z]|3d)(?:[chn]?us|ultraso[a-z]*|sono[a-z]*)(?![a-z])")
_OTHER = re.compile(r"(?:^|[^a-z])(?:t[12][a-z]*|flair|mri?|mprage|dwi|dti|adc|swi|pdw?|ct)(?![a-z])")

_SAME_SPACING = 1.1  # largest to smallest spacing of voxels that count as cubes
_FINE_MM = 1.0


def name_like_ultrasound(channel_names: Sequence[str]) -> str:
    """The first channel named like ultrasound (cUS, US, ultrasound, …), in any case; empty without one."""
    return _first(channel_names, _ULTRASOUND)


def name_like_other(channel_names: Sequence[str]) -> str:
    """The first channel named like MR or CT (T1, T2, FLAIR, …), in any case; empty without one."""
    return _first(channel_names, _OTHER)


def may_hold_fan(channel_names: Sequence[str], geometry: Geometry) -> bool:
    """Whether it is worth looking for a fan: the images are called ultrasound, or are nameless cubes below 1 mm."""
    if name_like_other(channel_names):
        return False
    spacing = geometry.spacing_zyx_mm
    is_fine = max(spacing) < _FINE_MM and max(spacing) <= _SAME_SPACING * min(spacing)
    return bool(name_like_ultrasound(channel_names)) or (is_fine and not geometry.is_2d)


def recognise_ultrasound(channel_names: Sequence[str], has_fan: Sequence[bool]) -> tuple[bool, str]:
    """Whether images are ultrasound, and why; `has_fan` is false for cases in which none was looked for."""
    if name := name_like_other(channel_names):
        return False, f"a channel is named {name}"
    if name := name_like_ultrasound(channel_names):
        return True, f"a channel is named {name}"
    if all(has_fan):
        return True, f"every case is a fan in a field of zeros, of cubic voxels below {_FINE_MM:g} mm; no channel of {join(channel_names)} is named as MR"  # fmt: skip
    return False, f"no channel of {join(channel_names)} is named as ultrasound, and not every case is a fan in a field of zeros"  # fmt: skip


def _first(names: Sequence[str], pattern: re.Pattern[str]) -> str:
    return next((name for name in names if pattern.search(name.lower())), "")
