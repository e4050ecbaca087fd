import numpy as np
import pytest
from drawing import chances, drawn
from scipy.ndimage import maximum_filter

from pwmlunet.evaluation.reliability import ReliabilityCounts, count_reliability, neighbourhood, reliability


def test_the_neighbourhood_is_a_box_around_lesions_and_candidates() -> None:
    rng = np.random.default_rng(0)
    for shape in ((9, 20, 17), (1, 20, 17), (3, 2, 40), (5, 30, 1)):
        reference = rng.random(shape) < 0.003
        probability = np.where(rng.random(shape) < 0.003, 0.11, 0.1).astype(np.float32)
        expected = maximum_filter(reference | (probability > 0.1), 7, mode="constant")
        np.testing.assert_array_equal(neighbourhood(reference, probability), expected)


def test_the_masks_it_is_made_from_stay_as_they_are() -> None:
    reference, probability = drawn("....1....") == 1, chances(".........")
    assert neighbourhood(reference, probability).sum() == 7
    assert reference.sum() == 1


def test_sums_by_bin_follow_from_the_drawing() -> None:
    # the last two voxels are further than 3 from anything
    counts = count_reliability(chances("97*5......1"), drawn("111........") == 1, None)
    assert counts.n_voxels == (3, 0, 0, 0, 0, 1, 0, 1, 0, 2)
    assert counts.observed == (0, 0, 0, 0, 0, 0, 0, 1, 0, 2)
    assert counts.probability == pytest.approx((0, 0, 0, 0, 0, 0.5, 0, 0.7, 0, 1.9))


def test_ignored_voxels_count_nowhere_and_make_no_neighbourhood() -> None:
    reference, probability, valid = drawn("1........") == 1, chances("9.......9"), drawn("11.11111.") == 1
    counts = count_reliability(probability, reference, valid)
    assert counts.n_voxels == (2, *[0] * 8, 1)  # 0, 1 and 3; nothing around 8
    assert sum(count_reliability(probability, reference, np.zeros_like(valid)).n_voxels) == 0
    the_others = count_reliability(probability, reference, ~valid)
    assert (the_others.n_voxels[9], sum(the_others.observed)) == (1, 0)


def test_calibration_error_by_hand() -> None:
    found = reliability(ReliabilityCounts((6, 0, *[0] * 7, 2), (0.6, *[0.0] * 8, 1.8), (3, *[0] * 8, 2)))
    assert (found.bins[0].mean_probability, found.bins[0].observed_share) == pytest.approx((0.1, 0.5))
    assert (found.bins[1].mean_probability, found.bins[1].observed_share) == (None, None)
    assert found.n_voxels == 8
    assert found.expected_calibration_error == pytest.approx((6 * 0.4 + 2 * 0.1) / 8)


def test_drawn_as_promised_there_is_no_error() -> None:
    rng = np.random.default_rng(1)
    probability = rng.uniform(0.11, 1, (20, 50, 50)).astype(np.float32)
    found = reliability(count_reliability(probability, rng.random(probability.shape) < probability, None))
    assert found.expected_calibration_error == pytest.approx(0, abs=0.01)
    assert found.n_voxels == probability.size


def test_counts_of_cases_add_up() -> None:
    parts = [
        count_reliability(chances("97*5"), drawn("111.") == 1, None),
        count_reliability(chances(".3.."), drawn(".1..") == 1, None),
    ]
    pooled = ReliabilityCounts.pool(parts)
    assert pooled == parts[0] + parts[1]
    assert sum(pooled.n_voxels) == 8
    assert reliability(ReliabilityCounts.pool([])).expected_calibration_error is None
