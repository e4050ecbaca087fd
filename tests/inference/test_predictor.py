import logging
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pwmlunet.data.dataset import CaseFiles
from pwmlunet.data.image import Geometry, read_image, write_image
from pwmlunet.data.store import CaseStore
from pwmlunet.errors import PwmlError
from pwmlunet.inference.candidates import THRESHOLDS
from pwmlunet.inference.folder import predict_folder
from pwmlunet.inference.model import TrainedModel
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.predictor import Predictor, oddities
from pwmlunet.inference.refining import SeenImage
from pwmlunet.networks.dense_crf import DenseCrfConfig
from pwmlunet.planning.cropping import foreground


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


def copy_with_fold(model, fold, folder):
    """A copy of a model that has one fold only."""
    shutil.copytree(model.folder, folder)
    for other in set(model.finished_folds()) - {fold}:
        shutil.rmtree(folder / f"fold_{other}")
    return TrainedModel.open(folder)


def test_models_are_averaged_and_spread_as_networks_are(predictor, trained_home, tmp_path):
    models = [copy_with_fold(predictor.model, fold, tmp_path / fold) for fold in "01"]
    options = {"device": "cpu", "flips": False, "postprocessing": Postprocessing(0.05)}
    files = files_of(trained_home, "sub-03")
    first, second = (Predictor(model, **options).predict_files(files) for model in models)
    both = Predictor(*models, **options)
    together = both.predict_files(files)
    assert both.n_networks == 2 and first.spread is None
    assert np.allclose(together.probability, predictor.predict_files(files).probability, atol=1e-6)
    difference = np.abs(first.probability - second.probability) / 2
    assert difference.max() > 1e-3 and np.allclose(together.spread, difference, atol=1e-3)
    assert np.array_equal(together.mask != 0, together.probability[0] > 0.05)


def test_the_folds_of_a_model_spread_too(predictor, trained_home, tmp_path):
    files = files_of(trained_home, "sub-03")
    folds = predictor.predict_files(files)
    alone = copy_with_fold(predictor.model, "0", tmp_path / "alone")
    options = {"device": "cpu", "flips": False, "postprocessing": Postprocessing(0.05)}
    zero = Predictor(alone, **options).predict_files(files)
    both = Predictor(predictor.model, alone, **options).predict_files(files)
    # the mean of squares is the square of the mean and that of the spread
    square = (folds.probability**2 + folds.spread**2 + zero.probability**2) / 2
    assert folds.spread.max() > 1e-3
    assert np.allclose(both.spread**2, square - both.probability**2, atol=1e-6)


def test_probabilities_are_calibrated_before_the_threshold(predictor, trained_home):
    files = files_of(trained_home, "sub-02")
    cool = Predictor(
        predictor.model, device="cpu", flips=False, postprocessing=Postprocessing(temperature=0.5)
    )
    before, after = predictor.predict_files(files), cool.predict_files(files)
    odds = before.probability / (1 - before.probability)
    assert np.allclose(after.probability, odds**2 / (1 + odds**2), atol=1e-4)
    assert np.array_equal(after.mask != 0, after.probability[0] > 0.5)


def test_a_crf_refines_the_mean_of_the_networks_before_temperature(predictor, trained_home):
    """The same for files, arrays and prepared cases, and for pwml_find_best, which knows prepared cases alone."""
    crf = DenseCrfConfig(1.5, 0.5, 1.5, 0.3, 0.5)
    settings = Postprocessing(0.02, temperature=1.3, crf=crf)
    crf_predictor = Predictor(predictor.model, device="cpu", flips=False, postprocessing=settings)
    files = files_of(trained_home, "sub-02")
    image = read_image(files.images[0])
    case = CaseStore(trained_home / "preprocessed" / "Dataset001_Tiny" / "slices").read("sub-02")
    found = crf_predictor.predict_files(files)
    for other in (
        crf_predictor.predict(image.array, geometry=image.geometry),
        crf_predictor.predict_prepared(case.image, case.facts.way_back),
    ):
        assert np.array_equal(other.probability, found.probability) and np.array_equal(other.mask, found.mask)
    plain = predictor.predict_files(files).probability
    seen = SeenImage.of_prepared(case.image, case.facts.way_back)
    refined = seen.refine(plain, crf, *THRESHOLDS, settings.threshold_before_temperature)
    assert np.abs(refined - plain).max() > 1e-3
    assert np.allclose(found.probability, settings.calibrate(refined), atol=1e-6)
    assert np.array_equal(found.mask != 0, found.probability[0] > 0.02)


def test_the_middle_of_the_head_is_found(predictor, tiny):
    raw = tiny.head_with_lesions(5)
    middle = predictor.predict(raw.image, geometry=raw.geometry).head_centre_zyx
    assert middle == pytest.approx([np.mean(places) for places in np.nonzero(raw.image > 50)], abs=1)
    empty = predictor.predict(np.zeros((3, 32, 32)), (3.0, 0.7, 0.5)).head_centre_zyx
    assert empty == pytest.approx((1, 15.5, 15.5))


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
    def odd(channels, geometry):
        return oddities(channels, geometry, predictor.model.plan.expected_input, foreground(channels[0]))

    raw = tiny.head_with_lesions(7)
    assert odd([raw.image], raw.geometry) == []
    assert odd([raw.image * 5 + 300], raw.geometry) == []  # scanners scale freely
    (spacing,) = odd([raw.image], replace(raw.geometry, spacing_zyx_mm=(3.0, 1.6, 0.5)))
    assert "spacing 3, 1.6, 0.5 mm is far from the training cases' (3, 0.7, 0.5 mm)" in spacing
    (contrast,) = odd([np.exp(raw.image / 12.0)], raw.geometry)
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
    endings = (".nii.gz", ".npz", "_lesions.csv", "_lesions.json")
    written = {f"{case}{ending}" for case in ("sub-02", "sub-03") for ending in endings}
    assert {path.name for path in output.iterdir()} == written | {"prediction.json"}
    prediction = predictor.predict_files(cases[0])
    written = read_image(output / "sub-02.nii.gz")
    assert np.array_equal(written.array, prediction.mask)
    assert not written.geometry.differences(prediction.geometry)
    with np.load(output / "sub-02.npz") as arrays:
        assert arrays["probability"].dtype == np.float32
        assert np.allclose(arrays["probability"], prediction.probability, atol=4e-3)


def test_a_case_that_memory_does_not_suffice_for_does_not_stop_the_others(
    predictor, trained_home, tmp_path, monkeypatch
):
    real = Predictor.predict_files

    def predicted(self, files):
        return torch.empty(2**60, dtype=torch.uint8) if files.name == "sub-02" else real(self, files)

    monkeypatch.setattr(Predictor, "predict_files", predicted)
    cases = [files_of(trained_home, name) for name in ("sub-02", "sub-03")]
    with pytest.raises(PwmlError, match="case sub-02: there is not enough memory: try --device cpu"):
        predict_folder(predictor, cases, tmp_path, file_ending=".nii.gz")
    assert [path.name for path in tmp_path.glob("*.nii.gz")] == ["sub-03.nii.gz"]


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


def test_masks_do_not_go_among_the_images(predictor, trained_home):
    files = files_of(trained_home, "sub-02")
    with pytest.raises(PwmlError, match="is the folder of the images: choose another one"):
        predict_folder(predictor, [files], files.images[0].parent, file_ending=".nii.gz")
    assert not (files.images[0].parent / "prediction.json").exists()


def test_going_on_with_other_settings_is_refused(predictor, trained_home, tmp_path):
    cases = [files_of(trained_home, "sub-02")]
    predict_folder(predictor, cases, tmp_path, file_ending=".nii.gz")
    other = Predictor(predictor.model, device="cpu", flips=False, postprocessing=Postprocessing(0.3))
    before = (tmp_path / "prediction.json").read_bytes()
    with pytest.raises(PwmlError, match="made with other models or settings"):
        predict_folder(other, cases, tmp_path, file_ending=".nii.gz", skip_existing=True)
    assert (tmp_path / "prediction.json").read_bytes() == before
    assert predict_folder(predictor, cases, tmp_path, file_ending=".nii.gz", skip_existing=True) == 0
