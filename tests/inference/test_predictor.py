import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from pwmlunet.data.dataset import CaseFiles
from pwmlunet.data.image import Geometry, read_image, write_image
from pwmlunet.data.store import CaseStore
from pwmlunet.errors import PwmlError
from pwmlunet.inference.model import TrainedModel
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.predictor import Predictor, oddities, predict_folder


@pytest.fixture(scope="module")
def predictor(trained_home):
    model = TrainedModel.open(trained_home / "results" / "Dataset001_Tiny" / "trident")
    return Predictor(model, device="cpu", flips=False, postprocessing=Postprocessing(0.05))


def files_of(home, name):
    return CaseFiles(name, name, (home / "raw" / "Dataset001_Tiny" / "imagesTr" / f"{name}_0000.nii.gz",))


def test_arrays_files_and_prepared_cases_get_the_same_prediction(predictor, trained_home):
    files = files_of(trained_home, "sub-02")
    image = read_image(files.images[0])
    from_file = predictor.predict_files(files)
    from_array = predictor.predict(image.array, image.geometry.spacing_zyx_mm)
    four = predictor.predict(image.array[None], geometry=image.geometry)
    case = CaseStore(trained_home / "preprocessed" / "Dataset001_Tiny" / "slices").read("sub-02")
    prepared = predictor.predict_prepared(case.image, case.facts.way_back)
    for other in (from_array, four, prepared):
        assert np.array_equal(other.probability, from_file.probability)
        assert np.array_equal(other.mask, from_file.mask)
    assert from_file.probability.shape == (1, *image.array.shape) and from_file.mask.any()
    assert not from_file.geometry.differences(image.geometry)
    assert from_array.geometry == Geometry(image.array.shape, image.geometry.spacing_zyx_mm)


def test_networks_are_averaged(predictor, trained_home):
    files = files_of(trained_home, "sub-03")
    both = predictor.predict_files(files).probability
    single = [
        Predictor(predictor.model, folds=[fold], device="cpu", flips=False).predict_files(files).probability
        for fold in "01"
    ]
    assert np.allclose(both, np.mean(single, 0), atol=1e-6)


def test_other_axes_orders_and_types_are_wrong_calls(predictor):
    with pytest.raises(ValueError, match="spacing_zyx_mm or geometry"):
        predictor.predict(np.zeros((3, 32, 32)))
    with pytest.raises(ValueError, match=re.escape("(Z, Y, X) or (C, Z, Y, X), not (32, 32)")):
        predictor.predict(np.zeros((32, 32)), (1, 1, 1))
    with pytest.raises(PwmlError, match="2 channels were given, the plan expects 1"):
        predictor.predict(np.zeros((2, 3, 32, 32)), (1, 1, 1))


@pytest.mark.parametrize("shape", [(1, 56, 48), (2, 33, 61), (9, 48, 56)])
def test_images_of_other_sizes_are_predicted(predictor, tiny, shape):
    raw = tiny.head_with_lesions(5, shape)
    prediction = predictor.predict(raw.image, geometry=raw.geometry)
    assert prediction.probability.shape == (1, *shape) and np.isfinite(prediction.probability).all()
    assert 0 <= prediction.probability.min() <= prediction.probability.max() <= 1


def test_what_does_not_look_like_training_is_told(predictor, tiny, trained_home, caplog):
    expected = predictor.model.plan.expected_input
    raw = tiny.head_with_lesions(7)
    assert oddities([raw.image], raw.geometry, expected) == []
    assert oddities([raw.image * 5 + 300], raw.geometry, expected) == []  # scanners scale freely
    (spacing,) = oddities([raw.image], replace(raw.geometry, spacing_zyx_mm=(3.0, 1.6, 0.5)), expected)
    assert "spacing 3, 1.6, 0.5 mm is far from the training cases' (3, 0.7, 0.5 mm)" in spacing
    (contrast,) = oddities([np.exp(raw.image / 12.0)], raw.geometry, expected)
    assert "channel 0 has other contrasts" in contrast


def test_oddities_are_logged_with_the_case(predictor, tiny, tmp_path, caplog):
    raw = tiny.head_with_lesions(7)
    geometry = replace(raw.geometry, spacing_zyx_mm=(9.0, 0.7, 0.5))
    write_image(tmp_path / "odd_0000.nii.gz", raw.image, geometry)
    with caplog.at_level(logging.WARNING):
        predictor.predict_files(CaseFiles("odd", "odd", (tmp_path / "odd_0000.nii.gz",)))
    assert caplog.messages[0].startswith("case odd: its spacing")


def test_a_failed_case_does_not_stop_the_others(predictor, trained_home, tmp_path):
    broken = CaseFiles("broken", "broken", (tmp_path / "broken_0000.nii.gz",))
    broken.images[0].write_bytes(b"no image")
    cases = [files_of(trained_home, "sub-02"), broken, files_of(trained_home, "sub-03")]
    output = tmp_path / "out"
    with pytest.raises(PwmlError, match=r"broken_0000\.nii\.gz cannot be read"):
        predict_folder(predictor, cases, output, file_ending=".nii.gz", save_probabilities=True)
    names = ["sub-02.nii.gz", "sub-02.npz", "sub-03.nii.gz", "sub-03.npz"]
    assert sorted(path.name for path in output.iterdir()) == names
    prediction = predictor.predict_files(cases[0])
    written = read_image(output / "sub-02.nii.gz")
    assert np.array_equal(written.array, prediction.mask)
    assert not written.geometry.differences(prediction.geometry)
    with np.load(output / "sub-02.npz") as arrays:
        assert arrays["probability"].dtype == np.float32
        assert np.allclose(arrays["probability"], prediction.probability, atol=4e-3)


def test_going_on_skips_what_is_there(predictor, trained_home, tmp_path):
    (tmp_path / "sub-02.nii.gz").write_bytes(b"mine")
    cases = [files_of(trained_home, name) for name in ("sub-02", "sub-03")]
    predict_folder(predictor, cases, tmp_path, file_ending=".nii.gz", skip_existing=True)
    assert (tmp_path / "sub-02.nii.gz").read_bytes() == b"mine" and (tmp_path / "sub-03.nii.gz").is_file()
    predict_folder(predictor, cases, tmp_path, file_ending=".nii.gz")
    assert read_image(tmp_path / "sub-02.nii.gz").array.shape == (4, 56, 48)


def test_an_unknown_device_is_told(predictor):
    for name in ("gpu", "cuda:99", "meta?"):
        with pytest.raises(PwmlError, match=f"there is no device '{re.escape(name)}' here: choose cpu"):
            Predictor(predictor.model, device=name)
    assert predictor.device == torch.device("cpu")
