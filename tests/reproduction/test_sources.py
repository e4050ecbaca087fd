"""Probabilities of held-out cases that nothing was trained for: refined ones, and the classical method's."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pwmlunet.data.dataset import open_dataset
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.probabilities import write_probability
from pwmlunet.inference.classical import ClassicalConfig, ClassicalPredictor
from pwmlunet.planning.fingerprint import Fingerprint
from pwmlunet.reproduction.reproduce import _score
from pwmlunet.reproduction.scoring import Scorer
from pwmlunet.reproduction.sources import HeldOut, classical, refined, trained
from pwmlunet.reproduction.studies import RS_RCNN
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
