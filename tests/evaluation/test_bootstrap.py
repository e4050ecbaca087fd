import numpy as np
import pytest

from pwmlunet.evaluation.bootstrap import (
    Interval,
    difference_interval,
    ratio_interval,
    resample,
)


def test_each_resample_draws_as_many_subjects_as_there_are() -> None:
    weights = resample(7, 500)
    assert weights.shape == (500, 7)
    assert set(weights.sum(1)) == {7.0}
    assert weights.mean(0) == pytest.approx(np.ones(7), abs=0.15)
    assert weights.std() > 0.8  # with replacement


def test_resamples_are_the_same_for_everyone_and_no_one_can_change_them() -> None:
    first = resample(5).copy()
    resample.cache_clear()
    np.testing.assert_array_equal(resample(5), first)
    assert not np.array_equal(resample(5, seed=1), first)
    with pytest.raises(ValueError, match="read-only"):
        resample(5)[0] = 1


def test_the_interval_of_a_mean_is_that_of_drawing_subjects_by_hand() -> None:
    values = np.random.default_rng(0).normal(3, 1, 25)
    rng = np.random.default_rng(1)
    means = [rng.choice(values, 25).mean() for _ in range(20000)]
    found = ratio_interval(values, np.ones(25))
    assert found is not None
    assert (found.low, found.high) == pytest.approx(np.percentile(means, (2.5, 97.5)), abs=0.05)
    assert found.low < values.mean() < found.high


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(300):
        found = ratio_interval(rng.normal(0, 1, 40), np.ones(40))
        assert found is not None
        hits += found.low <= 0 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


def test_subjects_with_more_lesions_weigh_more() -> None:
    # 9 of 9 in one and 0 of 1 in the other: the ratio is 0, 9/10 or 1 in every resample
    assert ratio_interval([9, 0], [9, 1]) == Interval(0, 1)
    many = ratio_interval([9, 0] * 30, [9, 1] * 30)
    assert many is not None
    assert 0.8 < many.low < 0.9 < many.high < 0.96


def test_subjects_that_are_alike_leave_no_width() -> None:
    assert ratio_interval([1, 2, 3], [2, 4, 6]) == Interval(0.5, 0.5)


@pytest.mark.parametrize(
    ("parts", "wholes"), [([], []), ([1], [2]), ([1, 0], [2, 0]), ([0, 0, 0], [0, 0, 0])]
)
def test_fewer_than_two_subjects_with_a_whole_have_no_interval(parts: list[int], wholes: list[int]) -> None:
    assert ratio_interval(parts, wholes) is None
    assert difference_interval((parts, wholes), (parts, wholes)) is None


def test_resamples_without_any_whole_are_left_out() -> None:
    found = ratio_interval([1, 0, 0, 0, 0], [1, 1, 0, 0, 0])
    assert found == Interval(0, 1)


def test_a_difference_is_paired_by_subject() -> None:
    rng = np.random.default_rng(3)
    one = rng.normal(0, 1, 30)
    other, ones = one - 0.2, np.ones(30)
    found = difference_interval((one, ones), (other, ones))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.2, 0.2))  # however much the subjects differ
    swapped = difference_interval((other, ones), (one, ones))
    assert swapped is not None
    assert (swapped.low, swapped.high) == pytest.approx((-0.2, -0.2))


def test_a_difference_of_unlike_subjects_has_a_width_around_it() -> None:
    rng = np.random.default_rng(4)
    sides = [(rng.normal(mean, 1, 30), np.ones(30)) for mean in (1, 0)]
    found = difference_interval(sides[0], sides[1])
    assert found is not None
    assert 0.3 < found.low < 1 < found.high < 1.8


def test_one_side_without_wholes_has_no_difference() -> None:
    assert difference_interval(([1, 1], [2, 2]), ([1, 0], [2, 0])) is None
