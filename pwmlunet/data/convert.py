"""Building a raw dataset as a whole, and the Medical Segmentation Decathlon's layout → raw dataset."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pwmlunet.data.dataset import FOLDER_NAME, subject_of, write_dataset_json
from pwmlunet.data.image import FILE_ENDINGS, count_channels, read_channels, write_image
from pwmlunet.errors import PwmlError
from pwmlunet.files import explain, make_folder, read_json

_PARTS = ("imagesTr", "labelsTr", "imagesTs")
HEADLINE = "nothing was converted because of these problems"


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    folder: Path
    """The raw dataset, DatasetNNN_Name."""
    training: tuple[str, ...]
    """Cases in imagesTr and labelsTr."""
    to_predict: tuple[str, ...]
    """Cases in imagesTs, which have no mask."""


def dataset_folder(raw: Path, number: int, name: str) -> Path:
    """The folder DatasetNNN_Name among the raw datasets; PwmlError for a name that it cannot have."""
    folder = raw / f"Dataset{number:03d}_{name}"
    if not FOLDER_NAME.fullmatch(folder.name):
        raise PwmlError(
            f"a dataset cannot be called {folder.name!r}: choose a number from 0 on and a name of letters, digits, - and _"
        )
    return folder


def check_folder(folder: Path, *, training: bool) -> None:
    """PwmlError if a dataset with (or without) training cases cannot be put into this folder."""
    match = FOLDER_NAME.fullmatch(folder.name)
    if not match:
        raise PwmlError(f"{folder} is not named like a dataset: name it DatasetNNN_Name")
    others = [f.name for f in folder.parent.glob("Dataset*") if f.name != folder.name]
    if same := [name for name in others if re.match(rf"Dataset0*{int(match[1])}_", name)]:
        raise PwmlError(f"{folder.parent} has the number {int(match[1])} already ({same[0]}): choose another number")  # fmt: skip
    if training and any((folder / part).exists() for part in ("dataset.json", "imagesTr", "labelsTr")):
        raise PwmlError(f"{folder} holds a dataset already: choose another number or remove it")


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """A hidden folder with imagesTr, labelsTr and imagesTs that becomes `folder` if the block succeeds.

    Where `folder` holds other images to predict, the new ones join them. A failure leaves nothing behind.
    """
    make_folder(folder.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".convert-", dir=folder.parent) as temporary:
            new = Path(temporary) / folder.name
            for part in _PARTS:
                (new / part).mkdir(parents=True)
            yield new
            _install(new, folder)
    except OSError as error:
        raise explain(error, folder, "write") from error


def _install(new: Path, folder: Path) -> None:
    for part in _PARTS:
        if not any((new / part).iterdir()):
            (new / part).rmdir()
    if not folder.exists():
        new.replace(folder)
        return
    files = sorted(path.relative_to(new) for path in new.rglob("*") if path.is_file())
    if there := [path for path in files if (folder / path).exists()]:
        raise PwmlError(f"{folder / there[0]} exists already: choose another number or remove it")
    for path in files:
        make_folder((folder / path).parent)
        (new / path).replace(folder / path)


def convert_msd(folder: Path, *, raw: Path, number: int | None = None, name: str | None = None) -> Converted:
    """Makes a raw dataset of a task of the Medical Segmentation Decathlon; 4-D images become channels.

    Number and name are by default those of the folder, TaskNN_Name.

    Raises:
        PwmlError: all problems of all files at once; nothing is written then.
    """
    target = dataset_folder(raw, *_number_and_name(folder, number, name))
    check_folder(target, training=True)
    where = folder / "dataset.json"
    content = _read_msd_json(where)
    channels = tuple(str(content["modality"][key]) for key in sorted(content["modality"], key=int))
    labels = {**{str(n): int(v) for v, n in content["labels"].items() if int(v)}, "background": 0}
    training = _msd_cases(where, content["training"])
    tests = _msd_cases(where, [{"image": image, "label": image} for image in content.get("test", [])])
    problems = [p for cases in (training, tests) for p in _find_msd_problems(cases, where, len(channels))]
    if problems:
        raise PwmlError.listing(HEADLINE, problems)
    with building(target) as new:
        for case, (image, label) in training.items():
            _write_channels(image, new / "imagesTr" / case)
            copy_image(label, new / "labelsTr" / f"{case}.nii.gz")
        for case, (image, _) in tests.items():
            _write_channels(image, new / "imagesTs" / case)
        write_dataset_json(
            new,
            channel_names=channels,
            labels=dict(sorted(labels.items(), key=lambda item: item[1])),
            subjects={case: subject_of(case) for case in training},
        )
    return Converted(target, tuple(training), tuple(tests))


def _number_and_name(folder: Path, number: int | None, name: str | None) -> tuple[int, str]:
    match = re.fullmatch(r"Task(\d+)_([\w-]+)", folder.resolve().name)
    if not match and (number is None or name is None):
        raise PwmlError(f"{folder} is not named TaskNN_Name: give --dataset and --name")
    from_folder = (int(match[1]), match[2]) if match else (0, "")
    return (from_folder[0] if number is None else number), name or from_folder[1]


def _read_msd_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise PwmlError(f"{path} is missing: give the folder of a task, which holds dataset.json")
    content = read_json(path)
    kinds = {"modality": dict, "labels": dict, "training": list}
    for key, kind in kinds.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind) or not content[key]:
            raise PwmlError(f"{path} has no usable {key!r}: is this a task of the Medical Segmentation Decathlon?")  # fmt: skip
    for key in ("modality", "labels"):
        if not all(number.isdecimal() for number in content[key]):
            raise PwmlError(f'{path}: {key!r} must be numbered "0", "1", …, not {content[key]!r}')
    return dict(content)


_MsdCases = dict[str, tuple[Path, Path]]


def _msd_cases(where: Path, entries: list[Any]) -> _MsdCases:
    """Image and mask of each case by its name."""
    cases: _MsdCases = {}
    for entry in entries:
        paths = [entry.get(key) for key in ("image", "label")] if isinstance(entry, dict) else [None]
        if not all(isinstance(path, str) for path in paths):
            raise PwmlError(f'{where}: an entry must have the paths "image" and "label", not {entry!r}')
        image = where.parent / entry["image"]
        ending = next((e for e in FILE_ENDINGS if image.name.endswith(e)), "")
        case = image.name.removesuffix(ending)
        if case.startswith("._"):  # left by macOS beside each real file
            continue
        if case in cases:
            raise PwmlError(f"{where} lists two images named {image.name}: rename one")
        cases[case] = (image, where.parent / entry["label"])
    return cases


def _find_msd_problems(cases: _MsdCases, where: Path, n_channels: int) -> Iterator[str]:
    for case, (image, label) in cases.items():
        for path in sorted({image, label}):
            if not path.is_file():
                yield f"case {case}: {path} is missing: add it or remove the case from {where}"
        if not image.is_file():
            continue
        try:
            found = count_channels(image)
        except PwmlError as error:
            yield str(error)
        else:
            if found != n_channels:
                yield f'{image} has {found} channels, but "modality" in {where} names {n_channels}: correct one of them'


def _write_channels(image: Path, target: Path) -> None:
    """Writes the channels of `image` as target_0000.nii.gz, target_0001.nii.gz and so on."""
    if count_channels(image) == 1:
        copy_image(image, Path(f"{target}_0000.nii.gz"))
        return
    for index, channel in enumerate(read_channels(image)):
        write_image(Path(f"{target}_{index:04d}.nii.gz"), channel.array, channel.geometry)


def copy_image(source: Path, target: Path) -> None:
    """Writes an image as .nii.gz; a file of that kind is copied as it is."""
    if source.name.endswith(".nii.gz"):
        shutil.copyfile(source, target)
    else:
        image = read_channels(source)[0]
        write_image(target, image.array, image.geometry)
