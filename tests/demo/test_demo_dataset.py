from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pwmlunet.data.dataset import open_dataset
from pwmlunet.data.image import read_image
from pwmlunet.demo.dataset import MODALITIES, write_dataset
from pwmlunet.errors import PwmlError

SMALL = {"t1": (6, 64, 64), "cus": (54, 57, 60)}


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
    assert len(paths) == 4
    for path in paths:
        first, second, third = (
            read_image(f / path.relative_to(again)) for f in (folders[modality], again, other)
        )
        assert np.array_equal(first.array, second.array) and not np.array_equal(first.array, third.array)
        assert first.geometry == second.geometry != third.geometry


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_dataset_opens_with_two_sessions_of_a_subject_and_a_subject_without_lesions(folders, modality):
    dataset = open_dataset(folders[modality])
    assert dataset.channel_names == ({"t1": "T1", "cus": "cUS"}[modality],)
    assert [c.name for c in dataset.cases if c.subject == "sub-01"] == ["sub-01_ses-1", "sub-01_ses-2"]
    has_lesion = {c.subject: bool(read_image(c.label).array.any()) for c in dataset.cases}
    assert has_lesion == {"sub-01": True, "sub-02": True}
    assert not read_image(folders[modality] / "labelsTs" / "sub-03_ses-1.nii.gz").array.any()
    first, second = (read_image(c.images[0]) for c in dataset.cases[:2])
    assert first.geometry.differences(second.geometry)
    assert not np.array_equal(first.array, second.array)
    assert [p.name for p in (folders[modality] / "imagesTs").iterdir()] == ["sub-03_ses-1_0000.nii.gz"]
    assert [p.name for p in (folders[modality] / "labelsTs").iterdir()] == ["sub-03_ses-1.nii.gz"]


@pytest.mark.parametrize("modality", MODALITIES)
def test_image_and_mask_lie_on_one_grid(folders, modality):
    for case in open_dataset(folders[modality]).cases:
        image, label = read_image(case.images[0]), read_image(case.label)
        assert image.array.shape == SMALL[modality]
        assert not image.geometry.differences(label.geometry)


def test_without_a_shape_a_modality_has_its_own(tmp_path, monkeypatch):
    assert [kind.demo_shape_zyx for kind in MODALITIES.values()] == [(16, 128, 128), (72, 76, 80)]
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
