import dataclasses

import numpy as np
import pytest
from drawing import CLEAN, FALSE, HIT, MISS, chances, drawn, scored

from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.bootstrap import Interval, ratio_interval
from pwmlunet.evaluation.scores import CaseScores
from pwmlunet.evaluation.summary import Summary, TargetSummary, summarise


def lesion(*cases: CaseScores) -> TargetSummary:
    return summarise(cases).targets["lesion"]


def of(subject: str, case: CaseScores) -> CaseScores:
    return dataclasses.replace(case, subject=subject)


def test_clean_cases_are_counted_and_in_no_lesion_mean() -> None:
    summary = lesion(HIT, MISS, FALSE, CLEAN)
    assert (summary.means["dice"].value, summary.means["dice"].n) == (1 / 2, 2)
    assert (summary.means["lesion_recall"].value, summary.means["lesion_recall"].n) == (1 / 2, 2)
    assert (summary.means["lesion_f1"].value, summary.means["lesion_f1"].n) == (1 / 2, 2)
    assert (summary.means["lesion_precision"].value, summary.means["lesion_precision"].n) == (1, 1)
    assert (summary.means["hd95_mm"].value, summary.means["hd95_mm"].n) == (0, 1)
    assert (summary.n_cases_with_lesions, summary.n_clean_cases, summary.n_clean_subjects) == (2, 2, 2)
    assert summary.n_without_distances == 1


def test_false_positives_are_counted_where_there_is_nothing_to_find() -> None:
    summary = lesion(HIT, MISS, FALSE, CLEAN)
    assert FALSE.targets["lesion"].lesions.main.n_predicted == 2
    assert summary.false_positives_per_clean_subject == 1
    assert summary.n_clean_subjects_with_false_positives == 1
    assert summary.false_positives_per_case == 2 / 4
    assert summary.false_positives_per_labelled_slice == 2 / 8
    assert (summary.means["false_positives"].value, summary.means["false_positives"].n) == (2 / 4, 4)
    pooled = summary.pooled["iou_0.1"]
    assert (pooled.n_reference, pooled.n_predicted, pooled.n_found) == (2, 3, 1)
    assert (pooled.recall, pooled.precision, pooled.f1) == (1 / 2, 1 / 3, 2 / 5)


def test_a_subject_is_clean_only_if_all_its_cases_are() -> None:
    nothing, spot = drawn("...."), drawn("1...")
    cases = [
        scored(nothing, drawn("1..."), "a1", "a"),
        scored(spot, spot, "a2", "a"),
        scored(nothing, drawn("1.1."), "b1", "b"),
        scored(nothing, drawn("1..."), "b2", "b"),
    ]
    summary = lesion(*cases)
    assert (summary.n_clean_cases, summary.n_clean_subjects) == (3, 1)
    assert summary.false_positives_per_clean_subject == 3
    assert (summary.false_positives_per_case, summary.false_positives_per_subject) == (1, 2)


def test_without_clean_subjects_their_rate_is_undefined() -> None:
    summary = lesion(HIT)
    assert (summary.n_clean_subjects, summary.false_positives_per_clean_subject) == (0, None)


def test_without_any_lesion_no_mean_is_a_number_and_none_is_nan() -> None:
    summary = lesion(CLEAN, of("b", CLEAN))
    assert {mean.value for name, mean in summary.means.items() if name != "false_positives"} == {None}
    assert summary.means["false_positives"].value == 0
    assert (summary.pooled["iou_0.1"].recall, summary.pooled["iou_0.1"].f1) == (None, None)
    assert summary.pooled_intervals == {"recall": None, "precision": None, "f1": None}
    assert summary.by_size == ()


def test_cases_without_labels_are_counted_left_out_and_said() -> None:
    summary = summarise([HIT, scored(drawn("99"), drawn("11"), "unknown")])
    assert (summary.n_cases, summary.n_unlabelled_cases, summary.n_labelled_slices) == (1, 1, 2)
    assert summary.targets["lesion"].n_clean_cases == 0
    assert "1 of 2 cases have no labelled voxel: left out" in summary.remarks


def test_a_reference_that_is_ignored_everywhere_leaves_nothing() -> None:
    summary = summarise([scored(drawn("99"), drawn("11"))])
    assert (summary.n_cases, summary.n_subjects) == (0, 0)
    assert {mean.value for mean in summary.targets["lesion"].means.values()} == {None}


def test_nothing_to_summarise_is_a_wrong_call() -> None:
    with pytest.raises(ValueError, match="nothing"):
        summarise([])


def test_intervals_are_over_subjects_not_cases() -> None:
    # three cases of a found everything, one of b nothing: as four subjects they would vary less
    cases = [of("a", HIT), of("a", HIT), of("a", HIT), of("b", MISS)]
    summary = lesion(*cases)
    assert summary.means["lesion_recall"].value == 3 / 4
    assert summary.means["lesion_recall"].interval == ratio_interval([3, 0], [3, 1]) == Interval(0, 1)
    assert summary.pooled_intervals["recall"] == ratio_interval([3, 0], [3, 1])
    assert summary.pooled_intervals["precision"] is None  # only a has predicted lesions
    assert summary.pooled_intervals["f1"] == ratio_interval([6, 0], [6, 1])
    many = lesion(*(dataclasses.replace(case, subject=str(i)) for i, case in enumerate(cases)))
    assert many.means["lesion_recall"].interval == ratio_interval([1, 1, 1, 0], [1, 1, 1, 1])


def test_false_positives_have_an_interval_over_all_subjects() -> None:
    summary = lesion(HIT, MISS, FALSE, of("false", FALSE))
    assert summary.false_positives_per_subject == 4 / 3
    assert summary.false_positives_per_subject_interval == ratio_interval([0, 0, 4], [1, 1, 1])


def test_one_subject_has_no_intervals_and_that_is_said() -> None:
    summary = summarise([of("a", HIT), of("a", MISS)])
    assert all(mean.interval is None for mean in summary.targets["lesion"].means.values())
    assert any(remark.startswith("one subject only") for remark in summary.remarks)
    assert not any("one subject" in remark for remark in summarise([HIT, MISS]).remarks)


def test_spacing_of_one_everywhere_is_said_to_be_pixels_perhaps() -> None:
    flat = scored(drawn("1."), drawn("1."), spacing_zyx_mm=(1, 1, 1))
    assert any("pixels" in remark for remark in summarise([flat]).remarks)
    assert not any("pixels" in remark for remark in summarise([flat, HIT]).remarks)


def test_froc_is_over_all_subjects_and_only_with_all_probabilities() -> None:
    reference, nothing = drawn("11...1"), drawn("......")
    cases = [
        scored(reference, reference, "a", probability=chances("99...3")[None]),
        scored(nothing, nothing, "b", probability=chances("..5...")[None]),
    ]
    found = summarise(cases).targets["lesion"].froc
    assert found is not None
    assert list(found) == ["mean_probability", "max_probability"]
    for curve in found.values():
        assert (curve.n_reference, curve.n_subjects) == (2, 2)
        assert [(p.false_positives_per_subject, p.sensitivity) for p in curve.curve] == [(0, 0.5), (0.5, 1)]
        assert (curve.sensitivity_at["1/4"], curve.sensitivity_at["1/2"]) == (0.5, 1)
    mixed = summarise([*cases, HIT])
    assert (mixed.targets["lesion"].froc, mixed.targets["lesion"].reliability) == (None, None)
    assert "1 of 3 cases have no probabilities: no FROC and no reliability" in mixed.remarks
    assert not any("probabilities" in remark for remark in summarise(cases).remarks)


def test_without_reference_lesions_there_is_reliability_and_no_froc() -> None:
    nothing = drawn("......")
    summary = lesion(scored(nothing, nothing, probability=chances("..5...")[None]))
    assert summary.froc is None
    assert summary.reliability is not None
    assert summary.reliability.n_voxels == 6


def test_reliability_adds_up_over_cases() -> None:
    case = scored(drawn("11...1"), drawn("11...1"), probability=chances("99...3")[None])
    one, two = lesion(case).reliability, lesion(case, of("b", case)).reliability
    assert one and two
    assert (two.n_voxels, two.expected_calibration_error) == (
        2 * one.n_voxels,
        one.expected_calibration_error,
    )


def test_size_bins_say_where_their_edges_come_from() -> None:
    mask = drawn("1...11..111.1111")  # 3, 6, 9 and 12 mm³
    case = scored(mask, mask)

    def bins(edges: object) -> tuple[list[float], str]:
        summary = summarise([case], size_edges_mm3=edges)  # type: ignore[arg-type]
        (remark,) = [remark for remark in summary.remarks if remark.startswith("size bins")]
        return [b.low_mm3 for b in summary.targets["lesion"].by_size], remark

    assert bins([5, 10]) == ([0, 5, 10], "size bins: edges at 5, 10 mm³, as given")
    training = bins({"lesion": (4, 8, 20)})
    assert training == ([0, 4, 8, 20], "size bins: edges at 4, 8, 20 mm³, quartiles of the training lesions")
    own = [0, *np.percentile([3, 6, 9, 12], (25, 50, 75))]
    assert bins(None)[0] == own
    assert "quartiles of the reference lesions scored here" in bins(None)[1]
    assert bins({"other": (4, 8, 20)}) == bins(None) == bins(()) == bins({"lesion": ()})


def test_edges_that_do_not_rise_are_an_error() -> None:
    with pytest.raises(PwmlError, match="rising volumes above 0 mm³, not 5, 3"):
        summarise([HIT], size_edges_mm3=(5, 3))


def test_a_summary_survives_json() -> None:
    case = scored(drawn("11...1"), drawn("11...1"), probability=chances("99...3")[None])
    summary = summarise([case, of("b", case)])
    assert Summary.from_dict(summary.to_dict(), "summary") == summary


def test_intervals_do_not_depend_on_the_order_of_the_cases() -> None:
    cases = [
        scored(drawn("1.1.1.1.1.1."[: 2 * n]), drawn("1.1.1.1.1.1."[: 2 * found].ljust(2 * n, ".")), f"s{n}")
        for n, found in ((1, 1), (2, 0), (3, 1), (4, 4), (5, 2), (6, 5))
    ]
    first, second = summarise(cases), summarise(cases[::-1])
    assert first.targets["lesion"].pooled_intervals == second.targets["lesion"].pooled_intervals
    assert first.targets["lesion"].means == second.targets["lesion"].means
