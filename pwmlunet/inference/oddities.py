"""What about a case to predict does not look like the cases that its networks learned from."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.data.image import Geometry
from pwmlunet.planning.fingerprint import ChannelFacts, channel_facts, channel_traits
from pwmlunet.planning.plan import ChannelTraits, ExpectedInput

_CLEARLY = 2 / 3  # of the distance to a channel's own usual traits
_LEAST_DISTANCE = 4.0  # spreads; below it a channel looks like itself


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
    seen = channel_traits([all_facts[i] for i in there])
    usual = channel_traits([expected.channels[i] for i in there])
    swapped = _find_swapped(all_facts, expected.traits) if len(there) == len(expected.channels) else []
    for pair_of in swapped:
        pair = [f"{index} ({names[index]})" for index in pair_of]
        found.append(f"its channels {pair[0]} and {pair[1]} look swapped: each looks like the other of the training cases; check which file is which")  # fmt: skip
    strange = (np.abs(seen - usual)[:, :-1] > 1).any(1)
    for index in set(np.flatnonzero(strange).tolist()) - {there.index(i) for pair in swapped for i in pair}:
        found.append(f"channel {there[index]} has other contrasts than the training images: is it the right kind of image?")  # fmt: skip
    return found


def _find_swapped(facts: Sequence[ChannelFacts], traits: Sequence[ChannelTraits]) -> list[tuple[int, int]]:
    """The pairs of channels of which each is clearly nearer to the other's usual traits than to its own."""
    if len(traits) != len(facts):
        return []  # a plan of an older version, or one channel
    usual, spread = (np.array([getattr(one, name) for one in traits]) for name in ("usual", "spread"))
    away = (channel_traits(facts)[:, None] - usual[None]) / spread[None]  # (seen, usual, 4)
    distance = np.linalg.norm(away, axis=-1)
    own = np.diag(distance)
    nearer = (distance < _CLEARLY * own[:, None]) & (own[:, None] > _LEAST_DISTANCE)
    return [(i, j) for i, j in combinations(range(len(own)), 2) if nearer[i, j] and nearer[j, i]]
