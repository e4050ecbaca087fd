"""What about a case to predict does not look like the cases that its networks learned from."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.data.image import Geometry
from pwmlunet.planning.fingerprint import ChannelFacts, channel_facts
from pwmlunet.planning.plan import ExpectedInput

_STRANGE = (1.5, 1.0, 3.0)  # of the 0.5th, 50th and 99.5th percentile, in standard deviations from the mean
_CLEARLY = 2 / 3  # of the distance to a channel's own usual traits
_LEAST_DISTANCE = 0.75  # below it a channel looks like itself


def oddities(
    channels: Sequence[NDArray[Any]],
    geometry: Geometry,
    expected: ExpectedInput,
    head: NDArray[np.bool_],
    names: Sequence[str],
) -> list[str]:
    """In words, how a case and the head in it differ from the training cases; empty for one that does not.

    Channels are called by their names; nothing is said of one that is lacking, which is constant.
    """
    found = []
    spacing = np.array(geometry.spacing_zyx_mm)
    low, high = np.array(expected.spacing_low_zyx_mm) / 1.5, np.array(expected.spacing_high_zyx_mm) * 1.5
    if (spacing < low).any() or (spacing > high).any():
        trained = join(f"{s:.3g}" for s in expected.spacing_low_zyx_mm)
        found.append(f"its spacing {join(f'{s:.3g}' for s in spacing)} mm is far from the training cases' ({trained} mm)")  # fmt: skip
    all_facts = [channel_facts(image, head) for image in channels]
    there = [i for i, facts in enumerate(all_facts[: len(expected.channels)]) if facts.std > 0]
    seen = _traits([all_facts[i] for i in there])
    usual = _traits([expected.channels[i] for i in there])
    swapped = _find_swapped(seen, usual)
    for one, other in swapped:
        pair = [f"{there[index]} ({names[there[index]]})" for index in (one, other)]
        found.append(f"its channels {pair[0]} and {pair[1]} look swapped: each looks like the other of the training cases; check which file is which")  # fmt: skip
    strange = (np.abs(seen - usual)[:, :-1] > 1).any(1)
    for index in set(np.flatnonzero(strange).tolist()) - {index for pair in swapped for index in pair}:
        found.append(f"channel {there[index]} has other contrasts than the training images: is it the right kind of image?")  # fmt: skip
    return found


def _traits(facts: Sequence[ChannelFacts]) -> NDArray[np.float64]:
    """What tells channels of a case from each other, however a scanner scales them: (C, 4).

    The percentiles in standard deviations from the mean, in shares of what is strange; then how bright a channel is
    beside the others, in doublings.
    """
    shapes = [(np.array(one.percentiles) - one.mean) / max(one.std, 1e-6) / _STRANGE for one in facts]
    means = np.array([one.mean for one in facts])
    levels = np.log2(means) if (means > 0).all() else np.zeros(len(means))
    return np.column_stack((np.reshape(shapes, (-1, len(_STRANGE))), levels - levels.mean()))


def _find_swapped(seen: NDArray[np.float64], usual: NDArray[np.float64]) -> list[tuple[int, int]]:
    """The pairs of channels of which each is clearly nearer to the other's usual traits (C, 4) than to its own."""
    distance = np.linalg.norm(seen[:, None] - usual[None], axis=-1)  # (seen, usual)
    own = np.diag(distance)
    nearer = (distance < _CLEARLY * own[:, None]) & (own[:, None] > _LEAST_DISTANCE)
    return [(i, j) for i, j in combinations(range(len(own)), 2) if nearer[i, j] and nearer[j, i]]
