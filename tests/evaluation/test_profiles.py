from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.data.image import Geometry, write_image
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.evaluate import evaluate_folders
from pwmlunet.evaluation.masks import pair_masks
from pwmlunet.evaluation.probabilities import write_probability
from pwmlunet.evaluation.profiles import PROFILES
from pwmlunet.evaluation.profiles.counting import farthest, profile_case
from pwmlunet.evaluation.profiles.folders import ProfileResult, get_profile, profile_folders, score_profile
from pwmlunet.evaluation.summary import summarise

LESION = Labels((Target("lesion", (1,), 1),), ignore=9)
CLASSES = Labels((Target("ischaemia", (1,), 1), Target("infarct", (2,), 2)), ignore=None)
SPACING = (3.0, 0.5, 1.0)  # 1.5 mm³ a voxel

Case = tuple[str, list[str], list[str]]
"""Subject, and reference and prediction as one text per slice."""


def drawn(*slices: str) -> NDArray[np.uint8]:
    """A mask (Z, Y, X) from one text per slice, rows apart by spaces; a digit is a label, . is 0."""
    return np.array([[[int(c.replace(".", "0")) for c in row] for row in text.split()] for text in slices], np.uint8)  # fmt: skip


def figures(
    name: str,
    *cases: Case,
    labels: Labels = LESION,
    spacing: tuple[float, float, float] = SPACING,
    folds: str = "",
) -> dict[str, tuple[float | None, int]]:
    """Value and n of a profile's figures; the letters of `folds` are the cases' folds."""
    rows = []
    for (subject, reference, prediction), fold in zip(cases, folds or " " * len(cases), strict=True):
        case = profile_case(drawn(*reference), drawn(*prediction), labels, spacing, subject, fold)
        rows += score_profile(PROFILES[name], case)[0]
    return PROFILES[name].summarise(rows)


def approx(value: float, n: int) -> tuple[object, int]:
    return pytest.approx(value), n


def test_trident_stacks_labelled_slices_in_enlarged_pixels() -> None:
    reference = ["11...", ".....", ".....", "....1"]
    prediction = [".11..", "11111", ".....", "....."]
    found = figures("trident", ("a", reference, prediction))
    # The stack is slices 0 and 3, one pixel apart: 1 hit, 2 missed, 1 false; the false slice 1 is left out.
    assert found["dice"] == approx(2 * 1 / (3 + 2), 1)
    assert found["sensitivity"] == approx(1 / 3, 1)
    assert found["specificity"] == approx(6 / 7, 1)
    # From the missed pixel in the second slice: one slice down, two pixels left.
    assert found["hd_pixels"] == approx(np.hypot(1, 2 * 2.3), 1)


def test_trident_takes_the_median_over_folds_of_the_mean_over_cases() -> None:
    half, whole, none = ("a", ["11."], ["1.."]), ("b", ["11."], ["11."]), ("c", ["11."], ["..."])
    found = figures("trident", half, whole, none, ("d", ["..."], ["11."]), folds="0012")
    assert found["dice"] == approx(((2 / 3 + 1) / 2 + 0) / 2, 3)  # the fold of the clean case has no mean
    assert found["hd_pixels"] == approx((2.3 + 0) / 2, 2)  # nothing predicted: no distance


def test_ignored_voxels_are_taken_out_first() -> None:
    found = figures("trident", ("a", ["119..", "9...."], ["1111.", "1...."]))
    assert found["dice"] == approx(2 * 2 / (2 + 3), 1)
    assert found["specificity"] == approx(1 / 2, 1)
    assert figures("isles", ("a", ["1.9.1"], ["1.1.1"]))["lesion_f1"] == approx(1, 1)
    case = profile_case(drawn("999"), drawn("111"), LESION, SPACING, "a")
    assert score_profile(PROFILES["isles"], case) == [[]]


@pytest.mark.parametrize("seed", range(4))
def test_the_farthest_voxel_is_as_far_as_itk_has_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [np.zeros((3, 9, 8), bool) for _ in range(2)]
    for mask in masks:
        mask[tuple(rng.integers(0, mask.shape, (6, 3)).T)] = True
        mask[1, 2:7, 2:7] = (
            mask is masks[0] or seed % 2 == 0
        )  # a block around the other's voxels, or the same
    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks]
    for image in images:
        image.SetSpacing((2.3, 2.3, 1.0))
    itk = sitk.HausdorffDistanceImageFilter()
    itk.Execute(*images)
    assert farthest(masks[0], masks[1], (1.0, 2.3, 2.3)) == pytest.approx(itk.GetHausdorffDistance())


def test_rs_rcnn_leaves_out_slices_without_a_prediction() -> None:
    found = figures("rs_rcnn", ("a", ["11...", "111..", "....."], [".1..1", ".....", "1...."]))
    assert found["dice"] == approx(1 / 2, 1)
    assert found["specificity"] == approx(2 / 3, 1)
    assert found["hd_pixels"] == approx(3, 1)
    assert found["dice_all_slices"] == approx((1 / 2 + 0) / 2, 2)
    assert found["slices_left_out"] == (1, 2)
    missed = figures("rs_rcnn", ("a", ["11"], [".."]))
    assert missed["dice"] == (None, 0)
    assert missed["dice_all_slices"] == (0, 1)
    assert missed["slices_left_out"] == (1, 1)


def test_priority_takes_out_small_lesions_and_counts_any_overlap() -> None:
    # Voxels of 1.5 mm³: a lesion of one voxel is too small on both sides.
    found = figures("priority", ("a", ["11.11.1.11"], ["1111..1..."]))
    assert found["detection_precision"] == approx(1 / 1, 1)
    assert found["detection_recall"] == approx(2 / 3, 3)  # one component touches two lesions
    assert found["volume_precision"] == approx(3 / 4, 1)
    assert found["volume_recall"] == approx(3 / 6, 1)
    assert found["dice"] == approx(2 * 3 / (6 + 4), 1)


def test_priority_keeps_lesions_of_exactly_the_least_volume() -> None:
    for spacing, n in (((1.7, 1.0, 1.0), 1), ((1.69, 1.0, 1.0), 0)):
        assert figures("priority", ("a", ["1.."], ["1.."]), spacing=spacing)["detection_recall"][1] == n


def test_priority_weighs_patients_by_their_lesion_volume() -> None:
    found = figures(
        "priority",
        ("a", ["111111"], ["111..."]),
        ("b", ["11...."], ["......"]),
        ("b", ["11...."], ["111111"]),
        ("clean", ["......"], ["11...."]),
    )
    assert found["volume_recall"] == approx((6 * 3 / 6 + 4 * 2 / 4) / 10, 2)
    assert found["volume_precision"] == approx((6 * 3 / 3 + 4 * 2 / 6) / 10, 2)  # both cases of b together
    assert found["dice"] == approx((6 * 6 / 9 + 4 * 4 / 10) / 10, 2)
    assert found["detection_precision"] == approx(2 / 3, 3)
    empty = figures("priority", ("a", ["11"], [".."]), ("b", ["11"], ["11"]))
    assert empty["volume_precision"] == approx(1 / 2, 2)  # nothing predicted counts as 0
    assert empty["detection_precision"] == approx(1, 1)


def test_fci_laci_wants_more_than_six_tenths_in_each_slice() -> None:
    reference = ["111111..", "11111...", "...11111", "........"]
    prediction = ["1111...1", "111.....", "........", "........"]
    found = figures("fci_laci", ("a", reference, prediction))
    # IoU 4/6 counts, 3/5 does not; the pixel alone is false; the missed slice costs its own figures nothing.
    assert found["detection_precision"] == approx(1 / 3, 3)
    assert found["detection_recall"] == approx(1 / 3, 3)
    assert found["detection_f1"] == approx(2 * 1 / (3 + 3), 6)
    assert found["classification_precision"] == (None, 0)
    assert found["dice"] == approx(2 * 7 / (16 + 8), 1)


def test_fci_laci_judges_the_class_of_what_it_found() -> None:
    reference = ["111..222..1.", "............"]
    prediction = ["221..222....", "......11...."]
    found = figures("fci_laci", ("a", reference, prediction), labels=CLASSES)
    assert found["detection_precision"] == approx(2 / 3, 3)
    assert found["classification_precision"] == approx(1 / 2, 2)
    assert found["dice"] == approx(2 * 6 / (7 + 8), 1)
    assert found["detection_recall"] == approx(2 / 3, 3)  # the pixel in the first slice was missed


def test_fci_laci_pools_the_lesions_of_all_cases() -> None:
    missed, found_all = ("a", ["11.11.11"], ["........"]), ("b", ["....1111"], ["11..1111"])
    found = figures("fci_laci", missed, found_all)
    assert found["detection_recall"] == approx(1 / 4, 4)
    assert found["detection_precision"] == approx(1 / 2, 2)
    assert found["detection_f1"] == approx(2 * 1 / (4 + 2), 6)
    nothing = figures("fci_laci", ("a", ["...."], ["...."]))
    assert nothing["detection_recall"] == nothing["detection_f1"] == (None, 0)


def test_fci_laci_tells_more_than_two_classes_apart() -> None:
    labels = Labels(tuple(Target(str(value), (value,), value) for value in (1, 2, 3)), ignore=None)
    found = figures("fci_laci", ("a", ["222.333"], ["333.333"]), labels=labels)
    assert found["classification_precision"] == approx(1 / 2, 2)


def test_wmh_counts_any_overlap_and_percent() -> None:
    found = figures(
        "wmh", ("a", ["............ .11.11.1.... ............"], ["............ .1111....11. ............"])
    )
    assert found["lesion_recall"] == approx(2 / 3, 1)
    assert found["lesion_f1"] == approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2), 1)
    assert found["volume_difference_percent"] == approx(100 * 1 / 5, 1)
    assert found["dice"] == approx(2 * 3 / (5 + 6), 1)
    # there: 0, 0, 0, 1, 2; back: 0, 0, 1, 0, 2, 3; numpy interpolates between them
    assert found["hd95_mm"] == approx(np.percentile([0, 0, 0, 1, 2, 3], 95), 1)


def test_wmh_finds_edges_slice_by_slice() -> None:
    nothing = "..... ..... ..... ..... ....."
    reference = [nothing, "..... .111. .111. .111. .....", nothing]
    prediction = [nothing, "..... .111. .1.1. .111. .....", nothing]
    assert figures("wmh", ("a", reference, prediction))["hd95_mm"] == approx(0, 1)
    everywhere = ["111 111 111"]
    edgeless = figures("wmh", ("a", everywhere, everywhere))
    assert edgeless["hd95_mm"] == (None, 0)  # beyond the image counts as inside, as in the challenge's script


def test_wmh_gives_full_marks_for_nothing_to_find_and_nothing_found() -> None:
    for reference, prediction, recall, f1 in (("..", "..", 1, 1), ("..", "1.", 1, 0), ("1.", "..", 0, 0)):
        found = figures("wmh", ("a", [reference], [prediction]))
        assert (found["lesion_recall"][0], found["lesion_f1"][0]) == (recall, f1)
        assert found["hd95_mm"] == (None, 0)
    assert figures("wmh", ("a", [".."], ["1."]))["volume_difference_percent"] == (None, 0)


def test_isles_counts_ml_lesions_and_full_marks_for_empty_cases() -> None:
    hit: Case = ("a", ["11.11.1..."], ["1111....11"])
    found = figures("isles", hit)
    assert found["lesion_f1"] == approx(2 * 2 / (2 * 2 + 1 + 1), 1)
    assert found["volume_difference_ml"] == approx(1.5 / 1000, 1)
    assert found["lesion_count_difference"] == approx(1, 1)
    with_empty = figures("isles", hit, ("b", ["...."], ["...."]))
    assert with_empty["lesion_f1"] == approx((2 / 3 + 1) / 2, 2)
    assert with_empty["dice"] == approx((6 / 11 + 1) / 2, 2)
    assert figures("isles", ("a", ["...."], ["1..."]))["lesion_f1"] == approx(0, 1)


def test_brats_merges_lesions_that_meet_when_dilated() -> None:
    # Dilated, the first two lesions meet; the third does not. The prediction touches the dilation of one only.
    found = figures("brats_lesionwise", ("a", ["11..11......11...."], ["11..............11"]))
    merged_dice, merged_hd95 = 2 * 2 / (4 + 2), np.percentile([0, 0, 3, 4], 95)
    assert found["lesionwise_dice"] == approx((merged_dice + 0 + 0) / 3, 1)
    assert found["lesionwise_hd95_mm"] == approx((merged_hd95 + 374 + 374) / 3, 1)


def test_brats_leaves_out_small_lesions_and_what_touches_them() -> None:
    # One voxel is 1.5 mm³: neither missed nor found, and what lies beside it is not false.
    found = figures("brats_lesionwise", ("a", ["1.....11....1"], [".1....11....."]))
    assert found["lesionwise_dice"] == approx(1, 1)
    assert found["lesionwise_hd95_mm"] == approx(0, 1)


def test_brats_scores_each_lesion_under_one_prediction_alone() -> None:
    found = figures("brats_lesionwise", ("a", ["11......11."], ["1111111111."]))
    assert found["lesionwise_dice"] == approx(2 * 2 / (2 + 10), 1)


@pytest.mark.parametrize(
    ("reference", "prediction", "dice", "hd95"),
    [("....", "....", 1, 0), ("....", "1...", 0, 374), ("11..", "....", 0, 374), ("1...", "....", 1, 0)],
)
def test_brats_on_empty_masks(reference: str, prediction: str, dice: float, hd95: float) -> None:
    found = figures("brats_lesionwise", ("a", [reference], [prediction]))
    assert found["lesionwise_dice"] == approx(dice, 1)
    assert found["lesionwise_hd95_mm"] == approx(hd95, 1)


def test_brats_takes_all_that_touches_a_lesion_together() -> None:
    reference = ["..... ..... .....", "..... .111. .....", "..... ..... ....."]
    nothing = "..... ..... ....."
    found = figures("brats_lesionwise", ("a", reference, [nothing, "....1 .1... .....", "...1. ..... ....."]))
    assert found["lesionwise_dice"] == approx(2 * 1 / (3 + 3), 1)
    # 18 neighbours: a voxel off along two axes is touched, one off along all three is a false lesion.
    touched = figures("brats_lesionwise", ("a", reference, ["..... 1.... .....", nothing, nothing]))
    assert touched["lesionwise_dice"] == approx(0, 1)
    assert (touched["lesionwise_hd95_mm"][0] or 0) < 10
    corner = figures("brats_lesionwise", ("a", reference, ["1.... ..... .....", nothing, nothing]))
    assert corner["lesionwise_hd95_mm"] == approx(374, 1)


GRID = Geometry((2, 2, 6), SPACING, (5.0, -3.0, 8.0), (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
MASK = drawn("11.... ......", "...... ....11")
ONE = drawn("11.... ......", "...... ......")


class Folders:
    def __init__(self, folder: Path) -> None:
        self.reference, self.prediction = folder / "labelsTr", folder / "predicted"
        for name, prediction in (("sub-01_a", ONE), ("sub-02_b", MASK)):
            write_image(self.reference / f"{name}.nii.gz", MASK, GRID)
            write_image(self.prediction / f"{name}.nii.gz", prediction, GRID)

    def profile(self, name: str, folds: dict[str, str] | None = None) -> ProfileResult:
        return profile_folders(pair_masks(self.reference, self.prediction), name, folds=folds)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


@pytest.mark.parametrize("name", PROFILES)
def test_each_profile_stands_beside_the_honest_figures(folders: Folders, name: str) -> None:
    result = folders.profile(name)
    assert ProfileResult.from_dict(result.to_dict(), "json") == result
    assert list(result.targets["lesion"]) == list(PROFILES[name].lines)
    text = result.text(summarise(evaluate_folders(folders.reference, folders.prediction)))
    assert max(map(len, text.splitlines())) <= 110
    rows = {line.split()[0]: line for line in text.splitlines() if line[:1].isalpha()}
    for figure, line in PROFILES[name].lines.items():
        assert figure in rows
        assert line.honest in rows[figure].split()[2:] or not line.honest


def test_a_profile_is_printed_with_value_unit_and_n(folders: Folders) -> None:
    summary = summarise(evaluate_folders(folders.reference, folders.prediction))
    lines = folders.profile("rs_rcnn").text(summary).splitlines()
    (dice,) = (line.split() for line in lines if line.startswith("dice "))
    assert dice == ["dice", "1.0000", "3", "slices", "dice", "0.8333", "2", "cases"]
    (pixels,) = (line for line in lines if line.startswith("hd_pixels"))
    assert "0.0000 pixels" in pixels
    assert "hd_mm" in pixels


def test_trident_cuts_probabilities_where_there_are_any(folders: Folders) -> None:
    result = folders.profile("trident")
    assert result.targets["lesion"]["dice"].value == pytest.approx((2 / 3 + 1) / 2)
    assert any("2 of 2 cases have no probabilities" in remark for remark in result.remarks)
    probability = np.where(MASK, 0.65, 0.1).astype(np.float32)[None]
    probability[0, 0] = np.where(ONE[0], 0.9, 0.1)
    write_probability(folders.prediction / "sub-02_b.npz", probability)
    result = folders.profile("trident")
    assert result.targets["lesion"]["dice"].value == pytest.approx(2 / 3)
    assert any("1 of 2 cases have no probabilities" in remark for remark in result.remarks)
    write_probability(folders.prediction / "sub-01_a.npz", probability)
    assert len(folders.profile("trident").remarks) == 1
    assert folders.profile("trident", {"sub-01_a": "0", "sub-02_b": "1"}).remarks == ()


def test_several_targets_each_have_their_figures(folders: Folders) -> None:
    for path in (*folders.reference.iterdir(), *folders.prediction.iterdir()):
        write_image(path, 2 * MASK, GRID)
    pairs = pair_masks(folders.reference, folders.prediction, labels=CLASSES)
    result = profile_folders(pairs, "wmh")
    assert [figures["dice"].value for figures in result.targets.values()] == [None, 1]
    joint = profile_folders(pairs, "fci_laci")
    assert list(joint.targets) == ["ischaemia + infarct"]
    assert joint.targets["ischaemia + infarct"]["classification_precision"].n == 4
    text = joint.text(summarise(evaluate_folders(folders.reference, folders.prediction, labels=CLASSES)))
    assert "pooled_precision" not in text  # no honest score of both classes together


def test_an_unknown_profile_and_unreadable_masks_are_errors(folders: Folders) -> None:
    with pytest.raises(PwmlError, match="did you mean 'trident'"):
        get_profile("tridnet")
    (folders.prediction / "sub-01_a.nii.gz").write_bytes(b"nothing")
    (folders.prediction / "sub-02_b.nii.gz").write_bytes(b"nothing")
    with pytest.raises(PwmlError, match=r"the profile wmh cannot be computed \(2\)"):
        folders.profile("wmh")


def test_ignore_is_told(folders: Folders) -> None:
    pairs = pair_masks(folders.reference, folders.prediction, labels=LESION)
    assert any("ignore" in remark for remark in profile_folders(pairs, "wmh").remarks)


def test_a_large_volume_with_many_lesions_takes_seconds() -> None:
    import time

    reference = np.zeros((60, 400, 380), np.uint8)
    for z, y, x in np.random.default_rng(0).integers(0, (56, 390, 370), (100, 3)):
        reference[z : z + 3, y : y + 6, x : x + 5] = 1
    case = profile_case(reference, np.roll(reference, 2, 2), LESION, (0.15, 0.15, 0.15), "a")
    for profile in PROFILES.values():
        start = time.perf_counter()
        score_profile(profile, case)
        assert time.perf_counter() - start < 20
