import numpy as np
import torch

from pwmlunet.evaluation.evaluate import read_summary
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.training.run import open_run
from pwmlunet.training.validation import look, validate


def probabilities_in(folder):
    found = {}
    for path in folder.glob("*.npz"):
        with np.load(path) as arrays:
            found[path.stem] = arrays["probability"]
    return found


def test_held_out_probabilities_are_the_networks_own_whatever_was_chosen_from_them(
    copied, trained_home, tiny
):
    home = copied(trained_home)
    run = open_run(tiny.workspace_in(home), "1", tiny.recipe, None)
    validation = run.model.fold_folder("0") / "validation"
    before = probabilities_in(validation)
    assert before
    Postprocessing(threshold=0.05, temperature=3.0).write(run.model.folder / "postprocessing.json")
    run = open_run(tiny.workspace_in(home), "1", tiny.recipe, None)
    assert run.model.postprocessing.temperature == 3
    validate(run, "0", torch.device("cpu"))
    after = probabilities_in(validation)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_the_scores_of_a_fold_have_candidates_and_reliability(trained_home):
    summary, cases = read_summary(
        trained_home / "results" / "Dataset001_Tiny" / "trident" / "fold_0" / "validation" / "summary.json"
    )
    assert cases and all(case.targets["lesion"].candidates is not None for case in cases)
    assert summary.targets["lesion"].reliability is not None


def test_a_look_is_at_the_networks_own_probabilities_too(copied, trained_home, tiny):
    run = open_run(tiny.workspace_in(copied(trained_home)), "1", tiny.recipe, None)
    network = run.model.load(["0"])[0]
    cases, device = run.store.names(), torch.device("cpu")
    before = look(run, cases, network, device)
    Postprocessing(temperature=20.0).write(
        run.model.folder / "postprocessing.json"
    )  # nothing below 0.3 is left
    run = open_run(tiny.workspace_in(run.model.folder.parents[2]), "1", tiny.recipe, None)
    assert before[0] > 0
    assert look(run, cases, network, device) == before
