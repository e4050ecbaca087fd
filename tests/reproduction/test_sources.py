"""Probabilities of held-out cases that nothing was trained for: refined and corrected ones, and the classical method's."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pwmlunet.data.dataset import open_dataset
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.probabilities import write_probability
from pwmlunet.inference.candidate_regions import find_candidates
from pwmlunet.inference.classical import ClassicalConfig, ClassicalPredictor
from pwmlunet.inference.judged import Judged, JudgedCase, describe_candidates
from pwmlunet.planning.fingerprint import Fingerprint
from pwmlunet.reproduction.reproduce import _score
from pwmlunet.reproduction.scoring import Scorer
from pwmlunet.reproduction.sources import HeldOut, classical, corrected, refined, trained
from pwmlunet.reproduction.studies import FCI_LACI, RS_RCNN
from pwmlunet.training.run import open_run

FOLDS = ("0", "1", "2", "3")


@pytest.fixture
def cases(folder):
    return HeldOut.find(folder, "slices", FOLDS)


@pytest.fixture
def run(workspace, tiny):
    """A run that found one faint voxel in each case of fold 0: what the paper's parameters erase."""
    run = open_run(workspace, "1", tiny.recipe, "faint")
    for name in run.split("0").val:
        probability = np.full(run.store.reference(name).shape, 0.01, np.float32)
        probability[1, 27, 18] = 0.6
        write_probability(run.model.fold_folder("0") / "validation" / f"{name}.npz", probability[None])
    return run


def test_the_crf_may_delete_a_lesion_or_not(run) -> None:
    name = run.split("0").val[0]
    probability = np.full(run.store.reference(name).shape, 0.01, np.float32)
    probability[1, 27, 18] = 0.6
    plain, erased, kept = (
        source.find(name, "0")
        for source in (
            trained(run, 0.5),
            refined(run, 0.5, may_delete=True),
            refined(run, 0.5, may_delete=False),
        )
    )
    np.testing.assert_allclose(plain, probability[None], atol=0.01)
    assert erased[0, 1, 27, 18] < 0.5
    assert kept[0, 1, 27, 18] > 0.5


def test_rows_of_one_run_are_refined_as_they_say(run, folder) -> None:
    scorer = Scorer(RS_RCNN, HeldOut.find(folder, "slices", ("0",)), 0.0)
    rows = {row.name: row for row in RS_RCNN.rows}
    found = {name: _score(rows[name], [run], scorer).cases for name in ("D", "E", "E_keep")}
    n_predicted = {
        name: sum(len(case.targets["lesion"].lesions.predicted) for case in cases)
        for name, cases in found.items()
    }
    assert n_predicted == {"D": len(found["D"]), "E": 0, "E_keep": len(found["D"])}


@pytest.fixture
def judged_run(pairs, tiny):
    """A run that found three lesions, all called FCI; its correction says FCI, LACI, and none."""
    recipe = replace(tiny.recipe, configuration="unet_2d")
    run = open_run(tiny.workspace_in(pairs.parents[1]), "2", recipe, "judged")
    cases = {}
    for name in run.split("1").val:
        probability = np.zeros((2, *run.store.reference(name).shape), np.float32)
        for z, peak in enumerate((0.6, 0.8, 0.7)):
            probability[0, z, 20:22, 10 * z + 5] = peak, 0.35
        write_probability(run.model.fold_folder("1") / "validation" / f"{name}.npz", probability)
        probability = trained(run, 0.5).find(name, "1")  # as the file keeps it
        components, n = find_candidates(probability, 0.1)
        says = np.array([[0.1, 0.8, 0.1], [0.3, 0.1, 0.6], [0.9, 0.06, 0.04]])
        cases[name] = JudgedCase("1", describe_candidates(components, n, probability, np.ones(n, int), says))
    Judged.of(("FCI", "LACI"), {"1": 0.1}, cases).write_for(run.model)
    return run


def test_a_correction_names_the_kind_and_removes_where_it_may(judged_run) -> None:
    name = judged_run.split("1").val[0]
    kinds, whole = (corrected(judged_run, 0.5, removes=removes).find(name, "1") for removes in (False, True))
    masks = [judged_run.model.labels.decode(probability, 0.5) for probability in (kinds, whole)]
    np.testing.assert_array_equal([mask[:3, 20, [5, 15, 25]].diagonal() for mask in masks], [[1, 2, 1], [1, 2, 0]])  # fmt: skip
    assert [np.count_nonzero(mask) for mask in masks] == [
        3,
        3,
    ]  # the first, surer now, reaches its fainter voxel


def test_rows_of_one_run_are_corrected_as_they_say(judged_run, pairs) -> None:
    scorer = Scorer(FCI_LACI, HeldOut.find(pairs, "slices", ("1",)), 0.0)
    rows = {row.name: row for row in FCI_LACI.rows}
    found = {
        name: [
            (len(case.targets["FCI"].lesions.predicted), len(case.targets["LACI"].lesions.predicted))
            for case in _score(rows[name], [judged_run], scorer).cases
        ]
        for name in ("b_none", "b", "b_ours")
    }
    n_cases = len(judged_run.split("1").val)
    assert found == {"b_none": [(3, 0)] * n_cases, "b": [(2, 1)] * n_cases, "b_ours": [(1, 1)] * n_cases}


def test_a_run_without_a_correction_is_told(run) -> None:
    with pytest.raises(PwmlError, match=r"candidates.json is missing: run pwml_train_correction"):
        corrected(run, 0.5, removes=True)


def test_the_classical_method_goes_by_the_training_lesions_of_a_fold(workspace, folder, cases) -> None:
    path = folder / "fingerprint.json"
    content = json.loads(path.read_text())
    for case in content["cases"]:
        if case["subject"] == "sub-02":  # the only large lesions
            for lesion in case["lesions"]:
                lesion["diameter_zyx_voxels"] = [40.0, 40.0, 40.0]
    path.write_text(json.dumps(content))
    fingerprint = Fingerprint.read(path)
    found = classical(workspace, folder, cases)
    assert found.threshold == 0.5
    widest = {}
    for files in open_dataset(workspace.find_raw("1")).cases:
        fold = cases.fold_of[files.name]
        train = tuple(case for case in fingerprint.cases if case.name in cases.splits[int(fold)].train)
        config = ClassicalConfig.of_fingerprint(replace(fingerprint, cases=train), "lesion")
        widest[files.subject] = config.most_area_mm2
        expected = ClassicalPredictor(cases.labels, config).predict_files(files).probability
        np.testing.assert_array_equal(found.find(files.name, fold), expected)
    assert min(widest, key=lambda subject: widest[subject]) == "sub-02"


def test_the_classical_method_needs_the_raw_files(workspace, folder, cases, home) -> None:
    (home / "raw").rename(home / "elsewhere")
    with pytest.raises(PwmlError, match=r"no dataset found in .*raw"):
        classical(workspace, folder, cases)
