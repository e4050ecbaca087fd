"""Masks drawn as text, scored."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.evaluation.scores import CaseScores, score_case

LESION = Labels((Target("lesion", (1,), 1),), ignore=9)
SPACING = (3.0, 1.0, 1.0)


def drawn(*slices: str) -> NDArray[np.uint8]:
    """A mask (Z, Y, X) from one text per slice, rows apart by spaces; a digit is a label, . is 0."""
    return np.array([[[int(c.replace(".", "0")) for c in row] for row in text.split()] for text in slices], np.uint8)  # fmt: skip


def chances(*slices: str) -> NDArray[np.float32]:
    """A probability (Z, Y, X) drawn the same way: a digit is so many tenths, * is 1."""
    return np.array([[[10 if c == "*" else int(c.replace(".", "0")) for c in row] for row in text.split()] for text in slices], np.float32) / 10  # fmt: skip


def scored(
    reference: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    name: str = "a",
    subject: str = "",
    **options: Any,
) -> CaseScores:
    """The scores of one case of slices 3 mm thick."""
    given = {"spacing_zyx_mm": SPACING, "labels": LESION, **options}
    return score_case(reference, prediction, name=name, subject=subject or name, **given)


HIT = scored(drawn("11..", "...."), drawn("11..", "...."), "hit")
MISS = scored(drawn("11..", "...."), drawn("....", "...."), "miss")
FALSE = scored(drawn("....", "...."), drawn("1.1.", "...1"), "false")
CLEAN = scored(drawn("....", "...."), drawn("....", "...."), "clean")
