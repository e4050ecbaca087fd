"""The whole command on the tiny dataset, with trainings of two steps."""

import json
import os
import signal
from dataclasses import replace

import pytest

from pwmlunet.reproduction import studies
from pwmlunet.reproduction.figures import Reproduction
from pwmlunet.reproduction.reproduce import _one_kind
from pwmlunet.reproduction.sources import HeldOut
from pwmlunet.reproduction.studies import FCI_LACI, PRIORITY_UNET, TRIDENT
from pwmlunet.reproduction.study import Quick
from pwmlunet.training.trainer import FoldTrainer

TRIDENT_2 = ("trident", "-d", "1", "--quick", "--folds", "0", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(studies, "QUICK", Quick(width=4, epochs=1, steps_per_epoch=2, learning_rate=2e-3))


@pytest.fixture
def results(home):
    return home / "results" / "Dataset001_Tiny"


@pytest.fixture
def steps(monkeypatch):
    """The steps that are trained, by run and fold."""
    taken = []
    real = FoldTrainer._train_step

    def train_step(self, *arguments):
        taken.append((self.run.model.folder.name, self.fold))
        return real(self, *arguments)

    monkeypatch.setattr(FoldTrainer, "_train_step", train_step)
    return taken


@pytest.mark.usefixtures("small_trident")
def test_trident_is_repeated_and_a_second_call_trains_nothing(command, results, steps) -> None:
    code, printed, complaint = command("reproduce", *TRIDENT_2)
    assert code == 0, complaint
    runs = [f"{name}_quick" for name in TRIDENT.recipes]
    assert steps == [(run, fold) for run in runs for fold in ("0", "1") for _ in range(2)]
    found = Reproduction.read(results / "reproduction_trident.json")
    assert (found.dataset, found.folds, found.n_folds, found.seeds) == (
        "Dataset001_Tiny",
        ("0", "1"),
        4,
        (0,),
    )
    (target,) = found.targets.values()
    assert [row.run for row in target.rows] == [None, *runs]
    assert all(row.figures["dice"].value is not None for row in target.rows)
    page = (results / "reproduction_trident.html").read_text()
    for words in (
        "0.6355",
        "24.58",
        "on another dataset the figures differ",
        "Does SBFL help (G against F)?",
    ):
        assert words in " ".join(printed.split())
        assert words in page
    for name, before, now in (("paper_k64", 64, 4), ("paper_k32", 32, 2), ("paper_resunet", 64, 4)):
        assert f"{name} has {now} channels at full resolution instead of {before}." in page
    assert "1 epoch of 2 steps, batch 4, Adam at a rate of 0.002 that falls to 0, instead of 50 epochs of 50 steps, batch 8, Adam at a rate of 0.0002 that is halved" in page  # fmt: skip
    recipe = json.loads((results / "trident_row_e_quick" / "training.json").read_text())
    assert (recipe["configuration"], recipe["loss"], recipe["checkpoint"]) == ("paper_k32_quick", "focal", "last")  # fmt: skip
    steps.clear()
    code, again, _ = command("reproduce", *TRIDENT_2)
    assert (code, again, steps) == (0, printed, [])


@pytest.mark.usefixtures("small_priority")
def test_the_priority_study_is_repeated_with_several_seeds(command, results, steps, tmp_path) -> None:
    place = tmp_path / "elsewhere.html"
    code, printed, complaint = command(
        "reproduce", "priority_unet", "-d", "Tiny", "--quick", "--folds", 0, "--seeds", 0, 3, "--device", "cpu", "-o", place
    )  # fmt: skip
    assert code == 0, complaint
    runs = [f"{row.run}_quick{seed}" for row in PRIORITY_UNET.rows for seed in ("", "_seed3")]
    assert list(dict.fromkeys(run for run, _ in steps)) == runs
    assert json.loads((results / runs[-1] / "training.json").read_text())["seed"] == 3
    found = Reproduction.read(place.with_suffix(".json"))
    assert found.seeds == (0, 3)
    assert [row.words for row in found.targets["lesion"].rows] == [row.words for row in PRIORITY_UNET.rows]
    page = place.read_text()
    for words in ("0.5370", "0.3839", "which are not public", "Does the prior help, with SBFL + Dice?"):
        assert words in page
    assert "Detection" in printed
    assert "Volume" in printed
    assert not (results / "reproduction_priority_unet.html").exists()


@pytest.mark.usefixtures("small_two_stage")
def test_rs_rcnn_is_repeated_and_rows_share_a_run(command, results, steps) -> None:
    asked = ("rs_rcnn", "-d", "1", "--quick", "--folds", "0", "--device", "cpu", "--rows")
    code, _, complaint = command("reproduce", *asked, "A", "C", "E", "E_keep")
    assert code == 0, complaint
    runs = ["rs_rcnn_row_c_quick", "rs_rcnn_row_d_quick"]
    assert steps == [(run, "0") for run in runs for _ in range(2)]
    (target,) = Reproduction.read(results / "reproduction_rs_rcnn.json").targets.values()
    rows = {row.name: row for row in target.rows}
    assert [row.run for row in rows.values()] == [None, runs[0], runs[1], runs[1]]
    labelled = rows["A"].figures["slices_left_out"].n
    for row in rows.values():
        left_out, scored = row.figures["slices_left_out"], row.figures["dice"]
        assert left_out.n == labelled == row.figures["dice_all_slices"].n > 0
        assert scored.n + left_out.value == labelled
    page = (results / "reproduction_rs_rcnn.html").read_text()
    for words in (
        "0.6616",
        "Table 1: one module after the other",
        f" of {labelled}",
        "DSC, slices left out as 0",
        "nothing is trained",
        "instead of 100 epochs of 250 steps, batch 2, SGD at a rate of 0.001 that is halved",
        "Networks are those of the planned two_stage with what a row has of its own",
        "Does training help (C against A)?",
    ):
        assert words in page
    assert "C against B" not in page
    recipe = json.loads((results / runs[1] / "training.json").read_text())
    assert (recipe["configuration"], recipe["loss"], recipe["optimiser"]) == (
        "paper_lrs_quick",
        "bce",
        "adam",
    )
    steps.clear()
    code, again, _ = command("reproduce", *asked, "A", "E")
    assert (code, steps) == (0, [])
    assert "Table 2" not in again


def test_fci_laci_is_repeated_and_rows_share_a_correction(command, pairs, steps, monkeypatch) -> None:
    quick = Quick(width=4, epochs=2, steps_per_epoch=8, learning_rate=2e-2, correction_steps=3)
    monkeypatch.setattr(studies, "QUICK", quick)
    asked = ("fci_laci", "-d", "2", "--quick", "--folds", "0", "2", "--device", "cpu", "--rows")
    code, printed, complaint = command("reproduce", *asked, "a", "b_none", "b", "b_ours")
    assert code == 0, complaint
    runs = [f"fci_laci_{task}_quick" for task in ("a", "b")]
    n_steps = quick.epochs * quick.steps_per_epoch
    assert steps[: 4 * n_steps] == [
        (run, fold) for run in runs for fold in ("0", "2") for _ in range(n_steps)
    ]
    assert len(steps) == 5 * n_steps  # the one pair of the two folds: first networks that have seen neither
    results = pairs.parents[1] / "results" / pairs.name
    found = Reproduction.read(results / "reproduction_fci_laci.json")
    assert list(found.targets) == ["FCI + LACI", "FCI", "LACI"]
    rows = {row.name: row for row in found.targets["FCI + LACI"].rows}
    assert [row.run for row in rows.values()] == [runs[0], runs[1], runs[1], runs[1]]
    assert rows["b"].figures["detection_precision"].printed == 0.9176
    # b names the kinds of what b_none finds, and nothing else
    for figure in ("detection_precision", "detection_recall", "dice"):
        assert rows["b"].figures[figure].value == rows["b_none"].figures[figure].value
    assert rows["b"].honest == rows["b_none"].honest
    assert [row.name for row in found.targets["LACI"].rows] == ["a", "b", "b_ours"]
    page = (results / "reproduction_fci_laci.html").read_text()
    for words in (
        "0.9289",
        "Second networks have 3 steps, instead of 400.",
        "A second network sees T1_FLAIR",
        "Does it help that it removes what is no lesion (b_ours against b)?",
        "Lesions and their kinds",
        "RMSProp at a constant rate of 0.001",
    ):
        assert words in page
    recipe = json.loads((results / runs[1] / "correction" / "training.json").read_text())
    assert (recipe["steps"], recipe["optimiser"], recipe["seed"]) == (3, "rmsprop", 0)
    assert FCI_LACI.correction.steps == 400
    steps.clear()
    code, again, _ = command("reproduce", *asked, "a", "b_none", "b", "b_ours")
    assert (code, again, steps) == (0, printed, [])


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize("folds", [("1",), ("1", "1")])
def test_a_second_network_needs_two_folds_before_anything_is_trained(command, steps, folds) -> None:
    code, _, complaint = command("reproduce", "fci_laci", "-d", "2", "--rows", "b", "a", "--folds", *folds)
    assert (code, steps) == (2, [])
    assert "a second network (row b) learns from another fold than it is asked about" in complaint
    assert complaint.count("\n") == 1


def test_two_folds_in_all_are_too_few_for_a_second_network(command, pairs, steps) -> None:
    path = pairs / "splits.json"
    path.write_text(json.dumps(json.loads(path.read_text())[:2]))
    code, _, complaint = command("reproduce", "fci_laci", "-d", "2", "--rows", "b_ours")
    assert (code, steps) == (2, [])
    assert "take two folds or more (--folds) of three or more" in complaint


def test_a_plan_without_a_second_network_is_told(command, pairs, steps) -> None:
    path = pairs / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"correction": None}))
    code, _, complaint = command("reproduce", "fci_laci", "-d", "2", "--rows", "b")
    assert (code, steps) == (2, [])
    assert "plans no second network (row b): make a new plan" in complaint
    assert complaint.count("\n") == 1


def test_one_kind_of_lesion_is_told(folder, pairs_home) -> None:
    one = HeldOut.find(folder, "slices", ("0",))
    two = HeldOut.find(pairs_home / "preprocessed" / "Dataset002_Pairs", "slices", ("0",))
    (sentence,) = _one_kind(one, FCI_LACI)
    assert "a second network has nothing to name" in sentence
    assert not list(_one_kind(one, FCI_LACI.only(["a", "b_none"])))
    assert not list(_one_kind(two, FCI_LACI))
    assert list(_one_kind(replace(two, labels=replace(two.labels, are_regions=True)), FCI_LACI))


@pytest.mark.usefixtures("small_trident")
def test_a_stopped_study_goes_on(command, results, steps, monkeypatch) -> None:
    real = FoldTrainer._train_step

    def train_step(self, *arguments):
        if (self.run.model.folder.name, self.fold, self.step) == ("trident_row_d_quick", "1", 0):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FoldTrainer, "_train_step", train_step)
        code, _, complaint = command("reproduce", *TRIDENT_2)
    assert code == 130
    assert "fold 1 stopped at step 1 of 2 and was saved; the same command goes on" in complaint
    assert not (results / "reproduction_trident.html").exists()
    steps.clear()
    assert command("reproduce", *TRIDENT_2)[0] == 0
    assert steps.count(("trident_row_b_quick", "0")) == 0
    assert steps.count(("trident_row_d_quick", "1")) == 1
    assert steps.count(("trident_row_g_quick", "1")) == 2


@pytest.mark.usefixtures("small_trident")
def test_weights_to_begin_from_that_are_missing_are_told_before_training(command, steps, home) -> None:
    path = home / "coco.pth"
    code, printed, complaint = command("reproduce", *TRIDENT_2, "--rows", "D", "--pretrained", path)
    assert (code, printed, steps) == (2, "", [])
    assert str(path) in complaint


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tridnet", "-d", "1"), "there is no study 'tridnet' (did you mean 'trident'?)"),
        (
            ("rs_rcnn", "-d", "1", "--rows", "B", "F"),
            "rs_rcnn has no row 'F' (known: A, B, C, D, E, E_keep, k1.0",
        ),
        (("trident", "-d", "7"), "unknown dataset '7' (known: Dataset001_Tiny)"),
        (("trident", "-d", "1", "--folds", "0", "9", "all"), "has no fold 9, all (known: 0, 1, 2, 3)"),
        (("trident", "-d", "1", "-o", "page"), "-o page: name a file, such as page.html"),
        (
            ("trident", "-d", "1", "-o", f"{__file__}/page.html"),
            "test_reproduce.py: there is a file where a folder should be",
        ),
        (
            ("trident", "-d", "1", "--seeds", "0", "-1"),
            "a seed cannot be negative: give other ones than 0, -1",
        ),
    ],
)
def test_bad_input_is_a_sentence(command, folder, arguments, sentence, monkeypatch) -> None:
    monkeypatch.setattr(FoldTrainer, "train", lambda _: pytest.fail("it trains"))
    before = (folder / "plan.json").read_bytes()
    code, printed, complaint = command("reproduce", *arguments)
    assert (code, printed) == (2, "")
    assert sentence in complaint
    assert complaint.count("\n") == 1
    assert (folder / "plan.json").read_bytes() == before


def test_a_dataset_that_is_not_planned_is_a_sentence(command, copied, raw_home, tmp_path) -> None:
    copied(raw_home)
    code, _, complaint = command("reproduce", "trident", "-d", "1")
    assert code == 2
    assert "run pwml_plan_and_preprocess -d 1" in complaint


def test_a_dataset_without_folds_is_a_sentence(command, folder) -> None:
    (folder / "splits.json").unlink()
    code, _, complaint = command("reproduce", "trident", "-d", "1")
    assert code == 2
    assert "splits.json is missing: a study needs folds" in complaint
