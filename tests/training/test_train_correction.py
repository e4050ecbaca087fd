import json
import shutil
from itertools import combinations

import numpy as np
import pytest
import torch

from pwmlunet.data.store import CaseStore
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.probabilities import write_probability
from pwmlunet.inference.best import find_models
from pwmlunet.inference.correction import Corrector
from pwmlunet.inference.judged import Judged, corrected_out_of_fold
from pwmlunet.inference.model import TrainedModel
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.runs import gather_runs
from pwmlunet.inference.selection import find_best
from pwmlunet.planning.pipeline import plan_and_preprocess
from pwmlunet.training.correction import train_correction
from pwmlunet.training.correction_learning import CorrectionRecipe
from pwmlunet.training.correction_outcome import conclude
from pwmlunet.training.run import open_inner_run, open_run
from pwmlunet.training.trainer import FoldTrainer

RECIPE = CorrectionRecipe(steps=25, batch_size=8, learning_rate=5e-3, device="cpu")
FALSE = [(2, 24, 20), (1, 34, 16), (3, 30, 26)]
"""Voxels inside every head to which stage one gives as much as to lesions."""


def stage_one(reference):
    """Finds every lesion, and as sure of it as many spots of ordinary tissue."""
    probability = np.where(reference > 0, 0.8, 0.001).astype(np.float32)
    for z, y, x in FALSE:
        if not reference[z, y - 3 : y + 4, x - 3 : x + 4].any():
            probability[z, y : y + 2, x : x + 2] = 0.8
    return probability[None]


class Stage:
    """A run whose folds, and whose networks without two folds, say what a test wants them to."""

    def __init__(self, home, workspace):
        self.workspace = workspace
        self.prepared = home / "preprocessed" / "Dataset001_Tiny"
        self.folder = home / "results" / "Dataset001_Tiny" / "trident"
        edit(self.prepared / "plan.json", lambda plan: plan["correction"].update(region_mm=5, region_pixels=16, width=4, n_hidden=8, dropout=0.1))  # fmt: skip
        splits = json.loads((self.prepared / "splits.json").read_text())
        self.held_out = [set(split["val"]) for split in splits]
        self.cases = sorted(set.union(*self.held_out))
        self.store = CaseStore(next(p.parent for p in self.prepared.glob("*/sub-02")))
        for fold, cases in enumerate(self.held_out):
            self.say(self.folder / f"fold_{fold}", cases)

    @property
    def pairs(self):
        return list(combinations(range(len(self.held_out)), 2))

    def say(self, fold, cases, predict=stage_one):
        """Makes a fold's networks say this of cases; its weights are somebody's."""
        (fold / "validation").mkdir(parents=True, exist_ok=True)
        weights = self.folder / "fold_0" / "weights.pt"
        if not (fold / "weights.pt").is_file():
            shutil.copyfile(weights, fold / "weights.pt")
        (fold / "validation" / "summary.json").write_text("{}")
        for case in cases:
            write_probability(fold / "validation" / f"{case}.npz", predict(self.store.reference(case)))

    def begin_inner(self, monkeypatch):
        """Has the inner run made as it always is, and its networks say the same as the others."""

        def opened(outer, folder, splits):
            run = open_inner_run(outer, folder, splits)
            for number, pair in enumerate(self.pairs):
                if not (folder / f"fold_{number}").is_dir():
                    self.say(folder / f"fold_{number}", set.union(*(self.held_out[f] for f in pair)))
            return run

        monkeypatch.setattr("pwmlunet.training.correction.open_inner_run", opened)

    def train(self, recipe=RECIPE, **options):
        return train_correction(self.workspace, "1", "trident", recipe, **options)

    def weights(self, fold):
        return torch.load(self.folder / "correction" / f"fold_{fold}" / "weights.pt")

    @property
    def run(self):
        (run,) = gather_runs(self.folder.parent, self.prepared, ["trident"])
        return run


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def same(first, second):
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def six_subjects(tiny, tmp_path_factory):
    """A home with six subjects, enough for a choice, one of whom was scanned twice; one fold is trained."""
    home = tmp_path_factory.mktemp("six") / "home"
    names = ["sub-01_ses-1", "sub-01_ses-2", "sub-02", "sub-03", "sub-04", "sub-05", "sub-06"]
    tiny.write_raw(
        home / "raw" / "Dataset001_Tiny", {n: tiny.head_with_lesions(i) for i, n in enumerate(names)}
    )
    plan_and_preprocess(tiny.workspace_in(home), "1", memory_gb=2, workers=1)
    tiny.shrink_plan(home / "preprocessed" / "Dataset001_Tiny")
    edit(home / "preprocessed" / "Dataset001_Tiny" / "plan.json", lambda plan: plan.update(n_folds=4))
    (home / "preprocessed" / "Dataset001_Tiny" / "splits.json").unlink()
    plan_and_preprocess(tiny.workspace_in(home), "1", workers=1)
    FoldTrainer(open_run(tiny.workspace_in(home), "1", tiny.recipe, None), "0").train()
    return home


@pytest.fixture
def stage(copied, six_subjects, tiny, monkeypatch):
    home = copied(six_subjects)
    made = Stage(home, tiny.workspace_in(home))
    made.begin_inner(monkeypatch)
    return made


def test_networks_that_make_candidates_to_learn_from_have_seen_neither_fold(stage):
    stage.train()
    inner = json.loads((stage.folder / "correction" / "inner" / "splits.json").read_text())
    assert len(inner) == len(stage.pairs) == 6
    for split, (first, second) in zip(inner, stage.pairs, strict=True):
        assert set(split["val"]) == stage.held_out[first] | stage.held_out[second]
        assert set(split["train"]) == set(stage.cases) - set(split["val"])


def test_a_judge_has_seen_neither_the_subject_nor_what_networks_that_had_seen_it_said(stage):
    """Whatever becomes of the subjects of a fold, and of all that learned from them, its judge stays the same."""
    stage.train()
    before = {fold: stage.weights(fold) for fold in range(4)}
    own = stage.held_out[2]

    def other(reference):
        return np.roll(stage_one(reference), 5, axis=-1)

    for case in own:  # another image, another mask
        arrays = stage.store.folder / case
        np.save(arrays / "image.npy", np.load(arrays / "image.npy")[..., ::-1])
        np.savez(arrays / "reference.npz", reference=stage.store.reference(case)[:, ::-1])
    for number, pair in enumerate(stage.pairs):
        if 2 not in pair:  # these networks learned from them
            cases = set.union(*(stage.held_out[f] for f in pair))
            stage.say(stage.folder / "correction" / "inner" / f"fold_{number}", cases, other)
    for fold in (0, 1, 3):
        stage.say(stage.folder / f"fold_{fold}", stage.held_out[fold], other)
    stage.train()
    assert same(before[2], stage.weights(2))
    assert not any(same(before[fold], stage.weights(fold)) for fold in (0, 1, 3))


def test_each_candidate_is_judged_by_the_network_of_the_fold_that_holds_it_out(stage):
    stage.train()
    judged, model = Judged.of_run(TrainedModel.open(stage.folder)), TrainedModel.open(stage.folder)
    assert judged.cases.keys() == set(stage.cases)
    for name, known in judged.cases.items():
        assert name in stage.held_out[int(known.fold)]
        corrector = Corrector.open(model, [known.fold])
        case = stage.store.read(name)
        probability = stage_one(stage.store.reference(name))
        corrected = corrector.correct(probability, case.image, case.facts.way_back)
        again = corrected_out_of_fold(stage.run, name).probability
        np.testing.assert_allclose(again, corrected, atol=0.01)  # stage one's are rounded in files


@pytest.fixture
def helpful(stage):
    """A correction that tells lesions apart."""
    recipe = CorrectionRecipe(steps=150, batch_size=16, learning_rate=1e-2, device="cpu", label_smoothing=0.0)
    return conclude(stage.workspace, "1", stage.train(recipe))


def test_a_correction_that_tells_lesions_apart_is_used_from_then_on(stage, helpful, command, tmp_path):
    assert helpful.trial.helps, helpful.text
    before, after = helpful.trial.without.nested, helpful.trial.corrected.nested
    assert after.n_predicted.sum() < before.n_predicted.sum()
    assert Postprocessing.read(stage.folder / "correction" / "with.json").correction
    assert not Postprocessing.read(stage.folder / "correction" / "without.json").correction
    assert "taken" in helpful.text and helpful.page.is_file()
    images = stage.prepared.parents[1] / "raw" / "Dataset001_Tiny" / "imagesTr"
    for option, corrected in ([], True), (["--no-correction"], False), (["--correction"], True):
        folder = tmp_path / "_".join(["masks", *option])
        code, _, complaint = command("predict", "-i", images, "-o", folder, "-c", "trident", *option)
        assert code == 0, complaint
        made_by = json.loads((folder / "prediction.json").read_text())
        assert made_by["postprocessing"]["correction"] == corrected


def test_the_choice_of_runs_tries_the_correction(stage, helpful):
    found = find_best(stage.workspace, "1")
    assert found.postprocessing.correction
    assert "best: trident, corrected" in found.text and found.best.correction
    plain, corrected = sorted(found.best.candidates, key=lambda candidate: candidate.correction)
    assert corrected.multiply_adds_per_voxel > plain.multiply_adds_per_voxel
    assert corrected.value > plain.value
    (model,), settings = find_models(stage.workspace, "1", None)
    assert model.folder == stage.folder and settings.correction


def test_a_correction_that_does_not_help_is_left_off(stage):
    outcome = conclude(stage.workspace, "1", stage.train(CorrectionRecipe(steps=1, device="cpu")))
    assert not outcome.trial.helps
    assert not Postprocessing.read(stage.folder / "postprocessing.json").correction
    assert "left out" in outcome.text


def test_a_second_call_makes_the_same(stage):
    stage.train()
    before = [stage.weights(fold) for fold in range(4)]
    stage.train()
    assert all(same(weights, stage.weights(fold)) for fold, weights in enumerate(before))


def test_stage_one_that_was_trained_again_is_told(stage):
    stage.train()
    stage.say(stage.folder / "fold_1", stage.held_out[1], lambda reference: stage_one(reference) * 0.9)
    name = sorted(stage.held_out[1])[0]
    with pytest.raises(
        PwmlError, match=r"fold 1 .* was trained again since its correction: run pwml_train_correction"
    ):
        corrected_out_of_fold(stage.run, name)


def test_more_folds_than_stage_one_has(stage):
    shutil.rmtree(stage.folder / "fold_3")
    with pytest.raises(PwmlError, match=r"has not finished fold 3 \(finished: 0, 1, 2\).*run pwml_train"):
        stage.train(folds=["0", "3"])
    stage.train()
    assert Judged.of_run(TrainedModel.open(stage.folder)).thresholds.keys() == {"0", "1", "2"}


def test_a_fold_whose_probabilities_are_gone(stage):
    case = min(stage.held_out[1])
    (stage.folder / "fold_1" / "validation" / f"{case}.npz").unlink()
    with pytest.raises(PwmlError, match=rf"fold 1 .* has no probabilities of case {case}.*run pwml_train"):
        stage.train()


def test_a_subject_that_two_folds_hold_out(stage):
    case = min(stage.held_out[1])
    edit(stage.prepared / "splits.json", lambda splits: splits[2]["val"].append(case))
    edit(stage.prepared / "splits.json", lambda splits: splits[2]["train"].remove(case))
    stage.say(stage.folder / "fold_2", [case])
    with pytest.raises(PwmlError, match=r"is held out by folds 1 and 2"):
        stage.train()


def test_a_fold_that_splits_no_longer_have(stage):
    edit(stage.prepared / "splits.json", lambda splits: splits.pop())
    with pytest.raises(PwmlError, match=r"unknown fold '3'"):
        stage.train()


def test_what_was_there_stays_where_training_ends_early(stage, monkeypatch):
    stage.train()
    before = {path: path.read_bytes() for path in (stage.folder / "correction").rglob("*") if path.is_file()}

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("pwmlunet.training.correction._judge", stopped)
    with pytest.raises(KeyboardInterrupt):
        stage.train(CorrectionRecipe(steps=2, device="cpu", seed=5))
    assert all(path.read_bytes() == content for path, content in before.items())


def test_settings_of_a_person_stay_where_the_correction_does_not_help(stage):
    own = Postprocessing(threshold=0.33)
    own.write(stage.folder / "postprocessing.json")
    outcome = conclude(stage.workspace, "1", stage.train(CorrectionRecipe(steps=1, device="cpu")))
    assert not outcome.trial.helps
    assert Postprocessing.read(stage.folder / "postprocessing.json") == own
    assert "stays as it is" in outcome.text


def test_one_fold_alone(stage):
    for fold in (1, 2, 3):
        shutil.rmtree(stage.folder / f"fold_{fold}")
    with pytest.raises(PwmlError, match=r"has fold 0 alone: .* train two or more"):
        stage.train()


def test_two_folds_leave_nobody_to_learn_from(stage):
    first = sorted(stage.held_out[0] | stage.held_out[1])
    halves = [(first, [case for case in stage.cases if case not in first])]
    halves.append(halves[0][::-1])
    splits = [{"train": train, "val": val} for train, val in halves]
    (stage.prepared / "splits.json").write_text(json.dumps(splits))
    for fold, split in enumerate(splits):
        stage.say(stage.folder / f"fold_{fold}", split["val"])
    with pytest.raises(
        PwmlError, match=r"no case is left to learn from without folds 0, 1.*at least three folds"
    ):
        stage.train(folds=["0", "1"])


def test_stage_one_that_finds_nothing(stage):
    stage.train()
    for number, pair in enumerate(stage.pairs):
        cases = set.union(*(stage.held_out[f] for f in pair))
        inner = stage.folder / "correction" / "inner" / f"fold_{number}"
        stage.say(inner, cases, lambda reference: np.full((1, *reference.shape), 1e-4, np.float32))
    with pytest.raises(PwmlError, match=r"fold 0: of the candidates .* there are 0 no lesion, 0 lesion"):
        stage.train()


def test_candidates_of_one_class_alone(stage):
    stage.train()
    for number, pair in enumerate(stage.pairs):
        cases = set.union(*(stage.held_out[f] for f in pair))
        inner = stage.folder / "correction" / "inner" / f"fold_{number}"
        stage.say(inner, cases, lambda reference: np.where(reference > 0, 0.9, 1e-4).astype(np.float32)[None])
    with pytest.raises(PwmlError, match=r"fold 0: of the candidates .* there are 0 no lesion, \d+ lesion"):
        stage.train()


def test_a_plan_without_a_correction(stage):
    edit(stage.prepared / "plan.json", lambda plan: plan.pop("correction"))
    with pytest.raises(PwmlError, match=r"plans no correction: make a new plan .* --replan"):
        stage.train()


def test_too_few_lesions_choose_no_correction(stage, helpful):
    """Whatever it gains: three subjects with lesions at least must remain whoever is left out."""
    kept = sorted(stage.held_out[0] | stage.held_out[1])[:4]
    for fold in stage.folder.glob("fold_*"):
        for path in (fold / "validation").glob("*.npz"):
            if path.stem not in kept:
                path.unlink()
    found = find_best(stage.workspace, "1")
    assert not found.best.correction
    assert any(reason.startswith("trident, corrected: ") and "too few to choose" in reason for reason in found.best.reasons)  # fmt: skip
