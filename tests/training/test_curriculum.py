"""A training that begins with the slices rich in tiny lesions."""

import json
import logging
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from pwmlunet.errors import PwmlError
from pwmlunet.inference.model import load_tensors, save_tensors
from pwmlunet.training import trainer as trainer_module
from pwmlunet.training.batches import draw_batches, training_cases
from pwmlunet.training.config import TrainingConfig
from pwmlunet.training.interruption import TrainingStoppedError
from pwmlunet.training.run import RESUME, open_run
from pwmlunet.training.trainer import FoldTrainer


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(trainer_module, "draw_progress", lambda *_: None)


@pytest.fixture
def home(copied, prepared_home):
    return copied(prepared_home)


@pytest.fixture
def run_of(home, tiny):
    """Opens a run with a curriculum and changes to the recipe."""

    def open_it(name, **changes):
        return open_run(tiny.workspace_in(home), "1", replace(tiny.recipe, curriculum=True, **changes), name)

    return open_it


@pytest.fixture
def drawn(monkeypatch):
    """By step, where the patches came from that a training saw, and whether rich slices."""
    seen = {}
    real = FoldTrainer._train_step

    def train_step(self, batch, losses_of):
        seen.setdefault(self.step, []).append((batch["where"], batch["rich"]))
        return real(self, batch, losses_of)

    monkeypatch.setattr(FoldTrainer, "_train_step", train_step)
    return seen


def cases_of(run, fold="0"):
    return training_cases(run, run.split(fold).train, torch.device("cpu"))


def expected(run, switch, n, seed=0):
    """Batches that depend on seed, number and phase alone: each drawn by a loader of its own."""
    run = replace(run, config=replace(run.config, workers=0))
    batches = [
        next(draw_batches(run, cases_of(run), seed=seed, first=i, only_rich=i < switch)) for i in range(n)
    ]
    return [batch["where"] for batch in batches]


def metrics(run):
    path = run.model.fold_folder("0") / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_lesions_come_from_rich_slices_first_and_from_all_of_them_after_half(run_of, drawn, caplog, workers):
    run = run_of("run", epochs=4, steps_per_epoch=3, lesion_share=1.0, plateau_epochs=9, workers=workers)
    with caplog.at_level(logging.INFO):
        FoldTrainer(run, "0").train()
    assert [drawn[i][0][0] for i in range(12)] == expected(run, 6, 12)
    assert not multiprocessing.active_children()  # those of the first part neither
    assert all(all(rich) for step in range(6) for _, rich in drawn[step])
    assert not all(all(rich) for step in range(6, 12) for _, rich in drawn[step])
    assert [row["only_rich_slices"] for row in metrics(run)] == [1, 1, 0, 0]
    assert "fold 0 learns from all slices from epoch 3 on: half of the epochs are over" in caplog.messages


def test_the_first_part_ends_where_the_loss_falls_no_more(run_of, caplog):
    """And neither halves the rate then, nor holds the losses of all slices against it."""
    trainer = FoldTrainer(run_of("run", epochs=20, schedule="plateau", plateau_epochs=2), "0")
    after = []
    with caplog.at_level(logging.INFO):
        for epoch, loss in enumerate((3.0, 2.0, 2.0, 1.5, 1.6, 1.5, 9.0, 8.0, 8.0), 1):
            trainer.step = epoch * trainer.config.steps_per_epoch
            trainer._follow_plateau(loss)
            after.append(trainer.only_rich)
    assert after == [True] * 5 + [False] * 4
    assert caplog.messages == ["fold 0 learns from all slices from epoch 7 on: the loss falls no more"]
    assert trainer.plateau == {"lowest": 8.0, "since": 1, "factor": 1.0}
    trainer._follow_plateau(8.5)
    assert trainer.plateau["factor"] == 0.5


@pytest.mark.parametrize("stop", [2, 4, 5, 6])
def test_two_and_two_epochs_equal_four_exactly_on_either_side_of_the_switch(run_of, monkeypatch, drawn, stop):
    options = {"epochs": 4, "steps_per_epoch": 3, "validate_every": 4, "plateau_epochs": 9}
    whole, broken = run_of("whole", **options), run_of("broken", **options)
    FoldTrainer(whole, "0").train()
    real = FoldTrainer._train_step

    def train_step(self, *arguments):
        if self.step == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(FoldTrainer, "_train_step", train_step)
        with pytest.raises(TrainingStoppedError):
            FoldTrainer(broken, "0").train()
    FoldTrainer(broken, "0").train()
    assert all(first == second for first, second in drawn.values())
    one, two = (load_tensors(r.model.fold_folder("0") / "weights.pt") for r in (whole, broken))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert metrics(whole) == metrics(broken)


def test_a_training_that_older_code_saved_goes_on(home, tiny, monkeypatch):
    run = open_run(tiny.workspace_in(home), "1", tiny.recipe, "old")
    trainer = FoldTrainer(run, "0")
    trainer.step = 4
    trainer._save()
    path = run.model.fold_folder("0") / RESUME
    state = load_tensors(path)
    del state["only_rich"]
    save_tensors(path, state)
    trainer = FoldTrainer(run, "0")
    trainer._resume()
    assert trainer.step == 4 and not trainer.only_rich


def test_where_no_slice_is_rich_all_are_learned_from_at_once(home, run_of, caplog, drawn):
    for path in (home / "preprocessed").rglob("mask.npy"):
        mask = np.zeros_like(np.load(path))
        mask[1, 20, 20] = mask[2, 22, 25] = 1
        np.save(path, mask)
    run = run_of("run", epochs=2, steps_per_epoch=2, validate_every=2)
    with caplog.at_level(logging.INFO):
        FoldTrainer(run, "0").train()
    assert "no slice is richer in tiny lesions than the others" in caplog.messages
    assert [drawn[i][0][0] for i in range(4)] == expected(run, 0, 4)
    assert [row["only_rich_slices"] for row in metrics(run)] == [0, 0]


def test_a_curriculum_needs_two_epochs():
    with pytest.raises(PwmlError, match="curriculum needs two epochs or more"):
        TrainingConfig.from_dict({"configuration": "", "curriculum": True, "epochs": 1}, "the recipe")


def test_rich_slices_are_rotated_in_their_own_way_without_a_curriculum_too(home, tiny, drawn, monkeypatch):
    given = []
    recipe = replace(tiny.recipe, epochs=1, steps_per_epoch=2, lesion_share=1.0)
    recipe = replace(recipe, augmentation=replace(recipe.augmentation, rich_rotation_degrees=(5.0, 10.0)))
    run = open_run(tiny.workspace_in(home), "1", recipe, "run")
    trainer = FoldTrainer(run, "0")
    real = trainer.augmenter
    trainer.augmenter = lambda batch, generator, rich: (
        given.append(rich.tolist()) or real(batch, generator, rich)
    )
    trainer.train()
    assert given == [drawn[0][0][1], drawn[1][0][1]] and any(map(any, given))
    assert "only_rich_slices" not in metrics(run)[0]
