from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pwmlunet.data.dataset import open_dataset
from pwmlunet.data.image import read_image
from pwmlunet.demo.dataset import MODALITIES, write_dataset
from pwmlunet.errors import PwmlError
from pwmlunet.files import read_json
from pwmlunet.planning.budget import Budget
from pwmlunet.planning.fingerprint import extract_fingerprint
from pwmlunet.planning.planner import make_plan

SMALL = {"t1": (6, 64, 64), "cus": (54, 57, 60), "flair": (6, 64, 64)}
CHANNELS = {"t1": ("T1",), "cus": ("cUS",), "flair": ("T2 FLAIR", "T1 FLAIR")}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) / "Dataset001_Demo" for name in MODALITIES}
    for modality, folder in folders.items():
        write_dataset(folder, modality=modality, n_train=3, n_test=1, shape_zyx=SMALL[modality], seed=7)
    return folders


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_same_seed_gives_the_same_files(folders, tmp_path, modality):
    again, other = tmp_path / "Dataset001_Demo", tmp_path / "Dataset002_Demo"
    options = {"modality": modality, "n_train": 2, "n_test": 0, "shape_zyx": SMALL[modality]}
    write_dataset(again, **options, seed=7)
    write_dataset(other, **options, seed=8)
    paths = sorted(again.glob("*/*.nii.gz"))
    assert len(paths) == 2 * len(CHANNELS[modality]) + 2
    for path in paths:
        first, second, third = (
            read_image(f / path.relative_to(again)) for f in (folders[modality], again, other)
        )
        assert np.array_equal(first.array, second.array) and not np.array_equal(first.array, third.array)
        assert first.geometry == second.geometry != third.geometry


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_dataset_opens_with_two_sessions_of_a_subject_and_a_subject_without_lesions(folders, modality):
    dataset = open_dataset(folders[modality])
    assert dataset.channel_names == CHANNELS[modality]
    assert [c.name for c in dataset.cases if c.subject == "sub-01"] == ["sub-01_ses-1", "sub-01_ses-2"]
    has_lesion = {c.subject: bool(read_image(c.label).array.any()) for c in dataset.cases}
    assert has_lesion == {"sub-01": True, "sub-02": True}
    assert not read_image(folders[modality] / "labelsTs" / "sub-03_ses-1.nii.gz").array.any()
    first, second = (read_image(c.images[0]) for c in dataset.cases[:2])
    assert first.geometry.differences(second.geometry)
    assert not np.array_equal(first.array, second.array)
    held_out = [f"sub-03_ses-1_{channel:04d}.nii.gz" for channel in range(len(CHANNELS[modality]))]
    assert sorted(p.name for p in (folders[modality] / "imagesTs").iterdir()) == held_out
    assert [p.name for p in (folders[modality] / "labelsTs").iterdir()] == ["sub-03_ses-1.nii.gz"]


@pytest.mark.parametrize("modality", MODALITIES)
def test_image_and_mask_lie_on_one_grid(folders, modality):
    for case in open_dataset(folders[modality]).cases:
        label = read_image(case.label)
        assert len(case.images) == len(CHANNELS[modality])
        for image in map(read_image, case.images):
            assert image.array.shape == SMALL[modality]
            assert not image.geometry.differences(label.geometry)


def test_kinds_of_lesions_have_names(folders):
    named = {modality: read_json(folder / "dataset.json")["labels"] for modality, folder in folders.items()}
    single = {"background": 0, "lesion": 1}
    assert named == {"t1": single, "cus": single, "flair": {"background": 0, "FCI": 1, "LACI": 2}}


def test_t2_flair_on_which_lesions_are_bright_comes_first(folders):
    case = open_dataset(folders["flair"]).cases[0]
    lesion = read_image(case.label).array > 0
    ring = ndimage.binary_dilation(lesion, np.ones((1, 3, 3)), 3) & ~lesion
    first, second = (read_image(path).array for path in case.images)
    assert np.median(first[lesion]) > 1.15 * np.median(first[ring])
    assert np.median(second[lesion]) < 1.1 * np.median(second[ring])


def test_pairs_are_looked_at_and_planned(folders):
    fingerprint = extract_fingerprint(open_dataset(folders["flair"]), 0)
    assert fingerprint.channel_names == CHANNELS["flair"]
    assert {lesion.target for case in fingerprint.cases for lesion in case.lesions} <= {"FCI", "LACI"}
    assert all(case.geometry.spacing_zyx_mm[0] == pytest.approx(6) for case in fingerprint.cases)
    plan = make_plan(fingerprint, Budget(100.0, (8,), "test"))
    assert {decision.topic: decision.choice for decision in plan.decisions}["slices of a trident"] == "1"


def test_without_a_shape_a_modality_has_its_own(tmp_path, monkeypatch):
    assert [kind.demo_shape_zyx for kind in MODALITIES.values()] == [
        (16, 128, 128),
        (72, 76, 80),
        (16, 128, 128),
    ]
    monkeypatch.setitem(MODALITIES, "t1", replace(MODALITIES["t1"], demo_shape_zyx=(3, 50, 64)))
    write_dataset(tmp_path / "Dataset001_Demo", n_train=2, n_test=0)
    mask = read_image(tmp_path / "Dataset001_Demo" / "labelsTr" / "sub-01_ses-1.nii.gz")
    assert mask.array.shape == (3, 50, 64)


def test_nothing_is_overwritten_and_the_name_must_be_a_datasets(folders, tmp_path):
    with pytest.raises(PwmlError, match="not empty"):
        write_dataset(folders["t1"], shape_zyx=SMALL["t1"])
    with pytest.raises(PwmlError, match="DatasetNNN_Name"):
        write_dataset(tmp_path / "demo", shape_zyx=SMALL["t1"])
    with pytest.raises(PwmlError, match="too few"):
        write_dataset(tmp_path / "Dataset003_Demo", n_train=1, shape_zyx=SMALL["t1"])
    assert not any(tmp_path.iterdir())
