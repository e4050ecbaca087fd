"""Fingerprint: the facts of a raw dataset, from one pass in which every file is read once and verified."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pwmlunet.config import Config, join
from pwmlunet.data.dataset import CaseFiles, Dataset, Labels
from pwmlunet.data.image import Geometry
from pwmlunet.data.parallel import map_cases
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.lesions import find_lesions
from pwmlunet.planning.cropping import Box, box_of, find_fan, foreground
from pwmlunet.planning.modality import may_hold_fan
from pwmlunet.planning.preprocessing import read_case

logger = logging.getLogger(__name__)

_RING_VOXELS = 3


@dataclass(frozen=True)
class LesionFacts(Config):
    """One lesion: a connected component of a mask (26-connected; 8-connected in a single slice)."""

    target: str
    """The label's name."""
    n_voxels: int
    """Its voxels."""
    volume_mm3: float
    """Its volume; mm² for a 2-D image."""
    extent_zyx: tuple[int, int, int]
    """Voxels along each of the file's axes."""
    diameter_zyx_voxels: tuple[float, float, float]
    """Diameter of the disc with the area of its largest slice along each of the file's axes."""
    contrast: float
    """Its mean over the mean of a ring three pixels wide around it, in channel 0."""
    centre_zyx: tuple[float, float, float]
    """Mean place of its voxels along each of the file's axes, from 0."""
    contrasts: tuple[float, ...] = ()
    """The contrast in each channel, where there are several."""


@dataclass(frozen=True)
class ChannelFacts(Config):
    """Intensities of one channel inside the head or body."""

    mean: float
    """Their mean."""
    std: float
    """Their standard deviation."""
    percentiles: tuple[float, float, float]
    """The 0.5th, 50th and 99.5th."""


@dataclass(frozen=True)
class CaseFingerprint(Config):
    """The facts of one case."""

    name: str
    """The case."""
    subject: str
    """Its subject; folds never divide one."""
    geometry: Geometry
    """Its grid."""
    head_box_zyx: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    """The box of the head or body; of the fan where there is one."""
    head_voxels: int
    """Voxels of the head, body or fan itself."""
    has_fan: bool
    """Whether the image is a fan in a field of zeros, as ultrasound is; not looked for in other images."""
    channels: tuple[ChannelFacts, ...]
    """One for each channel."""
    lesions: tuple[LesionFacts, ...]
    """Every lesion."""
    n_labelled_slices: int
    """Slices along z with a known label."""
    n_lesion_slices: int
    """Slices along z with a lesion."""


@dataclass(frozen=True)
class Fingerprint(Config):
    """The facts of a dataset."""

    dataset: str
    """Its folder's name."""
    channel_names: tuple[str, ...]
    """As in dataset.json."""
    cases: tuple[CaseFingerprint, ...]
    """The facts of each case."""
    are_regions: bool = False
    """Whether labels may overlap (nnU-Net's regions)."""

    @property
    def lesions(self) -> list[LesionFacts]:
        """Every lesion of every case."""
        return [lesion for case in self.cases for lesion in case.lesions]

    def summary(self) -> Iterator[tuple[str, str]]:
        """What a person wants to know first, as pairs of topic and words."""
        volumes = [lesion.volume_mm3 for lesion in self.lesions]
        sizes = [lesion.n_voxels for lesion in self.lesions]
        subjects = {case.subject for case in self.cases}
        with_lesions = {case.subject for case in self.cases if case.lesions}
        labelled = sum(case.n_labelled_slices for case in self.cases)
        lesion_slices = sum(case.n_lesion_slices for case in self.cases)
        spacing = np.median([case.geometry.spacing_zyx_mm for case in self.cases], axis=0)
        shape = np.median([case.geometry.shape_zyx for case in self.cases], axis=0).astype(int)
        yield "cases", f"{len(self.cases)} of {len(subjects)} subjects, channels {join(self.channel_names)}"
        yield "grid", f"median {join(shape)} voxels at {join(f'{s:.3g}' for s in spacing)} mm (z, y, x)"
        yield (
            "lesions",
            f"{len(sizes)}, of {min(sizes)} to {max(sizes)} voxels, median {np.median(sizes):g} ({np.median(volumes):.3g} mm³)",
        )
        yield "without", f"{len(subjects) - len(with_lesions)} subjects; {labelled - lesion_slices} of {labelled} labelled slices"  # fmt: skip


def extract_fingerprint(dataset: Dataset, workers: int) -> Fingerprint:
    """The facts of a dataset's training cases.

    Raises:
        PwmlError: cases with problems, all of them listed; or there is no lesion at all.
    """
    cases, problems = map_cases(
        lambda files: _case_fingerprint(files, dataset.labels, dataset.channel_names),
        dataset.cases,
        workers=workers,
        title="look",
    )
    if problems:
        raise PwmlError.listing(f"{dataset.name} has problems", problems)
    for case in cases:
        if not case.n_labelled_slices:
            logger.warning("case %s: every voxel is labelled ignore; it cannot teach anything", case.name)
    empty = [case.name for case in cases if case.n_labelled_slices and not case.lesions]
    if empty:
        shown = join(empty[:10]) + (", …" if len(empty) > 10 else "")
        logger.info("empty masks, which teach what is no lesion: %s (%d cases)", shown, len(empty))
    if not any(case.lesions for case in cases):
        raise PwmlError(f"{dataset.name}: no mask holds a lesion: there is nothing to learn from")
    if len({case.geometry.is_2d for case in cases}) > 1:
        flat = [case.name for case in cases if case.geometry.is_2d]
        raise PwmlError(f"{dataset.name}: 2-D and 3-D images are mixed (2-D: {join(flat)}): keep one kind")
    return Fingerprint(dataset.name, dataset.channel_names, tuple(cases), dataset.labels.are_regions)


def _case_fingerprint(files: CaseFiles, labels: Labels, channel_names: Sequence[str]) -> CaseFingerprint:
    channels, mask = read_case(files, labels)
    assert mask is not None
    image, geometry = channels[0].array, channels[0].geometry
    fan = find_fan(image) if may_hold_fan(channel_names, geometry) else None
    head = foreground(image) if fan is None else fan
    lesions, n_lesion_slices = _measure(mask.array, [channel.array for channel in channels], labels, geometry)
    known = labels.valid(mask.array).reshape(len(image), -1).any(1)
    return CaseFingerprint(
        files.name,
        files.subject,
        geometry,
        box_of(head),
        int(np.count_nonzero(head)),
        fan is not None,
        tuple(channel_facts(channel.array, head) for channel in channels),
        lesions,
        int(known.sum()),
        n_lesion_slices,
    )


def channel_facts(image: NDArray[Any], head: NDArray[np.bool_]) -> ChannelFacts:
    """The intensities of an image inside the head."""
    inside = image[head].astype(np.float32)
    low, middle, high = (float(v) for v in np.percentile(inside, (0.5, 50, 99.5)))
    return ChannelFacts(float(inside.mean()), float(inside.std()), (low, middle, high))


STRANGE = (1.5, 1.0, 3.0)
"""By how much the 0.5th, 50th and 99.5th percentile may differ, in standard deviations from the mean."""


def channel_traits(facts: Sequence[ChannelFacts]) -> NDArray[np.float64]:
    """What tells the channels of a case from each other, however a scanner scales them: (C, 4).

    The percentiles in standard deviations from the mean, in shares of what is strange; then how bright a channel is
    beside the others, in doublings.
    """
    shapes = [(np.array(one.percentiles) - one.mean) / max(one.std, 1e-6) / STRANGE for one in facts]
    means = np.array([one.mean for one in facts])
    levels = np.log2(means) if (means > 0).all() else np.zeros(len(means))
    return np.column_stack((np.reshape(shapes, (-1, len(STRANGE))), levels - levels.mean()))


def _measure(
    mask: NDArray[Any], channels: Sequence[NDArray[Any]], labels: Labels, geometry: Geometry
) -> tuple[tuple[LesionFacts, ...], int]:
    """A case's lesions and the number of slices with one, measured inside the box of what is labelled.

    Lesions fill a thousandth of a volume of 55 million voxels; beyond their box there is nothing to count.
    """
    if not mask.any():
        return (), 0
    box = [
        (max(0, start - _RING_VOXELS), min(size, stop + _RING_VOXELS))
        for (start, stop), size in zip(box_of(mask != 0), mask.shape, strict=True)
    ]
    inside = tuple(slice(*interval) for interval in box)
    targets, near = labels.encode(mask[inside]), [c[inside].astype(np.float32) for c in channels]
    lesions = tuple(
        lesion
        for target, where in zip(labels.targets, targets, strict=True)
        for lesion in _lesions(where, near, target.name, geometry, [start for start, _ in box])
    )
    return lesions, int(targets.any((0, 2, 3)).sum())


def _lesions(
    mask: NDArray[np.bool_],
    channels: Sequence[NDArray[np.float32]],
    target: str,
    geometry: Geometry,
    corner_zyx: Sequence[int],
) -> Iterator[LesionFacts]:
    """The facts of each lesion of a mask and channels that begin at `corner_zyx` of the whole ones."""
    import cc3d

    labelled, n_lesions = find_lesions(mask)
    if not n_lesions:
        return
    statistics = cc3d.statistics(labelled)
    voxel_mm3 = float(np.prod(geometry.spacing_zyx_mm))
    for index in range(1, n_lesions + 1):
        box: Box = tuple((s.start, s.stop) for s in statistics["bounding_boxes"][index])  # type: ignore[assignment]
        around = tuple(slice(max(0, start - _RING_VOXELS), stop + _RING_VOXELS) for start, stop in box)
        lesion = labelled[around] == index
        n_voxels = int(statistics["voxel_counts"][index])
        extent = (box[0][1] - box[0][0], box[1][1] - box[1][0], box[2][1] - box[2][0])
        z, y, x = (2 * float(np.sqrt(lesion.sum(plane).max() / np.pi)) for plane in ((1, 2), (0, 2), (0, 1)))
        contrasts = _contrasts(lesion, mask[around], [image[around] for image in channels])
        centre = tuple((statistics["centroids"][index] + corner_zyx).tolist())
        of_each = contrasts if len(contrasts) > 1 else ()
        yield LesionFacts(
            target, n_voxels, n_voxels * voxel_mm3, extent, (z, y, x), contrasts[0], centre, of_each
        )


def _contrasts(
    lesion: NDArray[np.bool_], any_lesion: NDArray[np.bool_], channels: Sequence[NDArray[np.float32]]
) -> tuple[float, ...]:
    """In each channel the mean inside over the mean of the in-plane ring around it; 1 where there is no ring."""
    disc = np.ones((1, 2 * _RING_VOXELS + 1, 2 * _RING_VOXELS + 1), bool)
    ring = ndimage.binary_dilation(lesion, disc) & ~any_lesion
    around = [float(image[ring].mean()) if ring.any() else 0.0 for image in channels]
    return tuple(
        float(image[lesion].mean()) / mean if mean > 0 else 1.0
        for image, mean in zip(channels, around, strict=True)
    )
