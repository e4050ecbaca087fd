import json
from pathlib import Path

import numpy as np
import pytest
from drawing import drawn

from pwmlunet.data.image import Geometry, write_image
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.masks import MaskPairs, pair_masks

GRID = Geometry((1, 2, 3), (3.0, 0.5, 0.7))


@pytest.fixture
def pairs(tmp_path: Path) -> MaskPairs:
    for side in ("reference", "prediction"):
        for name in ("b.nii.gz", "a.nii.gz"):
            write_image(tmp_path / side / name, drawn("1.. ..1"), GRID)
    return pair_masks(tmp_path / "reference", tmp_path / "prediction")


def test_cases_are_paired_by_name_in_order(pairs: MaskPairs) -> None:
    assert list(pairs.files) == ["a", "b"]
    reference, prediction, spacing = pairs.read("a")
    np.testing.assert_array_equal(reference, prediction)
    assert spacing == pytest.approx((3, 0.5, 0.7))
    assert [target.name for target in pairs.labels.targets] == ["lesion"]


def test_probabilities_are_those_beside_the_predicted_mask(pairs: MaskPairs, tmp_path: Path) -> None:
    (tmp_path / "reference" / "a.npz").touch()
    assert pairs.probability("a") is None
    (tmp_path / "prediction" / "a.npz").touch()
    assert pairs.probability("a") == tmp_path / "prediction" / "a.npz"
    assert pairs.probability("b") is None


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_unknown_values_are_named_whatever_their_type(pairs: MaskPairs, tmp_path: Path, kind: type) -> None:
    write_image(tmp_path / "prediction" / "a.nii.gz", np.asarray(drawn("1.7 5.."), kind), GRID)
    with pytest.raises(PwmlError, match=r"prediction/a.nii.gz holds the value 5, 7: say what it means"):
        pairs.read("a")


def test_negative_values_are_unknown(pairs: MaskPairs, tmp_path: Path) -> None:
    write_image(tmp_path / "prediction" / "a.nii.gz", -drawn("1.. ...").astype(np.int16), GRID)
    with pytest.raises(PwmlError, match="holds the value -1"):
        pairs.read("a")


def test_a_prediction_may_not_say_ignore(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    content = {"channel_names": {"0": "T1"}, "numTraining": 1, "file_ending": ".nii.gz", "labels": {"background": 0, "lesion": 1, "ignore": 2}}  # fmt: skip
    (tmp_path / "reference" / "dataset.json").write_text(json.dumps(content))
    for side in ("reference", "prediction"):
        write_image(tmp_path / side / "a.nii.gz", drawn("1.. 222"), GRID)
    with pytest.raises(PwmlError, match=r"prediction/a.nii.gz holds the value 2: it may hold 0, 1$"):
        pair_masks(tmp_path / "reference", tmp_path / "prediction").read("a")


def test_folders_that_are_no_predictions_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_image(tmp_path / "reference" / "a.nii.gz", drawn("1.. ..1"), GRID)
    with pytest.raises(PwmlError, match=r"empty holds no masks"):
        pair_masks(tmp_path / "reference", tmp_path / "empty")
    with pytest.raises(PwmlError, match="nowhere"):
        pair_masks(tmp_path / "reference", tmp_path / "nowhere")
    with pytest.raises(PwmlError, match=r"a.nii.gz"):
        pair_masks(tmp_path / "reference", tmp_path / "reference" / "a.nii.gz")


def test_swapped_folders_are_told(tmp_path: Path) -> None:
    reference, prediction = tmp_path / "r", tmp_path / "p"
    for folder in (reference, prediction):
        write_image(folder / "a.nii.gz", drawn("1."), Geometry((1, 1, 2), (1, 1, 1)))
    (prediction / "prediction.json").write_text("{}")
    assert list(pair_masks(reference, prediction).files) == ["a"]
    with pytest.raises(PwmlError, match="swap them, -r takes the references"):
        pair_masks(prediction, reference)


def test_a_picture_of_ours_among_masks_is_no_mask(tmp_path: Path) -> None:
    reference, prediction = tmp_path / "r", tmp_path / "p"
    for folder in (reference, prediction):
        write_image(folder / "a.png", drawn("1."), Geometry((1, 1, 2), (1, 1, 1), is_2d=True))
    (prediction / "overlay.png").write_bytes(b"picture")
    assert not pair_masks(reference, prediction).problems
