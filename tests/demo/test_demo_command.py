from functools import partial

import numpy as np
import pytest

from pwmlunet.cli import demo
from pwmlunet.demo import dataset
from pwmlunet.demo.flair import make_patient
from pwmlunet.planning import rules_ultrasound


@pytest.fixture
def steps(monkeypatch):
    """The commands that a demo runs, written down instead; its cases are few and small."""
    done = []
    for name in (
        "plan_and_preprocess",
        "train",
        "train_correction",
        "find_best",
        "predict",
        "evaluate",
        "report",
    ):

        def step(options, name=name):
            done.append([name, *options])

        step.__name__ = name
        monkeypatch.setattr(demo, name, step)
    small = partial(dataset.write_dataset, n_train=2, n_test=1)
    shapes = {"t1": (2, 48, 48), "cus": (54, 57, 60), "flair": (2, 48, 48)}
    monkeypatch.setattr(dataset, "write_dataset", lambda raw, modality, n_train, seed: small(raw, modality=modality, shape_zyx=shapes[modality], seed=seed))  # fmt: skip
    monkeypatch.setenv("PWML_HOME", "before")  # and so it is set back afterwards
    return done


@pytest.mark.parametrize(
    ("options", "name", "home"),
    [((), "Dataset001_SyntheticT1", "demo"), (("--modality", "cus"), "Dataset002_SyntheticUltrasound", "demo/cus")],
)  # fmt: skip
def test_the_whole_job_runs_on_cases_of_the_modality(
    command, steps, tmp_path, monkeypatch, options, name, home
):
    monkeypatch.chdir(tmp_path)
    code, printed, _ = command("demo", *options, "--epochs", 3)
    number = str(int(name[7:10]))
    assert code == 0 and f"open {home}/report.html" in printed
    assert steps[:3] == [["plan_and_preprocess", "-d", number], ["train", number, "0", "1", "--epochs", "3"], ["find_best", number]]  # fmt: skip
    assert [step[0] for step in steps[3:]] == ["predict", "evaluate", "report"]
    assert steps[3][1:3] == ["-i", f"{home}/raw/{name}/imagesTs"]
    assert (tmp_path / home / "raw" / name / "dataset.json").is_file()


def test_flair_pairs_get_a_correction_network_before_the_best_run_is_chosen(command, steps, tmp_path):
    assert command("demo", "--modality", "flair", "--folder", tmp_path)[0] == 0
    assert [step[0] for step in steps] == [
        "plan_and_preprocess", "train", "train_correction", "find_best", "predict", "evaluate", "report",
    ]  # fmt: skip
    assert steps[1] == ["train", "3", "0", "1", "2", "-c", "primary_2d", "--epochs", "12"]
    assert steps[2] == ["train_correction", "3", "-c", "primary_2d"]
    assert len(list((tmp_path / "raw" / "Dataset003_SyntheticFLAIR" / "imagesTr").glob("*_0001.nii.gz"))) == 2


def test_both_kinds_are_among_the_flair_pairs_that_are_held_out():
    pairs, kind = demo._DEMOS["flair"], dataset.MODALITIES["flair"]
    found = set()
    for subject in range(pairs.n_train, pairs.n_train + 4):
        rng = np.random.default_rng([pairs.seed, subject])
        n = (
            0
            if dataset._is_healthy(subject, kind)
            else int(rng.integers(kind.lesions[0], kind.lesions[1] + 1))
        )
        found |= {lesion.kind for lesion in make_patient(rng, n_slices=16, n_lesions=n).lesions}
    assert found == {1, 2}


@pytest.mark.parametrize(("modality", "epochs"), [("t1", "20"), ("cus", "32"), ("flair", "12")])
def test_epochs_are_the_modalitys_unless_asked_for(command, steps, tmp_path, modality, epochs):
    assert command("demo", "--modality", modality, "--folder", tmp_path)[0] == 0
    assert steps[1][-2:] == ["--epochs", epochs]


def test_folds_of_the_ultrasound_hold_out_several_subjects():
    assert demo._DEMOS["cus"].n_train - 1 > rules_ultrasound._FEW_SUBJECTS


def test_no_epochs_are_refused_before_anything_is_made(command, steps, tmp_path):
    code, printed, error = command("demo", "--folder", tmp_path / "demo", "--epochs", 0)
    assert (code, printed, error) == (2, "", "error: --epochs 0: a fold needs 1 or more\n")
    assert not steps and not (tmp_path / "demo").exists()


def test_called_again_it_keeps_its_cases(command, steps, tmp_path):
    assert command("demo", "--folder", tmp_path)[0] == 0
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}
    assert command("demo", "--folder", tmp_path)[0] == 0
    assert len(steps) == 12 and written
    assert written == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.nii.gz")}


def test_two_modalities_do_not_share_a_folder(command, steps, tmp_path):
    (tmp_path / "raw" / "Dataset001_SyntheticT1").mkdir(parents=True)
    code, _, error = command("demo", "--modality", "cus", "--folder", tmp_path)
    assert code == 2 and not steps
    assert error.startswith("error: ") and "Dataset001_SyntheticT1 is another dataset" in error
