import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.data.image import Geometry, write_image
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.bootstrap import Interval, difference_interval
from pwmlunet.evaluation.comparison import Comparison, RunValue, compare
from pwmlunet.evaluation.evaluate import evaluate_folders, write_summary
from pwmlunet.evaluation.runs import ScoredRun, read_run, short_names
from pwmlunet.evaluation.scores import CaseScores, score_case
from pwmlunet.evaluation.summary import summarise
from pwmlunet.report.compare import compare_folders, forest, text, write_comparison
from pwmlunet.report.pages import data_uri

LESION = Labels((Target("lesion", (1,), 1),), ignore=9)
SPACING = (3.0, 0.5, 1.0)  # 1.5 mm³ a voxel

# Lesions of 1, 3 and 2 voxels in each subject; the last subject has none.
REFERENCE = [".1....111..11", ".1....111..11", "1...111....11", "............."]
SUBJECTS = ["a", "b", "c", "d"]
FIRST = ["......111....", "......111....", "....111......", "............."]
MORE = ["......111..11", "......111..11", "....111....11", "............."]  # one lesion more in each
FALSE = ["1..1..111....", "1..1..111....", "..1.111....1.", ".1..........."]


def drawn(row: str) -> NDArray[np.uint8]:
    """A mask (1, 1, X) from a text; a digit is a label, . is 0."""
    return np.array([[[int(c.replace(".", "0")) for c in row]]], np.uint8)


def scored(reference: str, prediction: str, name: str, subject: str, labels: Labels = LESION) -> CaseScores:
    return score_case(drawn(reference), drawn(prediction), spacing_zyx_mm=SPACING, labels=labels, name=name, subject=subject)  # fmt: skip


def run(name: str, predictions: list[str], *, subjects: list[str] = SUBJECTS) -> ScoredRun:
    rows = zip(REFERENCE, predictions, subjects, strict=True)
    return ScoredRun(name, tuple(scored(r, p, f"case_{i}", s) for i, (r, p, s) in enumerate(rows)))


def values(comparison: Comparison, score: str) -> tuple[RunValue, ...]:
    (found,) = (s for s in comparison.targets["lesion"].scores if s.name == score)
    return found.runs


def test_a_run_against_itself_differs_by_exactly_nothing() -> None:
    comparison = compare([run("one", FALSE), run("same", FALSE)])
    target = comparison.targets["lesion"]
    pairs = [*(s.runs for s in target.scores), *(s.runs for s in target.by_size)]
    assert len(pairs) == 8 + 3  # three sizes: nothing is below the lowest quartile
    for baseline, other in pairs:
        assert baseline.difference is None
        assert other.difference is not None
        assert other.difference.value == 0
        assert other.difference.interval == Interval(0, 0)
        assert other.difference.verdict == "no difference shown"
        assert (other.value, other.interval, other.n) == (baseline.value, baseline.interval, baseline.n)
    assert {case.disagreement for case in target.cases} == {(0, 0)}


def test_a_lesion_more_in_each_subject_is_better() -> None:
    first, more = run("first", FIRST), run("more", MORE)
    comparison = compare([first, more])
    recall = values(comparison, "lesion_recall")
    assert [(r.value, r.n) for r in recall] == [(pytest.approx(3 / 9), 9), (pytest.approx(6 / 9), 9)]
    assert recall[1].difference is not None
    assert recall[1].difference.value == pytest.approx(1 / 3)
    assert recall[1].difference.verdict == "better"
    f1 = values(comparison, "lesion_f1")
    assert [r.value for r in f1] == [pytest.approx(6 / 12), pytest.approx(12 / 15)]
    assert f1[1].difference is not None
    assert f1[1].difference.interval == difference_interval(
        ([4, 4, 4, 0], [5, 5, 5, 0]), ([2, 2, 2, 0], [4, 4, 4, 0])
    )
    precision = values(comparison, "lesion_precision")
    assert precision[1].difference is not None
    assert precision[1].difference.verdict == "no difference shown"
    reverse = values(compare([more, first]), "lesion_recall")[1].difference
    assert reverse is not None
    assert (reverse.value, reverse.verdict) == (pytest.approx(-1 / 3), "worse")


def test_fewer_false_positives_and_less_distance_are_better() -> None:
    comparison = compare([run("false", FALSE), run("more", MORE)])
    false = values(comparison, "false_positives_per_subject")
    assert [(r.value, r.n) for r in false] == [(pytest.approx(6 / 4), 4), (0, 4)]
    for score in ("false_positives_per_subject", "hd95_mm", "absolute_volume_difference_mm3"):
        better, worse = (
            values(compare(runs), score)[1].difference
            for runs in (
                [run("first", FIRST), run("whole", REFERENCE)],
                [run("x", REFERENCE), run("false", FALSE)],
            )
        )
        assert worse is not None
        assert (worse.value or 0) > 0
        assert worse.verdict == "worse"
        assert better is not None
        assert better.verdict == ("no difference shown" if "false" in score else "better")
    lower = {s.name for s in comparison.targets["lesion"].scores if s.lower_is_better}
    assert lower == {"false_positives_per_subject", "hd95_mm", "absolute_volume_difference_mm3"}


def test_values_agree_with_the_summary_of_each_run() -> None:
    runs = [run("first", FIRST), run("false", FALSE)]
    comparison = compare(runs)
    for index, scored_run in enumerate(runs):
        summary = summarise(scored_run.cases).targets["lesion"]
        for name in ("dice", "surface_dice", "hd95_mm", "absolute_volume_difference_mm3"):
            mean, value = summary.means[name], values(comparison, name)[index]
            assert (value.value, value.n) == (pytest.approx(mean.value), mean.n)
            assert value.interval == mean.interval
        assert values(comparison, "lesion_f1")[index].value == summary.pooled["iou_0.1"].f1
        assert values(comparison, "lesion_f1")[index].interval == summary.pooled_intervals["f1"]


def test_distances_are_compared_where_both_runs_have_one() -> None:
    partly = [FALSE[0], ".............", FALSE[2], FALSE[3]]
    own, other = values(compare([run("first", FIRST), run("partly", partly)]), "hd95_mm")
    assert (own.n, other.n) == (3, 2)
    assert other.difference is not None
    assert other.difference.n == 2
    alone = values(compare([run("partly", partly), run("first", FIRST)]), "hd95_mm")[1]
    assert alone.difference is not None
    assert alone.n == 3
    assert alone.difference.n == 2
    assert alone.difference.value == pytest.approx(-other.difference.value)
    shown = text(compare([run("partly", partly), run("first", FIRST)])).splitlines()
    assert shown[shown.index("HD95, mm (n: cases with a distance; lower is better)") + 2].endswith(" (n 2)")


def test_recall_by_size_has_its_own_differences() -> None:
    comparison = compare([run("first", FIRST), run("more", MORE)], size_edges_mm3=[2, 4])
    small, middle, large = comparison.targets["lesion"].by_size
    assert [(s.low_mm3, s.high_mm3) for s in (small, middle, large)] == [(0, 2), (2, 4), (4, None)]
    assert [r.value for r in small.runs] == [0, 0]
    assert [r.value for r in middle.runs] == [0, 1]
    assert [r.value for r in large.runs] == [1, 1]
    assert {r.n for s in (small, middle, large) for r in s.runs} == {3}
    assert middle.runs[1].difference is not None
    assert middle.runs[1].difference.verdict == "better"


def test_cases_with_the_largest_disagreement_come_first() -> None:
    other = [FIRST[0], MORE[1], ".............", ".1..........."]
    cases = compare([run("first", FIRST), run("other", other)]).targets["lesion"].cases
    assert [case.name for case in cases] == ["case_3", "case_2", "case_1", "case_0"]
    assert cases[0].lesion_f1 == (None, 0)  # a clean case, and a false lesion in it
    assert cases[1].lesion_f1 == (0.5, 0)
    assert cases[1].n_reference == 3
    assert cases[2].disagreement[0] == pytest.approx(4 / 5 - 2 / 4)


def test_the_order_of_cases_does_not_matter() -> None:
    more = run("more", MORE)
    shuffled = ScoredRun("more", more.cases[::-1])
    assert compare([run("first", FIRST), shuffled]) == compare([run("first", FIRST), more])


def test_unlabelled_cases_are_left_out_and_told() -> None:
    extra = scored("999", "1..", "unlabelled", "e")
    runs = [ScoredRun(r.name, (*r.cases, extra)) for r in (run("first", FIRST), run("more", MORE))]
    comparison = compare(runs)
    assert (comparison.n_cases, comparison.n_subjects) == (4, 4)
    assert "1 of 5 cases have no labelled voxel: left out" in comparison.remarks


def test_one_subject_has_no_intervals() -> None:
    comparison = compare([run("x", FIRST, subjects=["a"] * 4), run("y", MORE, subjects=["a"] * 4)])
    other = values(comparison, "lesion_f1")[1]
    assert other.interval is None
    assert other.difference is not None
    assert (other.difference.interval, other.difference.verdict) == (None, "no interval")
    assert any("one subject only" in remark for remark in comparison.remarks)


def test_other_cases_and_targets_are_an_error_that_lists_them() -> None:
    first, more = run("first", FIRST), run("more", MORE)
    fewer = ScoredRun("fewer", more.cases[2:])
    with pytest.raises(PwmlError, match=r"^fewer lacks the cases case_0, case_1: .*--only-common"):
        compare([first, fewer])
    comparison = compare([first, fewer], only_common=True)
    assert comparison.n_cases == 2
    assert any("2 left out" in remark for remark in comparison.remarks)
    spot = Labels((Target("spot", (1,), 1),), ignore=9)
    other = ScoredRun("other", tuple(scored(r, r, f"case_{i}", s, spot) for i, (r, s) in enumerate(zip(REFERENCE, SUBJECTS, strict=True))))  # fmt: skip
    with pytest.raises(PwmlError) as caught:
        compare([first, other])
    assert "first lacks the target spot" in str(caught.value)
    assert "other lacks the target lesion" in str(caught.value)
    with pytest.raises(PwmlError, match="first, other have no target in common"):
        compare([first, other], only_common=True)
    with pytest.raises(PwmlError, match="have no case in common"):
        compare([ScoredRun("x", first.cases[:2]), fewer], only_common=True)


def test_other_references_and_subjects_are_an_error() -> None:
    first = run("first", FIRST)
    for reference, subject, words in (
        (".1....11...11", "a", "case_0 has another reference in x than in first"),
        (".1....111..1.", "a", "case_0 has another reference in x than in first"),
        ("9999999999999", "a", "case_0 has another reference in x than in first"),
        (REFERENCE[0], "z", "case_0 is of z in x and of a in first: .*--labels"),
    ):
        other = ScoredRun("x", (scored(reference, FIRST[0], "case_0", subject), *first.cases[1:]))
        with pytest.raises(PwmlError, match=words):
            compare([first, other])
    clean = (*first.cases[:3], scored("9999999999999", FIRST[3], "case_3", "d"))
    with pytest.raises(PwmlError, match="case_3 has another reference"):
        compare([first, ScoredRun("x", clean)])


def test_one_run_is_an_error() -> None:
    with pytest.raises(PwmlError, match="one run only"):
        compare([run("first", FIRST)])


def test_text_fits_a_screen() -> None:
    names = ["results/Dataset001/a_long_name/nnunet", "more", "results/Dataset001/a_long_name/third"]
    shown = text(compare([run(n, p) for n, p in zip(names, (FIRST, MORE, FALSE), strict=True)]))
    assert max(map(len, shown.splitlines())) <= 110
    lines = shown.splitlines()
    recall = lines.index("lesion recall (n: reference lesions)")
    assert lines[recall + 1].split()[-1] == "baseline"
    assert lines[recall + 2].split() == [
        "more",
        "0.67",
        "0.67",
        "to",
        "0.67",
        "9",
        "+0.33",
        "0.33",
        "to",
        "0.33",
        "better",
    ]
    assert lines[recall + 3].startswith("  …1/a_long_name/third ")
    assert "HD95, mm (n: cases with a distance; lower is better)" in lines
    assert "not how a second training" in shown


def test_text_shows_the_cases_that_differ_most() -> None:
    shown = text(compare([run("first", FIRST), run("more", MORE)])).splitlines()
    (row,) = (line.split() for line in shown if line.startswith("case_2"))
    assert row == ["case_2", "3", "0.50", "0.80", "0.67", "0.91"]
    names = [f"case_{i:02d}" for i in range(23)]
    many = ScoredRun("x", tuple(scored("1.", "1.", name, name) for name in names))
    assert "… and 3 more, on which the runs disagree less" in text(compare([many, many]))


GRID = Geometry((1, 1, 13), SPACING, (5.0, -3.0, 8.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return write_masks(tmp_path / "labelsTr", REFERENCE)


def write_masks(folder: Path, rows: list[str]) -> Path:
    for index, (row, subject) in enumerate(zip(rows, SUBJECTS, strict=True)):
        write_image(folder / f"sub-{subject}_{index}.nii.gz", drawn(row), GRID)
    return folder


def write_model(folder: Path, reference: Path, masks: Path) -> Path:
    cases = evaluate_folders(reference, masks)
    for fold, part in enumerate((cases[:1], cases[1:])):
        write_summary(folder / f"fold_{fold}" / "validation" / "summary.json", part)
    return folder


def test_folders_of_every_kind_are_compared(reference: Path, tmp_path: Path) -> None:
    masks = write_masks(tmp_path / "nnunet", MORE)
    (masks / "summary.json").write_text(json.dumps({"foreground_mean": {}}))  # as nnU-Net writes
    before = sorted(masks.iterdir())
    model = write_model(tmp_path / "model", reference, write_masks(tmp_path / "first", FIRST))
    evaluated = tmp_path / "evaluated"
    cases = evaluate_folders(reference, write_masks(tmp_path / "false", FALSE))
    write_summary(evaluated / "summary.json", cases)
    comparison = compare_folders([model, masks, evaluated], reference=reference)
    assert comparison.runs == ("model", "nnunet", "evaluated")
    recall = values(comparison, "lesion_recall")
    assert [r.value for r in recall] == [pytest.approx(v) for v in (3 / 9, 6 / 9, 4 / 9)]
    assert sorted(masks.iterdir()) == before
    assert comparison.n_subjects == 4


def test_a_reference_scores_masks_anew(reference: Path, tmp_path: Path) -> None:
    masks = write_masks(tmp_path / "run", FIRST)
    cases = evaluate_folders(reference, masks)
    write_summary(masks / "summary.json", cases)
    write_masks(masks, MORE)
    for given, n_found in ((None, 3), (reference, 6)):
        scored_run = read_run(masks, reference=given)
        assert sum(case.targets["lesion"].lesions.main.n_found for case in scored_run.cases) == n_found


def test_folders_that_are_no_runs_are_an_error(reference: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(PwmlError) as caught:
        compare_folders([empty, tmp_path / "nowhere"], reference=reference)
    assert "empty holds no scores nor masks named as in" in str(caught.value)
    assert "nowhere is not a folder" in str(caught.value)
    with pytest.raises(PwmlError, match="there is no --reference"):
        read_run(empty)
    masks = write_masks(tmp_path / "nnunet", MORE)
    (masks / "summary.json").write_text(json.dumps({"foreground_mean": {}}))
    with pytest.raises(PwmlError, match="not written by pwml_evaluate"):
        read_run(masks)


def test_folds_that_share_a_case_are_an_error(reference: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", reference, write_masks(tmp_path / "first", FIRST))
    whole = evaluate_folders(reference, tmp_path / "first")
    write_summary(model / "fold_2" / "validation" / "summary.json", whole)
    with pytest.raises(PwmlError, match="the folds must not share cases"):
        read_run(model)


def test_names_are_the_parts_that_differ() -> None:
    assert short_names([Path("/r/D/unet"), Path("/r/D/trident")]) == ["unet", "trident"]
    assert short_names([Path("/r/unet/masks"), Path("/r/trident/masks")]) == ["unet", "trident"]
    assert short_names([Path("/a/x/1"), Path("/b/x/2")]) == ["a/x/1", "b/x/2"]
    assert short_names([Path("/r/D"), Path("/r/D/unet")]) == ["D", "unet"]
    assert short_names([Path("/r/x"), Path("/r/x")]) == ["x (1)", "x (2)"]


def test_the_page_has_the_numbers_and_needs_no_network(tmp_path: Path) -> None:
    comparison = compare([run("first", FIRST), run("<b>more</b>", MORE)])
    path = tmp_path / "deep" / "comparison.html"
    write_comparison(path, comparison)
    page = path.read_text(encoding="utf-8")
    assert "<b>more" not in page
    assert "&lt;b&gt;more&lt;/b&gt;" in page
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", page)
    assert page.count('<img src="data:image/') == 1
    row = re.search(r"lesion F1.*?</tbody>", page, re.DOTALL)
    assert row is not None
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row[0], re.DOTALL)
    assert cells[1:4] == ["0.50", "0.50 to 0.50", "12"]
    assert cells[4 + 4 :] != []
    assert "+0.30" in cells
    assert "better" in cells
    for case in comparison.targets["lesion"].cases:
        assert case.name in page
    for remark in comparison.remarks:
        assert remark[1:] in page


def test_any_name_can_be_drawn(tmp_path: Path) -> None:
    target = compare([run("$x_", FIRST), run("_$y$_", MORE)]).targets["lesion"]
    figure = forest(target, ["$x_", "_$y$_"])
    assert [label.get_text() for label in figure.legends[0].get_texts()] == [r" _\$y\$_"]
    assert data_uri(figure).startswith("data:image/svg+xml")


def test_the_page_of_one_subject_and_of_no_lesion_is_whole(tmp_path: Path) -> None:
    clean = [ScoredRun(n, (scored("...", "1..", "a", "a"),)) for n in ("x", "y", "z")]
    write_comparison(tmp_path / "page.html", compare(clean))
    assert "one subject only" in text(compare(clean)).lower()


def test_the_numbers_of_the_page_are_written_beside_it(tmp_path: Path) -> None:
    for predictions in (MORE, FALSE):  # an earlier comparison is replaced
        comparison = compare([run("first", FIRST), run("other", predictions)])
        write_comparison(tmp_path / "page.html", comparison)
        assert Comparison.read(tmp_path / "page.json") == comparison


def test_numbers_replace_nothing_but_numbers(tmp_path: Path) -> None:
    comparison = compare([run("first", FIRST), run("more", MORE)])
    other = tmp_path / "summary.json"
    other.write_text('{"runs": ["mine"]}')
    with pytest.raises(PwmlError, match=r"summary\.json was not written by pwml_compare: .* -o"):
        write_comparison(tmp_path / "summary.html", comparison)
    with pytest.raises(PwmlError, match=r"page\.json is where the numbers go: name the page, such as page.html, with -o"):  # fmt: skip
        write_comparison(tmp_path / "page.json", comparison)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert other.read_text() == '{"runs": ["mine"]}'
