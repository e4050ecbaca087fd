"""Rows whose held-out probabilities are drawn by hand, so that every figure is known."""

from dataclasses import replace

import numpy as np
import pytest

from pwmlunet.data.splits import write_splits
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.probabilities import write_probability
from pwmlunet.reproduction.scoring import ScoredRow, Scorer, remarks_of, tabulate
from pwmlunet.reproduction.sources import HeldOut, trained
from pwmlunet.reproduction.studies import FCI_LACI, PRIORITY_UNET, TRIDENT
from pwmlunet.training.run import open_run

FOLDS = ("0", "1", "2", "3")
VOXEL_MM3 = 3.0 * 0.7 * 0.5


@pytest.fixture
def drawn(workspace, tiny):
    """A run whose probabilities are what a function makes of the reference."""

    def draw(name, make, folds=FOLDS):
        run = open_run(workspace, "1", tiny.recipe, name)
        for fold in folds:
            for case in run.split(fold).val:
                probability = make(run.store.reference(case).astype(np.float32))
                write_probability(run.model.fold_folder(fold) / "validation" / f"{case}.npz", probability[None])  # fmt: skip
        return run

    return draw


@pytest.fixture
def drawn_kinds(pairs, tiny):
    """The same with the two kinds of the pairs: a function makes FCI and LACI of both as they are."""

    def draw(name, make):
        run = open_run(tiny.workspace_in(pairs.parents[1]), "2", replace(tiny.recipe, configuration="unet_2d"), name)  # fmt: skip
        for fold, split in enumerate(run.splits):
            for case in split.val:
                reference = run.store.reference(case)
                probability = np.float32(0.9) * np.stack(make(reference == 1, reference == 2))
                write_probability(
                    run.model.fold_folder(str(fold)) / "validation" / f"{case}.npz", probability
                )
        return run

    return draw


def everything(reference):
    return 0.9 * reference


def nothing(reference):
    return 0 * reference


def unsure(reference):
    return 0.6 * reference


def half(reference):
    """All lesions in the first slices that have one."""
    kept = reference.copy()
    first = np.flatnonzero(reference.any((1, 2)))[:1]
    kept[np.setdiff1d(np.arange(len(kept)), first)] = 0
    return 0.9 * kept


TRIDENT = TRIDENT.only(list("BDEFG"))  # those that are trained


def scorer_of(study, run, folds=FOLDS, smallest=0.0):
    return Scorer(study, HeldOut.find(run.store.folder.parent, run.store.folder.name, folds), smallest)


def rows_of(study, runs, folds=FOLDS, smallest=0.0):
    """All rows of a study from as many runs; a row with several is of several seeds."""
    scorer = scorer_of(study, runs[0][0], folds, smallest)
    return [
        ScoredRow(row, row.run, tuple(scorer.score(trained(run, study.threshold)) for run in seeds))
        for row, seeds in zip(study.rows, runs, strict=True)
    ]


def test_figures_are_the_papers_and_the_honest_ones(drawn) -> None:
    all_found, none_found = drawn("all", everything), drawn("none", nothing)
    rows = rows_of(TRIDENT, [[none_found], [all_found], [none_found], [none_found], [all_found]])
    (target,) = tabulate(TRIDENT, rows).values()
    b, d, *_, g = target.rows
    assert target.n_lesions == d.honest["lesion_recall"].n > 4
    assert (d.figures["dice"].printed, d.figures["dice"].value) == (0.6024, 1)
    assert (d.figures["hd_pixels"].printed, d.figures["hd_pixels"].value) == (30.9768, 0)
    assert (b.figures["dice"].value, b.figures["sensitivity"].value) == (0, 0)
    assert b.figures["hd_pixels"].value is None
    assert {score.value for score in g.honest.values()} == {1}
    assert b.honest["lesion_f1"].value == b.honest["dice"].value == 0
    assert b.honest["lesion_precision"].value is None
    assert d.honest["lesion_f1"].n == 2 * target.n_lesions
    assert d.honest["dice"].n == 4  # cases with lesions: the first subject has two


def test_answers_say_helps_hurts_or_cannot_be_told(drawn) -> None:
    all_found, none_found = drawn("all", everything), drawn("none", nothing)
    rows = rows_of(TRIDENT, [[none_found], [all_found], [none_found], [none_found], [all_found]])
    (target,) = tabulate(TRIDENT, rows).values()
    neighbours, augmentation, channels, sbfl = (answer.words for answer in target.answers)
    assert neighbours.startswith("By lesion F1 it helps (+1.00; 95 % interval 1.00 to 1.00).")
    assert "By lesion recall it helps" in sbfl
    assert augmentation.startswith("By lesion F1 it hurts (−1.00; ")
    assert channels.startswith("By lesion F1 it cannot be told (0.00; ")
    assert target.answers[0].differences["lesion_recall"].value == 1
    assert remarks_of(TRIDENT, rows)[-1].startswith("Intervals say how subjects differ, not how a second training")  # fmt: skip


def test_one_subject_gives_no_interval(drawn) -> None:
    run = drawn("all", everything)
    fold = next(fold for fold in FOLDS if "sub-02" in run.split(fold).val)
    rows = rows_of(TRIDENT, [[run]] * 5, (fold,))
    (target,) = tabulate(TRIDENT, rows).values()
    assert "it cannot be told, too few subjects for an interval" in target.answers[0].words
    assert target.rows[0].honest["dice"].interval is None


def test_probabilities_are_cut_where_the_study_cuts(drawn) -> None:
    run = drawn("unsure", unsure)
    for study, found in ((TRIDENT, 0), (PRIORITY_UNET, 1)):
        (target,) = tabulate(study, rows_of(study, [[run]] * len(study.rows))).values()
        assert target.rows[0].figures["dice"].value == found
        assert target.rows[0].honest["lesion_recall"].value == found


def test_small_components_leave_the_honest_scores_and_the_paper_counts_as_it_does(drawn) -> None:
    """1.05 mm³ a voxel: lesions of one voxel are below 2 mm³, and below the paper's 1.7 mm³."""
    run = drawn("all", everything)
    large, small = (
        next(iter(tabulate(PRIORITY_UNET, rows_of(PRIORITY_UNET, [[run]] * 4, smallest=mm3)).values())).rows[
            0
        ]
        for mm3 in (0.0, 2 * VOXEL_MM3)
    )
    assert large.honest["lesion_recall"].value == 1
    assert 0.3 < small.honest["lesion_recall"].value < 1
    assert small.figures == large.figures
    assert {figure.value for figure in small.figures.values()} == {1}
    trident = rows_of(TRIDENT, [[run]] * 5, smallest=2 * VOXEL_MM3)
    (target,) = tabulate(TRIDENT, trident).values()
    assert target.rows[0].figures["dice"].value == 1  # its profile removes nothing


def test_figures_and_honest_scores_of_the_priority_study(drawn) -> None:
    run, some = drawn("all", everything), drawn("half", half)
    rows = rows_of(PRIORITY_UNET, [[some], [some], [run], [run]])
    (target,) = tabulate(PRIORITY_UNET, rows).values()
    assert all(figure.value == 1 for figure in target.rows[2].figures.values())
    found = target.rows[0].figures
    assert found["detection_precision"].value == found["volume_precision"].value == 1
    assert 0 < found["detection_recall"].value < 1
    assert 0 < found["volume_recall"].value < found["dice"].value < 1
    assert found["specificity"].value == 1
    missed = 1 - target.rows[0].honest["lesion_recall"].value
    assert target.answers[0].differences["lesion_recall"].value == pytest.approx(missed)


def test_seeds_are_averaged_and_their_range_is_kept(drawn) -> None:
    run, empty = drawn("all", everything), drawn("none", nothing)
    (target,) = tabulate(
        TRIDENT, rows_of(TRIDENT, [[empty, empty], [run, empty], *[[run, run]] * 3])
    ).values()
    dice = target.rows[1].figures["dice"]
    assert (dice.value, dice.lowest, dice.highest) == (0.5, 0, 1)
    recall = target.rows[1].honest["lesion_recall"]
    assert (recall.value, recall.n) == (0.5, target.n_lesions)
    assert target.answers[0].differences["lesion_recall"].value == 0.5
    once = next(iter(tabulate(TRIDENT, rows_of(TRIDENT, [[run]] * 5)).values()))
    assert once.n_lesions == target.n_lesions


def test_the_trident_takes_the_median_over_folds(drawn) -> None:
    """Of three folds with lesions, one fails with both of its two cases."""
    run = drawn("most", everything)
    fold = next(fold for fold in FOLDS if "sub-01_ses-1" in run.split(fold).val)
    drawn("most", nothing, folds=(fold,))
    (target,) = tabulate(TRIDENT, rows_of(TRIDENT, [[run]] * 5)).values()
    assert target.rows[0].figures["dice"].value == 1
    assert target.rows[0].honest["dice"].value == 0.5


def test_a_case_counts_in_the_first_fold_that_holds_it_out(drawn) -> None:
    run = drawn("all", everything)
    folder = run.store.folder.parent
    write_splits(folder / "splits.json", [run.splits[0], *run.splits])
    found = HeldOut.find(folder, run.store.folder.name, ("1", "0", "3"))
    first, third = run.splits[0].val, run.splits[2].val
    assert found.fold_of == dict.fromkeys(first, "1") | dict.fromkeys(third, "3")


def test_missing_probabilities_are_told_together(drawn) -> None:
    run = drawn("all", everything, folds=("0", "1"))
    with pytest.raises(PwmlError, match="all cannot be scored") as error:
        scorer_of(TRIDENT, run).score(trained(run, 0.5))
    for fold in ("2", "3"):
        assert all(name in str(error.value) for name in run.split(fold).val)


def test_kinds_are_counted_together_and_scored_one_by_one(drawn_kinds) -> None:
    right = drawn_kinds("right", lambda fci, laci: (fci, laci))
    nameless = drawn_kinds("nameless", lambda fci, laci: (fci | laci, fci & laci))
    swapped = drawn_kinds("swapped", lambda fci, laci: (laci, fci))
    study = FCI_LACI.only(["a", "b_none", "a_all"])
    folds = tuple(str(fold) for fold in range(len(right.splits)))
    found = tabulate(study, rows_of(study, [[right], [nameless], [swapped]], folds))
    assert list(found) == ["FCI + LACI", "FCI", "LACI"]
    together, fci, laci = found.values()
    n_lesions = (together.n_lesions, fci.n_lesions, laci.n_lesions)
    assert n_lesions == (16, 7, 11)  # two touch one of the other kind
    assert together.is_papers and not fci.is_papers and not laci.is_papers
    rows = {row.name: row for row in together.rows}
    assert {name: row.honest["lesion_f1"].value for name, row in rows.items()} == {"a": 1, "b_none": 1, "a_all": 1}  # fmt: skip
    for row in rows.values():
        assert row.figures["detection_recall"].value == row.figures["dice"].value == 1
    assert rows["a"].figures["classification_precision"].value == 1
    assert rows["a_all"].figures["classification_precision"].value == 0
    assert "classification_precision" not in rows["b_none"].figures
    for kind in (fci, laci):  # of which a network that names none says nothing
        assert {row.name: row.honest["lesion_f1"].value for row in kind.rows} == {"a": 1, "a_all": 0}
        assert not any(row.figures for row in kind.rows)
        (answer,) = kind.answers
        assert answer.differences["lesion_recall"].value == -1
    assert together.answers[0].differences["lesion_recall"].value == 0


def test_a_question_of_which_one_row_names_no_kind_is_asked_of_all_kinds_alone(drawn_kinds) -> None:
    right = drawn_kinds("right", lambda fci, laci: (fci, laci))
    study = FCI_LACI.only(["b_oversampled", "b_none"])
    found = tabulate(study, rows_of(study, [[right], [right]], ("0", "1")))
    assert {target: len(figures.answers) for target, figures in found.items()} == {"FCI + LACI": 1}


def test_one_kind_of_lesion_has_one_table(drawn) -> None:
    study = FCI_LACI.only(["a", "b_none"])
    (name, target), *others = tabulate(study, rows_of(study, [[drawn("all", everything)]] * 2)).items()
    assert (name, others, [row.name for row in target.rows]) == ("lesion", [], ["a", "b_none"])
    assert target.rows[0].figures["detection_precision"].value == 1
    assert target.rows[0].figures["classification_precision"].value is None


def test_a_paper_that_counts_each_target_has_no_figures_of_all_together(drawn_kinds) -> None:
    right = drawn_kinds("right", lambda fci, laci: (fci, laci))
    study = TRIDENT.only(["B"])
    found = tabulate(study, rows_of(study, [[right]], ("0", "1")))
    assert {target: figures.is_papers for target, figures in found.items()} == {"FCI": True, "LACI": True}
