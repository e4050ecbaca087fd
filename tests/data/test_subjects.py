import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pwmlunet.data.convert import Converted
from pwmlunet.data.dataset import find_cases, open_dataset
from pwmlunet.data.image import Geometry, read_image, write_image
from pwmlunet.data.subjects import convert_subjects
from pwmlunet.errors import PwmlError

DIRECTION = (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
GRID = Geometry((6, 20, 24), (3.0, 1.4, 1.1), (-20.0, 15.0, 40.0), DIRECTION)


def volume(value: int, geometry: Geometry = GRID) -> np.ndarray:
    """A block off the middle, of this brightness."""
    array = np.zeros(geometry.shape_zyx, np.int16)
    array[1:5, 4:15, 6:21] = value
    array[2:4, 6:9, 8:18] = value // 2
    return array


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Subjects a (masks 0/1), sub-02_ses-1 (another format) and c (no mask)."""
    folder = tmp_path / "subjects"
    for number, (name, ending) in enumerate((("a", ".nii.gz"), ("sub-02_ses-1", ".nrrd"), ("c", ".nii"))):
        write_image(folder / name / f"flair{ending}", volume(100 + number), GRID)
        write_image(folder / name / f"t1{ending}", volume(200 + number), GRID)
        if name != "c":
            write_image(folder / name / f"lesions{ending}", (volume(10) == 5).astype(np.uint8), GRID)
    (folder / "LICENSE.txt").touch()
    (folder / ".hidden").mkdir()
    return folder


def convert(source: Path, **changes: Any) -> Converted:
    arguments: dict[str, Any] = {
        "channels": {"flair": "FLAIR", "t1": "T1"},
        "mask": "lesions",
        "labels": {"lesion": 1},
        "registers": False,
        "folder_of_dataset": source.parent / "raw" / "Dataset007_Ms",
    }
    return convert_subjects(source, **{**arguments, **changes})


def complaint(source: Path, **changes: Any) -> str:
    """What a conversion that must fail says; nothing may be left behind."""
    with pytest.raises(PwmlError) as caught:
        convert(source, **changes)
    assert not list((source.parent / "raw").glob("*"))
    return str(caught.value)


def test_subjects_become_cases_of_several_channels(source: Path) -> None:
    result = convert(source)
    assert (result.training, result.to_predict) == (("a", "sub-02_ses-1"), ("c",))
    dataset = open_dataset(result.folder)
    assert dataset.channel_names == ("FLAIR", "T1")
    assert {case.name: case.subject for case in dataset.cases} == {"a": "a", "sub-02_ses-1": "sub-02"}
    cases = (*dataset.cases, *find_cases(result.folder / "imagesTs", ("FLAIR", "T1"), ".nii.gz"))
    for number, case in zip((0, 1, 2), cases, strict=True):
        for channel, path in enumerate(case.images):
            image = read_image(path)
            assert image.array.max() == 100 * (channel + 1) + number
            assert image.geometry.differences(GRID) == []
    assert np.array_equal(read_image(dataset.cases[1].label or Path()).array, volume(10) == 5)
    assert sorted(p.name for p in result.folder.iterdir()) == ["dataset.json", "imagesTr", "imagesTs", "labelsTr"]  # fmt: skip
    assert (result.folder / "imagesTr/a_0001.nii.gz").read_bytes() == (source / "a/t1.nii.gz").read_bytes()


def test_labels_have_names(source: Path) -> None:
    write_image(source / "a" / "lesions.nii.gz", (volume(6) // 3).astype(np.uint8), GRID)
    words = f"{source}/a/lesions.nii.gz holds the values 0, 1, 2, but the labels are 0, 1: name each value, for example --labels FCI=1 LACI=2"
    assert complaint(source) == words
    labels = open_dataset(convert(source, labels={"LACI": 2, "FCI": 1}).folder).labels
    assert [(target.name, target.values) for target in labels.targets] == [("FCI", (1,)), ("LACI", (2,))]
    with pytest.raises(PwmlError, match='--labels: "labels" uses a value twice'):
        convert(source, labels={"FCI": 1, "LACI": 1}, folder_of_dataset=source / "Dataset008_Ms")


def test_all_problems_are_told_at_once(source: Path) -> None:
    write_image(source / "c" / "t1.nii", volume(5), replace(GRID, origin_xyz_mm=(-20.0, 15.0, 41.0)))
    write_image(source / "sub-02_ses-1" / "t1.nrrd", volume(5), replace(GRID, spacing_zyx_mm=(2.0, 1.4, 1.1)))
    write_image(source / "sub-02_ses-1" / "lesions.nrrd", np.full((6, 20, 24), 255, np.uint8), replace(GRID, origin_xyz_mm=(-20.0, 15.0, 41.0)))  # fmt: skip
    (source / "a" / "flair.nii.gz").write_text("nothing")
    assert complaint(source).splitlines() == [
        "nothing was converted because of these problems (5):",
        f"  - {source}/a/flair.nii.gz cannot be read: its content is not what its ending says, or it is damaged: copy it again from its source",
        f"  - {source}/c/t1.nii is not on the grid of {source}/c/flair.nii (origin -20, 15, 41 against -20, 15, 40 mm): add --register",
        f"  - {source}/sub-02_ses-1/t1.nrrd is not on the grid of {source}/sub-02_ses-1/flair.nrrd (spacing 2, 1.4, 1.1 against 3, 1.4, 1.1 mm): add --register",
        f"  - {source}/sub-02_ses-1/lesions.nrrd is not on the grid of {source}/sub-02_ses-1/flair.nrrd (origin -20, 15, 41 against -20, 15, 40 mm): save it there, or name the channel first on which it was drawn",
        f"  - {source}/sub-02_ses-1/lesions.nrrd holds the values 255, but the labels are 0, 1: name each value, for example --labels FCI=1 LACI=2",
    ]  # fmt: skip


def test_all_misplaced_files_are_told_at_once(source: Path) -> None:
    (source / "a" / "t1.nii.gz").unlink()
    write_image(source / "c" / "flair.mha", volume(5), GRID)
    write_image(source / "x.nrrd", volume(5), GRID)
    assert complaint(source).splitlines() == [
        "nothing was converted because of these problems (3):",
        f"  - {source}/a lacks t1.nii.gz: add it or remove the folder",
        f"  - {source}/c/flair.nii and flair.mha have the same name: remove one",
        f"  - {source} holds x.nrrd outside of a subject's folder: move it to SUBJECT/x.nrrd",
    ]
    (source / "a").rename(source.parent / "elsewhere")
    assert "is empty: put images there as SUBJECT/flair.nii.gz" in complaint(source / ".hidden")


def test_a_wrong_name_of_the_masks_is_told(source: Path) -> None:
    words = f"no folder in {source} holds lesion.nii.gz: give the name of the masks' files with --mask"
    assert complaint(source, mask="lesion") == words
    assert "it does not exist: check the path" in complaint(source / "none")


def test_a_channel_is_registered_onto_the_first(source: Path) -> None:
    for name in ("a", "sub-02_ses-1", "c"):
        ending = {"a": ".nii.gz", "c": ".nii"}.get(name, ".nrrd")
        moved = replace(GRID, origin_xyz_mm=(-16.0, 15.0, 37.0))
        write_image(source / name / f"t1{ending}", volume(200), moved)
    result = convert(source, registers=True)
    for part, name in (("imagesTr", "a"), ("imagesTs", "c")):
        image = read_image(result.folder / part / f"{name}_0001.nii.gz")
        assert image.geometry.differences(GRID) == []
        overlap = (image.array > 50) & (volume(200) > 50)
        assert 2 * overlap.sum() / ((image.array > 50).sum() + (volume(200) > 50).sum()) > 0.9
    pictures = sorted(path.name for path in (result.folder / "registration").iterdir())
    assert pictures == ["a_0001.png", "c_0001.png", "sub-02_ses-1_0001.png"]
    assert len(open_dataset(result.folder).cases) == 2


def test_single_slices_are_not_registered(source: Path) -> None:
    flat = replace(GRID, shape_zyx=(1, 20, 24))
    write_image(source / "a" / "flair.nii.gz", volume(9)[2:3], flat)
    write_image(source / "a" / "lesions.nii.gz", np.zeros((1, 20, 24), np.uint8), flat)
    write_image(source / "c" / "t1.nii", np.zeros((6, 20, 24), np.uint8), GRID)
    assert complaint(source, registers=True).splitlines()[1:] == [
        f"  - {source}/a/flair.nii.gz cannot be registered: it is a volume of 1 slice, and fewer than 4 do not say how a head is tilted",
        f"  - {source}/c/t1.nii cannot be registered: it holds hardly anything but the value 0",
    ]


def test_a_dataset_is_never_overwritten(source: Path) -> None:
    convert(source)
    with pytest.raises(PwmlError, match="holds a dataset already: choose another number or remove it"):
        convert(source)


def test_the_command_makes_a_dataset_and_registers(
    source: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PWML_RAW", str(source.parent / "raw"))
    given = ("subjects", source, "--dataset", "7", "--name", "Ms", "--channels", "flair", "t1", "--mask")
    code, out, _ = command("convert", *given, "lesions", "--channel-names", "FLAIR", "T1", "--label", "MS")
    folder = source.parent / "raw" / "Dataset007_Ms"
    assert (code, out) == (0, f"2 cases to train on and 1 to predict in {folder}\n")
    dataset = open_dataset(folder)
    assert dataset.channel_names == ("FLAIR", "T1") and dataset.labels.targets[0].name == "MS"
    assert "there are 2 --channels and 1 --channel-names" in command("convert", *given, "m", "--channel-names", "x")[2]  # fmt: skip
    assert "'t1' is given twice" in command("convert", *given, "t1")[2]
    assert "'FCI' is not like FCI=1" in command("convert", *given, "lesions", "--labels", "FCI")[2]
    images = [source / "a" / name for name in ("flair.nii.gz", "t1.nii.gz")]
    output = source.parent / "moved.nii.gz"
    code, out, _ = command("convert", "register", "--fixed", images[0], "--moving", images[1], "--output", output)  # fmt: skip
    assert code == 0 and out.startswith(f"{output}: turned by ") and output.is_file()
    assert out.endswith("1 registered: look at the pictures NAME_check.png beside them\n")


@pytest.mark.parametrize(
    ("folder", "channels", "mask"),
    [
        ("ms_flair_t1", ("flair", "t1"), "lesions"),
        ("ms_flair_change", ("flair_baseline", "flair_followup"), "change"),
    ],
)
def test_real_pairs(tmp_path: Path, folder: str, channels: tuple[str, str], mask: str) -> None:
    beside = Path(__file__).parents[3] / "shared" / "data"
    data = Path(os.environ.get("PWML_TEST_DATA", beside)) / folder
    if not data.is_dir():
        pytest.skip(f"{data} is absent")
    target = tmp_path / "raw" / "Dataset007_Pairs"
    convert(data, channels={name: name for name in channels}, mask=mask, folder_of_dataset=target)
    cases = open_dataset(target).cases
    assert len(cases) == 2
    assert all(len(case.images) == 2 for case in cases)
