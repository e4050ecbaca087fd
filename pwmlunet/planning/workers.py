"""How many cases are read or prepared at a time: as many as memory allows."""

import logging
from collections.abc import Sequence
from pathlib import Path

from pwmlunet.data.dataset import CaseFiles

logger = logging.getLogger(__name__)

_BYTES_OF_VOXEL = 20  # measured on 55 million voxels of one channel: what preparing them takes at its peak
_MOST_BYTES = 2.4e9  # with what the libraries take, 3 GB for all workers together
_SHARE_OF_FREE = 0.5


def affordable_workers(cases: Sequence[CaseFiles], wished: int) -> int:
    """As many of the wished workers as memory is there for, with the largest case in each; at least one."""
    n_voxels = max(sum(_count_voxels(path) for path in case.images) for case in cases)
    memory = min(_MOST_BYTES, _SHARE_OF_FREE * free_bytes())
    workers = max(1, min(wished, int(memory // max(1, n_voxels * _BYTES_OF_VOXEL))))
    if workers < wished:
        logger.info("%d instead of %d cases at a time: the largest holds %.0f million voxels, about %.1f GB to prepare, and %.1f GB may be used", workers, wished, n_voxels / 1e6, n_voxels * _BYTES_OF_VOXEL / 1e9, memory / 1e9)  # fmt: skip
    return workers


def free_bytes() -> int:
    """Memory that processes may still take; 4 GiB where the system does not say."""
    facts = Path("/proc/meminfo")
    for line in facts.read_text().splitlines() if facts.is_file() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 4 * 2**30


def _count_voxels(path: Path) -> int:
    """The voxels that a file's header promises; 0 for a file that cannot be read, which reading it will tell."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return 0
    n_voxels = 1
    for size in reader.GetSize():
        n_voxels *= int(size)
    return n_voxels
