from dataclasses import replace

import pytest
import torch

from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.profiles import PROFILES
from pwmlunet.networks.base import Batch
from pwmlunet.reproduction.studies import NO_AUGMENTATION, PRIORITY_UNET, STUDIES, TRIDENT, Quick, get_study
from pwmlunet.training.augmentation import Augmenter
from pwmlunet.training.config import RECIPES, TrainingConfig


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_a_study_is_whole(study) -> None:
    runs = [row.run for row in study.rows]
    columns = {name for table in study.tables for name in table.columns}
    assert len(set(runs)) == len(runs)
    assert {q.run for q in study.questions} | {q.against for q in study.questions} <= set(runs)
    assert all(row.printed.keys() == columns for row in study.rows)
    assert columns - PROFILES[study.profile].lines.keys() <= {"specificity"}
    assert PROFILES[study.profile].threshold in (None, study.threshold)
    for row in study.rows:
        assert TrainingConfig.from_dict(row.recipe.to_dict(), row.run) == row.recipe
        assert row.recipe.checkpoint == "last"  # the best on the held-out cases would be judged by them


def test_questions_ask_for_one_change() -> None:
    """Rows that are compared differ in their loss, their network or their augmentation, not in two of them."""
    for study in STUDIES.values():
        recipes = {row.run: row.recipe for row in study.rows}
        for question in study.questions:
            with_it, without = recipes[question.run].to_dict(), recipes[question.against].to_dict()
            assert len([key for key in with_it if with_it[key] != without[key]]) == 1, question.words


def test_the_printed_figures_are_the_papers() -> None:
    printed = {row.run: row.printed for study in STUDIES.values() for row in study.rows}
    assert printed["priority_unet_sbfl_dice"] == {
        "detection_precision": 0.5370,
        "detection_recall": 0.5043,
        "volume_precision": 0.5289,
        "volume_recall": 0.3206,
        "dice": 0.3839,
        "specificity": 0.9999,
    }
    assert printed["trident_row_d"] == {"dice": 0.6024, "sensitivity": 0.6838, "specificity": 0.9998, "hd_pixels": 30.9768}  # fmt: skip


def test_the_recipes_are_the_papers() -> None:
    for row in PRIORITY_UNET.rows:
        assert (row.recipe.optimiser, row.recipe.learning_rate, row.recipe.schedule) == ("adam", 1e-4, "constant")  # fmt: skip
        assert row.recipe.batch_size is None
        assert (
            row.recipe.augmentation == RECIPES["default"].augmentation
        )  # none overfits, and none is printed
    of = {row.words[0]: row.recipe for row in TRIDENT.rows}
    assert [of[row].loss for row in "BDEFG"] == ["focal"] * 4 + ["sbfl"]
    assert [of[row].augmentation == NO_AUGMENTATION for row in "BDEFG"] == [True, True, False, False, False]
    assert {(r.epochs, r.steps_per_epoch, r.learning_rate, r.batch_size) for r in of.values()} == {(50, 50, 2e-4, 8)}  # fmt: skip


def test_no_augmentation_leaves_patches_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(6, 1, 3, 16, 16, generator=generator)
    batch = Batch(image, (image[:, :, 1:2] > 0.9).float(), torch.ones(6, 1, 1, 16, 16))
    for seed in range(5):
        changed = Augmenter(NO_AUGMENTATION)(batch, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(changed.image, batch.image)
        torch.testing.assert_close(changed.target, batch.target)
    turned = Augmenter(replace(NO_AUGMENTATION, flip=True))(batch, torch.Generator().manual_seed(0))
    assert not torch.equal(turned.image, batch.image)


def test_quick_shortens_and_keeps_the_rest() -> None:
    quick = Quick(epochs=2, steps_per_epoch=3, batch_size=4, learning_rate=0.5)
    row_g = TRIDENT.rows[-1].recipe
    changed = {"epochs": 2, "steps_per_epoch": 3, "batch_size": 4, "learning_rate": 0.5, "validate_every": 2}
    changed |= {"schedule": "cosine", "warmup_steps": 3}
    assert quick.shorten(row_g) == replace(row_g, **changed)
    assert quick.shorten(PRIORITY_UNET.rows[0].recipe).batch_size is None  # the plan's fits the machine


def test_an_unknown_study_is_named() -> None:
    with pytest.raises(PwmlError, match=r"there is no study 'tridnet' \(did you mean 'trident'\?\)"):
        get_study("tridnet")
