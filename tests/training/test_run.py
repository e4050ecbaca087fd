"""Runs within runs: other folds of the same cases, learned from in the same way."""

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from pwmlunet.data.splits import Split
from pwmlunet.errors import PwmlError
from pwmlunet.inference.best import find_models
from pwmlunet.inference.model import DENSITY, TrainedModel, find_model
from pwmlunet.inference.runs import gather_runs
from pwmlunet.planning.alignment import REFERENCE
from pwmlunet.training import run as run_module
from pwmlunet.training import trainer as trainer_module
from pwmlunet.training.losses import LOSSES
from pwmlunet.training.run import open_inner_run, open_run
from pwmlunet.training.trainer import FoldTrainer


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch, trained_home):
    monkeypatch.setattr(trainer_module, "draw_progress", lambda *_: None)
    monkeypatch.setattr(run_module, "draw_density", lambda *_: None)


def pairs(run):
    """Folds that hold out two of the run's folds each."""
    names = run.store.names()
    held_out = [a.val + b.val for a, b in combinations(run.splits, 2)]
    return [Split(tuple(n for n in names if n not in out), out) for out in held_out]


@pytest.fixture
def outer(copied, trained_home, tiny):
    return open_run(tiny.workspace_in(copied(trained_home)), "1", tiny.recipe, None)


@pytest.fixture
def folder(outer):
    return outer.model.folder / "correction" / "inner"


def test_an_inner_run_trains_other_folds_and_is_no_run_to_others(outer, folder, tiny):
    inner = open_inner_run(outer, folder, pairs(outer))
    scores = FoldTrainer(inner, "5").train()
    assert [case.name for case in scores] == list(outer.splits[2].val + outer.splits[3].val)
    assert (folder / "fold_5" / "weights.pt").is_file()
    assert TrainedModel.open(folder).finished_folds() == ["5"]
    assert inner.config == replace(outer.config, checkpoint="last", validate_every=outer.config.epochs)
    for name in ("plan.json", "dataset.json"):
        assert json.loads((folder / name).read_text()) == json.loads((outer.model.folder / name).read_text())
    assert FoldTrainer(open_inner_run(outer, folder, pairs(outer)), "5").train() == []  # as any finished fold
    workspace = tiny.workspace_in(outer.model.folder.parents[2])
    assert find_model(workspace, None, None).folder == outer.model.folder
    assert [model.folder for model in find_models(workspace, None, None)[0]] == [outer.model.folder]
    prepared = workspace.find_preprocessed("1")
    found = gather_runs(outer.model.folder.parent, prepared, None)
    assert [run.model.folder for run in found] == [outer.model.folder]
    assert sorted(found[0].files) == sorted(outer.splits[0].val + outer.splits[1].val)


def test_an_inner_run_of_another_recipe_or_other_folds_is_refused(outer, folder):
    splits = pairs(outer)
    open_inner_run(outer, folder, splits[:2])
    inner = open_inner_run(outer, folder, splits)  # nothing was begun yet
    FoldTrainer(inner, "0")
    (folder / "fold_0" / "training.log").touch()
    open_inner_run(replace(outer, config=replace(outer.config, workers=2)), folder, splits)
    other = replace(outer, config=replace(outer.config, seed=4))
    with pytest.raises(PwmlError, match=r"inner was begun with seed 0 \(now 4\), other folds: delete it"):
        open_inner_run(other, folder, splits[::-1])
    with pytest.raises(PwmlError, match="inner was begun with other folds: delete it"):
        open_inner_run(outer, folder, splits[:-1])
    assert open_inner_run(outer, folder, splits).split("5") == splits[5]


def test_a_subject_on_both_sides_of_an_inner_fold_is_refused(outer, folder):
    leaking = Split(("sub-01_ses-1", "sub-02"), ("sub-01_ses-2",))
    with pytest.raises(PwmlError, match="leaks: subject sub-01 is both in train and in val"):
        open_inner_run(outer, folder, [leaking])


def test_weights_of_the_same_dataset_cannot_begin_an_inner_run(outer, folder, tmp_path):
    path = outer.model.folder.parent / "other" / "fold_0" / "weights.pt"
    run = replace(outer, config=replace(outer.config, pretrained=path))
    with pytest.raises(PwmlError, match=r"began from .*weights\.pt, which has learned from cases"):
        open_inner_run(run, folder, pairs(outer))
    assert not folder.exists()
    elsewhere = replace(outer, config=replace(outer.config, pretrained=tmp_path / "resnet.pth"))
    assert open_inner_run(elsewhere, folder, pairs(outer)).config.pretrained == tmp_path / "resnet.pth"


def test_an_inner_run_has_its_own_densities_and_the_outer_runs_reference(copied, prepared_home, tiny):
    home = copied(prepared_home)
    path = home / "preprocessed" / "Dataset001_Tiny" / "plan.json"
    plan = json.loads(path.read_text())
    plan["configurations"]["gated"] = {
        "inherits": "trident",
        "network": {"type": "priority", "width": 4, "n_stages": 3},
        "prior": {"bandwidth_mm": 2.0},
    }
    path.write_text(json.dumps(plan))
    recipe = replace(tiny.recipe, configuration="gated", epochs=1, steps_per_epoch=1)
    outer = open_run(tiny.workspace_in(home), "1", recipe, None)
    (outer.model.folder / REFERENCE).write_bytes(b"what cases were registered to")
    inner = open_inner_run(outer, outer.model.folder / "correction" / "inner", pairs(outer))
    FoldTrainer(inner, "0").train()
    assert (inner.model.folder / REFERENCE).read_bytes() == b"what cases were registered to"
    with np.load(inner.model.fold_folder("0") / DENSITY) as arrays:
        facts = json.loads(str(arrays["facts"]))
    assert set(facts["subjects"]) == {outer.store.facts(name).subject for name in inner.split("0").train}
    assert not (outer.model.fold_folder("0") / DENSITY).exists()


@pytest.mark.parametrize(
    ("planned", "asked", "taken"), [("dice", "", "dice"), ("dice", "focal", "focal"), (None, "", "sbfl")]
)
def test_the_loss_is_the_plans_unless_another_is_asked_for(
    copied, prepared_home, tiny, planned, asked, taken
):
    home = copied(prepared_home)
    (path,) = home.glob("preprocessed/*/plan.json")
    values = json.loads(path.read_text())
    del values["configurations"]["trident"]["loss"]  # as in plans of before
    values["configurations"]["trident"] |= {"loss": planned} if planned else {}
    path.write_text(json.dumps(values))
    run = open_run(tiny.workspace_in(home), "1", replace(tiny.recipe, loss=asked), None)
    assert run.config.loss == taken
    assert json.loads((run.model.folder / "training.json").read_text())["loss"] == taken
    assert FoldTrainer(run, "0").criterion is LOSSES[taken]


def test_a_loss_of_the_plan_that_is_none_is_told(copied, prepared_home, tiny):
    home = copied(prepared_home)
    (path,) = home.glob("preprocessed/*/plan.json")
    values = json.loads(path.read_text())
    values["configurations"]["trident"]["loss"] = "dise"
    path.write_text(json.dumps(values))
    with pytest.raises(PwmlError, match="dise"):
        open_run(tiny.workspace_in(home), "1", tiny.recipe, None)
