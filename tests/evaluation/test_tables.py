import csv
from pathlib import Path

import numpy as np
import pytest
from drawing import CLEAN, FALSE, HIT, MISS, chances, drawn, scored

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.evaluation.summary import summarise
from pwmlunet.evaluation.tables import table, write_tables


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_table_is_aligned_and_says_over_how_many() -> None:
    cases = [HIT, MISS, FALSE, CLEAN]
    text = table(summarise(cases), cases)
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert rows["case"].split() == ["case", "Dice", "recall", "precision", "F1", "false+", "HD95", "mm"]
    assert rows["miss"].split() == ["miss", "0.00", "0.00", "–", "0.00", "0", "–"]
    assert rows["mean"].split() == ["mean", "0.50", "0.50", "1.00", "0.50", "0.50", "0.00"]
    assert rows["95 % interval"].split()[3:] == ["0.00–1.00", "0.00–1.00", "–", "0.00–1.00", "0.00–1.50", "–"]
    assert rows["cases in mean"].split()[3:] == ["2", "2", "1", "2", "4", "1"]
    named = ("case", "hit", "miss", "false", "mean", "95 % interval", "cases in mean")
    assert len({len(rows[name]) for name in named}) == 1
    assert "recall 0.50 (0.00–1.00; 1 of 2), precision 0.33 (0.00–1.00; 1 of 3), F1 0.40 (" in text
    assert "false positives: 0.50 (0.00–1.50) per subject, 0.50 per case, 0.25 per labelled slice" in text
    assert "clean subjects: 2, of whom 1 with false positives (1.00 per clean subject)" in text
    assert "no distance: 1 case with lesions" in text
    assert "note: 4 of 4 cases have no probabilities" in text
    assert "pixels" not in text
    assert max(map(len, text.splitlines())) <= 110


def test_one_subject_has_no_row_of_intervals() -> None:
    text = table(summarise([HIT]), [HIT])
    assert "95 % interval  " not in text.split("mm³")[0]
    assert "recall 1.00 (1 of 1), precision 1.00 (1 of 1), F1 1.00\n" in text
    assert "note: one subject only" in text


def test_table_shows_sizes_froc_and_each_target_by_name() -> None:
    labels = Labels((Target("edema", (1,), 1), Target("cyst", (2,), 2)), ignore=9)
    mask = drawn("11...2", "......")
    probability = np.stack([chances("99....", "......"), chances(".....8", "3.....")])
    case = scored(mask, mask, labels=labels, probability=probability)
    text = table(summarise([case], size_edges_mm3=(4,)), [case])
    blocks = text.split("cyst\n")
    assert blocks[0].startswith("edema\n")
    assert [line.split() for line in blocks[0].splitlines() if line.startswith(("0 to", "from"))] == [
        ["0", "to", "4", "0", "0", "–", "–", "–", "–", "0", "0"],
        ["from", "4", "1", "1", "1.00", "–", "1.00", "0.00", "1", "0"],
    ]
    assert "FROC by mean probability: recall 1.00 1.00 1.00 1.00 1.00 1.00 1.00 at 1/8 1/4 1/2 1 2 4 8 false+ per subject" in blocks[0]  # fmt: skip
    assert "expected calibration error around lesions: 0." in blocks[0]
    assert "size bins of cyst: edges at 4 mm³, as given" in blocks[1]


def test_unlabelled_cases_are_in_no_row() -> None:
    unknown = scored(drawn("99"), drawn("11"), "unknown")
    text = table(summarise([HIT, unknown]), [HIT, unknown])
    assert "unknown" not in text
    assert "1 of 2 cases have no labelled voxel" in text


def test_cases_csv_has_a_row_for_each_case_and_target_with_units(tmp_path: Path) -> None:
    write_tables(tmp_path, [HIT, MISS, CLEAN])
    rows = rows_of(tmp_path / "cases.csv")
    assert [(row["case"], row["subject"], row["target"]) for row in rows] == [
        ("hit", "hit", "lesion"),
        ("miss", "miss", "lesion"),
        ("clean", "clean", "lesion"),
    ]
    hit, miss, clean = rows
    assert (hit["spacing_z_mm"], hit["spacing_x_mm"], hit["n_labelled_slices"]) == ("3", "1", "2")
    assert (hit["true_positives_voxels"], hit["reference_volume_mm3"], hit["hd95_mm"]) == ("2", "6", "0")
    assert (hit["iou_0.1_recall"], hit["centroid_2mm_n_found"], hit["n_merged"]) == ("1", "1", "0")
    assert (miss["dice"], miss["hd_mm"], miss["iou_0.1_f1"], miss["iou_0.1_precision"]) == (
        "0",
        "",
        "0",
        "",
    )
    assert (clean["dice"], clean["n_reference_lesions"], clean["expected_calibration_error"]) == ("", "0", "")


def test_lesions_csv_has_a_row_for_each_reference_and_each_false_lesion(tmp_path: Path) -> None:
    reference = drawn("11....1", ".......", ".......")
    prediction = drawn("1......", "....1..", "....1..")
    probability = chances("91....1", "1...911", "1...911")[None]
    write_tables(tmp_path, [scored(reference, prediction, "a", "anna", probability=probability)])
    found, missed, false = rows_of(tmp_path / "lesions.csv")
    assert [row["fate"] for row in (found, missed, false)] == ["found", "missed", "false"]
    assert (found["reference_volume_mm3"], found["predicted_volume_mm3"]) == ("6", "3")
    assert (float(found["iou"]), float(found["dice"])) == pytest.approx((1 / 2, 2 / 3))
    place = ("centroid_z_voxels", "centroid_y_voxels", "centroid_x_voxels", "first_slice", "last_slice")
    assert [found[name] for name in place] == ["0", "0", "0.5", "0", "0"]
    assert [false[name] for name in place] == ["1.5", "0", "4", "1", "2"]
    assert (missed["predicted_volume_mm3"], missed["iou"], missed["dice"]) == ("", "0", "0")
    assert (false["reference_volume_mm3"], false["predicted_volume_mm3"], false["dice"]) == ("", "6", "")
    assert (false["number"], false["case"], false["subject"]) == ("1", "a", "anna")
    scores = [
        (float(row["mean_probability"]), float(row["max_probability"])) for row in (found, missed, false)
    ]
    assert scores == [pytest.approx((0.5, 0.9)), pytest.approx((0.1, 0.1)), pytest.approx((0.9, 0.9))]


def test_without_lesions_or_probabilities_there_is_still_a_header(tmp_path: Path) -> None:
    write_tables(tmp_path, [CLEAN])
    assert (tmp_path / "lesions.csv").read_text().startswith("case,subject,target,fate,number,")
    assert rows_of(tmp_path / "lesions.csv") == []
    write_tables(tmp_path, [MISS])
    assert rows_of(tmp_path / "lesions.csv")[0]["max_probability"] == ""


def test_names_with_commas_and_accents_survive(tmp_path: Path) -> None:
    write_tables(tmp_path, [scored(drawn("1"), drawn("1"), 'Zoë, "2"')])
    assert rows_of(tmp_path / "lesions.csv")[0]["case"] == 'Zoë, "2"'
