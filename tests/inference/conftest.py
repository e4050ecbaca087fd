"""Out-of-fold cases whose lesions and false candidates are as probable as a test wants them."""

from types import SimpleNamespace

import numpy as np
import pytest

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.evaluation.probabilities import probability_of
from pwmlunet.inference.candidates import OutOfFold, tabulate_case

LESION = Labels((Target("lesion", (1,), 1),), None)
SHAPE_ZYX = (3, 41, 50)
SPACING_ZYX_MM = (3.0, 0.7, 0.5)
SLOTS = [(1, y, x) for y in range(2, 38, 6) for x in range(2, 46, 6)]


def out_of_fold(name, lesions=(), false=(), *, subject=None, fold="0", size=6):
    """A case with a lesion of six voxels for each logit, and false candidates for others."""
    reference = np.zeros(SHAPE_ZYX, np.uint8)
    probability = np.full((1, *SHAPE_ZYX), 1e-4, np.float32)
    for i, (logit, (z, y, x)) in enumerate(zip([*lesions, *false], SLOTS, strict=False)):
        where = (z, slice(y, y + 2), slice(x, x + (3 if i < len(lesions) else size // 2)))
        probability[(0, *where)] = probability_of(logit)
        reference[where] = i < len(lesions)
    return OutOfFold(name, subject or name, fold, SPACING_ZYX_MM, reference, probability)


def tables(cases):
    return [tabulate_case(case, LESION) for case in cases]


@pytest.fixture(scope="session")
def synthetic():
    return SimpleNamespace(out_of_fold=out_of_fold, tables=tables, labels=LESION, spacing=SPACING_ZYX_MM)
