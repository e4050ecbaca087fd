"""Where to look in a case: its lesions and their fate, and the slice and the part of it that show each."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.data.image import FILE_ENDINGS, Geometry, read_image
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.lesions import LEAST_IOU, Lesions, find_touching, match_by_iou, measure_lesions
from pwmlunet.evaluation.scores import CaseScores

ZOOM_PIXELS = 48
"""Side of the zoom in the image's own pixels; a larger lesion gets a larger one."""

Box = tuple[int, int, int, int]
"""Top, bottom, left, right of a part of a slice, half-open."""

LesionKey = tuple[bool, int]
"""Whether it is a predicted lesion, and its number from 0."""

Fate = Literal["found", "missed", "false"]
"""What became of a lesion; a predicted lesion that found one is "found" too."""

Item = TypeVar("Item")

_MOST_CHANNELS = 20  # that are looked for
_MARGIN_PIXELS = 8  # of a zoom around a large lesion, both sides together


@dataclass(frozen=True)
class Place:
    """A part of a slice in which there are lesions to see."""

    z: int
    """The slice."""
    box: Box
    """The part of it to enlarge."""
    centre: tuple[int, int]
    """A pixel (y, x) of the lesion for whose sake it was chosen."""
    lesions: tuple[LesionKey, ...]
    """All lesions that are in the box, in the order of interest; none in a case without lesions."""


@dataclass(frozen=True, eq=False)
class Fates:
    """The lesions of a case, on both sides, and what became of them under the main rule."""

    sides: tuple[Lesions, Lesions]
    """Reference and prediction."""
    pairs: tuple[tuple[int, int], ...]
    """Numbers of each reference lesion that was found and of the predicted one that found it."""

    @classmethod
    def of(
        cls,
        reference: NDArray[np.bool_],
        prediction: NDArray[np.bool_],
        spacing_zyx_mm: tuple[float, float, float],
    ) -> "Fates":
        """The lesions of two masks (Z, Y, X)."""
        sides = measure_lesions(reference, spacing_zyx_mm), measure_lesions(prediction, spacing_zyx_mm)
        touching = find_touching(*sides)
        kept = match_by_iou(touching, LEAST_IOU)
        pairs = zip(touching.reference[kept].tolist(), touching.predicted[kept].tolist(), strict=True)
        return cls(sides, tuple(pairs))

    @cached_property
    def _matched(self) -> frozenset[LesionKey]:
        return frozenset(lesion for pair in self.pairs for lesion in zip((False, True), pair, strict=True))

    @cached_property
    def _voxels(self) -> tuple[Sequence[NDArray[np.int64]], Sequence[NDArray[np.int64]]]:
        """The voxels (V, 3) of each lesion."""
        return self.sides[0].voxels(), self.sides[1].voxels()

    @cached_property
    def _largest_areas(self) -> tuple[list[int], list[int]]:
        """How many pixels each lesion has in the slice in which it is largest."""
        first, second = ([int(np.bincount(v[:, 0]).max()) for v in side] for side in self._voxels)
        return first, second

    def fate(self, lesion: LesionKey) -> Fate:
        """What became of a lesion."""
        if lesion in self._matched:
            return "found"
        return "false" if lesion[0] else "missed"

    def by_interest(self, *, failures_first: bool = True) -> list[LesionKey]:
        """Missed, false, then found lesions, or found ones before; the largest of each first."""

        def rank(lesion: LesionKey) -> tuple[bool, bool, int]:
            side, number = lesion
            return (
                (lesion in self._matched) == failures_first,
                side,
                -int(self.sides[side].n_voxels[number]),
            )

        lesions = [(side, n) for side in (False, True) for n in range(len(self.sides[side].n_voxels))]
        return sorted(lesions, key=rank)

    def places(self, order: Iterable[LesionKey]) -> Iterator[Place]:
        """Where to look until each lesion was seen, in the order given; a case without any gives its middle slice."""
        order = list(order)
        seen: set[LesionKey] = set()
        for lesion in order:
            if lesion not in seen:
                z, box, centre = self._slice_of(lesion)
                here = self.lesions_in(z, box)
                shown = tuple(other for other in order if other in here)
                seen.update(*self.findings(shown))  # with the other half of a pair
                yield Place(z, box, centre, shown)
        if not order:
            depth, height, width = self.sides[0].components.shape
            yield Place(depth // 2, (0, height, 0, width), (height // 2, width // 2), ())

    def _slice_of(self, lesion: LesionKey) -> tuple[int, Box, tuple[int, int]]:
        """The slice in which a lesion is largest, the box to enlarge around it, and a pixel of it."""
        side, number = lesion
        voxels = self._voxels[side][number]
        z = int(np.bincount(voxels[:, 0]).argmax())
        pixels = voxels[voxels[:, 0] == z, 1:]
        (top, left), (bottom, right) = pixels.min(0).tolist(), (pixels.max(0) + 1).tolist()
        y, x = pixels[np.square(pixels - pixels.mean(0)).sum(1).argmin()].tolist()
        return z, box_around(top, bottom, left, right, shape=self.sides[side].components.shape[1:]), (y, x)

    def lesions_in(self, z: int, box: Box) -> set[LesionKey]:
        """The lesions of which at least half of their largest slice's area is in the box."""
        top, bottom, left, right = box
        here = set()
        for side, areas in enumerate(self._largest_areas):
            part = self.sides[side].components[z, top:bottom, left:right]
            numbers, sizes = np.unique(part[part > 0], return_counts=True)
            seen = zip(numbers.tolist(), sizes.tolist(), strict=True)
            here |= {(bool(side), n - 1) for n, size in seen if 2 * size >= areas[n - 1]}
        return here

    def findings(self, lesions: Sequence[LesionKey]) -> list[tuple[LesionKey, ...]]:
        """Some lesions, a found one and the one that found it together, in the order of the first of them."""
        pair_of: dict[LesionKey, tuple[LesionKey, ...]] = {}
        for reference, predicted in self.pairs:
            pair = (False, reference), (True, predicted)
            pair_of |= dict.fromkeys(pair, pair)
        return list(dict.fromkeys(pair_of.get(lesion, (lesion,)) for lesion in lesions))

    def words(self, lesions: Iterable[LesionKey]) -> str:
        """How many of some lesions were found and missed, and how many are false."""
        fates = [(side, self.fate((side, number))) for side, number in lesions]
        counts = {"found": (False, "found"), "missed": (False, "missed"), "false": (True, "false")}
        return join(f"{fates.count(fate)} {word}" for word, fate in counts.items() if fate in fates)


def lesion_f1(case: CaseScores) -> float | None:
    """The lesion F1 of a case over its targets together; None where there is nothing in either mask."""
    parts = [target.lesions.main for target in case.targets.values()]
    total = sum(part.n_reference + part.n_predicted for part in parts)
    return sum(part.n_found + part.n_true for part in parts) / total if total else None


def in_turns(parts: Iterable[Iterable[Item]]) -> Iterator[Item]:
    """The first of each, then the second of each, and so on."""
    return (item for turn in zip_longest(*parts) for item in turn if item is not None)


def box_around(top: int, bottom: int, left: int, right: int, *, shape: tuple[int, ...]) -> Box:
    """A square box around a part, inside the image; larger than `ZOOM_PIXELS` only for a larger part."""
    side = max(ZOOM_PIXELS, bottom - top + _MARGIN_PIXELS, right - left + _MARGIN_PIXELS)
    edges = []
    for start, stop, size in ((top, bottom, shape[0]), (left, right, shape[1])):
        first = max(min((start + stop - side) // 2, size - side), 0)
        edges += [first, min(first + side, size)]
    return edges[0], edges[1], edges[2], edges[3]


def content_box(pixels: NDArray[Any], box: Box) -> Box:
    """The part of a slice (Y, X) without the empty surroundings of the head, but with all of a box."""
    bright = pixels > pixels.min() + 0.1 * (np.percentile(pixels, 99.7) - pixels.min())
    bright[box[0] : box[1], box[2] : box[3]] = True
    rows, columns = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def grey_range(pixels: NDArray[Any]) -> tuple[float, float]:
    """What is shown black and what white: the 1st and the 98th percentile of what is not black."""
    lit = pixels[pixels > pixels.min()]
    low, high = np.percentile(lit, (1, 98)) if len(lit) else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def outlines(mask: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Closed lines along the sides of the pixels of a mask (Y, X), as corners (y, x).

    Pixel (y, x) reaches from corner (y, x) to (y + 1, x + 1). The first corner of a line is repeated at its end.
    """
    ways = _sides(mask)
    lines = []
    while ways:
        line = [next(iter(ways))]
        while line[-1] in ways:  # as many sides lead into a corner as out of it: a walk ends where it began
            targets = ways[line[-1]]
            line.append(targets.pop())
            if not targets:
                del ways[line[-2]]
        lines.append(_without_straight(line))
    return lines


def _sides(mask: NDArray[np.bool_]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """The sides between inside and outside, with the inside to the right: corners by the corner before."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    neighbours = {
        ((0, 0), (0, 1)): padded[:-2, 1:-1],
        ((0, 1), (1, 1)): padded[1:-1, 2:],
        ((1, 1), (1, 0)): padded[2:, 1:-1],
        ((1, 0), (0, 0)): padded[1:-1, :-2],
    }
    ways: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for (start, stop), neighbour in neighbours.items():
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            ways.setdefault((y + start[0], x + start[1]), []).append((y + stop[0], x + stop[1]))
    return ways


def _without_straight(line: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """A line without the corners at which it goes straight on."""
    inner = zip(line[:-2], line[1:-1], line[2:], strict=True)
    turns = [b for a, b, c in inner if (b[0] - a[0], b[1] - a[1]) != (c[0] - b[0], c[1] - b[1])]
    return [line[0], *turns, line[-1]]


def read_channel(folder: Path, name: str, geometry: Geometry) -> NDArray[Any]:
    """The first channel (Z, Y, X) that a case has, named CASE_0000 as in imagesTr, or CASE.

    Raises:
        PwmlError: it is missing, or on another grid than the masks.
    """
    channels = (*(f"_{number:04d}" for number in range(_MOST_CHANNELS)), "")
    paths = [folder / f"{name}{channel}{ending}" for channel in channels for ending in FILE_ENDINGS]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise PwmlError(f"{folder} holds no image of case {name} ({name}_0000 or {name}): add it")
    image = read_image(found)
    if differences := image.geometry.differences(geometry):
        raise PwmlError(f"{found} is not on the grid of its mask: {'; '.join(differences)}")
    return image.array
