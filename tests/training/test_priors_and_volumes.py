"""Networks that take a prior density, and networks of volumes, through training and prediction."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from pwmlunet.data.dataset import CaseFiles
from pwmlunet.data.store import Rigid
from pwmlunet.errors import PwmlError
from pwmlunet.inference.model import DENSITY, TrainedModel, load_tensors
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.predictor import Predictor
from pwmlunet.planning.density import Density, fit_density
from pwmlunet.planning.pipeline import plan_and_preprocess
from pwmlunet.training import run as run_module
from pwmlunet.training import trainer as trainer_module
from pwmlunet.training import validation
from pwmlunet.training.batches import training_cases
from pwmlunet.training.interruption import TrainingStoppedError
from pwmlunet.training.run import RESUME, fold_density, open_run
from pwmlunet.training.trainer import FoldTrainer

CONFIGURATIONS = {
    "gated": {
        "inherits": "trident",
        "network": {"type": "priority", "width": 4, "n_stages": 3},
        "prior": {"bandwidth_mm": 2.0},
    },
    "volume": {
        "inherits": "trident",
        "network": {"type": "resunet_3d", "width": 4, "n_stages": 3, "n_flat_stages": 1},
        "slice_step": 1,
        "patch_slices": 4,
        "tiles": "patch",
    },
}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch, trained_home):
    monkeypatch.setattr(trainer_module, "draw_progress", lambda *_: None)
    monkeypatch.setattr(run_module, "draw_density", lambda *_: None)


@pytest.fixture
def home(copied, prepared_home):
    home = copied(prepared_home)
    path = prepared(home) / "plan.json"
    plan = json.loads(path.read_text())
    path.write_text(json.dumps({**plan, "configurations": {**plan["configurations"], **CONFIGURATIONS}}))
    return home


def prepared(home):
    return home / "preprocessed" / "Dataset001_Tiny"


@pytest.fixture
def run_of(home, tiny):
    """Opens a run of a configuration with changes to the recipe."""

    def open_it(configuration, name=None, **changes):
        recipe = replace(tiny.recipe, configuration=configuration, **changes)
        return open_run(tiny.workspace_in(home), "1", recipe, name)

    return open_it


def change_masks(home, names, change):
    for name in names:
        path = prepared(home) / "slices" / name / "mask.npy"
        mask = np.load(path)
        change(mask)
        np.save(path, mask)


def all_lesion(mask):
    mask[:] = 1


def density_bytes(run, fold="0"):
    return fold_density(run, fold).values.tobytes()


def test_held_out_masks_cannot_reach_the_density(home, run_of):
    run = run_of("gated")
    before = density_bytes(run)
    change_masks(home, run.split("0").val, all_lesion)
    assert density_bytes(run) == before
    change_masks(home, run.split("0").train[:1], all_lesion)
    (run.model.fold_folder("0") / RESUME).touch()
    assert density_bytes(run) == before  # a training that goes on keeps what it began with
    (run.model.fold_folder("0") / RESUME).unlink()
    assert density_bytes(run) != before


def test_the_density_is_of_the_folds_training_subjects(run_of):
    run = run_of("gated")
    for fold in ("0", "1"):
        subjects = {run.store.facts(name).subject for name in run.split(fold).train}
        assert set(fold_density(run, fold).facts.subjects) == subjects
    shutil.copyfile(run.model.fold_folder("1") / DENSITY, run.model.fold_folder("0") / DENSITY)
    subjects = {run.store.facts(name).subject for name in run.split("0").train}
    assert set(fold_density(run, "0").facts.subjects) == subjects  # another fold's is not taken for its own


def test_a_fold_whose_training_subjects_have_no_lesion_is_told(home, run_of):
    run = run_of("gated")

    def no_lesion(mask):
        mask[:] = 0

    change_masks(home, run.split("2").train, no_lesion)
    with pytest.raises(PwmlError, match=r"fold 2: no training subject has a lesion: .* change splits\.json"):
        FoldTrainer(run, "2").train()


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_two_and_two_epochs_equal_four_exactly(run_of, monkeypatch, configuration):
    options = {"epochs": 4, "steps_per_epoch": 2, "validate_every": 2}
    whole, broken = (run_of(configuration, name, **options) for name in ("whole", "broken"))
    FoldTrainer(whole, "0").train()
    real = FoldTrainer._end_epoch

    def stopped(self, bar):
        real(self, bar)
        if self.epoch == 2:
            self._save()
            raise TrainingStoppedError("now")

    with monkeypatch.context() as patched:
        patched.setattr(FoldTrainer, "_end_epoch", stopped)
        with pytest.raises(TrainingStoppedError):
            FoldTrainer(broken, "0").train()
    FoldTrainer(run_of(configuration, "broken", **options), "0").train()
    one, two = (load_tensors(r.model.fold_folder("0") / "weights.pt") for r in (whole, broken))
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_what_was_trained_predicts_files_as_it_predicts_prepared_cases(home, run_of, configuration):
    run = run_of(configuration, epochs=1)
    FoldTrainer(run, "0").train()
    name = "sub-02"
    files = CaseFiles(name, name, (home / "raw" / "Dataset001_Tiny" / "imagesTr" / f"{name}_0000.nii.gz",))
    predictor = Predictor(TrainedModel.open(run.model.folder), device="cpu", postprocessing=Postprocessing())
    case = run.store.read(name)
    from_files = predictor.predict_files(files).probability
    prepared_case = predictor.predict_prepared(case.image, case.facts.way_back).probability
    assert np.array_equal(from_files, prepared_case) and from_files.any()


def test_the_density_says_where_a_network_may_look(run_of):
    """Another density, another prediction: the map reaches the network in training and in use."""
    run = run_of("gated", epochs=1)
    FoldTrainer(run, "0").train()
    path = run.model.fold_folder("0") / DENSITY
    case = run.store.read("sub-02")

    def predicted():
        predictor = Predictor(run.model, device="cpu", postprocessing=Postprocessing())
        return predictor.predict_prepared(case.image, case.facts.way_back).probability

    before, density = predicted(), Density.read(path)
    Density(np.zeros_like(density.values), density.facts).write(path)
    assert not np.allclose(predicted(), before, atol=1e-4)


def test_a_density_that_is_missing_or_of_another_grid_is_told(run_of):
    run = run_of("gated", epochs=1)
    FoldTrainer(run, "0").train()
    path = run.model.fold_folder("0") / DENSITY
    density = Density.read(path)
    other = replace(density.facts, slice_shape_yx=(10, 12), unit_yx_mm=(0.7, 0.7))
    Density(density.values, other).write(path)
    case = run.store.read("sub-02")
    with pytest.raises(PwmlError, match=r"prior density was made for slices of 10, 12 pixels"):
        Predictor(run.model, device="cpu").predict_prepared(case.image, case.facts.way_back)
    path.unlink()
    with pytest.raises(PwmlError, match=r"fold_0/density\.npz is missing, .*: copy the model again"):
        Predictor(run.model, device="cpu")


def test_registered_cases_are_predicted_as_they_were_prepared(home, run_of, tiny):
    """The model's folder has the reference: a new image is laid beside it as the training cases were."""
    path = prepared(home) / "plan.json"
    plan = json.loads(path.read_text())
    plan["preparations"]["slices"].update(align="rigid", long_side=None)
    path.write_text(json.dumps(plan))
    plan_and_preprocess(tiny.workspace_in(home), "1", workers=1)
    run = run_of("gated", epochs=1)
    FoldTrainer(run, "0").train()
    name = "sub-02"
    files = CaseFiles(name, name, (home / "raw" / "Dataset001_Tiny" / "imagesTr" / f"{name}_0000.nii.gz",))
    predictor = Predictor(run.model, device="cpu", postprocessing=Postprocessing())
    case = run.store.read(name)
    moved = Rigid((1.0, 0, 0, 0, 1, 0, 0, 0, 1), (9.0, 4.0, -5.0))
    expected, elsewhere = (
        predictor.predict_prepared(case.image, way_back).probability
        for way_back in (case.facts.way_back, replace(case.facts.way_back, to_reference=moved))
    )
    assert np.allclose(predictor.predict_files(files).probability, expected, atol=1e-6)
    assert not np.allclose(elsewhere, expected, atol=1e-4)
    (run.model.folder / "reference.npz").unlink()
    with pytest.raises(PwmlError, match=r"reference\.npz"):
        Predictor(run.model, device="cpu")


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_of_a_large_case_the_slices_with_most_lesion_are_looked_at(run_of, monkeypatch, configuration):
    run = run_of(configuration, epochs=1)
    FoldTrainer(run, "0").train()
    (network,) = run.model.load(["0"])
    case = run.store.read("sub-02")
    whole = Predictor(run.model, networks=[network], device="cpu", flips=False)
    on_grid = whole.predict_slices(case.image, case.facts.way_back, (0, case.mask.shape[0]))
    monkeypatch.setattr(validation, "_LOOKED_AT_VOXELS", 2 * case.mask[0].size)
    reference, probability, spacing = validation._seen(run, case, whole)
    depth = max(2, run.model.configuration.patch_slices)
    if depth >= len(case.mask):  # a network of volumes sees a patch at least
        assert np.array_equal(reference, run.store.reference("sub-02"))
        return
    held = [np.count_nonzero(case.mask[z : z + depth]) for z in range(len(case.mask) - depth + 1)]
    first = int(np.argmax(held))
    assert np.array_equal(reference, case.mask[first : first + depth])
    assert np.array_equal(probability, on_grid[:, first : first + depth])
    assert spacing == case.facts.way_back.spacing_zyx_mm


def test_the_middle_is_looked_at_where_there_is_no_lesion(run_of):
    assert validation._most_lesion(run_of("gated"), np.zeros((9, 4, 4), np.uint8), 3) == 3


def test_lesions_are_not_pasted_into_volumes(run_of, tiny):
    pasting = replace(tiny.recipe.augmentation, paste_probability=0.5)
    run_of("gated", augmentation=pasting)
    with pytest.raises(
        PwmlError, match=r"volume learns from volumes, .*: leave augmentation\.paste_probability"
    ):
        run_of("volume", augmentation=pasting)


def test_a_run_begins_with_the_smallest_lesion_of_its_plan(home, run_of):
    path = prepared(home) / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "smallest_lesion_mm3": 1.7}))
    run = run_of("gated", epochs=1)
    assert run.model.postprocessing == Postprocessing(smallest_lesion_mm3=1.7)
    assert json.loads((run.model.folder / "postprocessing.json").read_text())["smallest_lesion_mm3"] == 1.7


def test_a_held_out_case_on_another_grid_is_told_before_training(home, run_of):
    run = run_of("gated")
    name = run.split("0").val[0]
    path = prepared(home) / "slices" / name / "case.json"
    facts = json.loads(path.read_text())
    facts["way_back"]["grid_shape_zyx"] = [4, 99, 99]
    path.write_text(json.dumps(facts))
    with pytest.raises(PwmlError, match=rf"case {name}: the prior density was made for slices of"):
        fold_density(run, "0")


def test_a_training_case_is_seen_without_its_own_lesions(run_of):
    """Two sessions of a subject share the density of the others; held-out cases see that of all."""
    run = run_of("gated")
    split = run.split("0")
    density = fold_density(run, "0")
    cases = training_cases(run, split.train, torch.device("cpu"), density)
    for case in cases:
        subject = run.store.facts(case.name).subject
        others = [name for name in split.train if run.store.facts(name).subject != subject]
        way_back = run.store.facts(case.name).way_back
        config = replace(run.model.configuration.prior, bandwidth_mm=density.facts.bandwidth_mm)
        expected = fit_density(map(run.lesions, others), config, enlarged=True).place(way_back)
        shown = (range(4), (0, 30), (0, 30))
        assert np.array_equal(case.prior.region(*shown), expected.region(*shown))
    assert not np.array_equal(cases[0].prior.values, density.values)
