import numpy as np
import pytest

from pwmlunet.errors import PwmlError
from pwmlunet.inference.calibration import calibrate, text
from pwmlunet.inference.choosing import Wish, pooled_f1
from pwmlunet.inference.counting import count, make_grid
from pwmlunet.inference.postprocessing import Postprocessing


def logit(probability):
    return float(np.log(probability / (1 - probability)))


def settings(tables, wish=None):
    return calibrate(tables, wish).postprocessing


def clear(make, n=12, fold=lambda i: str(i % 3)):
    """Subjects of two cases that all say: between .75 and .85."""
    return [
        make(f"s{i:02}-{j}", (logit(0.85),) * 2, (logit(0.75),) * 2, subject=f"s{i:02}", fold=fold(i))
        for i in range(n)
        for j in range(2)
    ]


def noise(make, n=12, seed=0):
    """Lesions and false candidates of the same probabilities: nothing is to be learned from them."""
    rng = np.random.default_rng(seed)
    return [make(f"s{i:02}", rng.normal(0.5, 2, 2), rng.normal(0.5, 2, 2)) for i in range(n)]


def test_a_clear_case_is_chosen_and_said(synthetic):
    tables = synthetic.tables(clear(synthetic.out_of_fold))
    found = settings(tables)
    chosen = found.chosen
    assert (chosen.n_subjects, chosen.n_cases, chosen.n_lesions, chosen.n_folds) == (12, 24, 48, 3)
    assert chosen.criterion == "lesion F1" and chosen.n_subjects_with_lesions == 12
    values = {name: f.f1.value for name, f in chosen.figures.items()}
    assert values == {"nested": 1, "fixed 0.5": pytest.approx(2 / 3), "fixed 0.7": pytest.approx(2 / 3)}
    assert chosen.figures["fixed 0.7"].false_positives_per_case.value == 2
    assert chosen.figures["fixed 0.7"].precision.value == 0.5
    assert chosen.f1_differences["fixed 0.5"].value == pytest.approx(1 / 3)
    assert chosen.best_threshold.low == chosen.best_threshold.high == 0.8
    shown = text(found)
    for words in (
        "calibrated by lesion F1, from 12 subjects (12 with lesions), 24 cases, 48 lesions, 3 folds",
        "threshold 0.8 (F1 1.00) is better than the default (F1 0.67)",
        "nested F1 less fixed 0.5: +0.33 [+0.33, +0.33]",
        "the best threshold would lie between 0.8 and 0.8",
        "expected calibration error around lesions:",
    ):
        assert words in shown
    nested = next(line for line in shown.splitlines() if line.startswith("nested  "))
    assert nested.split()[:2] == ["nested", "1.00"]


def test_the_chosen_settings_find_what_the_figures_say(synthetic):
    """Calibrated probabilities under the calibrated threshold: all lesions, nothing else."""
    cases = clear(synthetic.out_of_fold)
    found = settings(synthetic.tables(cases))
    assert found.temperature != 1 and found.threshold != 0.8
    for case in cases:
        mask = found.apply(found.calibrate(case.probability), synthetic.labels, synthetic.spacing)
        assert np.array_equal(mask, case.reference)


def test_it_is_kept_in_a_file(synthetic, tmp_path):
    found = settings(synthetic.tables(clear(synthetic.out_of_fold)))
    found.write(tmp_path / "postprocessing.json")
    assert Postprocessing.read(tmp_path / "postprocessing.json") == found


def test_nested_figures_are_not_flattered_by_noise(synthetic):
    """The best point of the very same cases looks better than any that was chosen by others."""
    gains, flattered = [], []
    for seed in range(6):
        tables = synthetic.tables(noise(synthetic.out_of_fold, seed=seed))
        grid = make_grid(tables)
        chosen = settings(tables).chosen
        gains.append(chosen.f1_differences["fixed 0.5"].value)
        flattered.append(pooled_f1(count(tables, grid)).max() - chosen.figures["nested"].f1.value)
    assert np.mean(gains) < 0.02 < np.mean(flattered)


def test_each_subject_is_at_the_point_of_the_others(synthetic):
    """One subject has all the false positives, at .57: the others would not cut them off, and are cut with them."""
    make = synthetic.out_of_fold
    cases = [make(f"s{i}", (3.0, 0.2)) for i in range(9)]
    odd = make("a odd", (3.0, 3.0), (0.3,) * 30)
    found = calibrate(synthetic.tables([odd, *cases]), Wish(at_most_false_positives=1))
    assert found.postprocessing.at_temperature(1).threshold != 0.5
    assert found.nested.subjects[0] == "a odd"
    assert found.nested.n_predicted.tolist() == [[32, *[1] * 9]]


@pytest.mark.parametrize(
    ("n_lesions", "enough"),
    [
        ((10, 10, 10), False),  # without one of them two would choose for it
        ((4, 4, 4, 4), True),
        ((3, 3, 3, 3), False),
        ((3, 2, 2, 2, 2, 2), True),  # ten besides the three
        ((4, 2, 2, 2, 2), False),
        ((4, 4, 2), False),
    ],
)
def test_nobody_chooses_where_the_others_cannot(synthetic, n_lesions, enough):
    """Everybody says .8; nested figures are of choices, or of the default that is given too."""
    make = synthetic.out_of_fold
    cases = [make(f"s{i}", (logit(0.85),) * n, (logit(0.75),) * n) for i, n in enumerate(n_lesions)]
    found = calibrate(synthetic.tables(cases))
    assert found.nested.n_found.tolist() == [list(n_lesions)]
    assert found.nested.n_predicted.sum() == sum(n_lesions) * (1 if enough else 2)
    assert (found.postprocessing.threshold != 0.5) == enough
    words = f"{sum(n_lesions)} lesions in {len(n_lesions)} subjects are too few to choose from (whoever is left out, 10 lesions in 3 subjects must remain): the default stays"
    assert (words in text(found.postprocessing)) == (not enough)


def test_one_fold_and_one_subject_are_said(synthetic):
    make = synthetic.out_of_fold
    one_fold = settings(synthetic.tables(clear(make, fold=lambda i: "2"))).chosen
    assert any(reason.startswith("all cases are of fold 2") for reason in one_fold.reasons)
    cases = [make(f"c{i}", (2.0,) * 8, (2.0,), subject="only", fold=str(i)) for i in range(2)]
    found = settings(synthetic.tables(cases))
    assert found.threshold == 0.5 and found.chosen.best_threshold is None
    assert found.chosen.figures["nested"].f1.interval is None
    assert "too few to choose from" in text(found) and "there are no intervals" in text(found)
    assert "nested              0.94  " in text(found)


def test_clean_cases_have_no_f1_but_false_positives(synthetic):
    make = synthetic.out_of_fold
    found = settings(synthetic.tables([make("a"), make("b", (), (2.0,))]))
    assert found.chosen.figures["nested"].recall.value is None
    assert found.chosen.figures["nested"].false_positives_per_case.value == 0.5
    assert settings(synthetic.tables([make("a")])).chosen.figures["nested"].f1.value is None


def test_wishes(synthetic):
    tables = synthetic.tables(clear(synthetic.out_of_fold))
    found = settings(tables, Wish(at_most_false_positives=0.5))
    assert found.chosen.criterion == "at most 0.5 false positives a case"
    assert found.chosen.figures["nested"].false_positives_per_case.value == 0
    assert found.chosen.best_threshold is None and "threshold 0.8 has the highest recall" in text(found)
    with pytest.raises(PwmlError, match=r"the best that can is a recall of 0.979"):
        settings(tables, Wish(at_least_recall=0.99))


def test_a_wish_that_others_do_not_keep_is_told(synthetic):
    """One subject has all the false positives: only it knows that the default is too low."""
    make = synthetic.out_of_fold
    cases = [make(f"s{i}", (3.0, 0.2)) for i in range(9)]
    cases.append(make("odd", (3.0, 3.0), (0.3,) * 30))
    found = settings(synthetic.tables(cases), Wish(at_most_false_positives=1))
    assert "do not rely on it" in text(found)
    calm = settings(synthetic.tables(cases[:-1]), Wish(at_most_false_positives=1))
    assert "do not rely on it" not in text(calm)


def test_settings_that_nobody_chose_are_shown_plainly():
    assert text(Postprocessing(0.7)) == "threshold 0.7"


@pytest.mark.parametrize(("least", "sizes"), [(0.0, {0.0, 6.3}), (2.0, {2.0, 6.3}), (10.0, {10.0})])
def test_no_point_lets_pass_what_is_smaller_than_the_plans_smallest_lesion(synthetic, least, sizes):
    tables = synthetic.tables([synthetic.out_of_fold(name, [3.0, 4.0], [1.0]) for name in "abc"])
    grid = make_grid(tables, 1.0, least)
    assert {round(point.smallest_lesion_mm3, 6) for point in grid.points} == sizes
    assert grid.points[grid.default] == Postprocessing(0.5, least)
    chosen = calibrate(tables, smallest_lesion_mm3=least).postprocessing
    assert chosen.smallest_lesion_mm3 >= least
