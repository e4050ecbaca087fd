import numpy as np
import pytest

from pwmlunet.errors import PwmlError
from pwmlunet.inference.choosing import Wish, best_threshold, check, choose, is_kept, pooled_f1, reasons
from pwmlunet.inference.counting import count, make_grid
from pwmlunet.inference.postprocessing import Postprocessing


@pytest.fixture
def choice(synthetic):
    def choice(cases, wish=None):
        """Counts, grid and the chosen point's number."""
        tables = synthetic.tables(cases)
        grid = make_grid(tables)
        counts = count(tables, grid)
        return counts, grid, choose(counts, grid, wish)[0]

    return choice


def likely(probability):
    return float(np.log(probability / (1 - probability)))


def many(make, lesion, false, n=12):
    """Subjects with two lesions and two false candidates of these probabilities."""
    return [make(f"s{i:02}", (likely(lesion),) * 2, (likely(false),) * 2) for i in range(n)]


def test_what_all_subjects_say_is_found(synthetic, choice):
    counts, grid, chosen = choice(many(synthetic.out_of_fold, 0.85, 0.75))
    assert grid.points[chosen] == Postprocessing(0.8)  # nearer than a cut of the peak in a step or two
    assert pooled_f1(counts)[chosen] == 1 and pooled_f1(counts)[grid.default] == pytest.approx(2 / 3)
    (words,) = reasons(counts, grid, chosen, None)
    assert words.startswith("threshold 0.8 (F1 1.00) is better than the default (F1 0.67)")


def test_a_cut_of_peaks_is_found_where_a_higher_threshold_would_shrink_lesions(synthetic, choice):
    """A voxel of each lesion is at .97 and the other eleven at .6; false candidates are at .65 throughout."""
    cases = [synthetic.out_of_fold(f"s{i}", (), (likely(0.65),) * 2) for i in range(8)]
    for case in cases:
        for y in (20, 30):
            case.reference[0, y : y + 2, 8:14] = 1
            case.probability[0, 0, y : y + 2, 8:14] = 0.6
            case.probability[0, 0, y, 8] = 0.97
    counts, grid, chosen = choice(cases)
    assert grid.points[chosen] == Postprocessing(0.5, 0, 0.7) and pooled_f1(counts)[chosen] == 1
    assert pooled_f1(counts)[grid.points.index(Postprocessing(0.7))] == 0


def test_sizes_are_cut_where_small_candidates_are_false(synthetic, choice):
    make = synthetic.out_of_fold
    cases = [make(f"s{i}", (3.0, 3.0), (3.0, 3.0), size=2) for i in range(8)]
    _, grid, chosen = choice(cases)
    assert grid.points[chosen] == Postprocessing(0.5, pytest.approx(6 * 3 * 0.7 * 0.5))


def test_saturated_probabilities_are_still_ranked(synthetic, choice):
    counts, grid, chosen = choice([synthetic.out_of_fold(f"s{i}", (13, 12), (8, 7)) for i in range(8)])
    assert pooled_f1(counts)[chosen] == 1
    assert grid.points[chosen].least_peak_probability == 0.9999 and grid.points[chosen].threshold == 0.5


def test_the_default_stays_where_one_subject_alone_says_otherwise(synthetic, choice):
    """Even one that says so ten times over."""
    make = synthetic.out_of_fold
    cases = [make(f"s{i}", (3.0, 3.0)) for i in range(7)]
    odd = make("odd", (3.0, 3.0), (likely(0.75),) * 10)
    counts, grid, chosen = choice([*cases, odd])
    assert chosen == grid.default
    f1 = pooled_f1(counts)
    assert f1.max() - f1[chosen] > 0.2
    (words,) = reasons(counts, grid, chosen, None)
    assert words.startswith("the data cannot tell threshold 0.8 (F1 1.00) from threshold 0.5 (F1 0.76)")
    assert "the default stays" in words
    assert best_threshold(counts, grid).low == 0.5 and best_threshold(counts, grid).high == 0.8


def test_the_default_stays_where_nothing_is_better(synthetic, choice):
    counts, grid, chosen = choice(many(synthetic.out_of_fold, 0.85, 0.2))
    assert chosen == grid.default
    assert list(reasons(counts, grid, chosen, None)) == [
        "no point has a higher F1 than the default, threshold 0.5 (F1 1.00)"
    ]


@pytest.mark.parametrize(("n_subjects", "n_each"), [(3, 10), (2, 8), (4, 3), (1, 20), (0, 0)])
def test_too_little_is_refused(synthetic, choice, n_subjects, n_each):
    make = synthetic.out_of_fold
    cases = [make(f"s{i}", (2.0,) * n_each, (1.0,) * n_each) for i in range(n_subjects)]
    counts, grid, chosen = choice([*cases, make("clean", (), (1.0,))])
    assert chosen == grid.default
    (words,) = reasons(counts, grid, chosen, None)
    n_lesions = n_subjects * n_each
    assert words.startswith(f"{n_lesions} lesions in {n_subjects} subjects are too few to choose from")
    with pytest.raises(PwmlError, match=r"recall of at least 0.5: .* too few"):
        check(counts, grid, chosen, Wish(at_least_recall=0.5))


@pytest.fixture
def steps(synthetic):
    """Ten subjects with lesions at .45, .65 and .85 among false candidates at .35, .55 and .75."""
    lesions, false = ([likely(p) for p in row] for row in ((0.45, 0.65, 0.85), (0.35, 0.55, 0.75)))
    return [synthetic.out_of_fold(f"s{i}", lesions, false) for i in range(10)]


@pytest.mark.parametrize(
    ("wish", "threshold"),
    [
        (Wish(at_most_false_positives=0.1), 0.8),  # none in 10 cases, and one for safety
        (Wish(at_most_false_positives=1.09), 0.8),
        (Wish(at_most_false_positives=1.1), 0.6),  # 10, and one for safety
        (Wish(at_most_false_positives=2.09), 0.6),
        (Wish(at_most_false_positives=2.1), 0.4),
        (Wish(at_least_recall=0.3), 0.8),  # 10 of 30, but for one
        (Wish(at_least_recall=0.31), 0.6),
        (Wish(at_least_recall=0.63), 0.6),  # 20 of 30, but for one
        (Wish(at_least_recall=0.64), 0.4),
        (Wish(at_least_recall=0.96), 0.4),
    ],
    ids=str,
)
def test_wishes_are_kept_at_the_least_price(choice, steps, wish, threshold):
    counts, grid, chosen = choice(steps, wish)
    assert grid.points[chosen] == Postprocessing(threshold)
    check(counts, grid, chosen, wish)
    assert is_kept(counts.at(np.full(10, chosen)), wish)
    (words,) = reasons(counts, grid, chosen, wish)
    assert words.startswith(f"threshold {threshold} has the ")


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(at_most_false_positives=0.09), "at most 0.09 false positives a case cannot be promised from 10 cases with 30 lesions: the best that can is 0.1 false positives"),
        (Wish(at_least_recall=0.97), "recall of at least 0.97 cannot be promised from 10 cases with 30 lesions: the best that can is a recall of 0.967"),
    ],
)  # fmt: skip
def test_a_wish_that_cannot_be_kept_is_told_with_the_best_that_can(choice, steps, wish, words):
    counts, grid, chosen = choice(steps, wish)
    with pytest.raises(PwmlError) as caught:
        check(counts, grid, chosen, wish)
    assert words in str(caught.value)


def test_whether_counts_keep_a_wish(choice, steps):
    counts, _, chosen = choice(steps, Wish(at_least_recall=0.63))
    here = counts.at(np.full(10, chosen))  # 20 of 30 found, one false positive a case
    for wish, kept in (
        (Wish(at_least_recall=2 / 3), True),
        (Wish(at_least_recall=0.67), False),
        (Wish(at_most_false_positives=1), True),
        (Wish(at_most_false_positives=0.99), False),
    ):
        assert is_kept(here, wish) is kept


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"at_most_false_positives": 1, "at_least_recall": 0.5},
        {"at_most_false_positives": -1},
        {"at_least_recall": 0},
        {"at_least_recall": 1},
    ],
)
def test_wishes_that_cannot_be_meant_are_told(values):
    with pytest.raises(PwmlError, match=r"at_most_false_positives|at_least_recall"):
        Wish.from_dict(values, "the wish")
