import numpy as np
import pytest
from drawing import SPACING, chances, drawn

from pwmlunet.evaluation.detection import Candidate, Froc, find_candidates, froc
from pwmlunet.evaluation.probabilities import logit_of


def candidate(is_true: bool, mean: float, most: float | None = None) -> Candidate:
    return Candidate(is_true, mean, mean if most is None else most, 1.0)


def points(found: Froc) -> list[tuple[float, float]]:
    return [(point.false_positives_per_subject, point.sensitivity) for point in found.curve]


# by score: true, false, true, false, false, true, false
RANKED = [candidate(bool(t), 4 - i) for i, t in enumerate((1, 0, 1, 0, 0, 1, 0))]


def test_sensitivity_rises_with_the_false_positives_that_are_allowed() -> None:
    found = froc(RANKED, n_reference=4, n_subjects=2, by="mean")
    assert points(found) == [(0, 0.25), (0.5, 0.5), (1.5, 0.75), (2, 0.75)]
    assert found.sensitivity_at == {
        "1/8": 0.25, "1/4": 0.25, "1/2": 0.5, "1": 0.5, "2": 0.75, "4": 0.75, "8": 0.75,
    }  # fmt: skip
    assert [point.score for point in found.curve] == pytest.approx(
        [1 / (1 + np.exp(-s)) for s in (4, 2, -1, -2)]
    )


def test_the_order_of_the_candidates_does_not_matter() -> None:
    options = {"n_reference": 4, "n_subjects": 2}
    assert froc(RANKED[::-1], **options, by="mean") == froc(RANKED, **options, by="mean")


def test_equal_scores_enter_together() -> None:
    tied = [candidate(True, 1.0), candidate(False, 1.0), candidate(False, 1.0)]
    found = froc(tied, n_reference=1, n_subjects=1, by="mean")
    assert points(found) == [(2, 1)]
    assert found.sensitivity_at["1"] == 0
    assert found.sensitivity_at["2"] == 1


def test_saturated_probabilities_are_still_ranked() -> None:
    sure = [candidate(True, 12.0), candidate(False, 11.0)]
    assert points(froc(sure, n_reference=1, n_subjects=1, by="mean")) == [(0, 1), (1, 1)]


def test_ranks_are_by_the_mean_or_by_the_maximum() -> None:
    two = [candidate(True, 1, 2), candidate(False, 0, 3)]
    assert points(froc(two, n_reference=1, n_subjects=1, by="mean")) == [(0, 1), (1, 1)]
    assert points(froc(two, n_reference=1, n_subjects=1, by="max")) == [(1, 1)]


def test_nothing_proposed_finds_nothing() -> None:
    found = froc([], n_reference=3, n_subjects=2, by="max")
    assert (found.curve, set(found.sensitivity_at.values())) == ((), {0.0})


def test_only_false_candidates_are_an_end_without_sensitivity() -> None:
    found = froc([candidate(False, 1), candidate(False, 0)], n_reference=3, n_subjects=2, by="max")
    assert points(found) == [(1, 0)]


@pytest.mark.parametrize("counts", [(0, 1), (1, 0)])
def test_without_lesions_or_subjects_it_is_a_wrong_call(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="needs lesions and subjects"):
        froc([], n_reference=counts[0], n_subjects=counts[1], by="mean")


def test_candidates_are_components_above_a_tenth_matched_one_to_one() -> None:
    probability = chances("98.2.1.5", "98......")
    reference = drawn("11.....1", "11......") == 1
    found = find_candidates(probability, reference, spacing_zyx_mm=SPACING)
    assert [c.is_true for c in found] == [True, False, True]
    assert [c.volume_mm3 for c in found] == [12, 3, 3]
    logits = logit_of(np.array([0.9, 0.8, 0.2, 0.5]))
    assert [c.mean_logit for c in found] == pytest.approx([(logits[0] + logits[1]) / 2, logits[2], logits[3]])
    assert [c.max_logit for c in found] == pytest.approx([logits[0], logits[2], logits[3]])


def test_a_candidate_that_overgrows_its_lesion_is_false() -> None:
    probability = np.full((1, 3, 4), 0.2, np.float32)
    reference = drawn("1... .... ....") == 1
    assert [c.is_true for c in find_candidates(probability, reference, spacing_zyx_mm=SPACING)] == [False]
    probability[0, 2] = 0
    assert [c.is_true for c in find_candidates(probability, reference, spacing_zyx_mm=SPACING)] == [True]


def test_a_candidate_is_above_the_threshold_however_little() -> None:
    probability = np.array([[[0.1, 0.0, 0.101, 0.0, 0.04]]], np.float32)
    nothing = probability > 1
    assert len(find_candidates(probability, nothing, spacing_zyx_mm=SPACING)) == 1


def test_a_candidate_ends_at_half_of_its_highest_probability() -> None:
    reference = drawn("11.......") == 1
    found = find_candidates(chances("984433332"), reference, spacing_zyx_mm=SPACING)
    assert [(c.is_true, c.volume_mm3) for c in found] == [(True, 6)]
    two = find_candidates(chances("993339822"), reference, spacing_zyx_mm=SPACING)
    assert [(c.is_true, c.volume_mm3) for c in two] == [(True, 6), (False, 6)]


def test_a_sure_candidate_does_not_hide_a_faint_one_elsewhere() -> None:
    reference = drawn("11...11") == 1
    found = find_candidates(chances("99.1.22"), reference, spacing_zyx_mm=SPACING)
    assert [c.is_true for c in found] == [True, True]


def test_ignored_voxels_are_in_no_candidate() -> None:
    probability, reference = chances("99999"), drawn("11111") == 1
    valid = drawn("11.1.") == 1
    found = find_candidates(probability, reference, spacing_zyx_mm=SPACING, valid=valid)
    assert [(c.is_true, c.volume_mm3) for c in found] == [(True, 6), (True, 3)]


def test_no_probability_anywhere_is_no_candidate() -> None:
    nothing = np.zeros((2, 3, 4), np.float32)
    assert find_candidates(nothing, nothing > 0, spacing_zyx_mm=SPACING) == ()
