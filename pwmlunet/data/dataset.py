"""A raw dataset: nnU-Net's folder with images, masks and dataset.json."""

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.data.image import FILE_ENDINGS
from pwmlunet.errors import PwmlError
from pwmlunet.files import explain, read_json, write_json

FOLDER_NAME = re.compile(r"Dataset(\d{3,})_(\w[\w-]*)")


@dataclass(frozen=True)
class Target:
    """One thing to segment: the union of some label values (a plain label is a union of one)."""

    name: str
    values: tuple[int, ...]
    written_as: int
    """The label value that a predicted mask gets where this target is found."""


@dataclass(frozen=True)
class Labels:
    """What the values in a mask mean."""

    targets: tuple[Target, ...]
    """In the order of the network's outputs, by value; for regions as in dataset.json, later ones written over earlier."""
    ignore: int | None
    """The value of voxels whose label is unknown; they count nowhere."""
    are_regions: bool = False
    """Whether targets may overlap (nnU-Net's regions)."""

    @property
    def known_values(self) -> frozenset[int]:
        """Every value that a mask may hold."""
        values = {0, *(v for target in self.targets for v in target.values)}
        return frozenset(values if self.ignore is None else values | {self.ignore})

    def encode(self, mask: NDArray[Any]) -> NDArray[np.bool_]:
        """Where each target lies: (K, Z, Y, X) for a mask (Z, Y, X)."""
        return np.stack([np.isin(mask, target.values) for target in self.targets])

    def valid(self, mask: NDArray[Any]) -> NDArray[np.bool_]:
        """Where the label is known, with the mask's shape."""
        return np.ones(mask.shape, bool) if self.ignore is None else np.asarray(mask != self.ignore)

    def decode(self, probability: NDArray[np.floating[Any]], threshold: float) -> NDArray[np.uint8]:
        """A mask (Z, Y, X) from probabilities (K, Z, Y, X).

        A voxel above the threshold gets the most probable target's value, or for regions the last one's.
        """
        above = probability > threshold
        mask = np.zeros(probability.shape[1:], np.uint8)
        best = None if self.are_regions or len(self.targets) == 1 else probability.argmax(0)
        for index, target in enumerate(self.targets):
            mask[above[index] if best is None else above[index] & (best == index)] = target.written_as
        return mask

    def as_one(self) -> "Labels":
        """These labels with all targets as one, written as the first."""
        if len(self.targets) == 1:
            return self
        name = " + ".join(target.name for target in self.targets)
        values = tuple(dict.fromkeys(value for target in self.targets for value in target.values))
        return Labels((Target(name, values, self.targets[0].written_as),), self.ignore)

    @classmethod
    def from_json(
        cls, labels: Mapping[str, int | list[int]], class_order: list[int] | None, where: str
    ) -> "Labels":
        """Labels from dataset.json's "labels" and "regions_class_order"."""
        named = {name: _label_values(name, value, where) for name, value in labels.items()}
        background = named.pop("background", None)
        if background != (0,):
            raise PwmlError(f'{where}: "labels" must have "background": 0')
        ignore = named.pop("ignore", None)
        if not named:
            raise PwmlError(f'{where}: "labels" names nothing beside the background: add e.g. "lesion": 1')
        values = {v for vs in named.values() for v in vs}
        if ignore is not None and (len(ignore) != 1 or ignore[0] <= max(values)):
            raise PwmlError(f'{where}: "ignore" must be one number above all other labels')
        are_regions = any(isinstance(value, list | tuple) for value in labels.values())
        if 0 in values or (not are_regions and len(values) < len(named)):
            raise PwmlError(
                f'{where}: "labels" uses a value twice: give each its own, 0 for the background only'
            )
        if are_regions and not _is_class_order(class_order, len(named)):
            raise PwmlError(f'{where}: "regions_class_order" must list one label value for each region')
        written = class_order if are_regions and class_order else [vs[0] for vs in named.values()]
        targets = [Target(n, vs, w) for (n, vs), w in zip(named.items(), written, strict=True)]
        if not are_regions:
            # as nnU-Net orders the channels of its probabilities
            targets.sort(key=lambda target: target.written_as)
        return cls(tuple(targets), ignore[0] if ignore else None, are_regions)


def _label_values(name: str, value: Any, where: str) -> tuple[int, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(type(v) is int and 0 <= v <= 255 for v in values):
        raise PwmlError(f"{where}: label {name!r} must be a whole number from 0 to 255, not {value!r}")
    return tuple(values)


def _is_class_order(order: Any, n_regions: int) -> bool:
    return (
        isinstance(order, list)
        and len(order) == n_regions
        and all(type(v) is int and 0 < v <= 255 for v in order)
    )


@dataclass(frozen=True)
class CaseFiles:
    """The files of one case."""

    name: str
    subject: str
    images: tuple[Path, ...]
    """One file per channel, in the dataset's order."""
    label: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """A raw dataset whose files are known to exist; nothing is read yet."""

    folder: Path
    channel_names: tuple[str, ...]
    labels: Labels
    file_ending: str
    cases: tuple[CaseFiles, ...]
    """The training cases by name, sorted."""
    content: Mapping[str, Any]
    """dataset.json as it is."""

    @property
    def name(self) -> str:
        """The folder's name, DatasetNNN_Name."""
        return self.folder.name


def open_dataset(folder: Path) -> Dataset:
    """The raw dataset in a folder with dataset.json, imagesTr and labelsTr.

    Raises:
        PwmlError: something is missing or contradicts dataset.json; all findings at once.
    """
    if not folder.is_dir():
        raise PwmlError(f"{folder} is not a folder: check the path")
    path = folder / "dataset.json"
    content = read_dataset_json(path)
    ending = content["file_ending"]
    channels = _channel_names(content["channel_names"], str(path))
    labels = Labels.from_json(content["labels"], content.get("regions_class_order"), str(path))
    problems: list[str] = []
    if "dataset" in content:
        files = list(_explicit_cases(folder, content["dataset"], str(path)))
    else:
        files = list(_listed_cases(folder, len(channels), ending, problems))
    subjects = content.get("subjects", {})
    unknown = sorted(set(subjects) - {name for name, _, _ in files})
    if unknown:
        problems.append(f'{path}: "subjects" names cases that do not exist: {join(unknown)}')
    cases = tuple(
        CaseFiles(name, str(subjects.get(name, subject_of(name))), images, label)
        for name, images, label in sorted(files)
    )
    for case in cases:
        problems.extend(_missing_files(case, channels))
    if not cases:
        problems.append(f"{folder / 'imagesTr'} holds no *_0000{ending}: put the training images there")
    elif content["numTraining"] != len(cases):
        problems.append(f'{path}: "numTraining" is {content["numTraining"]}, but there are {len(cases)} training cases: correct one of them')  # fmt: skip
    if problems:
        raise PwmlError.listing(f"{folder.name} has problems", problems)
    return Dataset(folder, channels, labels, ending, cases, content)


def read_dataset_json(path: Path) -> dict[str, Any]:
    """dataset.json with the keys that every dataset has; other tools' extra keys are left alone."""
    if not path.is_file():
        raise PwmlError(f"{path} is missing: see documentation/dataset_format.md for what it holds")
    content = read_json(path)
    if not isinstance(content, dict):
        raise PwmlError(f"{path} must hold an object with named values")
    missing = [k for k in ("channel_names", "labels", "numTraining", "file_ending") if k not in content]
    if missing:
        raise PwmlError(f"{path} lacks {join(missing)}: see documentation/dataset_format.md")
    kinds = {"channel_names": dict, "labels": dict, "file_ending": str, "numTraining": int, "subjects": dict}
    for key, kind in kinds.items():
        if key in content and not isinstance(content[key], kind):
            raise PwmlError(f"{path}: {key!r} has the wrong type: {content[key]!r}")
    if content["file_ending"] not in FILE_ENDINGS:
        raise PwmlError(
            f'{path}: "file_ending" {content["file_ending"]!r} is not one of {join(FILE_ENDINGS)}'
        )
    return content


def _channel_names(names: Mapping[str, str], where: str) -> tuple[str, ...]:
    if sorted(names) != sorted(str(i) for i in range(len(names))) or not names:
        raise PwmlError(f'{where}: "channel_names" must be numbered "0", "1", … without gaps')
    return tuple(str(names[str(i)]) for i in range(len(names)))


_Files = tuple[str, tuple[Path, ...], Path | None]


def _explicit_cases(folder: Path, entries: Any, where: str) -> Iterator[_Files]:
    """Cases whose paths dataset.json gives one by one, relative to the dataset's folder."""
    if not isinstance(entries, dict):
        raise PwmlError(f'{where}: "dataset" must be an object of cases with "images" and "label"')
    for name, entry in entries.items():
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise PwmlError(f'{where}: case {name!r} in "dataset" must be a plain name without slashes')
        if not _is_entry(entry):
            raise PwmlError(
                f'{where}: case {name!r} in "dataset" needs "images" (a list of paths) and "label" (a path)'
            )
        yield name, tuple(folder / image for image in entry["images"]), folder / entry["label"]


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("images"), list):
        return False
    return all(isinstance(path, str) for path in (*entry["images"], entry.get("label")))


def _listed_cases(folder: Path, n_channels: int, ending: str, problems: list[str]) -> Iterator[_Files]:
    images = _channel_files(folder / "imagesTr", ending)
    labels = {_stem(p, ending): p for p in list_files(folder / "labelsTr", ending)}
    for name in sorted(labels.keys() - images.keys()):
        problems.append(f"case {name} has a mask and no image: add {name}_0000{ending} to imagesTr")
    for name, channels in images.items():
        expected = tuple(folder / "imagesTr" / f"{name}_{i:04d}{ending}" for i in range(n_channels))
        for path in sorted(set(channels) - set(expected)):
            problems.append(
                f"case {name}: {path.name} is a channel more than dataset.json names: remove it or name it"
            )
        yield name, expected, labels.get(name, folder / "labelsTr" / f"{name}{ending}")


def find_cases(
    folder: Path, channel_names: Sequence[str], ending: str, *, may_lack: Container[int] = ()
) -> tuple[CaseFiles, ...]:
    """The cases in a folder of images to predict, named CASE_0000, CASE_0001, … as in imagesTs.

    Raises:
        PwmlError: there is none; or cases lack channels that they may not lack, or all of them.
    """
    if not folder.is_dir():
        raise PwmlError(f"{folder} is not a folder: check the path")
    found = _channel_files(folder, ending)
    if not found:
        raise PwmlError(f"{folder} holds no images named CASE_0000{ending}: name them so")
    channels = range(len(channel_names))
    cases = tuple(
        CaseFiles(name, subject_of(name), tuple(folder / f"{name}_{i:04d}{ending}" for i in channels))
        for name in found
    )
    if problems := [problem for case in cases for problem in _lacks(case, channel_names, may_lack)]:
        raise PwmlError.listing(f"{folder} has problems", problems)
    return cases


def _lacks(case: CaseFiles, channel_names: Sequence[str], may_lack: Container[int]) -> Iterator[str]:
    """What a case to predict lacks; one channel must be there in any case."""
    otherwise = ", or ask a model trained with --channel-dropout" if len(channel_names) > 1 else ""
    none = not any(path.is_file() for path in case.images)
    for channel, problem in _missing_channels(case, channel_names):
        if none or channel not in may_lack:
            yield f"{problem}{otherwise}"


def _channel_files(folder: Path, ending: str) -> dict[str, list[Path]]:
    """The files CASE_NNNN of a folder by case."""
    found: dict[str, list[Path]] = {}
    for path in list_files(folder, ending):
        if match := re.fullmatch(r"(.+)_(\d{4})", _stem(path, ending)):
            found.setdefault(match[1], []).append(path)
    return found


def list_files(folder: Path, ending: str) -> list[Path]:
    """The visible files of a folder with an ending, sorted."""
    try:
        return sorted(p for p in folder.iterdir() if p.name.endswith(ending) and p.name[0] != ".")
    except OSError as error:
        raise explain(error, folder, "read") from error


def _stem(path: Path, ending: str) -> str:
    return path.name.removesuffix(ending)


def _missing_files(case: CaseFiles, channel_names: Sequence[str]) -> Iterator[str]:
    if len(case.images) != len(channel_names):
        yield f"case {case.name} lists {len(case.images)} images, but there are {len(channel_names)} channels"
    yield from (problem for _, problem in _missing_channels(case, channel_names))
    if case.label is not None and not case.label.is_file():
        yield f"case {case.name}: its mask {case.label.name} is missing from {case.label.parent.name}: add it or remove the case"


def _missing_channels(case: CaseFiles, channel_names: Sequence[str]) -> Iterator[tuple[int, str]]:
    for channel, (path, name) in enumerate(zip(case.images, channel_names, strict=False)):
        if not path.is_file():
            yield (
                channel,
                f"case {case.name}: channel {channel} ({name}) is missing ({path.name}): add the file",
            )


def subject_of(case: str) -> str:
    """The subject in a BIDS-like name (sub-XX_…), else the case itself."""
    match = re.match(r"sub-[A-Za-z0-9]+(?=_|$)", case)
    return match[0] if match else case


def write_dataset_json(
    folder: Path,
    *,
    channel_names: tuple[str, ...],
    labels: Mapping[str, int],
    subjects: Mapping[str, str],
    file_ending: str = ".nii.gz",
) -> None:
    """Writes the dataset.json of a dataset whose training cases are the keys of `subjects`."""
    write_json(
        folder / "dataset.json",
        {
            "channel_names": {str(i): name for i, name in enumerate(channel_names)},
            "labels": dict(labels),
            "numTraining": len(subjects),
            "file_ending": file_ending,
            "subjects": dict(subjects),
        },
    )
