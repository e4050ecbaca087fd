"""What SimpleITK does not tell about NIfTI files: missing voxels and NaN become 0, a spacing of 0 becomes 1."""

import gzip
import itertools
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pwmlunet.config import join

_LAYOUTS = {
    348: {  # NIfTI-1
        "shape": (40, "8h"),
        "kind": (70, "h"),
        "bits": (72, "h"),
        "spacing": (80, "3f"),
        "offset": (108, "f"),
        "codes": (252, "2h"),
        "quaternion": (256, "6f"),
        "affine": (280, "12f"),
    },
    540: {  # NIfTI-2
        "shape": (16, "8q"),
        "kind": (12, "h"),
        "bits": (14, "h"),
        "spacing": (112, "3d"),
        "offset": (168, "q"),
        "codes": (344, "2i"),
        "quaternion": (352, "6d"),
        "affine": (400, "12d"),
    },
}
"""By the header's size in bytes: where each field begins and its type (nifti1.h, nifti2.h)."""

_FLOATS = {16: "f4", 64: "f8"}  # by code of the type (nifti1.h)
_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class _Header:
    shape_xyz: tuple[int, ...]
    """All dimensions in the file's order, time and others behind z."""
    spacing_xyz_mm: tuple[float, ...]
    place: tuple[float, ...]
    """The affine matrix or quaternion that says where the grid lies; empty where the header does not."""
    start: int
    """Where the voxels begin in the file, uncompressed."""
    n_bytes: int
    """Size of the whole file, uncompressed."""
    floats: str
    """NumPy's name of the voxels' type where that is a floating-point one, else empty."""


def is_nifti(path: Path) -> bool:
    """Whether the file's name says NIfTI."""
    return path.name.endswith((".nii", ".nii.gz"))


def find_damage(path: Path, *, look_for_nan: bool = True) -> str:
    """In words, what makes a NIfTI file unfit to be read; empty for a whole one or another format.

    A compressed file is decompressed once, checksum included: about 50 ms for 30 MB.
    """
    try:
        header, n_bytes, is_finite = _measure(path)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        return "it is damaged or cut short: copy it again from its source"
    if header is None:
        return ""
    if n_bytes < header.n_bytes:
        return f"{header.n_bytes - n_bytes} bytes are missing at its end: copy it again from its source"
    pairs = list(zip(header.spacing_xyz_mm, header.shape_xyz, strict=False))
    if any(size > 1 and not (math.isfinite(spacing) and spacing > 0) for spacing, size in pairs):
        return f"its header has an impossible spacing ({join(header.spacing_xyz_mm)} mm): mend the header"
    if not all(math.isfinite(value) for value in header.place):
        return "its header has no numbers where the place of the grid should be: mend the header"
    if look_for_nan and not is_finite:
        return "it holds values that are not finite (NaN): replace them"
    return ""


def _measure(path: Path) -> tuple[_Header | None, int, bool]:
    """The header (None for another format), the bytes in a file, uncompressed, and whether all are finite."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not compressed:
            header = _parse(file.read(max(_LAYOUTS)))
            return header, path.stat().st_size, _is_finite(file, header) if header else True
        with gzip.open(file) as content:
            header = _parse(content.read(max(_LAYOUTS)))
            is_finite = _is_finite(content, header) if header else True
            while content.read(_BLOCK):
                pass
            return header, content.tell(), is_finite


def _is_finite(content: BinaryIO | gzip.GzipFile, header: _Header) -> bool:
    if not header.floats:
        return True
    kind = np.dtype(header.floats)
    content.seek(header.start)
    while block := content.read(_BLOCK):
        if not np.isfinite(np.frombuffer(block, kind, len(block) // kind.itemsize)).all():
            return False
    return True


def _parse(start: bytes) -> _Header | None:
    """The header of NIfTI-1 or NIfTI-2 in either byte order; None for another format."""
    for order, (size, layout) in itertools.product("<>", _LAYOUTS.items()):
        if len(start) >= size and struct.unpack_from(order + "i", start) == (size,):
            fields = {
                name: struct.unpack_from(order + kind, start, offset)
                for name, (offset, kind) in layout.items()
            }
            return _header(fields, order)
    return None


def _header(fields: dict[str, tuple[float, ...]], order: str) -> _Header:
    n_dimensions = min(max(int(fields["shape"][0]), 0), 7)
    shape = tuple(int(size) for size in fields["shape"][1 : 1 + n_dimensions])
    n_voxel_bytes = math.ceil(math.prod(max(size, 1) for size in shape) * fields["bits"][0] / 8)
    offset = fields["offset"][0]
    start = max(int(offset), 0) if math.isfinite(offset) else 0
    use_quaternion, use_affine = (code > 0 for code in fields["codes"])
    place = fields["affine"] if use_affine else fields["quaternion"] if use_quaternion else ()
    floats = order + _FLOATS[kind] if (kind := int(fields["kind"][0])) in _FLOATS else ""
    return _Header(shape, fields["spacing"][:n_dimensions], place, start, start + n_voxel_bytes, floats)
