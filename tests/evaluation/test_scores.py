import time

import numpy as np
import pytest
from drawing import chances, drawn, scored

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.evaluation.scores import CaseScores


def test_each_target_of_overlapping_regions_is_scored_as_a_union() -> None:
    whole, core = Target("whole", (1, 2), 1), Target("core", (2,), 2)
    labels = Labels((whole, core), ignore=None, are_regions=True)
    case = scored(drawn("1221"), drawn("1111"), labels=labels)
    assert list(case.targets) == ["whole", "core"]
    assert case.targets["whole"].voxels.dice == 1
    assert case.targets["core"].voxels.dice == 0
    assert case.targets["whole"].lesions.main.n_reference == 1


def test_ignored_slices_are_not_labelled_slices() -> None:
    case = scored(drawn("1...", "9999", "999."), drawn("1...", "1111", "11.."))
    assert case.n_labelled_slices == 2
    assert case.targets["lesion"].voxels.false_positives == 0
    assert case.targets["lesion"].lesions.main.n_predicted == 1


def test_masks_and_probabilities_on_two_grids_are_a_wrong_call() -> None:
    with pytest.raises(ValueError, match="one grid"):
        scored(drawn("1..."), drawn("1.."))
    with pytest.raises(ValueError, match="masks' grid"):
        scored(drawn("1..."), drawn("1..."), probability=chances("900"))


def test_without_probabilities_there_are_no_candidates() -> None:
    scores = scored(drawn("1..."), drawn("1...")).targets["lesion"]
    assert (scores.candidates, scores.reliability) == (None, None)
    assert scores.lesions.reference[0].max_probability is None


def test_each_target_gets_its_own_probability() -> None:
    labels = Labels((Target("a", (1,), 1), Target("b", (2,), 2)), ignore=9)
    mask = drawn("11...22.9")
    probability = np.stack([chances("98......9"), chances(".....67.9")])
    case = scored(mask, mask, labels=labels, probability=probability)
    for name, most, mean in (("a", 0.9, 0.85), ("b", 0.7, 0.65)):
        (lesion,) = case.targets[name].lesions.reference
        assert (lesion.max_probability, lesion.mean_probability) == pytest.approx((most, mean))
        candidates = case.targets[name].candidates
        assert candidates and [c.is_true for c in candidates] == [True]  # that on the ignored voxel is none


def test_candidates_are_matched_with_the_reference_not_the_mask() -> None:
    case = scored(drawn("11...."), drawn("....11"), probability=chances("33..99")[None])
    candidates = case.targets["lesion"].candidates
    assert candidates and [c.is_true for c in candidates] == [True, False]


def test_scores_survive_json() -> None:
    case = scored(drawn("11..", "...1"), drawn("11..", "1..."), probability=chances("98..", "...3")[None])
    assert CaseScores.from_dict(case.to_dict(), "case") == case


def test_scoring_is_quick_enough_for_each_epoch() -> None:
    generator = np.random.default_rng(0)
    reference = np.zeros((5, 256, 256), np.uint8)
    for z, y, x in generator.integers(0, (5, 250, 250), (30, 3)):
        reference[z, y : y + 3, x : x + 2] = 1
    prediction = np.roll(reference, 1, 2)
    scored(reference, prediction)  # imports
    start = time.perf_counter()
    for _ in range(5):
        scored(reference, prediction)
    assert (time.perf_counter() - start) / 5 < 0.1  # a few ms; the rest is for a busy machine
