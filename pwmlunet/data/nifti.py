"""What SimpleITK does not notice about NIfTI files: missing voxels become zeros, a spacing of 0 becomes 1."""

import gzip
import itertools
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from pwmlunet.config import join

_LAYOUTS = {
    348: {  # NIfTI-1
        "shape": (40, "8h"),
        "bits": (72, "h"),
        "spacing": (80, "3f"),
        "offset": (108, "f"),
        "codes": (252, "2h"),
        "quaternion": (256, "6f"),
        "affine": (280, "12f"),
    },
    540: {  # NIfTI-2
        "shape": (16, "8q"),
        "bits": (14, "h"),
        "spacing": (112, "3d"),
        "offset": (168, "q"),
        "codes": (344, "2i"),
        "quaternion": (352, "6d"),
        "affine": (400, "12d"),
    },
}
"""By the header's size in bytes: where each field begins and its type (nifti1.h, nifti2.h)."""


@dataclass(frozen=True)
class _Header:
    shape_xyz: tuple[int, ...]
    """All dimensions in the file's order, time and others behind z."""
    spacing_xyz_mm: tuple[float, ...]
    place: tuple[float, ...]
    """The affine matrix or quaternion that says where the grid lies; empty where the header does not."""
    n_bytes: int
    """Size of the whole file, uncompressed."""


def is_nifti(path: Path) -> bool:
    """Whether the file's name says NIfTI."""
    return path.name.endswith((".nii", ".nii.gz"))


def find_damage(path: Path) -> str:
    """In words, what makes a NIfTI file unfit to be read; empty for a whole one or another format.

    A compressed file is decompressed once, checksum included: about 50 ms for 30 MB.
    """
    try:
        header, n_bytes = _measure(path)
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
    return ""


def _measure(path: Path) -> tuple[_Header | None, int]:
    """The header (None for another format) and the number of bytes in a file, uncompressed."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not compressed:
            return _parse(file.read(max(_LAYOUTS))), path.stat().st_size
        with gzip.open(file) as content:
            start = content.read(max(_LAYOUTS))
            return _parse(start), len(start) + _count(content)


def _count(content: gzip.GzipFile) -> int:
    n_bytes = 0
    while block := content.read(1 << 20):
        n_bytes += len(block)
    return n_bytes


def _parse(start: bytes) -> _Header | None:
    """The header of NIfTI-1 or NIfTI-2 in either byte order; None for another format."""
    for order, (size, layout) in itertools.product("<>", _LAYOUTS.items()):
        if len(start) >= size and struct.unpack_from(order + "i", start) == (size,):
            fields = {
                name: struct.unpack_from(order + kind, start, offset)
                for name, (offset, kind) in layout.items()
            }
            return _header(fields)
    return None


def _header(fields: dict[str, tuple[float, ...]]) -> _Header:
    n_dimensions = min(max(int(fields["shape"][0]), 0), 7)
    shape = tuple(int(size) for size in fields["shape"][1 : 1 + n_dimensions])
    n_voxel_bytes = math.ceil(math.prod(max(size, 1) for size in shape) * fields["bits"][0] / 8)
    offset = fields["offset"][0]
    start = max(int(offset), 0) if math.isfinite(offset) else 0
    use_quaternion, use_affine = (code > 0 for code in fields["codes"])
    place = fields["affine"] if use_affine else fields["quaternion"] if use_quaternion else ()
    return _Header(shape, fields["spacing"][:n_dimensions], place, start + n_voxel_bytes)
