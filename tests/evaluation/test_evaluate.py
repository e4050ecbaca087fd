import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import CLEAN, FALSE, HIT, MISS, chances, drawn, scored
from numpy.typing import NDArray

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.data.image import Geometry, write_image
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.evaluation.evaluate import evaluate_folders, read_summary, write_summary
from pwmlunet.evaluation.probabilities import write_probability
from pwmlunet.evaluation.summary import summarise

DATASET_JSON = {"channel_names": {"0": "T1"}, "numTraining": 1, "file_ending": ".nii.gz"}


def test_summary_json_holds_what_was_scored_and_by_which_rules(tmp_path: Path) -> None:
    with_probability = scored(drawn("11..."), drawn("11..."), "p", probability=chances("99..5")[None])
    for cases in ([HIT, MISS, FALSE, CLEAN], [with_probability], [scored(drawn("99"), drawn("11"))]):
        write_summary(tmp_path / "summary.json", cases)
        content = json.loads((tmp_path / "summary.json").read_text())
        assert content["version"] == 2
        assert content["rules"]["connectivity"] == "26 in 3-D, 8 in a single slice"
        assert content["rules"]["main_matching"] == "iou_0.1"
        assert "above 0.1" in content["rules"]["candidates"]
        assert "bootstrap over subjects" in content["rules"]["intervals"]
        assert read_summary(tmp_path / "summary.json") == (summarise(cases), cases)


def test_a_summary_that_is_known_and_profiles_are_written_as_given(tmp_path: Path) -> None:
    summary = summarise([HIT, MISS], size_edges_mm3=(4, 9))
    profile = Interval(1, 2)  # as good as any other
    write_summary(tmp_path / "summary.json", [HIT, MISS], summary=summary, profiles=[profile])
    assert read_summary(tmp_path / "summary.json")[0] == summary
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["profiles"] == [{"low": 1, "high": 2}]


def test_a_summary_of_ours_is_replaced_whatever_its_version(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_summary(path, [HIT])
    path.write_text(path.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(
        PwmlError, match=r"summary.json is of version 1, not 2: score again with pwml_evaluate"
    ):
        read_summary(path)
    write_summary(path, [MISS])
    assert read_summary(path)[1] == [MISS]
    path.write_text(path.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(PwmlError, match="version 3, not 2: read it with a newer pwmlunet"):
        read_summary(path)


NNUNET = json.dumps({"foreground_mean": {"Dice": 0.5}, "mean": {"1": {"Dice": 0.5}}, "metric_per_case": []})


@pytest.mark.parametrize("content", [NNUNET, "[]", "3", '{"version": 2}', '{"version": 2, "rules": 1, "summary": 1, "cases": 1}'])  # fmt: skip
def test_the_summary_of_another_program_is_neither_read_nor_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(content)
    with pytest.raises(
        PwmlError, match=r"summary.json was not written by pwml_evaluate .* score the masks with"
    ):
        read_summary(path)
    with pytest.raises(
        PwmlError, match=r"summary.json was not written by pwml_evaluate: choose another place"
    ):
        write_summary(path, [HIT])
    assert path.read_text() == content


def test_what_is_no_json_is_neither_read_nor_replaced(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("a diary")
    with pytest.raises(PwmlError, match="is not valid JSON"):
        read_summary(path)
    with pytest.raises(PwmlError, match="choose another place"):
        write_summary(path, [HIT])
    assert path.read_text() == "a diary"


def test_a_missing_summary_and_an_edited_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(PwmlError, match=r"summary.json: it does not exist"):
        read_summary(tmp_path / "summary.json")
    write_summary(tmp_path / "summary.json", [HIT, MISS])
    text = (tmp_path / "summary.json").read_text()
    (tmp_path / "summary.json").write_text(text.replace('"subject": "miss"', '"subjekt": "miss"'))
    with pytest.raises(PwmlError, match=r"summary.json: cases\[1\]: unknown key 'subjekt'"):
        read_summary(tmp_path / "summary.json")


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


def test_probabilities_beside_the_masks_are_scored(folders: Folders) -> None:
    for name in ("a", "b", "c"):
        folders.write(f"{name}.nii.gz", MASK, MASK)
    probability = (0.8 * MASK).astype(np.float32)[None]
    write_probability(folders.prediction / "a.npz", probability)
    nnunet = np.concatenate([1 - probability, probability])
    np.savez_compressed(folders.prediction / "b.npz", probabilities=nnunet)
    ours, theirs, without = evaluate_folders(folders.reference, folders.prediction)
    for case in (ours, theirs):
        candidates = case.targets["lesion"].candidates
        assert candidates
        assert [candidate.is_true for candidate in candidates] == [True, True]
        assert candidates[0].mean_logit == pytest.approx(np.log(0.8 / 0.2), abs=0.01)
    assert without.targets["lesion"].candidates is None


def test_odd_probabilities_are_listed_with_everything_else(folders: Folders) -> None:
    good = np.zeros((1, *MASK.shape), np.float32)
    odd: dict[str, Any] = {"above": good + 1.5, "nan": good * np.nan, "shape": good[..., :3]}
    for name, probability in odd.items():
        folders.write(f"{name}.nii.gz", MASK, MASK)
        np.savez(folders.prediction / f"{name}.npz", probability=probability)
    folders.write("unknown.nii.gz", MASK, 3 * MASK)
    lines = folders.error().splitlines()
    assert lines[0] == "the masks cannot be compared (4):"
    expected = ["above.npz holds values from 1.5", "nan.npz holds values from nan", "shape.npz has the shape 1, 2, 2, 3", "unknown.nii.gz holds the value 3"]  # fmt: skip
    for line, part in zip(lines[1:], expected, strict=True):
        assert part in line


def test_empty_masks_on_either_side_are_scored(folders: Folders) -> None:
    nothing = 0 * MASK
    for name, masks in {
        "both": (nothing, nothing),
        "missed": (MASK, nothing),
        "false": (nothing, MASK),
    }.items():
        folders.write(f"{name}.nii.gz", *masks)
    both, false, missed = (
        c.targets["lesion"] for c in evaluate_folders(folders.reference, folders.prediction)
    )
    assert (both.voxels.dice, both.lesions.main.f1, both.is_clean) == (None, None, True)
    assert (false.voxels.dice, false.lesions.main.n_false_positives, false.is_clean) == (0, 2, True)
    assert (missed.voxels.dice, missed.lesions.main.recall, missed.voxels.hd_mm) == (0, 0, None)


def test_a_reference_ignored_everywhere_is_scored_and_left_out(folders: Folders, tmp_path: Path) -> None:
    folders.describe(tmp_path / "dataset.json", lesion=1, ignore=2)
    folders.write("a.nii.gz", np.full_like(MASK, 2), MASK)
    summary = summarise(evaluate_folders(folders.reference, folders.prediction))
    assert (summary.n_cases, summary.n_unlabelled_cases) == (0, 1)
