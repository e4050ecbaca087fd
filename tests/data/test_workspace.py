from pathlib import Path

import pytest

from pwmlunet.data.workspace import Workspace
from pwmlunet.errors import PwmlError


def workspace(
    tmp_path: Path, *raw: str, peer: tuple[str, ...] = (), planned: tuple[str, ...] = ()
) -> Workspace:
    for parent, names in (("raw", raw), ("peer", peer), ("preprocessed", planned)):
        for name in names:
            (tmp_path / parent / name).mkdir(parents=True)
    return Workspace.from_environment({"PWML_HOME": str(tmp_path), "nnUNet_raw": str(tmp_path / "peer")})


def complaint(places: Workspace, identifier: str) -> str:
    with pytest.raises(PwmlError) as caught:
        places.find_raw(identifier)
    return str(caught.value)


def test_folders_are_in_the_users_home_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    places = Workspace.from_environment({"PWML_HOME": ""})
    assert places == Workspace(
        *(Path("/home/someone/pwmlunet") / n for n in ("raw", "preprocessed", "results"))
    )


def test_each_variable_moves_its_folder_and_home_moves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    places = Workspace.from_environment({"PWML_HOME": "/data", "PWML_RAW": "/r", "PWML_RESULTS": "~/out"})
    assert places == Workspace(Path("/r"), Path("/data/preprocessed"), Path("/home/someone/out"))
    places = Workspace.from_environment(
        {"PWML_HOME": "/data", "PWML_PREPROCESSED": "/p", "nnUNet_raw": "~/n"}
    )
    assert places.preprocessed == Path("/p")
    assert places.more_raw == (Path("/home/someone/n"),)


@pytest.mark.parametrize("identifier", ["27", "027", "Dataset027_PWML", "PWML"])
def test_a_dataset_is_found_by_number_and_by_name(tmp_path: Path, identifier: str) -> None:
    places = workspace(tmp_path, "Dataset027_PWML", "Dataset127_PWML-2", "other")
    assert places.find_raw(identifier) == tmp_path / "raw" / "Dataset027_PWML"


def test_datasets_in_the_peers_folder_are_found(tmp_path: Path) -> None:
    places = workspace(tmp_path, peer=("Dataset003_MS",))
    assert places.find_raw("3") == tmp_path / "peer" / "Dataset003_MS"


def test_the_same_folder_in_both_places_is_one(tmp_path: Path) -> None:
    places = workspace(tmp_path, "Dataset003_MS")
    (tmp_path / "peer").symlink_to(tmp_path / "raw")
    assert places.find_raw("3").name == "Dataset003_MS"


def test_two_datasets_with_one_number_are_told(tmp_path: Path) -> None:
    places = workspace(tmp_path, "Dataset003_MS", peer=("Dataset003_T1",))
    folders = f"{tmp_path}/raw/Dataset003_MS, {tmp_path}/peer/Dataset003_T1"
    expected = f"dataset '3' means several folders ({folders}): rename one, or give the full name"
    assert complaint(places, "3") == expected
    assert places.find_raw("Dataset003_T1").parent.name == "peer"


def test_an_unknown_dataset_is_told_with_a_suggestion(tmp_path: Path) -> None:
    places = workspace(tmp_path, "Dataset027_PWML", "Dataset003_MS")
    expected = "unknown dataset 'Dataset27_PWML' (did you mean 'Dataset027_PWML'?)"
    assert complaint(places, "Dataset27_PWML") == expected
    assert complaint(places, "4") == "unknown dataset '4' (known: Dataset003_MS, Dataset027_PWML)"


def test_no_dataset_at_all_is_told(tmp_path: Path) -> None:
    places = workspace(tmp_path)
    expected = f"no dataset found in {tmp_path}/raw, {tmp_path}/peer: put a folder DatasetNNN_Name there, or set PWML_RAW"
    assert complaint(places, "1") == expected


def test_planned_datasets_are_found_and_others_told(tmp_path: Path) -> None:
    places = workspace(tmp_path, "Dataset001_A", planned=())
    with pytest.raises(PwmlError, match=r"nothing is planned yet in .*: run pwml_plan_and_preprocess -d 2"):
        places.find_preprocessed("2")
    places = workspace(tmp_path, planned=("Dataset002_B",))
    with pytest.raises(
        PwmlError, match=r"^Dataset001_A is not planned yet: run pwml_plan_and_preprocess -d A$"
    ):
        places.find_preprocessed("A")
    assert places.find_preprocessed("B") == tmp_path / "preprocessed" / "Dataset002_B"
