"""Slices rich in tiny lesions, which a training may begin with."""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pwmlunet.evaluation.lesions import find_lesions
from pwmlunet.training.sampling import TrainingCase

logger = logging.getLogger(__name__)


def mark_rich_slices(cases: Sequence[TrainingCase]) -> list[TrainingCase]:
    """The cases with their rich slices marked; none is where all slices with lesions are alike.

    A slice's lesions are its components of pixels that meet at an edge or a corner. Tiny ones are no larger than
    the median over all cases; a slice is rich that has at least as many of these as the upper quartile of slices
    with lesions.
    """
    found = [list(_lesions_by_slice(case)) for case in cases]
    n_pixels = [size for lesions in found for _, size in lesions]
    if not n_pixels:
        return list(cases)
    largest = float(np.median(n_pixels))
    n_tiny = [Counter({z: 0 for z, _ in lesions}) for lesions in found]
    for counter, lesions in zip(n_tiny, found, strict=True):
        counter.update(z for z, size in lesions if size <= largest)
    counts = [n for counter in n_tiny for n in counter.values()]
    fewest = max(1.0, float(np.quantile(counts, 0.75)))
    if min(counts) >= fewest:
        logger.info("no slice is richer in tiny lesions than the others")
        return list(cases)
    n_rich = sum(n >= fewest for n in counts)
    logger.info("%d of %d slices with lesions are rich: in them are %g or more of at most %g pixels", n_rich, len(counts), fewest, largest)  # fmt: skip
    return [
        replace(case, rich_slices=tuple(sorted(z for z, n in counter.items() if n >= fewest)))
        for case, counter in zip(cases, n_tiny, strict=True)
    ]


def _lesions_by_slice(case: TrainingCase) -> Iterator[tuple[int, int]]:
    """Slice and pixels of each component within a slice."""
    for lesion in case.lesions:
        for z in np.unique(lesion[:, 0]):
            places = lesion[lesion[:, 0] == z, 1:]
            places = places - places.min(0)
            mask = np.zeros((1, *(places.max(0) + 1)), bool)
            mask[0][tuple(places.T)] = True
            components, _ = find_lesions(mask)
            yield from ((int(z), int(size)) for size in np.bincount(components.ravel())[1:])
