"""Patches: a lesion is drawn first, then its patch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgenerators.dataloading.data_loader import SlimDataLoaderBase
from numpy.typing import NDArray

from pwmlunet.data.dataset import Labels
from pwmlunet.data.store import PreprocessedCase
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.lesions import find_lesions
from pwmlunet.planning.density import Density, PlacedDensity
from pwmlunet.planning.plan import Configuration

_MARGIN = 8  # pixels that a lesion keeps from the patch's edge where it can
_TRIES = 20  # for a patch without a lesion


@dataclass(frozen=True)
class Location:
    """Where a patch lies: a case, and its first slice to be labelled, row and column."""

    case: int
    z: int
    y: int
    x: int


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """A case to draw from: its arrays (or tensors on a device), its lesions and labelled slices."""

    name: str
    image: Any
    """(C, Z, Y, X)."""
    mask: Any
    """(Z, Y, X)."""
    lesions: tuple[NDArray[np.intp], ...]
    """The voxels (n, 3) of each lesion."""
    labelled_slices: NDArray[np.intp]
    """Slices with a known label."""
    prior: PlacedDensity | None = None
    """The prior density there; none for a network that takes none."""
    rich_slices: tuple[int, ...] = ()
    """Slices rich in tiny lesions, where a training asks for them."""


def training_case(case: PreprocessedCase, labels: Labels, density: Density | None = None) -> TrainingCase:
    """A preprocessed case with its lesions found and the density laid over it."""
    assert case.mask is not None
    mask = np.asarray(case.mask)
    components, n_lesions = find_lesions(np.asarray(labels.encode(mask).any(0)))
    voxels = np.argwhere(components)
    owner = components[tuple(voxels.T)]
    lesions = tuple(voxels[owner == i] for i in range(1, n_lesions + 1))
    known = labels.valid(mask).reshape(len(mask), -1).any(1)
    prior = density.place(case.facts.way_back) if density else None
    return TrainingCase(case.name, case.image, case.mask, lesions, np.flatnonzero(known), prior)


class PatchSampler:
    """Draws the locations of patches, those with a lesion `only_rich` in rich slices; stateless otherwise."""

    def __init__(
        self,
        cases: Sequence[TrainingCase],
        size_zyx: tuple[int, int, int],
        lesion_share: float,
        *,
        only_rich: bool = False,
    ) -> None:
        self.cases = cases
        self.size_zyx = size_zyx
        self.lesion_share = lesion_share
        self.lesions = [(i, lesion) for i, case in enumerate(cases) for lesion in case.lesions]
        if only_rich:
            rich = [(i, v[np.isin(v[:, 0], cases[i].rich_slices)]) for i, v in self.lesions]
            self.lesions = [(i, voxels) for i, voxels in rich if len(voxels)]
        self.labelled = [i for i, case in enumerate(cases) if len(case.labelled_slices)]
        if not self.labelled:
            raise PwmlError("no training case has a slice with a known label: check the ignore label")
        if not self.lesions and lesion_share > 0:
            raise PwmlError("no training case of this fold has a lesion: change splits.json")
        self.weights = _balanced([len(lesion) for _, lesion in self.lesions])

    def draw(self, n: int, rng: np.random.Generator) -> list[Location]:
        """Draws n locations, the share with a lesion as exact as n allows."""
        n_lesions = int(self.lesion_share * n + rng.random())
        return [self._at_lesion(rng) if i < n_lesions else self._without_lesion(rng) for i in range(n)]

    def _at_lesion(self, rng: np.random.Generator) -> Location:
        case, lesion = self.lesions[rng.choice(len(self.lesions), p=self.weights)]
        anchor = lesion[rng.integers(len(lesion))]
        shape = self.cases[case].mask.shape
        starts: list[int] = []
        for axis, (size, length) in enumerate(zip(self.size_zyx, shape, strict=True)):
            places = lesion[:, axis]
            starts.append(_start_holding(places.min(), places.max() + 1, anchor[axis], size, length, rng))
            lesion = lesion[(places >= starts[axis]) & (places < starts[axis] + size)]  # what is seen of it
        return Location(case, *starts)

    def _without_lesion(self, rng: np.random.Generator) -> Location:
        for _ in range(_TRIES):
            index = int(rng.choice(self.labelled))
            case = self.cases[index]
            depth, *in_plane = (
                max(0, length - size) for size, length in zip(self.size_zyx, case.mask.shape, strict=True)
            )
            known = int(rng.choice(case.labelled_slices))
            z = min(max(known - int(rng.integers(self.size_zyx[0])), 0), depth)
            location = Location(index, z, *(int(rng.integers(most + 1)) for most in in_plane))
            if not self._holds_lesion(location):
                break
        return location

    def _holds_lesion(self, location: Location) -> bool:
        low = np.array((location.z, location.y, location.x))
        high = low + self.size_zyx
        return any(((v >= low) & (v < high)).all(1).any() for v in self.cases[location.case].lesions)


def _balanced(sizes: Sequence[int]) -> NDArray[np.float64]:
    """Chances of lesions: each doubling of size has the square root of its share, so none dominates."""
    octaves = np.floor(np.log2(sizes)).astype(int) if sizes else np.zeros(0, int)
    _, which, counts = np.unique(octaves, return_inverse=True, return_counts=True)
    weights = 1 / np.sqrt(counts[which])
    return np.asarray(weights / weights.sum())


def _start_holding(
    first: int, stop: int, anchor: int, size: int, length: int, rng: np.random.Generator
) -> int:
    """A start at random such that [start, start + size) lies in the image and holds [first, stop).

    A lesion larger than the patch is held about its anchor voxel.
    """
    if stop - first > size:
        first, stop = anchor, anchor + 1
    margin = min(_MARGIN, (size - (stop - first)) // 2)
    low = min(max(stop + margin - size, 0), max(length - size, 0))
    high = min(max(first - margin, 0), max(length - size, 0))
    return int(rng.integers(min(low, high), max(low, high) + 1))


@dataclass(frozen=True)
class PatchShape:
    """What is cut out around a location."""

    size_zyx: tuple[int, int, int]
    """What is labelled."""
    n_slices: int
    """T: the image shows T − 1 slices more."""
    slice_step: int

    @classmethod
    def of(cls, configuration: Configuration) -> "PatchShape":
        """The patches of a configuration."""
        size = (configuration.patch_slices, *configuration.patch_size_yx)
        return cls(size, configuration.network.n_slices, configuration.slice_step)


def cut(case: TrainingCase, location: Location, shape: PatchShape) -> tuple[Any, Any]:
    """The image (C, Z, Y, X) and mask (Z', Y, X) of a patch; slices beyond the ends repeat the last one.

    A prior density is the image's last channel.
    """
    depth, height, width = shape.size_zyx
    last = case.mask.shape[0] - 1
    labelled = np.clip(location.z + np.arange(depth), 0, last).tolist()
    offsets = (np.arange(depth + shape.n_slices - 1) - shape.n_slices // 2) * shape.slice_step
    shown = np.clip(location.z + offsets, 0, last).tolist()
    rows, columns = (location.y, location.y + height), (location.x, location.x + width)
    image = case.image[:, shown, slice(*rows), slice(*columns)]
    mask = case.mask[labelled, slice(*rows), slice(*columns)]
    if tuple(mask.shape[-2:]) != (height, width):
        box_yx = [[0, height], [0, width]]
        whole = [[0, n] for n in image.shape[:2]]
        image = crop_and_pad_nd(image, whole + box_yx, float(image.min()))
        mask = crop_and_pad_nd(mask, [[0, depth], *box_yx])
    if case.prior is not None:
        image = _with_channel(image, case.prior.region(shown, rows, columns))
    return image, mask


def _with_channel(image: Any, channel: NDArray[np.float32]) -> Any:
    """The image (C + 1, Z, Y, X) with one more channel (Z, Y, X), where the image is and of its type."""
    if isinstance(image, torch.Tensor):
        return torch.cat((image, torch.from_numpy(channel[None]).to(image)))
    return np.concatenate((image, channel[None].astype(image.dtype)))


class PatchLoader(SlimDataLoaderBase):  # type: ignore[misc]
    """Batches as batchgenerators wants them: {"image": (B, C, Z, Y, X), "mask": (B, Z', Y, X), "rich": […], "where": […]}.

    The n-th batch depends on the seed, n and what the sampler draws from alone, not on how many workers draw or
    where a run resumed. "rich" tells which patches label a rich slice.
    """

    def __init__(
        self,
        sampler: PatchSampler,
        shape: PatchShape,
        *,
        batch_size: int,
        seed: int,
        first_batch: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(sampler.cases, batch_size, max(1, workers))
        self.sampler = sampler
        self.shape = shape
        self.seed = seed
        self.next_batch: int | None = None
        self.first_batch = first_batch

    def generate_train_batch(self) -> Mapping[str, Any]:
        """The next batch of this worker: every `workers`-th one."""
        if self.next_batch is None:
            self.next_batch = self.first_batch + self.thread_id
        rng = np.random.default_rng([self.seed, self.next_batch])
        self.next_batch += self.number_of_threads_in_multithreaded
        locations = self.sampler.draw(self.batch_size, rng)
        patches = [cut(self._data[at.case], at, self.shape) for at in locations]
        return {
            "image": _stack([image for image, _ in patches]),
            "mask": _stack([mask for _, mask in patches]),
            "rich": [self._is_rich(at) for at in locations],
            "where": [
                f"case {self._data[at.case].name}, slice {at.z}, row {at.y}, column {at.x}"
                for at in locations
            ],
        }

    def _is_rich(self, at: Location) -> bool:
        return any(at.z <= z < at.z + self.shape.size_zyx[0] for z in self._data[at.case].rich_slices)


def _stack(arrays: Sequence[Any]) -> Any:
    """One array or tensor of all; an array travels whole from a worker process, which may end while it does."""
    return torch.stack(list(arrays)) if isinstance(arrays[0], torch.Tensor) else np.stack(arrays)
