import errno
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from pwmlunet.data.convert import Converted, convert_msd, dataset_folder
from pwmlunet.data.dataset import find_cases, open_dataset
from pwmlunet.data.image import Geometry, read_image, write_image
from pwmlunet.data.slices import convert_slices
from pwmlunet.errors import PwmlError

SHAPE = (5, 7)


def picture(path: Path, array: np.ndarray | None = None, shape: tuple[int, int] = SHAPE) -> Path:
    """A picture whose brightness is its number, or the given pixels."""
    pixels = np.full(shape, int(path.stem), np.uint8) if array is None else array
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3), str(path))
    return path


def mask(path: Path, value: int = 255, row: int = 1) -> Path:
    pixels = np.zeros(SHAPE, np.uint8)
    pixels[row, 4] = value
    return picture(path, pixels)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two subjects: 18 with slices 58–62 and 7–8 and masks for 59 and 61, and p_1 with slice 3."""
    for number in (58, 59, 60, 61, 62):
        picture(tmp_path / "images" / "18" / f"{number}.png")
    picture(tmp_path / "images" / "18" / "007.png")
    picture(tmp_path / "images" / "18" / "8.png")
    picture(tmp_path / "images" / "p_1" / "3.tif")
    mask(tmp_path / "masks" / "18" / "59.png")
    mask(tmp_path / "masks" / "18" / "061.png", row=2)
    mask(tmp_path / "masks" / "p_1" / "3.png", value=255)
    (tmp_path / "images" / "18" / "notes.txt").touch()
    (tmp_path / "images" / "18" / "._58.png").touch()
    return tmp_path


def convert(source: Path, *, labels: bool = True, name: str = "Dataset027_T1", **changes: Any) -> Converted:
    arguments: dict[str, Any] = {
        "images": source / "images",
        "labels": source / "masks" if labels else None,
        "channel": "T1",
        "spacing_zyx_mm": (3.0, 0.7, 0.5),
        "folder_of_dataset": source / "raw" / name,
    }
    return convert_slices(**{**arguments, **changes})


def complaint(source: Path, **changes: Any) -> str:
    """What a conversion that must fail says; nothing may be left behind."""
    raw = source / "raw"
    before = sorted(raw.rglob("*"))
    with pytest.raises(PwmlError) as caught:
        convert(source, **changes)
    assert sorted(raw.rglob("*")) == before
    return str(caught.value)


def test_runs_of_slices_become_cases_of_subjects(source: Path) -> None:
    result = convert(source)
    assert result.training == ("sub-18_slices-058-062", "sub-p1_slices-003-003")
    assert result.to_predict == ("sub-18_slices-007-008",)
    dataset = open_dataset(result.folder)
    assert {case.name: case.subject for case in dataset.cases} == {
        "sub-18_slices-058-062": "18",
        "sub-p1_slices-003-003": "p_1",
    }
    assert dataset.channel_names == ("T1",)
    assert dataset.labels.ignore == 2


def test_slices_keep_their_place_and_those_without_a_mask_are_ignored(source: Path) -> None:
    case = open_dataset(convert(source).folder).cases[0]
    image, label = read_image(case.images[0]), read_image(case.label or Path())
    expected = Geometry((5, *SHAPE), (3.0, 0.7, 0.5), (0.0, 0.0, 58 * 3.0))
    assert image.geometry.differences(expected) == label.geometry.differences(expected) == []
    assert image.array[:, 0, 0].tolist() == [58, 59, 60, 61, 62]
    assert image.array.dtype == label.array.dtype == np.uint8
    assert [sorted(set(z.ravel().tolist())) for z in label.array] == [[2], [0, 1], [2], [0, 1], [2]]
    assert np.argwhere(label.array == 1).tolist() == [[1, 1, 4], [3, 2, 4]]


def test_the_written_folders_can_be_read_by_others_as_usual(source: Path) -> None:
    result = convert(source)
    (source / "ordinary").mkdir()
    assert result.folder.stat().st_mode == (source / "ordinary").stat().st_mode
    assert [p.name for p in result.folder.parent.iterdir()] == ["Dataset027_T1"]
    parts = sorted(p.name for p in result.folder.iterdir())
    assert parts == ["dataset.json", "imagesTr", "imagesTs", "labelsTr"]


def test_without_labels_all_cases_are_to_be_predicted(source: Path) -> None:
    result = convert(source, labels=False)
    assert result.training == ()
    assert [p.name for p in result.folder.iterdir()] == ["imagesTs"]
    assert [case.name for case in find_cases(result.folder / "imagesTs", ["T1"], ".nii.gz")] == list(
        result.to_predict
    )
    convert(source, images=rename(source / "images", "18", "19"), labels=relabel(source))
    assert len(open_dataset(result.folder).cases) == 2


def rename(folder: Path, old: str, new: str) -> Path:
    (folder / old).rename(folder / new)
    return folder


def relabel(source: Path) -> Path:
    (source / "images" / "p_1").rename(source / "images" / "p_2")
    (source / "masks" / "p_1").rename(source / "masks" / "p_2")
    return rename(source / "masks", "18", "19")


def test_images_to_predict_join_a_dataset_of_the_same_channel(source: Path) -> None:
    convert(source)
    assert complaint(source, labels=False, channel="T2").endswith(
        "Dataset027_T1 has the channels T1 in .nii.gz, not T2 in .nii.gz: choose another number"
    )
    assert complaint(source, labels=False).endswith(
        "sub-18_slices-007-008_0000.nii.gz exists already: choose another number or remove it"
    )
    (source / "raw/Dataset027_T1/imagesTs/sub-18_slices-007-008_0000.nii.gz").unlink()
    assert len(convert(source, labels=False).to_predict) == 3
    assert len(open_dataset(source / "raw" / "Dataset027_T1").cases) == 2


def test_a_dataset_is_never_overwritten_and_a_number_never_shared(source: Path) -> None:
    convert(source)
    assert complaint(source).endswith("holds a dataset already: choose another number or remove it")
    assert complaint(source, name="Dataset0027_X").endswith(
        "raw has the number 27 already (Dataset027_T1): choose another number"
    )


def test_all_problems_are_told_at_once(source: Path) -> None:
    images, masks = source / "images", source / "masks"
    picture(images / "18" / "08.png")
    (images / "18" / "58.png").rename(images / "18" / "slice58.png")
    mask(masks / "18" / "99.png")
    (images / "empty").mkdir()
    picture(images / "___" / "1.png")
    picture(images / "P1" / "1.png")
    picture(images / "5.png")
    text = complaint(source)
    assert text.splitlines() == [
        "nothing was converted because of these problems (7):",
        f"  - {images}/18/08.png and {images}/18/8.png are the same slice: remove one",
        f"  - {images}/18/slice58.png is not named by its slice's number: rename it, for example {images}/18/058.png",
        f"  - {images}/empty holds no pictures (.png, .tif, .tiff): add some or remove the folder",
        f"  - {images} holds 5.png outside of a subject's folder: move it to SUBJECT/NUMBER.png",
        f"  - {masks}/18/99.png is a mask without an image: add {images}/18/99.png",
        "  - subject '___' has no letter from A to Z and no digit: rename its folder",
        "  - subjects 'P1' and 'p_1' would both become sub-p1: rename one",
    ]


def test_all_wrong_pixels_are_told_at_once(source: Path) -> None:
    images, masks = source / "images", source / "masks"
    picture(images / "18" / "60.png", shape=(5, 8))
    picture(masks / "18" / "59.png", np.zeros((4, 7), np.uint8))
    picture(masks / "18" / "61.png", np.arange(35, dtype=np.uint8).reshape(SHAPE))
    (masks / "18" / "061.png").unlink()
    picture(masks / "p_1" / "3.png", np.full(SHAPE, 255, np.uint8))
    text = complaint(source)
    assert text.splitlines() == [
        "nothing was converted because of these problems (4):",
        f"  - {masks}/18/59.png (7 x 4 pixels of uint8) and {images}/18/59.png (7 x 5 pixels of uint8) differ in size: save the mask on the image's grid",
        f"  - {masks}/18/61.png holds the values 0, 1, 2, 3, 4, 5, …: a mask has 0 and one other value",
        f"  - {images}/18/59.png (7 x 5 pixels of uint8) and {images}/18/60.png (8 x 5 pixels of uint8) follow each other, but differ: save them alike",
        f"  - {masks}/p_1/3.png holds the values 255: a mask has 0 and one other value",
    ]


def test_slices_of_different_depth_are_not_mixed(source: Path) -> None:
    path = picture(source / "images" / "18" / "60.png", np.full(SHAPE, 500, np.uint16))
    assert f"{path} (7 x 5 pixels of uint16) follow each other, but differ" in complaint(source)


def test_masks_with_different_values_for_a_lesion_are_told(source: Path) -> None:
    mask(source / "masks" / "18" / "59.png", value=1)
    masks = source / "masks"
    assert complaint(source) == (
        f"masks mark lesions with different values (1 in {masks}/18/59.png, 255 in {masks}/18/061.png): "
        "save all with the same"
    )


def test_empty_masks_and_masks_of_one_count_as_known(source: Path) -> None:
    for path in (source / "masks").rglob("*.png"):
        mask(path, value=1)
    picture(source / "masks" / "18" / "59.png", np.zeros(SHAPE, np.uint8))
    label = read_image(convert(source).folder / "labelsTr" / "sub-18_slices-058-062.nii.gz").array
    assert [sorted(set(z.ravel().tolist())) for z in label] == [[2], [0], [2], [0, 1], [2]]


def test_grey_colour_pictures_are_taken_and_colourful_and_damaged_ones_told(source: Path) -> None:
    grey = np.repeat(np.full((*SHAPE, 1), 60, np.uint8), 3, axis=2)
    path = picture(source / "images" / "18" / "60.png", grey)
    image = read_image(convert(source).folder / "imagesTr" / "sub-18_slices-058-062_0000.nii.gz")
    assert image.array[2].tolist() == np.full(SHAPE, 60).tolist()
    grey[2, 3] = (9, 8, 7)
    picture(path, grey)
    (source / "images" / "18" / "61.png").write_text("no picture")
    text = complaint(source, name="Dataset028_T1")
    assert f"  - {path} has 3 values per pixel: write one file per channel" in text
    assert "61.png cannot be read: its content is not what its ending says" in text


def test_a_picture_of_several_pages_is_told(source: Path) -> None:
    path = source / "images" / "p_1" / "3.tif"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, *SHAPE), np.uint8)), str(path))
    assert complaint(source) == f"{path} holds 2 slices: save one slice per file"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": Path("/no/such")}, "cannot read /no/such: it does not exist: check the path"),
        ({"labels": Path("/no/such")}, "cannot read /no/such: it does not exist: check the path"),
        ({"channel": " "}, "a channel's name and three spacings above 0 mm are needed, not ' ' and 3.0, 0.7, 0.5"),
        ({"spacing_zyx_mm": (0.0, 1.0, 1.0)}, "a channel's name and three spacings above 0 mm are needed, not 'T1' and 0.0, 1.0, 1.0"),
        ({"name": "T1"}, "raw/T1 is not named like a dataset: name it DatasetNNN_Name"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_told(source: Path, changes: dict[str, Any], words: str) -> None:
    if "labels" in changes:
        changes = {**changes}
        with pytest.raises(PwmlError) as caught:
            convert_slices(
                images=source / "images",
                labels=changes["labels"],
                channel="T1",
                spacing_zyx_mm=(3.0, 0.7, 0.5),
                folder_of_dataset=source / "raw" / "Dataset001_A",
            )
        assert str(caught.value) == words
    else:
        assert complaint(source, **changes).endswith(words)


def test_empty_folders_are_told(source: Path) -> None:
    for path in ("images", "masks"):
        (source / path).rename(source / f"old_{path}")
        (source / path).mkdir()
    text = complaint(source)
    assert f"{source}/images is empty: put pictures there as SUBJECT/NUMBER.png" in text
    assert f"{source}/masks is empty" in text


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_nothing_half_made(source: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3, 90, 90), np.uint8)
    for number in range(3):
        picture(source / "images" / "21" / f"{number}.png", noise[number])
    assert "the disk is full" in complaint(source, labels=False)
    assert list((source / "raw").iterdir()) == []


def test_an_interrupted_conversion_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pwmlunet.data.slices.write_dataset_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(source)
    assert list((source / "raw").iterdir()) == []


def test_real_slices(tmp_path: Path) -> None:
    beside = Path(__file__).parents[3] / "shared" / "data"
    data = Path(os.environ.get("PWML_TEST_DATA", beside)) / "pwml_t1"
    if not data.is_dir():
        pytest.skip(f"{data} is absent")
    result = convert_slices(
        images=data / "inputs",
        labels=data / "gts",
        channel="T1",
        spacing_zyx_mm=(3.0, 0.7, 0.7),
        folder_of_dataset=tmp_path / "Dataset027_PWML",
    )
    dataset = open_dataset(result.folder)
    assert len(dataset.cases) == 11
    assert len({case.subject for case in dataset.cases}) == 6
    label = read_image(dataset.cases[0].label or Path()).array
    assert dataset.cases[0].name == "sub-18_slices-058-062"
    assert [bool((z == 2).all()) for z in label] == [True, False, True, False, True]


# --- Medical Segmentation Decathlon -------------------------------------------------------------------------

GEOMETRY = Geometry((3, 4, 5), (3.0, 0.7, 0.5), (-10.0, 20.0, 30.0))


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task with two training cases and one test case of two channels."""
    folder = tmp_path / "Task04_Brain"
    for path in ("imagesTr/BRAIN_001", "imagesTr/BRAIN_002", "imagesTs/BRAIN_003"):
        write_channels(folder / f"{path}.nii.gz", 2)
    for path in ("labelsTr/BRAIN_001.nii.gz", "labelsTr/BRAIN_002.nii.gz"):
        write_image(folder / path, np.ones(GEOMETRY.shape_zyx, np.uint8), GEOMETRY)
    (folder / "imagesTr" / "._BRAIN_001.nii.gz").touch()
    describe(folder)
    return folder


def write_channels(path: Path, n_channels: int) -> None:
    volumes = []
    for channel in range(n_channels):
        volume = sitk.GetImageFromArray(np.full(GEOMETRY.shape_zyx, 10 + channel, np.int16))
        volume.SetSpacing(GEOMETRY.spacing_zyx_mm[::-1])
        volume.SetOrigin(GEOMETRY.origin_xyz_mm)
        volumes.append(volume)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.JoinSeries(volumes) if n_channels > 1 else volumes[0], str(path))


def describe(folder: Path, **changes: Any) -> None:
    cases = [
        {"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"}
        for n in ("BRAIN_001", "BRAIN_002")
    ]
    content = {
        "modality": {"0": "FLAIR", "1": "T1"},
        "labels": {"0": "Background", "2": "core", "1": "edema"},
        "numTraining": 2,
        "training": [
            *cases,
            {"image": "./imagesTr/._BRAIN_001.nii.gz", "label": "./labelsTr/._BRAIN_001.nii.gz"},
        ],
        "test": ["./imagesTs/BRAIN_003.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps({**content, **changes}))


def msd_complaint(task: Path, **arguments: Any) -> str:
    with pytest.raises(PwmlError) as caught:
        convert_msd(task, raw=task.parent / "raw", **arguments)
    assert not list((task.parent / "raw").glob("*/*"))
    return str(caught.value)


def test_a_task_becomes_a_dataset_with_a_file_per_channel(task: Path) -> None:
    result = convert_msd(task, raw=task.parent / "raw")
    assert result.folder == task.parent / "raw" / "Dataset004_Brain"
    assert (result.training, result.to_predict) == (("BRAIN_001", "BRAIN_002"), ("BRAIN_003",))
    dataset = open_dataset(result.folder)
    assert dataset.channel_names == ("FLAIR", "T1")
    assert [(t.name, t.values) for t in dataset.labels.targets] == [("edema", (1,)), ("core", (2,))]
    for cases in (dataset.cases, find_cases(result.folder / "imagesTs", ["FLAIR", "T1"], ".nii.gz")):
        for channel, path in enumerate(cases[0].images):
            image = read_image(path)
            assert image.geometry.differences(GEOMETRY) == []
            assert np.unique(image.array).tolist() == [10 + channel]
    assert read_image(dataset.cases[0].label or Path()).array.all()


def test_a_task_of_one_channel_is_copied_and_other_formats_are_written_anew(task: Path) -> None:
    path = task / "imagesTr" / "BRAIN_001.nii.gz"
    write_channels(path, 1)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1))
    write_channels(task / "imagesTr" / "BRAIN_002.nii", 1)
    cases = [
        {"image": f"imagesTr/{n}", "label": "labelsTr/BRAIN_001.nii.gz"}
        for n in ("BRAIN_001.nii.gz", "BRAIN_002.nii")
    ]
    describe(task, modality={"0": "FLAIR"}, training=cases, test=[])
    dataset = open_dataset(convert_msd(task, raw=task.parent / "raw", number=9, name="Mine").folder)
    assert dataset.name == "Dataset009_Mine"
    for case in dataset.cases:
        assert read_image(case.images[0]).geometry.differences(GEOMETRY) == []
    assert dataset.cases[0].images[0].read_bytes() == path.read_bytes()
    assert dataset.cases[1].images[0].read_bytes()[:2] == b"\x1f\x8b"  # gzip
    assert not (dataset.folder / "imagesTs").exists()


def test_missing_damaged_and_wrong_files_of_a_task_are_told_at_once(task: Path) -> None:
    (task / "labelsTr" / "BRAIN_001.nii.gz").unlink()
    write_channels(task / "imagesTr" / "BRAIN_002.nii.gz", 1)
    (task / "imagesTs" / "BRAIN_003.nii.gz").write_text("nothing")
    text = msd_complaint(task)
    where = task / "dataset.json"
    assert text.splitlines() == [
        "nothing was converted because of these problems (3):",
        f"  - case BRAIN_001: {task}/labelsTr/BRAIN_001.nii.gz is missing: add it or remove the case from {where}",
        f'  - {task}/imagesTr/BRAIN_002.nii.gz has 1 channels, but "modality" in {where} names 2: correct one of them',
        f"  - {task}/imagesTs/BRAIN_003.nii.gz cannot be read: its content is not what its ending says, or it is damaged: copy it again from its source",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modality": {}}, "has no usable 'modality': is this a task of the Medical Segmentation Decathlon?"),
        ({"labels": {"background": 0}}, "'labels' must be numbered \"0\", \"1\", …, not {'background': 0}"),
        ({"training": ["a.nii.gz"]}, "an entry must have the paths \"image\" and \"label\", not 'a.nii.gz'"),
        ({"training": [{"image": "a/x.nii.gz", "label": "l"}, {"image": "b/x.nii.gz", "label": "l"}]}, "lists two images named x.nii.gz: rename one"),
    ],
)  # fmt: skip
def test_a_wrong_dataset_json_of_a_task_is_told(task: Path, changes: dict[str, Any], words: str) -> None:
    describe(task, **changes)
    assert words in msd_complaint(task)


def test_a_full_disk_while_copying_is_told(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setattr("shutil.copyfile", fail)
    assert "Dataset004_Brain: the disk is full" in msd_complaint(task)


def test_a_folder_that_is_no_task_is_told(task: Path, tmp_path: Path) -> None:
    assert msd_complaint(tmp_path).endswith("is not named TaskNN_Name: give --dataset and --name")
    words = "dataset.json is missing: give the folder of a task, which holds dataset.json"
    assert msd_complaint(tmp_path, number=1, name="A").endswith(words)
    assert "cannot be called 'Dataset001_a b'" in msd_complaint(task, number=1, name="a b")


@pytest.mark.parametrize(("number", "name"), [(-1, "A"), (1, ""), (1, "a/b"), (1, "-a")])
def test_a_dataset_folder_has_a_number_and_a_plain_name(tmp_path: Path, number: int, name: str) -> None:
    assert dataset_folder(tmp_path, 27, "T1-w") == tmp_path / "Dataset027_T1-w"
    with pytest.raises(PwmlError, match="choose a number from 0 on and a name of letters, digits, - and _"):
        dataset_folder(tmp_path, number, name)
