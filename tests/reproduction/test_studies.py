from dataclasses import replace

import pytest
import torch

from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.profiles import PROFILES
from pwmlunet.networks.base import Batch
from pwmlunet.reproduction.studies import FCI_LACI, PRIORITY_UNET, RS_RCNN, STUDIES, TRIDENT, get_study
from pwmlunet.reproduction.study import NO_AUGMENTATION, Quick
from pwmlunet.training.augmentation import Augmenter
from pwmlunet.training.config import RECIPES, TrainingConfig


@pytest.mark.parametrize("study", STUDIES.values(), ids=list(STUDIES))
def test_a_study_is_whole(study) -> None:
    names = [row.name for row in study.rows]
    assert len(set(names)) == len(names)
    assert {q.row for q in study.questions} | {q.against for q in study.questions} <= set(names)
    assert {name for table in study.tables for name in table.rows} <= set(names)
    columns = {name for table in study.tables for name in (*table.columns, *table.beside)}
    assert columns - PROFILES[study.profile].lines.keys() <= {"specificity"}
    assert PROFILES[study.profile].threshold in (None, study.threshold)
    for row in study.rows:
        tables = [table for table in study.tables if table.has(row.name)]
        assert tables
        if row.printed:  # the others are ours
            missing = {name for table in tables for name in table.columns} - row.printed.keys()
            assert missing == ({"dice"} if study is FCI_LACI else set())  # of which not all is known
            assert row.printed.keys() <= {name for table in tables for name in table.columns}
        assert (row.run is None) == (row.recipe is None)
        if row.recipe and row.run:
            assert study.recipes[row.run] == row.recipe  # rows that share a run say the same of it
            assert TrainingConfig.from_dict(row.recipe.to_dict(), row.run) == row.recipe
            assert row.recipe.checkpoint == "last"  # the best on the held-out cases would be judged by them
        assert not row.correction or (row.run and study.correction)


def test_questions_ask_for_one_change() -> None:
    """Rows that are compared differ in their loss, network, augmentation, CRF or correction, not in two of them.

    But where a second network names the kinds, the first one does not.
    """
    for study in STUDIES.values():
        rows = {row.name: row for row in study.rows}
        for question in study.questions:
            row, other = rows[question.row], rows[question.against]
            if row.recipe and other.recipe:
                with_it, without = row.recipe.to_dict(), other.recipe.to_dict()
                changed = [key for key in with_it if with_it[key] != without[key]]
                if row.correction and not other.correction:
                    assert changed == ["configuration"], question.words
                else:
                    others = (row.crf != other.crf) + (row.correction != other.correction)
                    assert len(changed) + others == 1, question.words


def test_rows_of_rs_rcnn_have_one_module_after_the_other() -> None:
    networks = {row.name: row.network for row in RS_RCNN.rows}
    assert networks["B"] == {"score_relu": False, "enlargement": 1.0, "mask_head": "mask_rcnn"}
    assert networks["C"] == {"score_relu": True, "enlargement": 1.3, "mask_head": "mask_rcnn"}
    assert networks["D"] == {"score_relu": True, "enlargement": 1.3, "mask_head": "lrs"} == networks["E"]
    for name in set(networks) - set(RS_RCNN.tables[0].rows):
        assert networks[name] == {**networks["C"], "enlargement": float(name.removeprefix("k"))}
    assert [(row.name, row.may_delete) for row in RS_RCNN.rows if row.crf] == [("E", True), ("E_keep", False)]


def test_some_rows_can_be_asked_for() -> None:
    some = RS_RCNN.only(["E", "D", "k2.0"])
    assert [row.name for row in some.rows] == ["D", "E", "k2.0"]
    assert [question.row for question in some.questions] == ["E"]
    assert list(some.recipes) == ["rs_rcnn_row_d", "rs_rcnn_row_k2.0"]
    assert RS_RCNN.only([]) == RS_RCNN
    with pytest.raises(PwmlError, match=r"rs_rcnn has no row 'k2' \(did you mean 'k2.0'\?\)"):
        RS_RCNN.only(["D", "k2"])


def test_the_printed_figures_are_the_papers() -> None:
    printed = {f"{study.name} {row.name}": row.printed for study in STUDIES.values() for row in study.rows}
    assert printed["priority_unet priority_unet_sbfl_dice"] == {
        "detection_precision": 0.5370,
        "detection_recall": 0.5043,
        "volume_precision": 0.5289,
        "volume_recall": 0.3206,
        "dice": 0.3839,
        "specificity": 0.9999,
    }
    assert printed["trident D"] == {"dice": 0.6024, "sensitivity": 0.6838, "specificity": 0.9998, "hd_pixels": 30.9768}  # fmt: skip
    assert printed["rs_rcnn A"] == printed["trident A"]
    assert list(printed["rs_rcnn B"].values()) == [0.5989, 0.6002, 0.9998, 62.0655]
    assert list(printed["rs_rcnn E"].values()) == [0.6616, 0.7069, 0.9998, 52.9130]
    assert printed["rs_rcnn k1.0"] == {"dice": 0.6326}
    known = {name: row for name, row in printed.items() if name.startswith("fci_laci") and row}
    assert known == {"fci_laci b": {"detection_precision": 0.9176, "classification_precision": 0.9289}}


def test_the_recipes_are_the_papers() -> None:
    for row in PRIORITY_UNET.rows:
        assert (row.recipe.optimiser, row.recipe.learning_rate, row.recipe.schedule) == ("adam", 1e-4, "constant")  # fmt: skip
        assert row.recipe.batch_size is None
        assert (
            row.recipe.augmentation == RECIPES["default"].augmentation
        )  # none overfits, and none is printed
    for row in RS_RCNN.only(["B", "E", "k3.0"]).rows:
        assert (row.recipe.optimiser, row.recipe.learning_rate, row.recipe.weight_decay) == (
            "sgd",
            1e-3,
            1e-4,
        )
        assert (row.recipe.schedule, row.recipe.plateau_epochs, row.recipe.epochs) == ("plateau", 10, 100)
        assert (row.recipe.batch_size, row.recipe.lesion_share, row.recipe.loss) == (2, 1.0, "bce")
    of = {row.name: row.recipe for row in TRIDENT.rows if row.recipe}
    assert [of[row].loss for row in "BDEFG"] == ["focal"] * 4 + ["sbfl"]
    assert [of[row].augmentation == NO_AUGMENTATION for row in "BDEFG"] == [True, True, False, False, False]
    assert {(r.epochs, r.steps_per_epoch, r.learning_rate, r.batch_size) for r in of.values()} == {(50, 50, 2e-4, 8)}  # fmt: skip


def test_tasks_a_and_b_have_one_step_after_the_other() -> None:
    rows = {row.name: row for row in FCI_LACI.rows}
    for names in (("a_plain", "a_oversampled", "a"), ("b_plain", "b_oversampled", "b")):
        plain, oversampled, turned = (rows[name].recipe for name in names)
        assert (plain.loss, plain.optimiser, plain.learning_rate) == ("bce", "rmsprop", 1e-3)
        assert plain.augmentation == NO_AUGMENTATION
        assert oversampled == replace(plain, curriculum=True)
        assert turned.augmentation == replace(NO_AUGMENTATION, rich_rotation_degrees=(5.0, 10.0))
    assert rows["a_all"].recipe == replace(rows["a"].recipe, configuration="paper_task_a_all")
    assert {row.run for row in (rows["b_none"], rows["b"], rows["b_ours"])} == {"fci_laci_b"}
    assert FCI_LACI.corrected == ("fci_laci_b",)
    assert FCI_LACI.only(["a", "b_none"]).corrected == ()
    corrections = {name: row.correction for name, row in rows.items() if row.correction}
    assert corrections == {"b": "kind", "b_ours": "all"}
    nameless = {name for name, row in rows.items() if not row.names_kinds}
    assert nameless == {"b_plain", "b_oversampled", "b_none"} == set(FCI_LACI.tables[1].rows)
    assert "classification_precision" not in FCI_LACI.tables[1].columns


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
    changed |= {"schedule": "cosine", "warmup_steps": 3, "optimiser": "adam"}
    assert quick.shorten(row_g) == replace(row_g, **changed)
    mask_rcnn = quick.shorten(RS_RCNN.rows[1].recipe)
    assert (mask_rcnn.optimiser, mask_rcnn.batch_size) == ("adam", 4)  # momentum alone would get nowhere
    assert quick.shorten(PRIORITY_UNET.rows[0].recipe).batch_size is None  # the plan's fits the machine
    short = replace(quick, correction_steps=3).shorten_correction(FCI_LACI.correction)
    assert short == replace(FCI_LACI.correction, steps=3)
    long = replace(quick, correction_steps=10**6)
    assert long.shorten_correction(FCI_LACI.correction) == FCI_LACI.correction


def test_an_unknown_study_is_named() -> None:
    with pytest.raises(PwmlError, match=r"there is no study 'tridnet' \(did you mean 'trident'\?\)"):
        get_study("tridnet")
