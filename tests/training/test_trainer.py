import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pwmlunet.errors import PwmlError
from pwmlunet.inference.model import TrainedModel, load_tensors
from pwmlunet.training import trainer as trainer_module
from pwmlunet.training.interruption import TrainingStoppedError, stopping_on_signals
from pwmlunet.training.run import open_run
from pwmlunet.training.trainer import FoldTrainer, make_optimiser


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch, trained_home):
    """Saves half of the time; trained_home, which is made before, has its pictures."""
    monkeypatch.setattr(trainer_module, "draw_progress", lambda *_: None)


@pytest.fixture
def home(copied, prepared_home):
    return copied(prepared_home)


@pytest.fixture
def run_of(home, tiny):
    """Opens a run with changes to the recipe."""

    def open_it(name=None, **changes):
        return open_run(tiny.workspace_in(home), "1", replace(tiny.recipe, **changes), name)

    return open_it


def weights(run, fold="0"):
    return load_tensors(run.model.fold_folder(fold) / "weights.pt")


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def metrics(run, fold="0"):
    return [
        json.loads(line) for line in (run.model.fold_folder(fold) / "metrics.jsonl").read_text().splitlines()
    ]


def stop_at(monkeypatch, step):
    """SIGTERM arrives during a step, as from a cluster's scheduler."""
    real = FoldTrainer._train_step

    def train_step(self, *arguments):
        if self.step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(FoldTrainer, "_train_step", train_step)


def test_the_loss_falls(run_of):
    run = run_of(epochs=4, steps_per_epoch=6, validate_every=4, checkpoint="last")
    FoldTrainer(run, "0").train()
    losses = [row["loss"] for row in metrics(run)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_trained_fold_leaves_its_files(trained_home):
    folder = trained_home / "results" / "Dataset001_Tiny" / "trident"
    for name in ("plan.json", "dataset.json", "training.json", "postprocessing.json"):
        assert (folder / name).is_file()
    fold = folder / "fold_0"
    splits = json.loads((trained_home / "preprocessed" / "Dataset001_Tiny" / "splits.json").read_text())
    held_out = splits[0]["val"]
    validation = [f"{name}{end}" for name in held_out for end in (".nii.gz", ".npz")]
    files = ["metrics.jsonl", "progress.png", "training.log", "validation", "weights.pt"]
    assert sorted(p.name for p in fold.iterdir()) == files
    assert "epoch 2" in (fold / "training.log").read_text()
    assert sorted(p.name for p in (fold / "validation").iterdir()) == sorted([*validation, "summary.json"])
    assert TrainedModel.open(folder).finished_folds() == ["0", "1"]


@pytest.mark.parametrize("stop", [4, 6])
def test_two_and_two_epochs_equal_four_exactly(run_of, monkeypatch, stop):
    options = {"epochs": 4, "steps_per_epoch": 3, "validate_every": 2}
    whole = run_of("whole", **options)
    FoldTrainer(whole, "0").train()
    broken = run_of("broken", **options)
    with monkeypatch.context() as patched:
        stop_at(patched, stop)
        with pytest.raises(
            TrainingStoppedError, match=f"fold 0 stopped at step {stop + 1} of 12 and was saved"
        ):
            FoldTrainer(broken, "0").train()
    assert not (broken.model.fold_folder("0") / "weights.pt").exists()
    FoldTrainer(run_of("broken", **options), "0").train()
    assert same(weights(whole), weights(broken)) and metrics(whole) == metrics(broken)
    assert not (broken.model.fold_folder("0") / "resume.pt").exists()


def test_the_seed_decides_bit_for_bit(run_of):
    options = {"epochs": 1, "steps_per_epoch": 2}
    runs = [run_of(name, seed=seed, **options) for name, seed in (("a", 5), ("b", 5), ("c", 6))]
    for run in runs:
        torch.rand(1)  # the global generator's state must not matter
        FoldTrainer(run, "0").train()
    assert same(weights(runs[0]), weights(runs[1])) and not same(weights(runs[0]), weights(runs[2]))


def test_workers_draw_the_same_patches(run_of):
    options = {"epochs": 1, "steps_per_epoch": 3}
    none, two = run_of("none", **options), run_of("two", workers=2, **options)
    for run in (none, two):
        FoldTrainer(run, "0").train()
    assert same(weights(none), weights(two))


def test_too_little_memory_is_told(run_of, monkeypatch):
    monkeypatch.setattr(trainer_module, "to_batch", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    with pytest.raises(PwmlError, match=r"not enough memory: take fewer patches in a step \(--batch\)"):
        FoldTrainer(run_of(), "0").train()


def test_dropout_goes_on_as_it_would_have(run_of, home, monkeypatch):
    path = home / "preprocessed" / "Dataset001_Tiny" / "plan.json"
    plan = json.loads(path.read_text())
    plan["configurations"]["trident"]["network"]["dropout"] = 0.5
    path.write_text(json.dumps(plan))
    options = {"epochs": 2, "steps_per_epoch": 2, "validate_every": 2}
    whole, broken = run_of("whole", **options), run_of("broken", **options)
    FoldTrainer(whole, "0").train()
    with monkeypatch.context() as patched:
        stop_at(patched, 1)
        with pytest.raises(TrainingStoppedError):
            FoldTrainer(broken, "0").train()
    FoldTrainer(broken, "0").train()
    assert same(weights(whole), weights(broken))


def test_a_trained_fold_is_not_trained_again(copied, trained_home, tiny, monkeypatch):
    home = copied(trained_home)
    run = open_run(tiny.workspace_in(home), "1", tiny.recipe, None)
    before = weights(run)
    monkeypatch.setattr(FoldTrainer, "_train_step", None)
    assert FoldTrainer(run, "0").train() == []
    validation = run.model.fold_folder("0") / "validation"
    shutil.rmtree(validation)  # as if stopped between training and validation
    assert [case.name for case in FoldTrainer(run, "0").train()] == list(run.split("0").val)
    assert same(before, weights(run)) and (validation / "summary.json").is_file()


@pytest.mark.parametrize("content", [b"", b"half", None])
def test_a_damaged_resume_file_is_told(run_of, content):
    run = run_of()
    folder = run.model.fold_folder("0")
    folder.mkdir(parents=True)
    if content is None:
        torch.save([1, 2], folder / "resume.pt")
    else:
        (folder / "resume.pt").write_bytes(content)
    with pytest.raises(PwmlError, match=r"resume\.pt (is damaged|belongs to another network).*delete it"):
        FoldTrainer(run, "0").train()
    assert (folder / "resume.pt").exists()


def test_a_loss_that_is_not_finite_names_case_and_patch(run_of, home):
    for path in (home / "preprocessed").rglob("image.npy"):
        np.save(path, np.load(path) * np.float32(np.nan))
    with pytest.raises(
        PwmlError, match=r"the loss is nan at step 0: .*case sub-0\d\S*, slice \d, row \d+, column \d+"
    ):
        FoldTrainer(run_of(), "0").train()


def test_a_case_that_is_damaged_on_disk_is_told(run_of, home):
    run = run_of()
    name = run.split("0").train[0]
    path = run.store.folder / name / "image.npy"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(PwmlError, match=rf"{name} is damaged .*run pwml_plan_and_preprocess"):
        FoldTrainer(run, "0").train()


@pytest.mark.parametrize(("checkpoint", "expected"), [("best", 2), ("last", 4)])
def test_the_best_or_the_last_weights_are_kept(run_of, monkeypatch, checkpoint, expected):
    f1s = iter([0.1, 0.8, 0.8 - 1e-6, 0.3])
    seen = {}
    real = FoldTrainer._end_epoch

    def end_epoch(self, bar):
        real(self, bar)
        seen[self.epoch] = {k: v.clone() for k, v in self.average.state_dict().items()}

    monkeypatch.setattr(FoldTrainer, "_end_epoch", end_epoch)
    monkeypatch.setattr(trainer_module, "look", lambda *_: (next(f1s), 0.0))
    run = run_of(epochs=4, steps_per_epoch=1, checkpoint=checkpoint)
    FoldTrainer(run, "0").train()
    assert [epoch for epoch, kept in seen.items() if same(kept, weights(run))] == [expected]


def test_weights_are_averaged_and_batch_counters_are_not(run_of):
    trainer = FoldTrainer(run_of(weight_average=0.9), "0")
    before = {k: v.clone() for k, v in trainer.average.state_dict().items()}
    with torch.no_grad():
        for value in trainer.network.state_dict().values():
            value += 1
    trainer.step = 1000
    trainer._update_average()
    for key, value in trainer.average.state_dict().items():
        assert torch.allclose(
            value - before[key], torch.tensor(0.1 if value.is_floating_point() else 1).to(value), atol=1e-4
        )


@pytest.mark.parametrize(
    ("schedule", "expected"), [("cosine", [0.25, 0.46, 0.56, 0.5]), ("constant", [0.25, 0.5, 0.75, 1.0])]
)
def test_the_learning_rate_warms_up_and_falls(run_of, schedule, expected):
    trainer = FoldTrainer(
        run_of(schedule=schedule, warmup_steps=4, learning_rate=1.0, epochs=3, steps_per_epoch=2), "0"
    )
    rates = []
    for step in range(4):
        trainer.step = step
        rates.append(trainer._learning_rate())
    if schedule == "cosine":
        expected = [w * (1 + np.cos(np.pi * i / 6)) / 2 for i, w in enumerate((0.25, 0.5, 0.75, 1.0))]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(("epochs", "changes"), [(5, {}), (3, {"plateau_epochs": 3})])
def test_the_plateau_halves_the_rate_after_some_epochs(run_of, epochs, changes):
    trainer = FoldTrainer(run_of(schedule="plateau", **changes), "0")
    for loss in (3.0, *[2.0] * epochs):
        trainer._follow_plateau(loss)
    assert trainer.plateau["factor"] == 1.0
    trainer._follow_plateau(2.0)
    assert trainer.plateau == {"lowest": 2.0, "since": 0, "factor": 0.5}


KINDS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}


def test_weight_decay_acts_on_kernels_alone(tiny):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    for name, kind in KINDS.items():
        optimiser = make_optimiser(network, replace(tiny.recipe, optimiser=name, weight_decay=0.3))
        kernels, others = optimiser.param_groups
        assert type(optimiser) is kind and (kernels["weight_decay"], others["weight_decay"]) == (0.3, 0)
        assert (len(kernels["params"]), len(others["params"])) == (1, 3)


def test_rmsprop_divides_by_the_root_mean_square_of_alpha_point_nine(tiny):
    """Hinton's: v = .9 v + .1 g², w = w − rate g / √v, worked out for gradients 2 and −1."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 3.0)
    recipe = replace(tiny.recipe, optimiser="rmsprop", learning_rate=0.1, weight_decay=0.0)
    optimiser = make_optimiser(layer, recipe)
    for gradient in (2.0, -1.0):
        layer.weight.grad = torch.full((1, 1), gradient)
        optimiser.step()
    expected = 3 - 0.1 * 2 / 0.4**0.5 + 0.1 / (0.9 * 0.4 + 0.1) ** 0.5
    assert float(layer.weight.detach()) == pytest.approx(expected, abs=1e-5)


def test_another_recipe_in_the_same_run_is_refused(copied, trained_home, tiny):
    home = copied(trained_home)
    workspace = tiny.workspace_in(home)
    path = home / "results" / "Dataset001_Tiny" / "trident" / "training.json"
    before = path.read_text()
    with pytest.raises(PwmlError, match=r"begun with epochs 2 \(now 3\), seed 0 \(now 1\): name another run"):
        open_run(workspace, "1", replace(tiny.recipe, epochs=3, seed=1), None)
    assert path.read_text() == before
    open_run(
        workspace, "1", replace(tiny.recipe, workers=1, save_every_seconds=9), None
    )  # changes nothing learned
    open_run(workspace, "1", replace(tiny.recipe, epochs=3), "other")
    plan = home / "preprocessed" / "Dataset001_Tiny" / "plan.json"
    added = json.loads(plan.read_text())
    added["configurations"]["mine"] = {"inherits": "trident", "slice_step": 2}
    plan.write_text(json.dumps(added, indent=1))
    open_run(workspace, "1", tiny.recipe, None)  # others may come and go
    plan.write_text(plan.read_text().replace('"batch_size": 4', '"batch_size": 2'))
    with pytest.raises(PwmlError, match=r"another plan\.json"):
        open_run(workspace, "1", tiny.recipe, None)
    labels = home / "preprocessed" / "Dataset001_Tiny" / "dataset.json"
    labels.write_text(labels.read_text().replace('"lesion": 1', '"lesion": 2'))
    with pytest.raises(PwmlError, match="other labels"):
        open_run(workspace, "1", tiny.recipe, None)


@pytest.mark.parametrize("fold", ["4", "-1", "00", "x", "²", ""])
def test_an_unknown_fold_is_told_and_leaves_nothing(run_of, fold):
    run = run_of()
    with pytest.raises(PwmlError, match=r"unknown fold .* \(known: 0, 1, 2, 3, all\)"):
        FoldTrainer(run, fold)
    assert not list(run.model.folder.glob("fold_*"))


def test_fold_all_learns_from_every_case(run_of, home):
    (home / "preprocessed" / "Dataset001_Tiny" / "splits.json").unlink()  # as with one subject
    run = run_of(epochs=1, steps_per_epoch=1)
    assert run.splits is None
    assert len(FoldTrainer(run, "all").train()) == len(run.store.names()) == 5
    with pytest.raises(PwmlError, match=r"unknown fold '0' \(known: all\)"):
        run.split("0")


@pytest.mark.parametrize("fails", ["when it is asked", "when it runs"])
def test_a_compiler_that_fails_is_done_without(run_of, monkeypatch, caplog, fails):
    def broken(*_, **__):
        raise NotImplementedError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken if fails == "when it is asked" else lambda module: broken)
    plain, compiled = (
        run_of(name, epochs=1, steps_per_epoch=2, compile=c) for name, c in (("p", False), ("c", True))
    )
    with caplog.at_level(logging.WARNING):
        for run in (plain, compiled):
            FoldTrainer(run, "0").train()
    assert caplog.messages == ["torch.compile does not work here (NotImplementedError); training without it"]
    assert same(weights(plain), weights(compiled))


def test_a_compiler_that_works_is_tried_without_a_trace(run_of, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)
    plain, compiled = (
        run_of(name, epochs=1, steps_per_epoch=2, compile=c) for name, c in (("p", False), ("c", True))
    )
    for run in (plain, compiled):
        FoldTrainer(run, "0").train()
    assert same(weights(plain), weights(compiled))


def test_a_second_signal_is_handled_as_before():
    before = signal.getsignal(signal.SIGTERM)
    with stopping_on_signals() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked and signal.getsignal(signal.SIGTERM) == before
    assert signal.getsignal(signal.SIGTERM) == before


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("SimpleITK", "skimage"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from pwmlunet.cli.training import train
train(["1", "0", "--epochs", "1", "--steps", "1", "--device", "cpu"])
"""


def test_training_needs_neither_simpleitk_nor_skimage(home):
    shutil.rmtree(home / "raw")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    validation = home / "results" / "Dataset001_Tiny" / "trident" / "fold_0" / "validation"
    assert list(validation.glob("*.npz")) and not list(validation.glob("*.nii.gz"))
    assert "SimpleITK is not installed" in done.stderr
