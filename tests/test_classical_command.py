"""`pwml_predict --classical`: without a model, with and without a dataset, and what it refuses."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from pwmlunet.data.image import read_image, write_image

DATASET = "Dataset001_Tiny"


@pytest.fixture
def home(copied, prepared_home):
    return copied(prepared_home)


@pytest.fixture
def raw(home):
    """The tiny dataset with one more lesion in each case, halfway between the middle and the edge of the head."""
    folder = home / "raw" / DATASET
    for path in (folder / "labelsTr").iterdir():
        for file, value in ((path, 1), (folder / "imagesTr" / path.name.replace(".", "_0000.", 1), 400)):
            image = read_image(file)
            image.array[2, 30:32, 28:30] = value
            write_image(file, image.array, image.geometry)
    return folder


@pytest.fixture
def predict(command, raw):
    """Runs the method on the dataset's images, or on a folder's."""

    def run(*options, folder=None, output="out"):
        images = folder or raw / "imagesTr"
        return command("predict", "--classical", "-i", images, "-o", raw.parents[1] / output, *options)

    return run


@pytest.fixture
def refuses(predict, home):
    """The one sentence of a run that must fail; nothing is written."""

    def run(*options, **places):
        before = sorted(home.rglob("*"))
        code, printed, complaint = predict(*options, **places)
        assert code == 2 and not printed and complaint.count("error: ") == 1, complaint
        assert sorted(home.rglob("*")) == before
        return complaint.split("error: ")[1].strip()

    return run


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def said(folder):
    return json.loads((folder / "prediction.json").read_text())


def test_without_a_model_to_scores_and_a_report(home, raw, predict, command):
    shutil.rmtree(home / "preprocessed")  # nothing but the images is needed
    code, printed, complaint = predict("--save-probabilities", "--review")
    out = home / "out"
    assert code == 0 and f"5 cases predicted by the classical method, which learned nothing: {out}" in printed, complaint  # fmt: skip
    assert {path.name for path in out.glob("*.nii.gz")} == {p.name for p in (raw / "labelsTr").iterdir()}
    assert len(list(out.glob("*.npz"))) == len(list(out.glob("*_lesions.json"))) == 5
    assert said(out)["models"] == [] and said(out)["lesion_quartiles_mm3"] is None
    assert said(out)["classical"]["most_area_mm2"] == 15
    n_lesions = (out / "review.csv").read_text().count("\n") - 1
    assert n_lesions >= 5 and f"{n_lesions} lesions, the least sure first" in printed
    masks, images = ("-r", raw / "labelsTr", "-p", out), ("--images", raw / "imagesTr")
    code, printed, complaint = command("evaluate", *masks, *images)
    assert code == 0 and "FROC by mean probability" in printed, complaint
    assert int(re.search(r"all lesions: recall .*?; (\d+) of", printed)[1]) >= 5
    assert command("report", *masks, *images)[0] == 0 and (out / "report.html").is_file()


def test_a_dataset_gives_sizes_labels_and_ending(home, raw, predict):
    edit(home / "preprocessed" / DATASET / "dataset.json", labels={"background": 0, "lesion": 7, "cyst": 9})
    code, printed, complaint = predict("-d", "1")
    assert code == 0 and f"which learned nothing but the sizes of lesions in {DATASET}: " in printed
    assert "finds one kind of lesion: it is called lesion, not cyst" in complaint
    description = said(home / "out")
    fingerprint = json.loads((home / "preprocessed" / DATASET / "fingerprint.json").read_text())
    volumes = [lesion["volume_mm3"] for case in fingerprint["cases"] for lesion in case["lesions"]]
    assert description["lesion_quartiles_mm3"]["lesion"] == pytest.approx(
        np.percentile(volumes, (25, 50, 75))
    )
    assert description["classical"]["least_area_mm2"] == pytest.approx(0.35 / 2)  # a pixel of 0.7 × 0.5 mm
    masks = [read_image(path).array for path in (home / "out").glob("*.nii.gz")]
    assert set(np.unique(masks)) == {0, 7}


@pytest.mark.parametrize("ending", [".png", ".nii", ".tif"])
def test_the_ending_is_that_of_the_images(home, raw, predict, ending):
    image = read_image(raw / "imagesTr" / "sub-02_0000.nii.gz")
    flat = replace(image.geometry, shape_zyx=(1, *image.array.shape[1:]), is_2d=True, direction_xyz=(1, 0, 0, 0, 1, 0, 0, 0, 1))  # fmt: skip
    for channel in (0, 1):
        path = home / "new" / f"baby_{channel:04d}{ending}"
        write_image(path, np.clip(image.array[1:2], 0, 255).astype(np.uint8), flat)
    code, _, complaint = predict(folder=home / "new")
    assert code == 0, complaint
    assert read_image(home / "out" / f"baby{ending}").geometry.is_2d


def test_settings_are_laid_over(home, predict):
    assert predict()[0] == 0
    assert predict("--threshold", "0.9", "--smallest-lesion-mm3", "0.1", output="strict")[0] == 0
    assert said(home / "strict")["postprocessing"]["threshold"] == 0.9
    n_voxels = [
        sum(np.count_nonzero(read_image(p).array) for p in (home / name).glob("*.nii.gz"))
        for name in ("out", "strict")
    ]
    assert n_voxels[0] > n_voxels[1]


def test_going_on_and_parts(home, predict):
    assert "3 cases predicted" in predict("-d", "1", "--part", "1/2")[1]
    code, printed, _ = predict("-d", "1", "--continue")
    assert code == 0 and "2 cases predicted" in printed and ", 3 were there already: " in printed
    code, _, complaint = predict("--continue")  # sizes that were not learned are other settings
    assert code == 2 and "holds masks made with other models or settings" in complaint


def test_what_only_networks_have(refuses):
    for option in (("-c", "trident"), ("-m", "model"), ("-f", "0"), ("--no-flips",), ("--device", "cpu")):
        assert refuses(*option) == f"--classical asks no network: leave out {option[0]}"
    assert refuses("-f", "0", "-m", "model") == "--classical asks no network: leave out -m, -f"


def test_images_that_cannot_be_told(home, raw, refuses):
    (home / "none").mkdir()
    assert "none holds no images named CASE_0000 with an ending of .nii.gz, " in refuses(folder=home / "none")
    assert "it does not exist: check the path" in refuses(folder=home / "nowhere")
    (raw / "imagesTr" / "sub-02_0000.png").write_bytes(b"")
    complaint = refuses()
    assert "imagesTr holds images of several kinds (.nii.gz, .png): put each kind into a folder of its own" in complaint  # fmt: skip


def test_a_dataset_that_is_not_planned(home, refuses):
    assert "unknown dataset '2'" in refuses("-d", "2")
    shutil.rmtree(home / "preprocessed")
    assert "run pwml_plan_and_preprocess -d 1" in refuses("-d", "1")


def test_a_case_without_a_head_does_not_stop_the_others(home, raw, predict):
    path = raw / "imagesTr" / "sub-02_0000.nii.gz"
    image = read_image(path)
    speck = np.zeros_like(image.array)
    speck[1, 20:23, 30:33] = 100
    write_image(path, speck, image.geometry)
    code, _, complaint = predict()
    assert code == 2 and "case sub-02: no head is found" in complaint
    assert len(list((home / "out").glob("*.nii.gz"))) == 4
