"""The commands that score, compare, report, choose and predict: every bad input, every odd one, and all in a row."""

import json
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pwmlunet.data.dataset import write_dataset_json
from pwmlunet.data.image import Geometry, read_image, write_image
from pwmlunet.evaluation.lesions import find_lesions
from pwmlunet.evaluation.probabilities import write_probability
from pwmlunet.evaluation.profiles import PROFILES
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.report.pages import UNDEFINED

DATASET = "Dataset001_Tiny"
SHAPE = (3, 12, 10)
GRID = Geometry(SHAPE, (3.0, 0.7, 0.5), (-3.0, 1.0, 4.0))
EMPTY = np.zeros(SHAPE, np.uint8)
FOREIGN = '{"foreground_mean": {"Dice": 0.9}, "mean": {}, "metric_per_case": []}'  # as nnU-Net writes it


def lesions(*corners_zyx, value=1):
    """A mask with lesions of 2 × 3 pixels."""
    mask = EMPTY.copy()
    for z, y, x in corners_zyx:
        mask[z, y : y + 2, x : x + 3] = value
    return mask


HERE, THERE = (0, 2, 3), (2, 8, 5)


@dataclass(frozen=True)
class Place:
    """Folders of masks of the cases a and b, to be spoilt; `other` is a second prediction."""

    root: Path

    def __getattr__(self, name):
        return self.root / name

    def put(self, folder, **masks):
        for name, mask in masks.items():
            write_image(self.root / folder / f"{name}.nii.gz", mask, replace(GRID, shape_zyx=mask.shape))

    def write(self, path, content):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content.encode() if isinstance(content, str) else content)

    def edit(self, path, **values):
        self.write(path, json.dumps(json.loads((self.root / path).read_text()) | values))

    def probability(self, value, shape=(1, *SHAPE)):
        np.savez(self.prediction / "a.npz", probabilities=np.full(shape, value, np.float32))

    def name_labels(self, **labels):
        labels = {"background": 0, "lesion": 1, **labels}
        write_dataset_json(
            self.root, channel_names=("T1",), labels=labels, subjects={}, file_ending=".nii.gz"
        )

    def drop(self, path):
        shutil.rmtree(self.root / path) if (self.root / path).is_dir() else (self.root / path).unlink()


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path / "place")
    place.put("reference", a=lesions(HERE, THERE), b=lesions(THERE))
    for name in ("prediction", "other"):
        place.put(name, a=lesions(HERE), b=lesions(HERE, THERE))
    return place


@pytest.fixture
def refuses(command, tmp_path):
    """Runs a command that must fail, in one sentence, and change nothing; the sentence comes back."""

    def files():
        return {p: p.read_bytes() if p.is_file() else None for p in tmp_path.rglob("*")}

    def run(name, *arguments):
        before = files()
        code, printed, complaint = command(name, *arguments)
        last = complaint.split("\r")[-1]  # progress is wiped away
        assert code == 2 and not printed, complaint
        assert last.startswith("error: ") and last.count("error: ") == 1 and "Traceback" not in last
        assert files() == before
        return last.removeprefix("error: ").strip()

    return run


def arguments_for(name, place, *options):
    """How a command is led over the place's masks."""
    if name == "compare":
        runs = place.other, place.prediction
        return name, *runs, "-r", place.reference, "-o", place.root / "page.html", *options
    return name, "-r", place.reference, "-p", place.prediction, *options


SCORING = ("evaluate", "report", "compare")


# Bad masks and probabilities

BAD_MASKS = {
    "a prediction is missing": (
        lambda p: (p.drop("prediction/b.nii.gz"), p.drop("other/b.nii.gz")),
        r"reference/b\.nii\.gz has no counterpart in .*prediction: add it, or leave it out with --only-common",
    ),
    "a reference is missing": (
        lambda p: p.drop("reference/b.nii.gz"),
        r"prediction/b\.nii\.gz has no counterpart in .*reference: add it, or leave it out with --only-common",
    ),
    "another shape": (
        lambda p: p.put("prediction", b=np.zeros((3, 12, 11), np.uint8)),
        r"prediction/b\.nii\.gz is not on the grid of .*reference/b\.nii\.gz: shape 3, 12, 11 against 3, 12, 10",
    ),
    "another spacing": (
        lambda p: write_image(p.prediction / "b.nii.gz", EMPTY, replace(GRID, spacing_zyx_mm=(3.0, 0.7, 0.6))),
        r"prediction/b\.nii\.gz is not on the grid of .*: spacing 3, 0\.7, 0\.6 against 3, 0\.7, 0\.5 mm",
    ),
    "another label, unnamed": (
        lambda p: p.put("prediction", b=lesions(HERE, value=3)),
        r"prediction/b\.nii\.gz holds the value 3: say what it means with --labels dataset\.json",
    ),
    "another label than named": (
        lambda p: (p.name_labels(cyst=2), p.put("prediction", b=lesions(HERE, value=3))),
        r"prediction/b\.nii\.gz holds the value 3: it may hold 0, 1, 2",
    ),
    "ignore in a prediction": (
        lambda p: (p.name_labels(ignore=2), p.put("prediction", b=lesions(HERE, value=2))),
        r"prediction/b\.nii\.gz holds the value 2: it may hold 0, 1",
    ),
    "fractions": (
        lambda p: p.put("prediction", b=lesions(HERE) * np.float32(0.5)),
        r"prediction/b\.nii\.gz holds 0\.5: a mask must hold whole numbers",
    ),
    "a damaged mask": (
        lambda p: p.write("reference/b.nii.gz", b"\x1f\x8b half"),
        r"reference/b\.nii\.gz cannot be read: .*damaged",
    ),
    "a probability of 1.5": (
        lambda p: p.probability(1.5),
        r"prediction/a\.npz holds values from 1\.5 to 1\.5: probabilities must be from 0 to 1",
    ),
    "a negative probability": (
        lambda p: p.probability(-0.2),
        r"prediction/a\.npz holds values from -0\.2 to -0\.2: probabilities must be from 0 to 1",
    ),
    "a probability that is no number": (
        lambda p: p.probability(np.nan),
        r"prediction/a\.npz holds values from nan to nan: probabilities must be from 0 to 1",
    ),
    "probabilities of another shape": (
        lambda p: p.probability(0.5, (1, 3, 12, 11)),
        r"prediction/a\.npz has the shape 1, 3, 12, 11, its mask needs 1, 3, 12, 10",
    ),
    "damaged probabilities": (
        lambda p: p.write("prediction/a.npz", b"PK half"),
        r"prediction/a\.npz is damaged or no \.npz of probabilities: write it again",
    ),
    "probabilities of another name": (
        lambda p: np.savez(p.prediction / "a.npz", logits=EMPTY),
        r"prediction/a\.npz holds no array called probability: .*--save-probabilities",
    ),
    "no reference folder": (lambda p: p.drop("reference"), r"cannot read .*reference: it does not exist"),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORING)
@pytest.mark.parametrize("case", BAD_MASKS)
def test_bad_masks(place, refuses, case, name):
    spoil, expected = BAD_MASKS[case]
    spoil(place)
    assert re.search(expected, refuses(*arguments_for(name, place)))


NO_PREDICTIONS = {
    "empty": (lambda p: (p.drop("prediction"), p.prediction.mkdir()), r"prediction holds no (masks|scores)"),
    "not there": (lambda p: p.drop("prediction"), r"prediction(: it does not exist| is not a folder): check the path"),
    "a file": (lambda p: (p.drop("prediction"), p.write("prediction", "x")), r"prediction(:.* is a file, not a folder| is not a folder)"),
    "of something else": (
        lambda p: (p.drop("prediction"), p.write("prediction/notes.txt", "x")),
        r"prediction holds no (masks|scores)",
    ),
    "of other names": (
        lambda p: (p.drop("prediction"), p.put("prediction", c=EMPTY)),
        r"(no \.nii\.gz.* file name in common: name each prediction like its reference|prediction holds no scores nor masks named as in .*reference)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORING)
@pytest.mark.parametrize("case", NO_PREDICTIONS)
def test_folders_that_are_no_predictions(place, refuses, case, name):
    spoil, expected = NO_PREDICTIONS[case]
    spoil(place)
    complaint = refuses(*arguments_for(name, place))
    assert re.search(expected, complaint) and "\n" not in complaint


# What is refused before the scoring, which takes its time: a damaged mask is not even reached

TOLD_FIRST = {
    "an unknown profile": (None, ("--profile", "tridnt"), r"there is no profile 'tridnt' \(did you mean 'trident'\?\)"),
    "a negative size": (None, ("--size-bins", "-1"), r"rising volumes above 0 mm³, not -1"),
    "falling sizes": (None, ("--size-bins", "3", "2"), r"rising volumes above 0 mm³, not 3\.0, 2\.0"),
    "an endless size": (None, ("--size-bins", "inf"), r"rising volumes above 0 mm³, not inf"),
    "another program's summary.json": (
        lambda p: p.write("prediction/summary.json", FOREIGN), (),
        r"prediction/summary\.json was not written by pwml_evaluate: choose another place with -o, or move it",
    ),
    "a folder as output": (None, ("-o", "{root}/other"), r"-o .*other: name a file, such as .*other\.json"),
    "a damaged prediction.json": (
        lambda p: p.write("prediction/prediction.json", "{"), (), r"prediction\.json is not valid JSON",
    ),
    "falling training sizes": (
        lambda p: p.write("prediction/prediction.json", '{"lesion_quartiles_mm3": {"lesion": [3, 2, 9]}}'), (),
        r'prediction\.json: "lesion_quartiles_mm3" must give rising volumes above 0 by target: predict again',
    ),
    "no dataset.json": (None, ("--labels", "{root}/nix.json"), r"nix\.json is missing: see documentation/dataset_format\.md"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOLD_FIRST)
def test_evaluate_refuses_before_it_scores(place, refuses, case):
    spoil, options, expected = TOLD_FIRST[case]
    place.write("prediction/b.nii.gz", b"damaged")
    if spoil:
        spoil(place)
    options = [option.format(root=place.root) for option in options]
    assert re.search(expected, refuses(*arguments_for("evaluate", place, *options)))


def test_compare_refuses_sizes_before_it_scores(place, refuses):
    place.write("prediction/b.nii.gz", b"damaged")
    complaint = refuses(*arguments_for("compare", place, "--size-bins", "2", "-3"))
    assert "the edges of size bins must be rising volumes above 0 mm³, not 2.0, -3.0" in complaint


@pytest.mark.parametrize("name", SCORING)
@pytest.mark.parametrize("where", ["in_the_way/deep/x", "/proc/pwmlunet/x"])
def test_output_where_nothing_can_be_written(place, refuses, name, where):
    place.write("in_the_way", "a file")
    output = place.root / f"{where}{'.json' if name == 'evaluate' else '.html'}"
    assert "cannot create" in refuses(*arguments_for(name, place, "-o", output))


@pytest.mark.parametrize("name", SCORING)
def test_an_output_is_a_file_and_no_folder(place, refuses, name):
    assert "name a file, such as" in refuses(*arguments_for(name, place, "-o", place.root / "folder"))


BAD_IMAGES = {
    "of one case is missing": (lambda p: p.put("images", a_0000=EMPTY), r"images holds no image of case b \(b_0000 or b\): add it"),
    "of all is missing": (lambda p: p.images.mkdir(), r"images holds no image of case a"),
    "is on another grid": (
        lambda p: p.put("images", a_0000=EMPTY, b=np.zeros((3, 12, 11), np.uint8)),
        r"images/b\.nii\.gz is not on the grid of its mask: shape 3, 12, 11 against",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["evaluate", "report"])
@pytest.mark.parametrize("case", BAD_IMAGES)
def test_an_image(place, refuses, case, name):
    spoil, expected = BAD_IMAGES[case]
    spoil(place)
    assert re.search(expected, refuses(*arguments_for(name, place, "--images", place.images)))


# Runs to compare


def evaluated(command, place, *names):
    for name in names:
        code, _, complaint = command("evaluate", "-r", place.reference, "-p", place.root / name)
        assert code == 0, complaint


BAD_RUNS = {
    "one only": (None, ["other"], r"there is one run only: name two or more to compare, the baseline first"),
    "the same twice": (None, ["other", "place/../other"], r"other is named twice: name each run once"),
    "not scored": (lambda p: p.put("new", a=EMPTY), ["other", "new"], r"new holds no scores and there is no --reference .*: run pwml_evaluate on it"),
    "nothing there": (None, ["other", "nix"], r"nix is not a folder: check the path"),
    "another program's summary.json": (
        lambda p: p.write("prediction/summary.json", FOREIGN), ["other", "prediction"],
        r"prediction/summary\.json was not written by pwml_evaluate \(nnU-Net .*\): score the masks with pwml_evaluate -o elsewhere",
    ),
    "a damaged summary.json": (lambda p: p.write("prediction/summary.json", "{"), ["other", "prediction"], r"summary\.json is not valid JSON"),
    "an older summary.json": (lambda p: p.edit("prediction/summary.json", version=1), ["other", "prediction"], r"is of version 1, not 2: score again"),
    "a newer summary.json": (lambda p: p.edit("prediction/summary.json", version=9), ["other", "prediction"], r"is of version 9, not 2: read it with a newer"),
    "half a case": (lambda p: p.edit("prediction/summary.json", cases=[{}]), ["other", "prediction"], r"summary\.json: cases\[0\]: the key 'name' is missing"),
    "no case": (lambda p: p.edit("prediction/summary.json", cases=[]), ["other", "prediction"], r"prediction lacks the cases a, b: score it there too"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_RUNS)
def test_runs_that_cannot_be_compared(place, command, refuses, case):
    spoil, runs, expected = BAD_RUNS[case]
    evaluated(command, place, "prediction", "other")
    (place.root / "place").mkdir()
    if spoil:
        spoil(place)
    complaint = refuses("compare", *(place.root / run for run in runs), "-o", place.root / "page.html")
    assert re.search(expected, complaint)


def test_runs_of_other_cases_and_references(place, command, refuses):
    evaluated(command, place, "prediction")
    place.put("reference", b=lesions(HERE))
    evaluated(command, place, "other")
    runs = "compare", place.prediction, place.other, "-o", place.root / "page.html"
    assert "case b has another reference in other than in prediction" in refuses(*runs)
    place.drop("other/b.nii.gz")
    command("evaluate", "-r", place.reference, "-p", place.other, "--only-common")
    assert "other lacks the case b: score it there too, or compare what all have" in refuses(*runs)
    code, printed, _ = command(*runs, "--only-common")
    assert code == 0 and "only the cases that all runs have are compared: 1 left out" in printed


def test_one_complaint_about_one_missing_reference_for_all_runs(place, refuses):
    place.drop("reference")
    assert refuses(*arguments_for("compare", place)).count("it does not exist") == 1


def test_a_foreign_summary_is_no_obstacle_where_masks_are_scored_now(place, command):
    place.write("prediction/summary.json", FOREIGN)
    code, printed, _ = command(*arguments_for("compare", place))
    assert code == 0 and "2 runs compared" in printed
    assert place.root.joinpath("prediction", "summary.json").read_text() == FOREIGN


# Reports of predictions alone

BAD_BESIDE = {
    "a damaged lesion table": ("a_lesions.json", "{", r"a_lesions\.json is not valid JSON"),
    "half a lesion table": ("a_lesions.json", '{"version": 1, "case": "a"}', r"a_lesions\.json: the key 'totals' is missing"),
    "a newer lesion table": ("a_lesions.json", '{"version": 9, "case": "a", "totals": {}, "lesions": []}', r"a_lesions\.json: it is of version 9, not 1: predict the case again"),
    "a table of another mask": ("a_lesions.json", '{"version": 1, "case": "a", "totals": {}, "lesions": []}', r"a\.nii\.gz has other lesions than its table a_lesions\.json: predict the case again"),
    "a damaged prediction.json": ("prediction.json", "{", r"prediction\.json is not valid JSON"),
    "models that are no list": ("prediction.json", '{"models": null}', r'prediction\.json: "models" must list model folders'),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_BESIDE)
def test_a_report_refuses_what_lies_damaged_beside_the_masks(place, refuses, case):
    name, content, expected = BAD_BESIDE[case]
    place.write(f"prediction/{name}", content)
    assert re.search(expected, refuses("report", "-p", place.prediction))


@pytest.mark.parametrize("model", ["nix", "other"])
def test_a_report_refuses_a_model_without_curves(place, refuses, model):
    complaint = refuses("report", "-p", place.prediction, "-m", place.root / model)
    assert f"{model} has no training curves (fold_*/metrics.jsonl): name a model folder" in complaint


@pytest.mark.parametrize("case", ["empty", "not there", "a file", "of something else"])
def test_a_report_on_no_predictions(place, refuses, case):
    spoil, expected = NO_PREDICTIONS[case]
    spoil(place)
    assert re.search(expected, refuses("report", "-p", place.prediction))


# Odd and allowed: exit code 0, and it is said


def without_b(place):
    for folder in ("reference", "prediction", "other"):
        place.drop(f"{folder}/b.nii.gz")


def ignore_everywhere(place, *cases):
    place.name_labels(ignore=2)
    place.put("reference", **dict.fromkeys(cases, EMPTY + 2))


ODD = {
    "both empty": (
        lambda p: [p.put(folder, a=EMPTY, b=EMPTY) for folder in ("reference", "prediction", "other")],
        "clean subjects: 2, of whom 0 with false positives", UNDEFINED,
    ),
    "references empty": (
        lambda p: p.put("reference", a=EMPTY, b=EMPTY),
        "clean subjects: 2, of whom 2 with false positives (1.50 per clean subject)", UNDEFINED,
    ),
    "predictions empty": (
        lambda p: p.put("prediction", a=EMPTY, b=EMPTY), "nothing predicted, so no distance: 2 cases with lesions", UNDEFINED,
    ),
    "ignore everywhere in one": (
        lambda p: ignore_everywhere(p, "a"), "1 of 2 cases have no labelled voxel: left out", "1 of 2 cases have no labelled voxel: left out",
    ),
    "ignore everywhere in all": (
        lambda p: ignore_everywhere(p, "a", "b"), "2 of 2 cases have no labelled voxel: left out", "2 of 2 cases have no labelled voxel: left out",
    ),
    "one subject": (without_b, "one subject only: no intervals", "one subject only: no intervals"),
}  # fmt: skip
_NO_NUMBER = re.compile(r"\bnan\b|\binf\b", re.IGNORECASE)


@pytest.mark.parametrize("case", ODD)
def test_odd_masks_are_scored(place, command, case):
    spoil, expected, _ = ODD[case]
    spoil(place)
    profiles = [option for name in PROFILES for option in ("--profile", name)]
    code, printed, complaint = command(*arguments_for("evaluate", place, *profiles))
    assert code == 0, complaint
    assert expected in printed and not _NO_NUMBER.search(printed)
    assert all(f"profile {name}" in printed for name in PROFILES)
    assert not _NO_NUMBER.search((place.prediction / "summary.json").read_text())


@pytest.mark.parametrize("case", ODD)
def test_odd_masks_are_compared_and_reported(place, command, case):
    spoil, _, expected = ODD[case]
    spoil(place)
    code, printed, complaint = command(*arguments_for("compare", place))
    assert code == 0 and expected in printed and not _NO_NUMBER.search(printed), complaint
    code, _, complaint = command(*arguments_for("report", place))
    assert code == 0, complaint
    assert expected in (place.prediction / "report.html").read_text()
    code, printed, complaint = command("report", "-p", place.prediction, "-o", place.root / "alone.html")
    assert code == 0 and f"in {place.root / 'alone.html'}" in printed, complaint


def test_what_is_left_out_on_demand_is_said(place, command):
    place.drop("prediction/b.nii.gz")
    place.put("prediction", c=EMPTY, d=EMPTY)
    code, printed, _ = command(*arguments_for("evaluate", place, "--only-common"))
    assert code == 0 and "note: 3 cases without a counterpart left out" in printed


def test_the_help_names_every_profile(command):
    code, printed, _ = command("evaluate", "--help")
    named = re.search(r"also\s+count\s+as\s+a\s+paper\s+does:([\w\s,]+?)\s+--", printed)
    assert code == 0 and named
    assert [name.strip() for name in named[1].split(",")] == list(PROFILES)


# Choosing


@pytest.fixture
def home(copied, trained_home):
    return copied(trained_home)


@pytest.fixture
def results(home):
    return home / "results" / DATASET


BAD_CHOICES = {
    "an unknown dataset": (None, ("7",), r"unknown dataset '7' \(known: Dataset001_Tiny\)"),
    "an unknown run": (None, ("1", "--runs", "trident", "tridnt"), r"has no trained run 'tridnt' \(did you mean 'trident'\?\)"),
    "a negative wish": (None, ("1", "--at-most-false-positives", "-1"), r"at_most_false_positives cannot be negative, not -1"),
    "a wish above 1": (None, ("1", "--at-least-recall", "1.5"), r"at_least_recall must be between 0 and 1, not 1\.5"),
    "a wish that is no number": (None, ("1", "--at-least-recall", "nan"), r"at_least_recall must be a number, not nan"),
    "a wish for too few lesions": (None, ("1", "--at-least-recall", "0.5"), r"recall of at least 0\.5: 5 lesions in 2 subjects are too few to choose from .*; leave the wish out"),
    "nothing trained": (lambda r: shutil.rmtree(r), ("1",), r"has no run with a finished fold: run pwml_train Dataset001_Tiny 0$"),
    "no fold finished": (lambda r: [p.unlink() for p in r.rglob("weights.pt")], ("1",), r"has no run with a finished fold"),
    "damaged probabilities": (
        lambda r: (r / "trident/fold_0/validation/sub-03.npz").write_bytes(b"PK"), ("1",),
        r"fold_0/validation/sub-03\.npz is damaged or no \.npz of probabilities",
    ),
    "damaged settings": (
        lambda r: (r / "trident/postprocessing.json").write_text('{"threshold": 3}'), ("1",),
        r"trident/postprocessing\.json: threshold must be between 0 and 1, not 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CHOICES)
def test_what_cannot_be_chosen_from(results, refuses, case):
    spoil, arguments, expected = BAD_CHOICES[case]
    if spoil:
        spoil(results)
    assert re.search(expected, refuses("find_best", *arguments))


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        (
            "find_best",
            ("1", "--at-least-recall", "0.8", "--at-most-false-positives", "1"),
            "not allowed with",
        ),
        ("find_best", ("1", "--criterion", "f1"), "invalid choice: 'f1'"),
        ("evaluate", ("-r", "a", "-p", "b", "--size-bins", "x"), "invalid float value: 'x'"),
        ("evaluate", ("-r", "a", "-p", "b", "--size-bins"), "expected at least one argument"),
        ("compare", (), "the following arguments are required: RUN"),
    ],
)
def test_what_the_parser_refuses(command, name, arguments, expected):
    code, printed, complaint = command(name, *arguments)
    assert code == 2 and not printed and f"pwml_{name}: error: " in complaint and expected in complaint


def test_one_fold_of_one_subject_is_chosen_from_and_said(results, command):
    shutil.rmtree(results / "trident" / "fold_1")
    code, printed, complaint = command("find_best", "1")
    assert code == 0, complaint
    for words in (
        "all cases are of fold 0",
        "all cases are of one subject: there are no intervals",
        "too few",
    ):
        assert words in printed
    assert not _NO_NUMBER.search(printed)


# Predicting


def predict(home, *options, part="1/5"):
    images = home / "raw" / DATASET / "imagesTr"
    rest = ("--device", "cpu", "--no-flips", "--part", part) if part else ("--device", "cpu", "--no-flips")
    return "predict", "-i", images, "-o", home / "out", *rest, *options


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--threshold", "1.5", "threshold must be between 0 and 1, not 1.5"),
        ("--threshold", "0", "threshold must be between 0 and 1, not 0"),
        ("--threshold", "nan", "threshold must be a number, not nan"),
        ("--smallest-lesion-mm3", "-1", "smallest_lesion_mm3 cannot be negative, not -1"),
        ("--smallest-lesion-mm3", "inf", "smallest_lesion_mm3 must be a number, not inf"),
        ("--least-peak-probability", "1", "least_peak_probability must be at least 0 and below 1, not 1"),
        ("--temperature", "0", "temperature must be from 0.05 to 20, not 0"),
    ],
)
def test_settings_that_cannot_be(home, refuses, option, value, expected):
    assert refuses(*predict(home, option, value)).startswith(f"{option}: {expected}")


BEST = {
    "version": 1,
    "runs": ["trident"],
    "postprocessing": "trident/postprocessing.json",
    "criterion": "dice",
    "reasons": [],
    "candidates": [],
}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "best.json is not valid JSON"),
        ("{}", "best.json: the key 'version' is missing"),
        (json.dumps(BEST | {"version": 9}), "best.json: it is of version 9, not 1: run pwml_find_best again"),
        (json.dumps(BEST | {"runs": []}), "best.json: runs must name at least one run: run pwml_find_best again"),
        (json.dumps(BEST | {"runs": ["gone"]}), "best.json names the run gone, which is not there: run pwml_find"),
        (json.dumps(BEST | {"postprocessing": "gone.json"}), "best.json names gone.json, which is not there: run"),
    ],
)  # fmt: skip
def test_a_choice_that_is_damaged(home, results, refuses, content, expected):
    (results / "best.json").write_text(content)
    assert expected in refuses(*predict(home))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "has masks without a lesion table (sub-01_ses-1): predict them again, without --continue"),
        ("{", "sub-01_ses-1_lesions.json is not valid JSON"),
    ],
)
def test_a_review_refuses_to_leave_a_mask_out(home, command, refuses, content, expected):
    assert command(*predict(home))[0] == 0
    table = home / "out" / "sub-01_ses-1_lesions.json"
    table.write_text(content) if content else table.unlink()
    assert expected in refuses(*predict(home, "--review", "--continue"))


def test_a_review_of_nothing(home, command):
    code, printed, _ = command(*predict(home, "--review", "--smallest-lesion-mm3", "1e6"))
    assert code == 0 and "0 lesions, the least sure first, in" in printed
    assert (home / "out" / "review.csv").read_text().count("\n") == 1


def models_of(folder):
    return json.loads((folder / "prediction.json").read_text())["models"]


def test_predict_uses_the_run_that_was_chosen(home, results, command, refuses):
    shutil.copytree(results / "trident", results / "twin")
    assert "there are several trained models; choose one" in refuses(*predict(home))
    assert command("find_best", "1", "--runs", "twin")[0] == 0
    code, printed, complaint = command(*predict(home))
    assert code == 0 and f"2 networks of {results / 'twin'}: " in printed, complaint
    assert models_of(home / "out") == [f"{DATASET}/twin"]
    chosen = Postprocessing.read(results / "twin" / "postprocessing.json")
    said = json.loads((home / "out" / "prediction.json").read_text())["postprocessing"]
    assert Postprocessing.from_dict(said, "") == chosen != Postprocessing()
    assert command(*predict(home, "-c", "trident"))[0] == 0
    assert models_of(home / "out") == [f"{DATASET}/trident"]


def know_half(run, raw, parity):
    """Replaces a run's held-out probabilities: it is sure of every other lesion only."""
    for path in run.glob("fold_*/validation/*.npz"):
        mask = read_image(raw / "labelsTr" / f"{path.stem}.nii.gz").array
        lesion, _ = find_lesions(mask > 0)
        found = np.where(lesion % 2 == parity, 0.99, 0.3)
        write_probability(path, np.where(lesion > 0, found, 0.01).astype(np.float32)[None])


def test_predict_uses_the_ensemble_that_was_chosen(home, results, command):
    shutil.copytree(results / "trident", results / "twin")
    for parity, name in enumerate(("trident", "twin")):
        know_half(results / name, home / "raw" / DATASET, parity)
    code, printed, complaint = command("find_best", "1")
    assert code == 0 and "best: trident + twin\n" in printed, complaint
    best = json.loads((results / "best.json").read_text())
    assert best["runs"] == ["trident", "twin"] and best["postprocessing"] == "postprocessing.json"
    settings = json.loads((results / "postprocessing.json").read_text())
    (results / "postprocessing.json").write_text(json.dumps(settings | {"threshold": 0.25}))
    code, printed, complaint = command(*predict(home))
    assert code == 0 and f"4 networks of {results / 'trident'}, {results / 'twin'}: " in printed, complaint
    said = json.loads((home / "out" / "prediction.json").read_text())
    assert said["models"] == [f"{DATASET}/trident", f"{DATASET}/twin"] and said["n_networks"] == 4
    assert said["postprocessing"]["threshold"] == 0.25
    assert command(*predict(home, "-c", "twin"))[0] == 0
    assert models_of(home / "out") == [f"{DATASET}/twin"]


# All in a row


def test_from_the_choice_to_the_report(home, results, command):
    raw, out = home / "raw" / DATASET, home / "out"

    def runs(name, *arguments):
        code, printed, complaint = command(name, *arguments)
        assert code == 0, complaint
        return printed

    runs("find_best", "1")
    printed = runs(*predict(home, "--save-probabilities", "--review", part=None))
    rows = (out / "review.csv").read_text().splitlines()
    assert f"{len(rows) - 1} lesions, the least sure first, in {out / 'review.csv'}" in printed
    printed = runs("evaluate", "-r", raw / "labelsTr", "-p", out)
    assert "FROC by mean probability" in printed and "quartiles of the training lesions" in printed
    target = json.loads((out / "summary.json").read_text())["summary"]["targets"]["lesion"]
    quartiles = json.loads((out / "prediction.json").read_text())["lesion_quartiles_mm3"]["lesion"]
    assert [part["low_mm3"] for part in target["by_size"]] == [0, *quartiles]
    assert target["froc"]["max_probability"]["sensitivity_at"] and target["reliability"]["n_voxels"] > 0

    page = home / "deep" / "page.html"
    options = ("-p", out, "-r", raw / "labelsTr", "--images", raw / "imagesTr", "-o", page)
    assert f"report on 5 cases in {page}" in runs("report", *options, "--title", "Ours & <theirs>")
    text = page.read_text()
    assert "Ours &amp; &lt;theirs&gt;" in text and "2 folds. The loss should fall" in text
    assert "No images were given" not in text and not (out / "report.html").exists()

    shutil.copytree(out, home / "second")
    (home / "second" / "summary.json").write_text(FOREIGN)
    place = ("-o", home / "compared.html")
    printed = runs("compare", out, home / "second", *place, "-r", raw / "labelsTr")
    assert "baseline: out; 5 cases of 4 subjects" in printed and "no difference shown" in printed
    printed = runs("compare", results / "trident", out, *place, "--only-common")
    assert "2 cases of 2 subjects" in printed and f"2 runs compared in {home / 'compared.html'}" in printed


def test_what_the_command_line_sets_was_chosen_by_nobody(home, results, command):
    assert command("find_best", "1")[0] == 0
    for options, is_chosen in (((), True), (("--smallest-lesion-mm3", "1"), False)):
        assert command(*predict(home, *options, part=None))[0] == 0
        settings = json.loads((home / "out" / "prediction.json").read_text())["postprocessing"]
        assert (settings["chosen"] is not None) == is_chosen
