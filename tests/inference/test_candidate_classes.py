import numpy as np
import pytest

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.inference.candidate_classes import (
    Reference,
    ThresholdRow,
    choose_threshold,
    class_names,
    classify_by_reference,
    tabulate_thresholds,
)
from pwmlunet.inference.candidate_regions import find_candidates

TWO = Labels((Target("FCI", (1,), 1), Target("LACI", (2,), 2)), ignore=3)
REGIONS = Labels((Target("whole", (1, 2), 1), Target("core", (2,), 2)), None, are_regions=True)


def drawn(text, values):
    """A slice (1, Y, X) drawn as text, each letter being a value; dots are 0."""
    return np.array([[[values.get(letter, 0) for letter in line] for line in text.split()]])


def classes_of(probability, reference, labels=TWO):
    p = drawn(probability, {str(n): n / 10 for n in range(1, 10)}).astype(np.float32)[None]
    probabilities = np.concatenate([p, np.zeros_like(p)])
    components, n = find_candidates(probabilities, 0.15)
    mask = drawn(reference, {"F": 1, "L": 2, "?": 3}).astype(np.uint8)
    known = Reference.of(mask, labels)
    found = classify_by_reference(components, n, probabilities, known)
    return found.classes.tolist(), found.n_found, len(known.n_voxels)


def test_candidates_are_of_the_class_of_their_lesion_and_others_are_none():
    assert classes_of("55.33.....44", "FF.....L..LL") == ([1, 0, 2], 2, 3)


def test_what_only_touches_a_lesion_is_not_told():
    assert classes_of("9888888888888..", "..........F....") == ([-1], 0, 1)


def test_a_wide_candidate_is_a_lesion_where_its_peak_is_but_does_not_count_as_finding_it():
    assert classes_of("8888888888988..", "..........F....") == ([1], 0, 1)


def test_a_candidate_where_labels_are_unknown_is_not_told():
    assert classes_of("55..55.", "??..FF.") == ([-1, 1], 1, 1)


def test_a_candidate_whose_peak_is_unknown_is_not_told():
    assert classes_of("99955..", "???....") == ([-1], 0, 0)
    assert classes_of("55599..", "???....") == ([0], 0, 0)


def test_unknown_voxels_of_a_candidate_do_not_count():
    assert classes_of("5555555555555", "????????????L")[0] == [2]


def test_a_candidate_over_two_kinds_is_of_that_which_fills_more_of_it():
    assert classes_of("44444", "FFLLL") == ([2], 1, 1)


def test_two_candidates_in_one_lesion_find_one():
    assert classes_of("55.55", "FFFFF") == ([1, 1], 1, 1)


def test_regions_are_one_kind():
    assert class_names(REGIONS) == ("lesion",)
    assert class_names(TWO) == ("FCI", "LACI")
    assert classes_of("44.44", "FF.LL", REGIONS)[0] == [1, 1]


def test_no_candidate_and_no_lesion():
    assert classes_of(".....", "FFF..") == ([], 0, 1)
    assert classes_of("44..", "....") == ([0], 0, 0)


def test_thresholds_are_tabulated_over_cases():
    p = drawn("9...4...", {"9": 0.9, "4": 0.4}).astype(np.float32)[None]
    both = np.concatenate([p, 0 * p])
    case = both, drawn("F.......", {"F": 1}).astype(np.uint8)
    rows = {row.threshold: row for row in tabulate_thresholds([case, case], TWO)}
    assert (rows[0.3].n_cases, rows[0.3].n_lesions, rows[0.3].n_found, rows[0.3].n_false) == (2, 2, 2, 2)
    assert (rows[0.5].n_found, rows[0.5].n_false) == (2, 0)
    assert rows[0.3].recall == 1 and rows[0.3].false_per_case == 1


@pytest.mark.parametrize(
    ("rows", "chosen"),
    [
        (
            [(0.1, 9, 90), (0.2, 10, 80), (0.3, 10, 20), (0.5, 8, 1)],
            0.2,
        ),  # the lowest with the highest recall
        ([(0.1, 10, 990), (0.2, 10, 80), (0.5, 8, 1)], 0.2),  # but not with a flood of candidates
        ([(0.1, 10, 990), (0.2, 10, 980), (0.5, 8, 970)], 0.5),  # unless all flood: the least of it
        ([(0.1, 0, 0), (0.5, 0, 0)], 0.1),
    ],
)
def test_the_threshold_is_low_and_chosen_for_recall(rows, chosen):
    assert choose_threshold([ThresholdRow(t, 10, 10, found, false) for t, found, false in rows]) == chosen
