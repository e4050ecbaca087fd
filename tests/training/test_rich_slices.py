import logging

import numpy as np
import pytest

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.data.store import CaseFacts, Orientation, PreprocessedCase, WayBack
from pwmlunet.training.rich_slices import _lesions_by_slice, mark_rich_slices
from pwmlunet.training.sampling import training_case

LABELS = Labels((Target("spot", (1,), 1), Target("area", (3,), 3)), ignore=2)


def case_of(tiny, *slices):
    """A case drawn as text: "." is background, a number is a label."""
    mask = np.array([[[0 if c == "." else int(c) for c in row] for row in rows.split()] for rows in slices])
    way_back = WayBack(tiny.oblique(mask.shape), Orientation(), ((0, 1), (0, 1), (0, 1)), mask.shape)
    image = np.zeros((1, *mask.shape), np.float32)
    case = PreprocessedCase(CaseFacts("a", "a", way_back, {}), image, mask.astype(np.uint8))
    return training_case(case, LABELS)


def test_lesions_are_components_within_a_slice_with_corners(tiny):
    """One lesion through two slices that is two in the second; labels that touch are one, ignored ones none."""
    case = case_of(tiny, "1111. ..... ..2..", "1..1. .1... 3....", "..... ..... .....")
    assert sorted(_lesions_by_slice(case)) == [(0, 4), (1, 1), (1, 3)]


def test_slices_with_many_tiny_lesions_are_rich_and_those_with_large_ones_are_not(tiny):
    """Sizes 1 (12 times), 2, 4 and 6: tiny is 1. The slices have 4 and 2 of these, 0, 1, 2 and 3: the quartile is 2.75."""
    one = case_of(
        tiny, "1.1.1. ...... 1..111 ...111", ".1.... ...1.. ...... 1111..", "...... ...... ...... ......"
    )
    other = case_of(
        tiny,
        "11.... ...... ...... ......",
        "1..... ...... ...... ......",
        "1.3... ...... ...... ......",
        "1.1.3. ...... ...... ......",
    )
    assert [case.rich_slices for case in (one, other)] == [(), ()]
    marked = mark_rich_slices([one, other])
    assert [case.rich_slices for case in marked] == [(0,), (3,)]
    assert [len(case.lesions) for case in marked] == [len(one.lesions), len(other.lesions)]


def test_a_slice_without_tiny_lesions_is_never_rich(tiny):
    """The quartile of slices is 0, which all of them would reach."""
    sparse = case_of(tiny, "1.1.1 ..... 1.1.1", *["11... 11... ....."] * 5)
    assert mark_rich_slices([sparse])[0].rich_slices == (0,)


@pytest.mark.parametrize("slices", [(".....", "....."), ("1.1..", "..1.1", ".....")])
def test_of_slices_that_are_alike_none_is_rich(tiny, caplog, slices):
    with caplog.at_level(logging.INFO):
        assert mark_rich_slices([case_of(tiny, *slices)])[0].rich_slices == ()
    assert caplog.messages == (
        ["no slice is richer in tiny lesions than the others"] if "1" in slices[0] else []
    )
