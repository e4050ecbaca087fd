import logging
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pwmlunet.data.dataset import CaseFiles, write_dataset_json
from pwmlunet.data.image import Geometry, read_image, write_image
from pwmlunet.data.store import CaseStore
from pwmlunet.errors import PwmlError
from pwmlunet.files import write_json
from pwmlunet.inference.candidates import THRESHOLDS
from pwmlunet.inference.folder import predict_folder
from pwmlunet.inference.model import TrainedModel, save_tensors
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.predictor import Predictor
from pwmlunet.inference.refining import SeenImage
from pwmlunet.networks.dense_crf import DenseCrfConfig
from pwmlunet.networks.unet import UNetConfig
from pwmlunet.planning.cropping import foreground
from pwmlunet.planning.fingerprint import ChannelFacts
from pwmlunet.planning.plan import Configuration, ExpectedInput, Plan
from pwmlunet.planning.preprocessing import Preparation, prepare


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


PAIR = ("T2 FLAIR", "T1 FLAIR")
PAIR_LABELS = {"background": 0, "FCI": 1, "LACI": 2}


@pytest.fixture
def make_pair_model(tmp_path):
    """Makes a model of two channels and two kinds of lesions, whose networks have random weights."""

    def make(name="model", *, channels=None, finds="each", dropout=0.0, n_folds=1):
        folder, network = tmp_path / name, UNetConfig(width=4, n_stages=2, prior_probability=0.3)
        configuration = Configuration("slices", (32, 32), 2, network, channels=channels, finds=finds)
        preparation = Preparation("z", "head_square", ("zscore_head",) * 2)
        facts = (ChannelFacts(100.0, 10.0, (10.0, 100.0, 190.0)),) * 2
        spacing = (3.0, 0.7, 0.5)
        plan = Plan("Dataset001_Pair", PAIR, "a", {"slices": preparation}, {"a": configuration}, ExpectedInput(spacing, spacing, facts))  # fmt: skip
        plan.write(folder / "plan.json")
        write_dataset_json(folder, channel_names=PAIR, labels=PAIR_LABELS, subjects={})
        recipe = {"configuration": "a", "augmentation": {"channel_dropout": dropout}}
        write_json(folder / "training.json", recipe)
        model = TrainedModel.open(folder)
        torch.manual_seed(5)
        for fold in range(n_folds):
            model.fold_folder(str(fold)).mkdir()
            save_tensors(model.fold_folder(str(fold)) / "weights.pt", model.build().state_dict())
        return TrainedModel.open(folder)

    return make


@pytest.fixture
def pair(tiny):
    """A case of two channels."""
    raw = tiny.head_with_lesions(3)
    return np.stack([raw.image, 10 * np.sqrt(np.roll(raw.image, 1, 2).clip(0))]).astype(
        np.float32
    ), raw.geometry


def predicted(model, array, geometry, **options):
    return Predictor(model, device="cpu", flips=False, **options).predict(array, geometry=geometry)


def test_a_network_sees_the_channels_of_its_configuration(make_pair_model, pair):
    image, geometry = pair
    model = make_pair_model(channels=(1,))
    first = predicted(model, image, geometry).probability
    assert model.n_channels == 1 and first.shape == (2, *geometry.shape_zyx)
    other = image.copy()
    other[0] *= 2  # shows the same head
    assert np.array_equal(predicted(model, other, geometry).probability, first)
    assert not np.array_equal(predicted(make_pair_model("both"), other, geometry).probability, first)
    other[1] = image[0]
    assert np.abs(predicted(model, other, geometry).probability - first).max() > 1e-3


def test_slices_of_a_prepared_case_are_predicted_from_the_same_channels(make_pair_model, pair):
    image, geometry = pair
    model = make_pair_model(channels=(1,), finds="any")
    prepared, _, way_back = prepare(list(image), geometry, model.preparation)
    predictor = Predictor(model, device="cpu", flips=False)
    whole = predictor.predict_prepared(prepared, way_back).probability
    assert np.array_equal(whole, predictor.predict(image, geometry=geometry).probability)
    part = predictor.predict_slices(prepared, way_back, (1, 3))
    assert part.shape == (2, 2, *prepared.shape[2:]) and part[0].any() and not part[1].any()
    box = tuple(slice(*interval) for interval in way_back.box_zyx[1:])
    assert np.allclose(way_back.orientation.to_grid(whole[0])[1:3, *box], part[0], atol=1e-6)


def test_any_lesion_is_the_first_target_until_its_kind_is_named(make_pair_model, pair):
    image, geometry = pair
    found = predicted(
        make_pair_model(finds="any", n_folds=2), image, geometry, postprocessing=Postprocessing(0.2)
    )
    assert found.probability.shape == found.spread.shape == (2, *geometry.shape_zyx)
    assert found.probability[0].max() > 0.2 and not found.probability[1].any()
    assert found.spread[0].any() and not found.spread[1].any()
    assert set(np.unique(found.mask)) == {0, 1}


def test_a_case_that_lacks_a_channel_is_predicted_from_what_is_there(make_pair_model, pair, tmp_path, caplog):
    image, geometry = pair
    predictor = Predictor(make_pair_model(dropout=0.3), device="cpu", flips=False)
    files = CaseFiles("a", "a", tuple(tmp_path / f"a_{i:04d}.nii.gz" for i in range(2)))
    for lacking in (1, 0):
        write_image(files.images[1 - lacking], image[1 - lacking], geometry)
        files.images[lacking].unlink(missing_ok=True)
        with caplog.at_level(logging.WARNING):
            found = predictor.predict_files(files)
        assert (
            f"case a lacks channel {lacking} ({PAIR[lacking]}): predicted from what is there"
            in caplog.messages
        )
        empty = image.copy()
        empty[lacking] = 0
        assert np.array_equal(found.probability, predictor.predict(empty, geometry=geometry).probability)
        middle = [np.mean(places) for places in np.nonzero(foreground(image[1 - lacking]))]
        assert found.head_centre_zyx == pytest.approx(middle)
        assert (
            np.abs(found.probability - predictor.predict(image, geometry=geometry).probability).max() > 1e-3
        )


def test_a_channel_is_only_done_without_where_every_model_was_trained_for_it(make_pair_model, pair):
    image, geometry = pair
    image[1] = 7
    strict, lenient = make_pair_model(), make_pair_model("lenient", dropout=0.3)
    assert predicted(lenient, image, geometry).probability.any()
    for models in ([strict], [lenient, strict]):
        predictor = Predictor(*models, device="cpu", flips=False)
        with pytest.raises(PwmlError) as caught:
            predictor.predict(image, geometry=geometry)
        assert str(caught.value) == (
            "case array: channel 1 (T1 FLAIR) is constant: give it, or ask a model trained with --channel-dropout"
        )
    blind = make_pair_model("blind", channels=(1,), dropout=0.3)
    with pytest.raises(PwmlError, match=r"lacks channel 1 \(T1 FLAIR\), and a network sees no other"):
        predicted(blind, image, geometry)


def test_a_folder_of_which_cases_lack_channels(make_pair_model, pair, tmp_path, command):
    image, geometry = pair
    images = tmp_path / "images"
    for case, channels in (("a", (0, 1)), ("b", (1,))):
        for channel in channels:
            write_image(images / f"{case}_{channel:04d}.nii.gz", image[channel], geometry)
    strict, lenient = make_pair_model(finds="any"), make_pair_model("lenient", finds="any", dropout=0.3)
    code, _, complaint = command("predict", "-i", images, "-o", tmp_path / "out", "-m", strict.folder)
    missing = (
        "case b: channel 0 (T2 FLAIR) is missing (b_0000.nii.gz): add the file, or ask a model trained with"
    )
    assert code == 2 and missing in complaint
    options = ("--device", "cpu", "--threshold", "0.2")
    code, _, told = command("predict", "-i", images, "-o", tmp_path / "out", "-m", lenient.folder, *options)
    assert code == 0 and "case b lacks channel 0 (T2 FLAIR)" in told and "case a lacks" not in told
    for case in "ab":
        assert read_image(tmp_path / "out" / f"{case}.nii.gz").array.any()
        assert len((tmp_path / "out" / f"{case}_lesions.csv").read_text().splitlines()) > 1


def test_a_case_may_lack_what_no_network_sees(make_pair_model, pair):
    """Without dropout, too; but not what the network sees."""
    model = make_pair_model("one", channels=(0,))
    predictor = Predictor(model, device="cpu")
    assert predictor.may_lack == {1}
    image, geometry = pair
    empty = np.array(image)
    empty[1] = 0
    assert np.isfinite(predictor.predict(empty, geometry=geometry).probability).all()
    empty = np.array(image)
    empty[0] = 0
    with pytest.raises(PwmlError, match=r"lacks channel 0 \(T2 FLAIR\), and a network sees no other"):
        predictor.predict(empty, geometry=geometry)
