import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from pwmlunet.data.store import CaseStore
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.evaluation.lesions import find_lesions
from pwmlunet.evaluation.probabilities import write_probability
from pwmlunet.inference.best import find_models, read_best
from pwmlunet.inference.choosing import Wish
from pwmlunet.inference.counting import count, make_grid
from pwmlunet.inference.crf_trial import _choose, _pixels_mm, _Tried, settings
from pwmlunet.inference.model import TrainedModel
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.runs import gather_runs, multiply_adds, tabulate_groups
from pwmlunet.inference.selection import find_best
from pwmlunet.networks.dense_crf import DenseCrfConfig

FOLDS = {"sub-01_ses-1": "0", "sub-01_ses-2": "0", "sub-02": "1", "sub-03": "2", "sub-04": "3"}


class Runs:
    """Runs of the tiny dataset whose out-of-fold probabilities a test makes up."""

    def __init__(self, home, workspace):
        self.workspace = workspace
        self.folder = home / "results" / "Dataset001_Tiny"
        self.prepared = home / "preprocessed" / "Dataset001_Tiny"
        self.template = home / "trained"
        (self.folder / "trident").rename(self.template)
        store = next(p.parent for p in self.prepared.glob("*/sub-02"))
        self.folds = dict(FOLDS)
        self.references = {name: CaseStore(store).reference(name) for name in FOLDS}

    def like(self, case, name):
        """One more subject, whose only case is the same as another one."""
        store = next(p.parent for p in self.prepared.glob(f"*/{case}"))
        shutil.copytree(store / case, store / name)
        facts = json.loads((store / name / "case.json").read_text())
        (store / name / "case.json").write_text(json.dumps(facts | {"subject": name}))
        self.references[name], self.folds[name] = self.references[case], self.folds[case]

    def add(self, name, predict, *, folds="0123", **network):
        """A run that gives `predict(case, reference)` as probability, in the given folds."""
        run = self.folder / name
        shutil.copytree(self.template, run, ignore=shutil.ignore_patterns("fold_*"))
        for case, fold in self.folds.items():
            if fold in folds:
                probability = np.asarray(predict(case, self.references[case]), np.float32)[None]
                write_probability(run / f"fold_{fold}" / "validation" / f"{case}.npz", probability)
                shutil.copyfile(self.template / "fold_0" / "weights.pt", run / f"fold_{fold}" / "weights.pt")
        if network:
            plan = json.loads((run / "plan.json").read_text())
            plan["configurations"]["trident"]["network"] |= network
            (run / "plan.json").write_text(json.dumps(plan))
        return run

    def find(self, **options):
        return find_best(self.workspace, "1", **options)


@pytest.fixture
def runs(copied, trained_home, tiny):
    home = copied(trained_home)
    return Runs(home, tiny.workspace_in(home))


def perfect(case, reference):
    return np.where(reference > 0, 0.9, 0.001)


def blind(case, reference):
    return np.full(reference.shape, 0.001)


def half(which):
    """Finds every second lesion and invents one, elsewhere than the other half does."""

    def predict(case, reference):
        components, n = find_lesions(reference > 0)
        probability = np.full(reference.shape, 0.001)
        for number in range(1, n + 1):
            probability[components == number] = 0.99 if number % 2 == which else 0.2
        probability[which, 1, 40:43] = 0.7
        return probability

    return predict


def test_the_better_run_is_found_and_written(runs):
    runs.add("seeing", perfect)
    runs.add("blind", blind)
    found = runs.find()
    assert found.best.runs == ("seeing",) and found.best.criterion == "lesion_f1"
    assert found.best.candidates[0].runs == ("seeing",)
    assert {c.runs: c.value for c in found.best.candidates}[("blind",)] == 0
    assert found.best.candidates[0].value == 1 and found.best.candidates[0].dice == 1
    assert read_best(runs.folder) == found.best
    assert found.best.postprocessing == "seeing/postprocessing.json"
    assert Postprocessing.read(runs.folder / found.best.postprocessing) == found.postprocessing
    assert Postprocessing.read(runs.folder / "blind" / "postprocessing.json") == Postprocessing()
    assert found.postprocessing.chosen.n_cases == 5 and found.postprocessing.chosen.n_folds == 4
    for words in (
        "best: seeing",
        "calibrated by lesion F1, from 4 subjects (3 with lesions)",
        "blind + seeing",
    ):
        assert words in found.text


def test_what_was_found_is_what_predicts(runs):
    runs.add("seeing", perfect)
    runs.add("blind", blind)
    with pytest.raises(PwmlError, match="several trained models"):
        find_models(runs.workspace, "1", None)
    found = runs.find()
    for dataset in (None, "1", "Tiny"):
        models, postprocessing = find_models(runs.workspace, dataset, None)
        assert [m.folder.name for m in models] == ["seeing"] and postprocessing == found.postprocessing
    models, postprocessing = find_models(runs.workspace, "1", "blind")  # who names a run gets it
    assert [m.folder.name for m in models] == ["blind"] and postprocessing == Postprocessing()
    shutil.rmtree(runs.folder / "seeing")
    with pytest.raises(PwmlError, match=r"best.json names the run seeing, which is not there"):
        find_models(runs.workspace, "1", None)
    with pytest.raises(PwmlError, match="no trained model of dataset '2'"):
        find_models(runs.workspace, "2", None)


def test_two_that_make_up_for_each_other_are_taken_together(runs):
    runs.add("even", half(0))
    runs.add("odd", half(1))
    found = runs.find()
    assert found.best.runs == ("even", "odd")
    values = {c.runs: c.value for c in found.best.candidates}
    assert values[("even", "odd")] == 1 > 0.8 > max(values[("even",)], values[("odd",)])
    assert "has the highest value of the candidates" in found.best.reasons[0]
    assert found.best.postprocessing == "postprocessing.json"
    assert Postprocessing.read(runs.folder / "postprocessing.json") == found.postprocessing
    models, postprocessing = find_models(runs.workspace, None, None)
    assert [m.folder.name for m in models] == ["even", "odd"] and postprocessing == found.postprocessing


def test_three_runs_are_compared_alone_in_pairs_and_together(runs):
    for name in "abc":
        runs.add(name, perfect)
    found = runs.find()
    assert sorted("".join(c.runs) for c in found.best.candidates) == ["a", "ab", "abc", "ac", "b", "bc", "c"]
    costs = {"".join(c.runs): c.multiply_adds_per_voxel for c in found.best.candidates}
    assert costs["abc"] == pytest.approx(3 * costs["a"], rel=1e-3)
    assert len(found.best.runs) == 1 and found.best.runs == ("a",)


def test_the_cheaper_is_taken_where_the_difference_may_be_noise(runs):
    """The narrow run misses the lesions of one case of three subjects."""
    runs.add("wide", perfect)
    runs.add("narrow", lambda c, r: perfect(c, r) if c != "sub-02" else blind(c, r), width=2)
    found = runs.find()
    assert found.best.runs == ("narrow",)
    assert found.best.candidates[0].runs == ("wide",) or found.best.candidates[0].value == 1
    assert "may be noise, and narrow is cheaper (" in found.best.reasons[0]
    narrow = next(c for c in found.best.candidates if c.runs == ("narrow",))
    assert narrow.difference == pytest.approx(1 / 3) and narrow.difference_interval.low == 0


def test_dice_decides_between_equals(runs):
    """Both find every lesion; one paints a voxel more around each."""

    def generous(case, reference):
        wider = reference.copy()
        wider[:, :, 1:] |= reference[:, :, :-1]
        return np.where(wider > 0, 0.9, 0.001)

    runs.add("a_generous", generous)
    runs.add("exact", perfect)
    found = runs.find()
    values = {c.runs: (c.value, c.dice) for c in found.best.candidates}
    assert values[("exact",)] == (1, 1) and values[("a_generous",)][0] == 1 > values[("a_generous",)][1]
    assert found.best.candidates[0].runs == ("exact",)
    assert runs.find(criterion="dice").best.runs == ("exact",)


@pytest.mark.parametrize("criterion", ["lesion_f1", "lesion_recall", "dice"])
def test_what_is_invented_in_a_clean_subject_is_said_and_not_averaged(runs, criterion):
    """sub-04 has no lesion: its score would be 0 with a false one and nothing without."""

    def inventive(case, reference):
        probability = perfect(case, reference)
        probability[2, 5, 5:8] = probability[2, 45, 5:8] = 0.9 if case == "sub-04" else 0.001
        return probability

    runs.add("inventive", inventive)
    runs.add("quiet", perfect)
    found = runs.find(criterion=criterion)
    rows = {c.runs: c for c in found.best.candidates}
    assert {c.value for c in rows.values()} == {c.dice for c in rows.values()} == {1}
    assert rows[("inventive",)].difference == 0 and rows[("inventive",)].difference_interval == Interval(0, 0)
    false = {runs: c.false_positives_per_clean_subject for runs, c in rows.items()}
    assert false == {("inventive",): 2, ("quiet",): 0, ("inventive", "quiet"): 0}
    table = [line.split() for line in found.text.splitlines()]
    assert ["inventive", "1.00", "[1.00,", "1.00]", "1.00", "2.00"] in [row[:6] for row in table]
    assert "false+ if clean" in found.text


def test_without_clean_subjects_nothing_is_invented_in_them(runs):
    runs.add("run", perfect, folds="012")
    (candidate,) = runs.find().best.candidates
    assert candidate.value == 1 and candidate.false_positives_per_clean_subject is None


def test_only_the_named_runs_are_compared(runs):
    for name in ("a", "b", "c"):
        runs.add(name, perfect)
    found = runs.find(runs=["b", "c"])
    assert {c.runs for c in found.best.candidates} == {("b",), ("c",), ("b", "c")}
    with pytest.raises(PwmlError, match=r"has no trained run 'd'"):
        runs.find(runs=["d"])


def test_a_run_without_all_folds_is_left_out_and_told_what_it_lacks(runs):
    runs.add("whole", perfect)
    runs.add("part", perfect, folds="02")
    found = runs.find()
    assert {c.runs for c in found.best.candidates} == {("whole",)}
    assert found.best.reasons[0] == "whole is the only run: nothing was compared"
    assert found.best.reasons[1].startswith("part is left out: it has not predicted the cases of fold 1, 3")


def test_one_fold_and_one_subject_are_said(runs):
    runs.add("a", perfect, folds="0", width=8)
    runs.add("b", lambda c, r: blind(c, r), folds="0")
    found = runs.find()
    assert "all cases are of fold 0" in found.text and "there are no intervals" in found.text
    assert "too few to choose from" in found.text
    assert found.best.runs == ("b",)  # the cheaper one, which is how little one subject says
    assert "with one subject nobody can tell whether that is noise" in found.best.reasons[0]


def test_folds_that_are_not_held_out_or_not_finished_do_not_count(runs):
    run = runs.add("run", perfect, folds="012")
    shutil.copytree(run / "fold_0", run / "fold_all")
    write_probability(run / "fold_all" / "validation" / "sub-04.npz", np.zeros((1, 4, 56, 48), np.float32))
    (run / "fold_2" / "weights.pt").unlink()
    (run / "fold_1" / "validation" / ".k2j4.sub-09.npz").write_bytes(b"what a killed training left")
    found = runs.find()
    assert found.postprocessing.chosen.n_cases == 3 and found.postprocessing.chosen.n_folds == 2


def test_settings_made_by_hand_are_kept(runs):
    run = runs.add("run", perfect)
    Postprocessing(0.7).write(run / "postprocessing.json")
    runs.find()
    assert Postprocessing.read(run / "postprocessing.json.old") == Postprocessing(0.7)
    runs.find()  # nothing else is written than what is there now
    assert Postprocessing.read(run / "postprocessing.json.old") == Postprocessing(0.7)
    edited = replace(TrainedModel.open(run).postprocessing, threshold=0.3)
    assert edited.chosen is not None
    edited.write(run / "postprocessing.json")
    runs.find()
    assert Postprocessing.read(run / "postprocessing.json.old") == edited
    assert Postprocessing.read(run / "postprocessing.json").threshold == 0.5


@pytest.mark.parametrize("names", [["blind"], ["blind", "dark"]])
def test_runs_that_find_nothing_are_not_called_the_best(runs, names):
    for name in names:
        runs.add(name, blind)
    found = runs.find()
    assert found.best.candidates[0].value == 0
    assert found.best.reasons[0].startswith("no candidate finds a lesion of the held-out cases")


def test_a_wish_is_kept_or_told(runs):
    for name in ("sub-05", "sub-06", "sub-07", "sub-08"):
        runs.like("sub-02", name)
    runs.add("seeing", perfect)
    runs.add("blind", blind)
    found = runs.find(wish=Wish(at_least_recall=0.8))
    assert found.best.runs == ("seeing",) and "recall of at least 0.8" in found.text
    assert {c.runs for c in found.best.candidates} == {("seeing",), ("blind", "seeing")}  # who can keep it
    (unable,) = found.best.reasons[1:]
    assert unable.startswith("blind: recall of at least 0.8 cannot be promised") and unable in found.text
    with pytest.raises(PwmlError, match=r"(?s)nothing keeps the wish.*blind: recall of at least 0.99"):
        runs.find(wish=Wish(at_least_recall=0.99))


def test_without_runs_it_is_told(runs):
    with pytest.raises(PwmlError, match=r"has no run with a finished fold: run pwml_train Dataset001_Tiny 0"):
        runs.find()
    assert read_best(runs.folder) is None


def write(path, **arrays):
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:100]), "is damaged"),
        (lambda path: write(path, probability=np.full((1, 4, 56, 48), 1.5)), "must be from 0 to 1"),
        (lambda path: write(path, probability=np.full((1, 4, 56, 48), np.nan)), "must be from 0 to 1"),
        (lambda path: write(path, probability=np.zeros((1, 4, 56, 40))), "has the shape 1, 4, 56, 40"),
        (lambda path: write(path, mask=np.zeros(3)), "holds no array called probability"),
    ],
)
def test_bad_probabilities_are_told_by_file(runs, spoil, words):
    run = runs.add("run", perfect)
    spoil(run / "fold_1" / "validation" / "sub-02.npz")
    with pytest.raises(PwmlError, match=words) as caught:
        runs.find()
    assert "run/fold_1/validation/sub-02.npz" in str(caught.value)


def test_cases_and_labels_that_are_gone_are_told(runs):
    run = runs.add("run", perfect)
    shutil.copyfile(
        run / "fold_0" / "validation" / "sub-01_ses-1.npz", run / "fold_0" / "validation" / "gone.npz"
    )
    with pytest.raises(PwmlError, match=r"case gone, which run has predicted, is not preprocessed"):
        runs.find()
    content = json.loads((run / "dataset.json").read_text())
    content["labels"] = {"background": 0, "spot": 1}
    (run / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(PwmlError, match=r"run was trained with other labels"):
        runs.find()


def test_the_cost_is_that_of_the_slices_a_network_sees(runs):
    """Half as wide costs about a quarter, and a voxel of the image is not one of the enlarged grid."""
    runs.add("narrow", perfect, width=16)
    runs.add("wide", perfect, width=32)
    runs.add("deep", perfect, width=16, n_slices=5)  # more than the case has
    deep, narrow, wide = gather_runs(runs.folder, runs.prepared, None)
    assert 3.5 < multiply_adds(wide) / multiply_adds(narrow) < 4.2
    assert multiply_adds(narrow) < multiply_adds(deep)
    before = multiply_adds(narrow)
    path = narrow.store.folder / "sub-01_ses-1" / "case.json"
    facts = json.loads(path.read_text())
    facts["way_back"]["geometry"]["shape_zyx"][2] *= 2  # as if the same grid came from twice the pixels
    path.write_text(json.dumps(facts))
    assert multiply_adds(narrow) == pytest.approx(before / 2)


@pytest.fixture
def many(runs):
    """Enough lesions to choose from."""
    for i, like in enumerate(("sub-02", "sub-03", "sub-01_ses-1", "sub-02", "sub-03")):
        runs.like(like, f"sub-{10 + i}")
    return runs


def blurred(case, reference):
    """Finds each lesion with a pixel too many on both sides."""
    wider = reference.copy()
    wider[:, :, 1:] |= reference[:, :, :-1]
    wider[:, :, :-1] |= reference[:, :, 1:]
    return np.where(reference > 0, 0.9, np.where(wider > 0, 0.85, 0.001))


def test_a_crf_that_helps_for_certain_is_taken(many):
    """Lesions are brighter than all around them: the CRF takes away what is not, and loses none."""
    run = many.add("blurred", blurred)
    before = many.find(criterion="dice")
    assert before.postprocessing.crf is None and before.best.candidates[0].dice < 0.9
    found = many.find(criterion="dice", crf=True)
    crf, chosen = found.postprocessing.crf, found.postprocessing.chosen
    assert crf is not None and not crf.may_delete
    assert "a dense CRF was tried (12 settings, chosen by the other subjects): dice +" in found.text
    assert chosen.reasons[-1].endswith(", taken") and "after a dense CRF (smooth " in found.text
    assert Postprocessing.read(run / "postprocessing.json") == found.postprocessing
    assert chosen.figures["nested"].recall.value == 1


@pytest.mark.parametrize("criterion", ["lesion_f1", "dice"])
def test_a_crf_that_changes_nothing_for_the_better_is_left_out(many, criterion):
    many.add("perfect", perfect)
    without, found = many.find(criterion=criterion), many.find(criterion=criterion, crf=True)
    assert found.postprocessing.crf is None
    (reason,) = set(found.postprocessing.chosen.reasons) - set(without.postprocessing.chosen.reasons)
    assert reason.startswith(
        f"a dense CRF was tried (12 settings, chosen by the other subjects): {criterion} "
    )
    assert reason.endswith("], left out") and reason in found.text
    assert replace(found.postprocessing, chosen=None) == replace(without.postprocessing, chosen=None)


def test_crfs_of_prepared_and_of_own_pixels_are_tried():
    fine, coarse = settings([0.3, 0.7])[:6], settings([0.3, 0.7])[6:]
    assert fine[0] == DenseCrfConfig.of_paper((0.3, 0.3)) and coarse[0] == DenseCrfConfig.of_paper((0.7, 0.7))
    for crfs in (fine, coarse):
        assert len(set(crfs)) == 6 and {(crf.smooth_mm, crf.alike_mm) for crf in crfs} == {
            (crfs[0].smooth_mm, crfs[0].alike_mm)
        }
        assert [crf.alike_weight for crf in crfs] == pytest.approx([10, 10, 3, 3, 1, 1])
        assert {crf.alike_intensity for crf in crfs} == {6 / 255, 12 / 255}


def test_pixels_are_those_of_the_prepared_grid_and_then_the_cases_own(runs):
    runs.add("run", perfect)
    group = tuple(gather_runs(runs.folder, runs.prepared, ["run"]))
    ways = [group[0].store.facts(name).way_back for name in FOLDS]
    prepared = np.median([np.prod(way.spacing_zyx_mm[1:]) ** 0.5 for way in ways])
    own = np.median([np.prod(way.geometry.spacing_zyx_mm[1:]) ** 0.5 for way in ways])
    assert _pixels_mm(group) == pytest.approx([prepared, own], rel=0.05)
    for way, name in zip(ways, FOLDS, strict=True):  # as if nothing had been resampled
        path = group[0].store.folder / name / "case.json"
        facts = json.loads(path.read_text())
        facts["way_back"]["grid_shape_zyx"] = [stop - start for start, stop in way.box_zyx]
        path.write_text(json.dumps(facts))
    assert _pixels_mm(group) == pytest.approx([own], rel=0.05)


def test_a_setting_that_cannot_keep_the_wish_is_chosen_only_where_none_can(many):
    many.add("perfect", perfect)
    (run,) = gather_runs(many.folder, many.prepared, ["perfect"])
    (tables,) = tabulate_groups([run], [(run,)])
    grid = make_grid(tables)
    good = count(tables, grid)
    bad = replace(good, n_found=good.n_found * 0, n_predicted=good.n_predicted * 0)
    crf = DenseCrfConfig.of_paper((1, 1))
    tried = [_Tried(crf, tables, grid, counts) for counts in (bad, good)]

    def score(counts):  # the fewer are found the better
        return counts.n_reference - counts.n_found[0], counts.n_reference

    assert _choose(tried, score, None)[0] == 0
    best, nested = _choose(tried, score, Wish(at_least_recall=0.5))
    assert best == 1 and nested.n_found.sum() == nested.n_reference.sum()
    assert _choose(tried, score, Wish(at_least_recall=0.999))[0] == 0


def test_too_few_lesions_try_no_crf(runs):
    runs.add("blurred", blurred)
    found = runs.find(criterion="dice", crf=True)
    assert found.postprocessing.crf is None
    (reason,) = (line for line in found.text.splitlines() if "CRF" in line)
    assert reason.startswith("  no CRF was tried: ") and "are too few to choose from" in reason


def test_what_an_older_version_found_best_is_read(runs):
    """Without a word of corrections."""
    runs.add("a", perfect)
    runs.find()
    path = runs.folder / "best.json"
    content = json.loads(path.read_text())
    del content["correction"]
    for candidate in content["candidates"]:
        del candidate["correction"]
    path.write_text(json.dumps(content))
    best = read_best(runs.folder)
    assert best.runs == ("a",) and not best.candidates[0].correction
