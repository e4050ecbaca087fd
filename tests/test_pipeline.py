"""The commands one after another, and every bad input that we know of: one sentence, exit code 2, no damage."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ENTRY_POINTS

from pwmlunet.data.image import read_image, write_image

DATASET = "Dataset001_Tiny"
TRAIN = ("--epochs", "1", "--steps", "2", "--batch", "2", "--device", "cpu", "--precision", "float32")


@pytest.fixture
def home(copied, raw_home):
    return copied(raw_home)


@pytest.fixture
def trained(copied, trained_home):
    return copied(trained_home)


@pytest.fixture
def raw(home):
    return home / "raw" / DATASET


@pytest.fixture
def refuses(command, tmp_path):
    """Runs a command that must fail; what it complains comes back."""

    def snapshot():
        files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in files}

    def run(name, *arguments, may_write=False):
        before = snapshot()
        code, printed, complaint = command(name, *arguments)
        assert code == 2 and "Traceback" not in complaint
        after = snapshot()
        assert after.keys() >= before.keys() if may_write else after == before
        position = complaint.rindex("error: ")
        assert not printed
        return complaint[position + len("error: ") :].strip()

    return run


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(folder, name, image=None, mask=None, geometry=None):
    """Writes a case's image or mask anew, on its grid or another one."""
    for path, array in (
        (folder / "imagesTr" / f"{name}_0000.nii.gz", image),
        (folder / "labelsTr" / f"{name}.nii.gz", mask),
    ):
        if array is not None:
            write_image(path, array, replace(geometry or read_image(path).geometry, shape_zyx=array.shape))


def test_from_a_raw_dataset_to_scores(home, raw, tiny, command):
    code, printed, _ = command("plan_and_preprocess", "-d", "1", "--memory-gb", 2, "--workers", 1)
    assert code == 0 and "5 of 5 cases preprocessed now" in printed and "slice axis" in printed
    tiny.shrink_plan(home / "preprocessed" / DATASET)
    code, printed, _ = command("train", "1", "0", "1", *TRAIN)
    model = home / "results" / DATASET / "trident"
    assert code == 0 and f"fold 1 is trained: {model / 'fold_1'}" in printed
    shutil.copytree(raw / "imagesTr", home / "new")
    options = ("-i", home / "new", "--device", "cpu", "--threshold", 0.05, "--no-flips")
    code, printed, _ = command("predict", *options, "-o", home / "all", "--save_probabilities")
    assert code == 0 and f"5 cases predicted by 2 networks of {model}" in printed
    assert len(list((home / "all").glob("*.nii.gz"))) == len(list((home / "all").glob("*.npz"))) == 5
    for part in (1, 2):
        assert (
            command(
                "predict", *options, "-o", home / "parts", "--part", f"{part}/2", "-d", "1", "-c", "trident"
            )[0]
            == 0
        )
        assert len(list((home / "parts").glob("*.nii.gz"))) == (3, 5)[part - 1]
    for path in (home / "parts").glob("*.nii.gz"):
        assert np.array_equal(read_image(path).array, read_image(home / "all" / path.name).array)
    code, printed, _ = command(
        "evaluate", "-r", raw / "labelsTr", "-p", home / "all", "--images", raw / "imagesTr"
    )
    assert code == 0 and "scores of 5 cases in" in printed
    assert (home / "all" / "summary.json").is_file() and (home / "all" / "overlay.png").is_file()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_help_is_quick_and_needs_nothing_heavy(name):
    script = (
        f"import sys\nfrom {ENTRY_POINTS[name].split(':')[0]} import {name}\ntry: {name}(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'SimpleITK', 'matplotlib', 'scipy', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: pwml_{name}" in done.stdout


# What is missing or means nothing


def test_a_missing_or_empty_raw_folder(home, raw, refuses):
    shutil.rmtree(raw)
    assert "no dataset found in" in refuses("plan_and_preprocess", "-d", "1")
    shutil.rmtree(home / "raw")
    assert "put a folder DatasetNNN_Name there, or set PWML_RAW" in refuses("plan_and_preprocess", "-d", "1")


def test_an_empty_dataset(raw, refuses):
    for folder in ("imagesTr", "labelsTr"):
        shutil.rmtree(raw / folder)
        (raw / folder).mkdir()
    assert "holds no *_0000.nii.gz: put the training images there" in refuses(
        "plan_and_preprocess", "-d", "1"
    )
    shutil.rmtree(raw / "imagesTr")
    assert "imagesTr: it does not exist: check the path" in refuses("plan_and_preprocess", "-d", "1")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "dataset.json is missing: see documentation/dataset_format.md"),
        ("{", "dataset.json is not valid JSON"),
        ("[]", "dataset.json must hold an object"),
        ('{"labels": {}}', "dataset.json lacks channel_names, numTraining, file_ending"),
    ],
)
def test_a_broken_dataset_json(raw, refuses, content, expected):
    (raw / "dataset.json").unlink() if content is None else (raw / "dataset.json").write_text(content)
    assert expected in refuses("plan_and_preprocess", "-d", "1")


def test_a_wrong_number_of_cases(raw, refuses):
    edit(raw / "dataset.json", lambda content: content.update(numTraining=7))
    assert '"numTraining" is 7, but there are 5 training cases' in refuses("plan_and_preprocess", "-d", "1")


def test_a_missing_channel(raw, refuses):
    edit(raw / "dataset.json", lambda content: content.update(channel_names={"0": "T1", "1": "T2"}))
    complaint = refuses("plan_and_preprocess", "-d", "1")
    assert "case sub-02: channel 1 (T2) is missing (sub-02_0001.nii.gz): add the file" in complaint


def test_two_datasets_with_one_number(home, raw, refuses):
    shutil.copytree(raw, raw.with_name("Dataset001_Twin"))
    assert "dataset '1' means several folders" in refuses("plan_and_preprocess", "-d", "1")


def test_unknown_names(trained, refuses):
    for name in ("plan_and_preprocess", "train"):
        arguments = ("-d", "Dataset001_Tini") if name == "plan_and_preprocess" else ("Dataset001_Tini", "0")
        assert "unknown dataset 'Dataset001_Tini' (did you mean 'Dataset001_Tiny'?)" in refuses(
            name, *arguments
        )
    new = ("-i", trained / "raw" / DATASET / "imagesTr", "-o", trained / "out")
    for arguments, expected in (
        (("train", "1", "7", *TRAIN, "--run", "new"), "unknown fold '7' (known: 0, 1, 2, 3, all)"),
        (("train", "1", "0", "nine", "--run", "new"), "unknown fold 'nine'"),
        (("train", "1", "0", "-c", "tridnt"), "unknown configuration 'tridnt' (did you mean 'trident'?)"),
        (("train", "1", "0", "--recipe", "papr"), "unknown recipe 'papr'"),
        (("train", "1", "0", "--loss", "sbfl + dyce"), "unknown loss 'dyce' (did you mean 'dice'?)"),
        (("train", "1", "0", "--epochs", "0"), "epochs must be at least 1, not 0"),
        (("train", "1", "0", "--set", "augmentation.nose=1"), "unknown key 'nose'"),
        (("train", "1", "0", "--set", "augmentation.scaling=[0,1]"), "scaling must be two positive numbers"),
        (("train", "1", "0", "--set", "seed"), "--set seed: write KEY=VALUE"),
        (("train", "1", "0", "--set", "seed.a=1"), "--set seed.a=1: 'seed' holds no further settings"),
        (("train", "1", "0", "--device", "tpu", "--run", "device"), "there is no device 'tpu' here"),
        (("train", "1", "0", "--rate", "1e-4"), "was begun with"),
        (
            ("plan_and_preprocess", "-d", "1", "--memory-gb", "2"),
            "--memory-gb asks for another plan: add --replan",
        ),
        (("predict", *new, "-d", "2"), "no trained model of dataset '2'"),
        (("predict", *new, "-c", "wide"), "no trained model 'wide'"),
        (("predict", *new, "-f", "3"), "has no finished fold 3 (finished: 0, 1)"),
        (("predict", *new, "-m", trained), "is not a model folder: plan.json is missing"),
        (("predict", *new, "--part", "3/2"), "--part 3/2: write k/n with k from 1 to n"),
        (("predict", *new, "--threshold", "1.5"), "threshold must be between 0 and 1"),
        (("predict", *new, "--device", "tpu"), "there is no device 'tpu' here"),
        (("predict", "-i", trained / "none", "-o", trained / "out"), "is not a folder: check the path"),
        (("predict", "-i", trained / "raw", "-o", trained / "out"), "holds no images named CASE_0000.nii.gz"),
        (("evaluate", "-r", trained / "none", "-p", trained), "it does not exist: check the path"),
    ):
        makes_run = "--run" in arguments
        assert expected in refuses(*arguments, may_write=makes_run), arguments
    assert not (trained / "out").exists()


def test_training_before_planning(home, refuses):
    assert "Dataset001_Tiny is not planned yet" in refuses("train", "1", "0")


# What is wrong with images and masks


def array_of(raw, name, folder="imagesTr"):
    ending = "_0000.nii.gz" if folder == "imagesTr" else ".nii.gz"
    return read_image(raw / folder / f"{name}{ending}").array


def test_a_truncated_file(raw, refuses):
    path = raw / "imagesTr" / "sub-03_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:3000])
    assert "sub-03_0000.nii.gz cannot be read: it is damaged or cut short" in refuses(
        "plan_and_preprocess", "-d", "1"
    )


def test_images_of_nothing(raw, refuses):
    image = array_of(raw, "sub-02").astype(np.float32)
    image[2, 5, 5] = np.nan
    rewrite(raw, "sub-02", image)
    rewrite(raw, "sub-03", np.full_like(image, 4))
    complaint = refuses("plan_and_preprocess", "-d", "1")
    assert complaint.startswith("Dataset001_Tiny has problems (2):")
    assert "sub-02_0000.nii.gz cannot be read: it holds values that are not finite (NaN)" in complaint
    assert "case sub-03: channel 0 is constant (4.0 everywhere)" in complaint


def test_masks_of_something_else(raw, refuses, tiny):
    mask = array_of(raw, "sub-02", "labelsTr")
    rewrite(
        raw, "sub-02", mask=mask, geometry=replace(tiny.oblique(mask.shape), spacing_zyx_mm=(3.0, 0.7, 0.7))
    )
    rewrite(raw, "sub-03", mask=mask * 2)
    rewrite(raw, "sub-04", mask=mask * np.float32(0.4))
    complaint = refuses("plan_and_preprocess", "-d", "1")
    for expected in (
        "case sub-02: its mask lies on another grid than its image (spacing 3, 0.7, 0.7 against 3, 0.7, 0.5 mm)",
        "case sub-03: its mask holds labels that dataset.json does not name (2)",
        "case sub-04: its mask holds fractions",
    ):
        assert expected in complaint


def test_whole_float_masks_work(raw, command):
    for path in (raw / "labelsTr").iterdir():
        read = read_image(path)
        write_image(path, read.array.astype(np.float64), read.geometry)
    assert command("plan_and_preprocess", "-d", "1", "--memory-gb", 2)[0] == 0


def test_a_2d_image_among_3d_ones(raw, tiny, refuses):
    flat = tiny.head_with_lesions(1, (1, 56, 48))
    geometry = replace(flat.geometry, is_2d=True, direction_xyz=(1.0, 0, 0, 0, 1, 0, 0, 0, 1))
    rewrite(raw, "sub-02", flat.image, flat.mask, geometry)
    complaint = refuses("plan_and_preprocess", "-d", "1")
    assert "2-D and 3-D images are mixed (2-D: sub-02): keep one kind" in complaint


def test_no_lesion_at_all(raw, refuses):
    for path in (raw / "labelsTr").iterdir():
        read = read_image(path)
        write_image(path, np.zeros_like(read.array), read.geometry)
    assert "no mask holds a lesion: there is nothing to learn from" in refuses(
        "plan_and_preprocess", "-d", "1"
    )


def test_an_image_of_one_slice_and_a_case_of_ignored_slices_work(raw, home, tiny, command):
    edit(raw / "dataset.json", lambda content: content["labels"].update(ignore=2))
    one = tiny.head_with_lesions(1, (1, 56, 48))
    rewrite(raw, "sub-02", one.image, one.mask, one.geometry)
    rewrite(raw, "sub-03", mask=np.full((4, 56, 48), 2, np.uint8))
    code, _, told = command("plan_and_preprocess", "-d", "1", "--memory-gb", 2)
    assert code == 0 and "case sub-03: every voxel is labelled ignore" in told
    tiny.shrink_plan(home / "preprocessed" / DATASET)
    splits = [
        {"train": ["sub-01_ses-1", "sub-02", "sub-04"], "val": ["sub-03"]},
        {"train": ["sub-01_ses-2", "sub-03"], "val": ["sub-02"]},
    ]
    (home / "preprocessed" / DATASET / "splits.json").write_text(json.dumps(splits))
    code, _, told = command("train", "1", "0", "1", *TRAIN)
    assert code == 0, told


def test_one_subject_for_five_folds(raw, home, tiny, command, refuses):
    edit(raw / "dataset.json", lambda content: content.update(subjects=dict.fromkeys(tiny.cases(), "anna")))
    code, _, told = command("plan_and_preprocess", "-d", "1", "--memory-gb", 2)
    assert code == 0 and "all cases are of one subject: only fold 'all' can be trained" in told
    assert "unknown fold '0' (known: all)" in refuses("train", "1", "0", may_write=True)


# What was broken by hand or by a machine


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"configurations": {"a": {"inherits": "a"}}}'])
@pytest.mark.parametrize("name", ["plan.json", "splits.json"])
def test_files_broken_by_hand(trained, refuses, name, content):
    (trained / "preprocessed" / DATASET / name).write_text(content)
    assert name in refuses("plan_and_preprocess", "-d", "1")
    assert name in refuses("train", "1", "0")


@pytest.mark.parametrize("content", [b"", b"PK half"])
def test_half_written_checkpoints(trained, refuses, content):
    fold = trained / "results" / DATASET / "trident" / "fold_0"
    (fold / "weights.pt").write_bytes(content)
    new = ("-i", trained / "raw" / DATASET / "imagesTr", "-o", trained / "out", "--device", "cpu")
    assert "fold_0/weights.pt is damaged or no checkpoint: delete it" in refuses("predict", *new)


@pytest.mark.parametrize("content", [b"", torch.zeros(2)])
def test_a_half_written_resume_file(trained, refuses, command, tiny, content):
    fold = trained / "results" / DATASET / "trident" / "fold_0"
    (fold / "weights.pt").unlink()
    torch.save(content, fold / "resume.pt") if len(content) else (fold / "resume.pt").write_bytes(b"")
    recipe = trained / "results" / DATASET / "trident" / "training.json"
    before = (fold / "resume.pt").read_bytes()
    options = [
        f"--set={key}={json.dumps(value)}"
        for key, value in json.loads(recipe.read_text()).items()
        if key != "augmentation"
    ]
    complaint = refuses("train", "1", "0", *options)
    assert "resume.pt" in complaint and "delete it" in complaint
    assert (fold / "resume.pt").read_bytes() == before


def test_folders_that_cannot_be_written(trained, refuses, tmp_path, monkeypatch):
    images = trained / "raw" / DATASET / "imagesTr"
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file", tmp_path / "file" / "deeper", Path("/proc/pwmlunet")):
        assert f"cannot create {place}" in refuses("predict", "-i", images, "-o", place, "--device", "cpu")
        with monkeypatch.context() as patched:
            patched.setenv("PWML_RESULTS", str(place))
            assert f"cannot create {place}" in refuses("train", "1", "0")
        with monkeypatch.context() as patched:
            patched.setenv("PWML_PREPROCESSED", str(place))
            assert f"cannot create {place}" in refuses("plan_and_preprocess", "-d", "1", "--memory-gb", "2")
    masks = trained / "raw" / DATASET / "labelsTr"
    assert "cannot create" in refuses(
        "evaluate", "-r", masks, "-p", masks, "-o", tmp_path / "file" / "summary.json"
    )


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a disk of some kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(kilobytes):
        options = ["-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(folder)]
        if (
            os.geteuid() != 0
            or subprocess.run(["mount", *options], capture_output=True, check=False).returncode
        ):
            pytest.skip("only root can mount a small disk")
        mounted.append(folder)
        return folder

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(
    ("command_name", "kilobytes"),
    [("plan_and_preprocess", 100), ("train", 4), ("train", 16), ("train", 100), ("predict", 8)],
)
def test_a_full_disk(trained, refuses, small_disk, monkeypatch, command_name, kilobytes):
    disk = small_disk(kilobytes)
    place = {"plan_and_preprocess": "PWML_PREPROCESSED", "train": "PWML_RESULTS"}.get(command_name)
    if place:
        monkeypatch.setenv(place, str(disk))
    arguments = {
        "plan_and_preprocess": ("-d", "1", "--memory-gb", "2"),
        "train": ("1", "0", *TRAIN),
        "predict": (
            "-i",
            trained / "raw" / DATASET / "imagesTr",
            "-o",
            disk,
            "--device",
            "cpu",
            "--save-probabilities",
        ),
    }[command_name]
    complaint = refuses(command_name, *arguments)
    assert (
        "disk is full" in complaint or "is the disk full?" in complaint
    ) and "ree some space and run the same command again" in complaint
    assert not [path for path in disk.rglob(".*") if path.is_file()]  # no half-written files are left
    assert not list(disk.rglob("weights.pt"))
