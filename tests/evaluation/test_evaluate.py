import json
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.data.image import Geometry, write_image
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.evaluate import (
    CaseScores,
    Summary,
    evaluate_folders,
    score_case,
    summarise,
    table,
    write_summary,
)

LESION = Labels((Target("lesion", (1,), 1),), ignore=9)
DATASET_JSON = {"channel_names": {"0": "T1"}, "numTraining": 1, "file_ending": ".nii.gz"}


def drawn(*slices: str) -> NDArray[np.uint8]:
    """A mask (Z, Y, X) from one text per slice, rows apart by spaces; a digit is a label, . is 0."""
    return np.array([[[int(c.replace(".", "0")) for c in row] for row in text.split()] for text in slices], np.uint8)  # fmt: skip


def scored(
    reference: NDArray[np.uint8], prediction: NDArray[np.uint8], name: str = "a", subject: str = ""
) -> CaseScores:
    return score_case(
        reference,
        prediction,
        spacing_zyx_mm=(3, 1, 1),
        labels=LESION,
        name=name,
        subject=subject or name,
    )


HIT = scored(drawn("11..", "...."), drawn("11..", "...."), "hit")
MISS = scored(drawn("11..", "...."), drawn("....", "...."), "miss")
FALSE = scored(drawn("....", "...."), drawn("1.1.", "...1"), "false")
CLEAN = scored(drawn("....", "...."), drawn("....", "...."), "clean")


def test_each_target_of_overlapping_regions_is_scored_as_a_union() -> None:
    whole, core = Target("whole", (1, 2), 1), Target("core", (2,), 2)
    labels = Labels((whole, core), ignore=None, are_regions=True)
    case = score_case(drawn("1221"), drawn("1111"), spacing_zyx_mm=(1, 1, 1), labels=labels, name="a", subject="a")  # fmt: skip
    assert list(case.targets) == ["whole", "core"]
    assert case.targets["whole"].voxels.dice == 1
    assert case.targets["core"].voxels.dice == 0
    assert case.targets["whole"].lesions.main.n_reference == 1


def test_ignored_slices_are_not_labelled_slices() -> None:
    case = scored(drawn("1...", "9999", "999."), drawn("1...", "1111", "11.."))
    assert case.n_labelled_slices == 2
    assert case.targets["lesion"].voxels.false_positives == 0
    assert case.targets["lesion"].lesions.main.n_predicted == 1


def test_masks_on_two_grids_are_a_wrong_call() -> None:
    with pytest.raises(ValueError, match="one grid"):
        scored(drawn("1..."), drawn("1.."))


def test_clean_cases_are_counted_and_in_no_lesion_mean() -> None:
    summary = summarise([HIT, MISS, FALSE, CLEAN]).targets["lesion"]
    assert (summary.means["dice"].value, summary.means["dice"].n) == (1 / 2, 2)
    assert (summary.means["lesion_recall"].value, summary.means["lesion_recall"].n) == (1 / 2, 2)
    assert (summary.means["lesion_f1"].value, summary.means["lesion_f1"].n) == (1 / 2, 2)
    assert (summary.means["lesion_precision"].value, summary.means["lesion_precision"].n) == (1, 1)
    assert (summary.means["hd95_mm"].value, summary.means["hd95_mm"].n) == (0, 1)
    assert (summary.n_cases_with_lesions, summary.n_clean_cases, summary.n_clean_subjects) == (2, 2, 2)
    assert summary.n_without_distances == 1


def test_false_positives_are_counted_where_there_is_nothing_to_find() -> None:
    summary = summarise([HIT, MISS, FALSE, CLEAN]).targets["lesion"]
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
    nothing, lesion = drawn("...."), drawn("1...")
    cases = [
        scored(nothing, drawn("1..."), "a1", "a"),
        scored(lesion, lesion, "a2", "a"),
        scored(nothing, drawn("1.1."), "b1", "b"),
        scored(nothing, drawn("1..."), "b2", "b"),
    ]
    summary = summarise(cases).targets["lesion"]
    assert (summary.n_clean_cases, summary.n_clean_subjects) == (3, 1)
    assert summary.false_positives_per_clean_subject == 3


def test_without_clean_subjects_their_rate_is_undefined() -> None:
    summary = summarise([HIT]).targets["lesion"]
    assert (summary.n_clean_subjects, summary.false_positives_per_clean_subject) == (0, None)


def test_cases_without_labels_are_counted_and_left_out() -> None:
    summary = summarise([HIT, scored(drawn("99"), drawn("11"), "unknown")])
    assert (summary.n_cases, summary.n_unlabelled_cases, summary.n_labelled_slices) == (1, 1, 2)
    assert summary.targets["lesion"].n_clean_cases == 0
    assert "unknown" not in table(summary, [HIT])


def test_nothing_to_summarise_is_a_wrong_call() -> None:
    with pytest.raises(ValueError, match="nothing"):
        summarise([])


def test_summary_json_holds_what_was_scored(tmp_path: Path) -> None:
    cases = [HIT, MISS, FALSE, CLEAN]
    write_summary(tmp_path / "summary.json", cases)
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["version"] == 1
    assert content["rules"]["connectivity"] == "26 in 3-D, 8 in a single slice"
    assert content["rules"]["main_matching"] == "iou_0.1"
    assert [CaseScores.from_dict(case, "case") for case in content["cases"]] == cases
    assert Summary.from_dict(content["summary"], "summary") == summarise(cases)


def test_table_is_aligned_and_says_over_how_many() -> None:
    cases = [HIT, MISS, FALSE, CLEAN]
    text = table(summarise(cases), cases)
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert rows["case"].split() == ["case", "Dice", "recall", "precision", "F1", "false+", "HD95", "mm"]
    assert rows["miss"].split() == ["miss", "0.00", "0.00", "–", "0.00", "0", "–"]
    assert rows["mean"].split() == ["mean", "0.50", "0.50", "1.00", "0.50", "0.50", "0.00"]
    assert rows["cases in mean"].split()[3:] == ["2", "2", "1", "2", "4", "1"]
    assert len({len(rows[name]) for name in ("case", "hit", "miss", "false", "mean", "cases in mean")}) == 1
    assert "recall 0.50 (1 of 2), precision 0.33 (1 of 3)" in text
    assert "clean subjects: 2, of whom 1 with false positives (1.00 per clean subject)" in text
    assert "no distance: 1 case with lesions" in text
    assert "pixels" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_table_says_that_pictures_have_no_mm() -> None:
    case = score_case(drawn("1."), drawn("1."), spacing_zyx_mm=(1, 1, 1), labels=LESION, name="a", subject="a")  # fmt: skip
    assert "mm are then pixels" in table(summarise([case]), [case])


GRID = Geometry((2, 2, 4), (3.0, 0.5, 0.7), (5.0, -3.0, 8.0), (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
MASK = drawn("11.. ....", ".... ...1")


class Folders:
    """labelsTr with its dataset.json above, and predictions."""

    def __init__(self, folder: Path) -> None:
        self.reference, self.prediction = folder / "labelsTr", folder / "predicted"
        self.reference.mkdir()
        self.prediction.mkdir()

    def write(self, name: str, reference: NDArray[np.generic], prediction: NDArray[np.generic]) -> None:
        write_image(self.reference / name, reference, GRID)
        write_image(self.prediction / name, prediction, GRID)

    def describe(self, path: Path, **labels: int) -> Path:
        path.write_text(json.dumps({**DATASET_JSON, "labels": {"background": 0, **labels}}))
        return path

    def error(self) -> str:
        with pytest.raises(PwmlError) as caught:
            evaluate_folders(self.reference, self.prediction)
        return str(caught.value)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_folders_are_scored_in_mm_by_file_name(folders: Folders) -> None:
    folders.write("sub-02_b.nii.gz", MASK, MASK)
    folders.write("sub-01_a.nii.gz", MASK, drawn("11.. ....", ".... 1..."))
    cases = evaluate_folders(folders.reference, folders.prediction)
    assert [case.name for case in cases] == ["sub-01_a", "sub-02_b"]
    assert [case.subject for case in cases] == ["sub-01", "sub-02"]
    scores = cases[0].targets["lesion"]
    assert scores.voxels.reference_volume_mm3 == pytest.approx(3 * 3 * 0.5 * 0.7)
    assert scores.voxels.hd_mm == pytest.approx(3 * 0.7)
    assert (scores.lesions.main.n_reference, scores.lesions.main.n_found) == (2, 1)


@pytest.mark.parametrize("place", ["predicted/dataset.json", "labelsTr/dataset.json", "dataset.json"])
def test_labels_and_subjects_come_from_dataset_json(folders: Folders, place: str) -> None:
    path = folders.describe(folders.reference.parent / place, edema=1, cyst=2, ignore=3)
    path.write_text(json.dumps({**json.loads(path.read_text()), "subjects": {"a": "anna"}}))
    folders.write("a.nii.gz", drawn("12.. 3...", ".... ...."), drawn("12.. 1...", ".... ...."))
    (case,) = evaluate_folders(folders.reference, folders.prediction)
    assert list(case.targets) == ["edema", "cyst"]
    assert case.subject == "anna"
    assert case.targets["edema"].voxels.dice == 1


def test_given_labels_win(folders: Folders) -> None:
    folders.describe(folders.reference.parent / "dataset.json", lesion=1)
    folders.write("a.nii.gz", 2 * MASK, 2 * MASK)
    other = folders.describe(folders.reference.parent / "other.json", spot=2)
    labels = Labels((Target("spot", (2,), 2),), ignore=None)
    for given in (other, labels):
        (case,) = evaluate_folders(folders.reference, folders.prediction, labels=given)
        assert case.targets["spot"].lesions.main.n_found == 2


def test_other_values_than_one_need_labels(folders: Folders) -> None:
    folders.write("a.nii.gz", 2 * MASK, MASK)
    assert "a.nii.gz holds the value 2: say what it means with --labels dataset.json" in folders.error()


def test_masks_of_whole_numbers_may_be_stored_as_fractions(folders: Folders) -> None:
    folders.write("a.nii.gz", MASK.astype(np.float32), MASK)
    (case,) = evaluate_folders(folders.reference, folders.prediction)
    assert case.targets["lesion"].voxels.dice == 1


def test_missing_files_are_an_error_unless_only_common_is_asked_for(folders: Folders) -> None:
    for name in ("a.nii.gz", "b.nii.gz", "c.nii.gz"):
        folders.write(name, MASK, MASK)
    (folders.prediction / "b.nii.gz").unlink()
    (folders.reference / "c.nii.gz").unlink()
    message = folders.error()
    assert "labelsTr/b.nii.gz has no counterpart" in message
    assert "predicted/c.nii.gz has no counterpart" in message
    (case,) = evaluate_folders(folders.reference, folders.prediction, only_common=True)
    assert case.name == "a"


def test_no_common_file_is_an_error(folders: Folders, tmp_path: Path) -> None:
    folders.write("a.nii.gz", MASK, MASK)
    (folders.prediction / "a.nii.gz").rename(folders.prediction / "b.nii.gz")
    assert "no .nii.gz, " in folders.error()
    folders.describe(tmp_path / "dataset.json", lesion=1)
    assert "no .nii.gz file name in common" in folders.error()
    with pytest.raises(PwmlError, match="nowhere"):
        evaluate_folders(folders.reference, tmp_path / "nowhere")


def test_one_case_in_two_formats_is_an_error(folders: Folders) -> None:
    folders.write("a.nii.gz", MASK, MASK)
    folders.write("a.nrrd", MASK, MASK)
    assert "several formats" in folders.error()
    (case,) = evaluate_folders(folders.reference, folders.prediction, file_ending=".nrrd")
    assert case.name == "a"


def test_all_problems_are_listed_at_once(folders: Folders, tmp_path: Path) -> None:
    folders.describe(tmp_path / "dataset.json", lesion=1, ignore=4)
    folders.write("grid.nii.gz", MASK, MASK)
    moved = Geometry(GRID.shape_zyx, GRID.spacing_zyx_mm, (5.0, -3.0, 9.0), GRID.direction_xyz)
    write_image(folders.prediction / "grid.nii.gz", MASK, moved)
    folders.write("half.nii.gz", MASK, MASK * np.float32(0.5))
    folders.write("ignore.nii.gz", 4 * MASK, 4 * MASK)
    folders.write("unknown.nii.gz", 3 * MASK, MASK)
    folders.write("damaged.nii.gz", MASK, MASK)
    (folders.prediction / "damaged.nii.gz").write_bytes(b"nothing")
    folders.write("lonely.nii.gz", MASK, MASK)
    (folders.prediction / "lonely.nii.gz").unlink()
    lines = folders.error().splitlines()
    assert lines[0] == "the masks cannot be compared (6):"
    expected = [
        "labelsTr/lonely.nii.gz has no counterpart",
        "predicted/damaged.nii.gz cannot be read",
        "origin 5, -3, 9 against 5, -3, 8 mm",
        "predicted/half.nii.gz holds 0.5: a mask must hold whole numbers",
        "predicted/ignore.nii.gz holds the value 4",
        "labelsTr/unknown.nii.gz holds the value 3: it may hold 0, 1, 4",
    ]
    for line, part in zip(lines[1:], expected, strict=True):
        assert part in line


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
