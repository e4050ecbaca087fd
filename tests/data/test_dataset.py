import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pwmlunet.data.dataset import Labels, find_cases, open_dataset, subject_of, write_dataset_json
from pwmlunet.errors import PwmlError

MakeDataset = Callable[..., Path]

REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}


def complaint(folder: Path) -> str:
    with pytest.raises(PwmlError) as caught:
        open_dataset(folder)
    return str(caught.value)


def test_a_dataset_is_opened_with_channels_in_order_and_subjects(make_dataset: MakeDataset) -> None:
    folder = make_dataset(subjects={"other": "sub-01"})
    dataset = open_dataset(folder)
    assert dataset.name == "Dataset001_Tiny"
    assert dataset.channel_names == ("FLAIR", "T1")
    assert [case.name for case in dataset.cases] == ["other", "sub-01_ses-1", "sub-01_ses-2"]
    assert {case.subject for case in dataset.cases} == {"sub-01"}
    case = dataset.cases[0]
    assert [path.name for path in case.images] == ["other_0000.nrrd", "other_0001.nrrd"]
    assert case.label == folder / "labelsTr" / "other.nrrd"


def test_hidden_files_are_not_cases(make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    (folder / "imagesTr" / "._other_0000.nrrd").touch()
    (folder / "labelsTr" / "._other.nrrd").touch()
    assert len(open_dataset(folder).cases) == 3


def test_more_than_ten_channels_keep_their_order(tmp_path: Path) -> None:
    names = tuple(f"channel {i}" for i in range(12))
    write_dataset_json(
        tmp_path, channel_names=names, labels={"background": 0, "lesion": 1}, subjects={"a": "s"}
    )
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr" / "a.nii.gz").touch()
    for channel in range(12):
        (tmp_path / "imagesTr" / f"a_{channel:04d}.nii.gz").touch()
    assert open_dataset(tmp_path).channel_names == names


def test_explicit_paths_are_relative_to_the_dataset(make_dataset: MakeDataset) -> None:
    entry = {
        "images": ["imagesTr/other_0001.nrrd", "imagesTr/other_0000.nrrd"],
        "label": "labelsTr/other.nrrd",
    }
    folder = make_dataset(dataset={"mine": entry}, numTraining=1)
    (case,) = open_dataset(folder).cases
    assert case.name == "mine"
    assert [path.name for path in case.images] == ["other_0001.nrrd", "other_0000.nrrd"]
    assert case.label == folder / "labelsTr/other.nrrd"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"labels": None}, "{path} lacks labels: see documentation/dataset_format.md"),
        ({"labels": [1]}, "{path}: 'labels' has the wrong type: [1]"),
        ({"file_ending": ".jpg"}, '{path}: "file_ending" \'.jpg\' is not one of .nii.gz, .nii, .nrrd, .mha, .png, .tif, .tiff'),
        ({"numTraining": 4}, '{path}: "numTraining" is 4, but there are 3 training cases: correct one of them'),
        ({"channel_names": {"1": "T1"}}, '{path}: "channel_names" must be numbered "0", "1", … without gaps'),
        ({"channel_names": {}}, '{path}: "channel_names" must be numbered "0", "1", … without gaps'),
        ({"labels": {"lesion": 1}}, '{path}: "labels" must have "background": 0'),
        ({"labels": {"background": 1, "lesion": 2}}, '{path}: "labels" must have "background": 0'),
        ({"labels": {"background": 0}}, '{path}: "labels" names nothing beside the background: add e.g. "lesion": 1'),
        ({"labels": {"background": 0, "lesion": 2, "ignore": 1}}, '{path}: "ignore" must be one number above all other labels'),
        ({"labels": {"background": 0, "lesion": 1, "ignore": 1}}, '{path}: "ignore" must be one number above all other labels'),
        ({"labels": {"background": 0, "lesion": 1.5}}, "{path}: label 'lesion' must be a whole number from 0 to 255, not 1.5"),
        ({"labels": {"background": 0, "lesion": True}}, "{path}: label 'lesion' must be a whole number from 0 to 255, not True"),
        ({"labels": {"background": 0, "lesion": 256}}, "{path}: label 'lesion' must be a whole number from 0 to 255, not 256"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, '{path}: "labels" uses a value twice: give each its own, 0 for the background only'),
        ({"labels": {"background": 0, "a": 0}}, '{path}: "labels" uses a value twice: give each its own, 0 for the background only'),
        ({"labels": REGIONS}, '{path}: "regions_class_order" must list one label value for each region'),
        ({"labels": REGIONS, "regions_class_order": [1]}, '{path}: "regions_class_order" must list one label value for each region'),
        ({"labels": REGIONS, "regions_class_order": "12"}, '{path}: "regions_class_order" must list one label value for each region'),
        ({"subjects": {"nobody": "1"}}, '{path}: "subjects" names cases that do not exist: nobody'),
        ({"dataset": {"/a/b": {"images": ["x.nrrd"], "label": "y.nrrd"}}}, '{path}: case \'/a/b\' in "dataset" must be a plain name without slashes'),
        ({"dataset": ["a"]}, '{path}: "dataset" must be an object of cases with "images" and "label"'),
        ({"dataset": {"a": {"images": "x.nrrd", "label": "y.nrrd"}}}, '{path}: case \'a\' in "dataset" needs "images" (a list of paths) and "label" (a path)'),
        ({"dataset": {"a": {"images": ["x.nrrd"]}}}, '{path}: case \'a\' in "dataset" needs "images" (a list of paths) and "label" (a path)'),
        ({"dataset": {"a": {"images": ["imagesTr/other_0000.nrrd"], "label": "labelsTr/other.nrrd"}}, "numTraining": 1}, "case a lists 1 images, but there are 2 channels"),
        ({"channel_names": {"0": "T1"}}, """Dataset001_Tiny has problems (3):
  - case other: other_0001.nrrd is a channel more than dataset.json names: remove it or name it
  - case sub-01_ses-1: sub-01_ses-1_0001.nrrd is a channel more than dataset.json names: remove it or name it
  - case sub-01_ses-2: sub-01_ses-2_0001.nrrd is a channel more than dataset.json names: remove it or name it"""),
    ],
)  # fmt: skip
def test_a_wrong_dataset_json_is_told(
    make_dataset: MakeDataset, changes: dict[str, Any], expected: str
) -> None:
    folder = make_dataset(**changes)
    assert complaint(folder) == expected.replace("{path}", str(folder / "dataset.json"))


def test_all_missing_files_are_told_at_once(make_dataset: MakeDataset) -> None:
    folder = make_dataset()
    (folder / "imagesTr" / "other_0001.nrrd").unlink()
    (folder / "labelsTr" / "sub-01_ses-1.nrrd").unlink()
    (folder / "labelsTr" / "extra.nrrd").touch()
    assert complaint(folder).splitlines() == [
        "Dataset001_Tiny has problems (3):",
        "  - case extra has a mask and no image: add extra_0000.nrrd to imagesTr",
        "  - case other: channel 1 (T1) is missing (other_0001.nrrd): add the file",
        "  - case sub-01_ses-1: its mask sub-01_ses-1.nrrd is missing from labelsTr: add it or remove the case",
    ]


def test_missing_folders_and_files_are_told(make_dataset: MakeDataset, tmp_path: Path) -> None:
    assert complaint(tmp_path / "no").endswith("no is not a folder: check the path")
    folder = make_dataset()
    (folder / "imagesTr").rename(folder / "images")
    assert complaint(folder).endswith("imagesTr: it does not exist: check the path")
    (folder / "imagesTr").mkdir()
    (folder / "labelsTr").rename(folder / "labels")
    (folder / "labelsTr").mkdir()
    assert complaint(folder).endswith("imagesTr holds no *_0000.nrrd: put the training images there")
    (folder / "dataset.json").write_text("{")
    assert "dataset.json is not valid JSON" in complaint(folder)
    (folder / "dataset.json").write_text("[]")
    assert complaint(folder).endswith("dataset.json must hold an object with named values")
    (folder / "dataset.json").unlink()
    assert complaint(folder).endswith("is missing: see documentation/dataset_format.md for what it holds")


def test_find_cases_finds_images_to_predict(make_dataset: MakeDataset, tmp_path: Path) -> None:
    folder = make_dataset() / "imagesTr"
    names = ("T1", "FLAIR")
    cases = find_cases(folder, names, ".nrrd")
    assert [(c.name, c.subject, c.label) for c in cases][1] == ("sub-01_ses-1", "sub-01", None)
    assert [path.name for path in cases[0].images] == ["other_0000.nrrd", "other_0001.nrrd"]
    (folder / "other_0001.nrrd").unlink()
    with pytest.raises(PwmlError) as caught:
        find_cases(folder, names, ".nrrd")
    assert str(caught.value) == (
        "case other: channel 1 (FLAIR) is missing (other_0001.nrrd): "
        "add the file, or ask a model trained with --channel-dropout"
    )
    with pytest.raises(PwmlError, match=r"holds no images named CASE_0000\.png: name them so"):
        find_cases(folder, names, ".png")
    with pytest.raises(PwmlError, match="is not a folder"):
        find_cases(tmp_path / "no", names, ".png")


def test_with_one_channel_there_is_none_to_do_without(tmp_path: Path) -> None:
    (tmp_path / "a_0001.nrrd").touch()
    with pytest.raises(PwmlError) as caught:
        find_cases(tmp_path, ["T1"], ".nrrd")
    assert str(caught.value) == "case a: channel 0 (T1) is missing (a_0000.nrrd): add the file"


def test_a_case_may_lack_all_channels_but_one(make_dataset: MakeDataset) -> None:
    folder, names = make_dataset() / "imagesTr", ("T1", "FLAIR")
    (folder / "other_0000.nrrd").unlink()
    cases = find_cases(folder, names, ".nrrd", may_lack={0, 1})
    assert [path.is_file() for path in cases[0].images] == [False, True]
    (folder / "other_0001.nrrd").rename(folder / "other_0002.nrrd")
    with pytest.raises(PwmlError, match=r"(?s)case other: channel 0 \(T1\).*channel 1 \(FLAIR\) is missing"):
        find_cases(folder, names, ".nrrd", may_lack={0, 1})


def test_a_case_may_lack_only_what_it_may_lack(make_dataset: MakeDataset) -> None:
    folder, names = make_dataset() / "imagesTr", ("T1", "FLAIR")
    (folder / "other_0000.nrrd").unlink()
    with pytest.raises(PwmlError, match=r"^case other: channel 0 \(T1\) is missing .* --channel-dropout$"):
        find_cases(folder, names, ".nrrd", may_lack={1})


@pytest.mark.parametrize(
    ("case", "subject"),
    [
        ("sub-01_ses-2", "sub-01"),
        ("sub-A7", "sub-A7"),
        ("sub-01-x", "sub-01-x"),
        ("sub01_a", "sub01_a"),
    ],
)
def test_subject_of_a_case(case: str, subject: str) -> None:
    assert subject_of(case) == subject


def labels(values: dict[str, Any], order: list[int] | None = None) -> Labels:
    return Labels.from_json(values, order, "dataset.json")


def test_plain_labels_encode_decode_and_validity() -> None:
    two = labels({"background": 0, "lesion": 2, "bleed": 1, "ignore": 3})
    mask = np.array([[[0, 1, 2, 3]]])
    assert [target.name for target in two.targets] == ["bleed", "lesion"]  # by value, as nnU-Net has them
    np.testing.assert_array_equal(two.encode(mask)[:, 0, 0], [[0, 1, 0, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(two.valid(mask)[0, 0], [1, 1, 1, 0])
    assert two.known_values == {0, 1, 2, 3}
    assert not two.are_regions
    probability = np.array([0.9, 0.6, 0.1, 0.5, 0.2, 0.8, 0.9, 0.4]).reshape(2, 1, 1, 4)
    np.testing.assert_array_equal(two.decode(probability, 0.5)[0, 0], [1, 2, 2, 0])
    np.testing.assert_array_equal(two.decode(probability, 0.15)[0, 0], [1, 2, 2, 1])


def test_a_single_label_is_decoded_by_the_threshold_alone() -> None:
    one = labels({"background": 0, "lesion": 1})
    np.testing.assert_array_equal(one.decode(np.array([[[[0.1, 0.2, 0.3]]]]), 0.2)[0, 0], [0, 0, 1])
    assert one.valid(np.array([[[0, 1]]])).all()
    assert one.known_values == {0, 1}


def test_regions_overlap_and_later_ones_are_written_last() -> None:
    regions = labels(REGIONS, [1, 3])
    mask = np.array([[[0, 1, 2, 3, 4]]])
    np.testing.assert_array_equal(regions.encode(mask)[:, 0, 0], [[0, 1, 1, 1, 0], [0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(regions.valid(mask)[0, 0], [1, 1, 1, 1, 0])
    probability = np.array([0.9, 0.9, 0.1, 0.2, 0.6, 0.7]).reshape(2, 1, 1, 3)
    np.testing.assert_array_equal(regions.decode(probability, 0.5)[0, 0], [1, 3, 3])


def test_the_written_dataset_json_is_what_nnunet_expects(tmp_path: Path) -> None:
    write_dataset_json(tmp_path, channel_names=("T1",), labels={"background": 0, "a": 1}, subjects={"x": "s"})
    assert json.loads((tmp_path / "dataset.json").read_text()) == {
        "channel_names": {"0": "T1"},
        "labels": {"background": 0, "a": 1},
        "numTraining": 1,
        "file_ending": ".nii.gz",
        "subjects": {"x": "s"},
    }
