import numpy as np
import pytest

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.errors import PwmlError
from pwmlunet.inference.postprocessing import Postprocessing

LESION = Labels((Target("lesion", (1,), 3),), None)
TWO = Labels((Target("a", (1,), 1), Target("b", (2,), 2)), None)


def test_the_threshold_itself_is_background():
    probability = np.array([0.2, 0.5, 0.51]).reshape(1, 1, 1, 3)
    assert Postprocessing().apply(probability, LESION, (3, 1, 1)).tolist() == [[[0, 0, 3]]]
    assert Postprocessing(0.1).apply(probability, LESION, (3, 1, 1)).tolist() == [[[3, 3, 3]]]


@pytest.mark.parametrize(
    ("smallest", "kept"), [(0, 6), (3.0, 6), (3.1, 5), (6.0, 5), (6.1, 3), (9, 3), (9.1, 0)]
)
def test_smaller_lesions_go(smallest, kept):
    """Lesions of 1, 2 and 3 voxels of 3 mm3; the last one touches by corners only."""
    mask = np.zeros((2, 6, 9))
    mask[0, 0, 0] = mask[0, 0, 4] = mask[0, 0, 5] = mask[0, 3, 1] = mask[0, 4, 2] = mask[1, 5, 3] = 1
    cleaned = Postprocessing(0.5, smallest).apply(mask[None], LESION, (3.0, 1.0, 1.0))
    assert (cleaned > 0).sum() == kept and cleaned.dtype == np.uint8
    assert np.array_equal(cleaned[cleaned > 0], np.full(kept, 3))


def test_lesions_of_two_labels_do_not_count_together():
    probability = np.zeros((2, 1, 3, 5))
    probability[0, 0, 1, :3] = probability[1, 0, 1, 3:] = 0.9
    cleaned = Postprocessing(0.5, 3.0).apply(probability, TWO, (1, 1, 1))
    assert cleaned[0, 1].tolist() == [1, 1, 1, 0, 0]


def test_single_slices_of_isolated_pixels(tiny):
    probability = np.zeros((1, 1, 1, 3))
    probability[..., ::2] = 1
    assert not Postprocessing(0.5, 2.0).apply(probability, LESION, (1, 1, 1)).any()


@pytest.mark.parametrize("values", [{"threshold": 0}, {"threshold": 1}, {"smallest_lesion_mm3": -1}])
def test_values_out_of_range_are_told(values):
    with pytest.raises(PwmlError, match=next(iter(values))):
        Postprocessing.from_dict(values, "postprocessing.json")
