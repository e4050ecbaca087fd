"""A folder for each subject with a file for each channel and a mask → raw dataset."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.data.convert import HEADLINE, Converted, building, check_folder, copy_image
from pwmlunet.data.dataset import Labels, subject_of, write_dataset_json
from pwmlunet.data.image import FILE_ENDINGS, Image, read_image
from pwmlunet.data.parallel import default_workers, map_cases
from pwmlunet.data.registration import find_obstacle
from pwmlunet.data.registration_files import Pair, register_pair
from pwmlunet.errors import PwmlError
from pwmlunet.files import explain

logger = logging.getLogger(__name__)

PICTURES = "registration"
"""The folder of a dataset with a picture of each registered channel."""


@dataclass(frozen=True)
class _Subject:
    name: str
    """Of the folder and of the case."""
    images: tuple[Path, ...]
    mask: Path | None


def convert_subjects(
    folder: Path,
    *,
    channels: Mapping[str, str],
    mask: str,
    labels: Mapping[str, int],
    registers: bool,
    folder_of_dataset: Path,
) -> Converted:
    """Makes a raw dataset of SUBJECT/CHANNEL.nii.gz and SUBJECT/MASK.nii.gz; without a mask into imagesTs.

    Args:
        folder: That of the subjects.
        channels: What each channel is called in the dataset, by the name of its files, in order.
        mask: The name of the masks' files.
        labels: What the values in a mask mean, less the background.
        registers: Whether every channel after the first is moved onto it; without, all must be on its grid.
        folder_of_dataset: What is made, DatasetNNN_Name.

    Raises:
        PwmlError: all problems of all files at once; nothing is written then.
    """
    check_folder(folder_of_dataset, training=True)
    all_labels = {"background": 0, **labels}
    known = Labels.from_json(all_labels, None, "--labels").known_values
    subjects = _find_subjects(folder, tuple(channels), mask)
    check = partial(_find_problems, known=known, registers=registers)
    found, unreadable = map_cases(check, subjects, workers=default_workers(), title="checking")
    if problems := [*chain.from_iterable(found), *unreadable]:
        raise PwmlError.listing(HEADLINE, problems)
    training = tuple(subject.name for subject in subjects if subject.mask)
    with building(folder_of_dataset) as new:
        write = partial(_write, new, registers=registers)
        _, problems = map_cases(write, subjects, workers=default_workers(), title="writing")
        if problems:
            raise PwmlError.listing(HEADLINE, problems)
        write_dataset_json(
            new,
            channel_names=tuple(channels.values()),
            labels=all_labels,
            subjects={name: subject_of(name) for name in training},
        )
    return Converted(folder_of_dataset, training, tuple(s.name for s in subjects if not s.mask))


def _find_subjects(folder: Path, channels: Sequence[str], mask: str) -> list[_Subject]:
    problems: list[str] = []
    try:
        entries = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    except OSError as error:
        raise explain(error, folder, "read") from error
    subjects = [_subject(path, channels, mask, problems) for path in entries if path.is_dir()]
    if loose := [path.name for path in entries if path.is_file() and path.name.endswith(FILE_ENDINGS)]:
        problems.append(f"{folder} holds {loose[0]} outside of a subject's folder: move it to SUBJECT/{loose[0]}")  # fmt: skip
    elif not subjects:
        problems.append(f"{folder} is empty: put images there as SUBJECT/{channels[0]}.nii.gz")
    elif not any(subject.mask for subject in subjects):
        problems.append(f"no folder in {folder} holds {mask}.nii.gz: give the name of the masks' files with --mask")  # fmt: skip
    if problems:
        raise PwmlError.listing(HEADLINE, problems)
    return subjects


def _subject(folder: Path, channels: Sequence[str], mask: str, problems: list[str]) -> _Subject:
    images = [_file(folder, channel, problems) for channel in channels]
    for channel, image in zip(channels, images, strict=True):
        if image is None:
            problems.append(f"{folder} lacks {channel}.nii.gz: add it or remove the folder")
    return _Subject(folder.name, tuple(i for i in images if i), _file(folder, mask, problems))


def _file(folder: Path, name: str, problems: list[str]) -> Path | None:
    """The file of that name with one of the endings that can be read."""
    found = [path for ending in FILE_ENDINGS if (path := folder / f"{name}{ending}").is_file()]
    if len(found) > 1:
        problems.append(f"{found[0]} and {found[1].name} have the same name: remove one")
    return found[0] if found else None


def _find_problems(subject: _Subject, *, known: frozenset[int], registers: bool) -> list[str]:
    """What is wrong with the files of a subject, which are all read."""
    problems: list[str] = []
    first, *others = (_read(path, problems) for path in subject.images)
    for path, image in zip(subject.images, (first, *others), strict=True):
        if registers and others and image and (obstacle := find_obstacle(image)):
            problems.append(f"{path} cannot be registered: {obstacle}")
        elif not registers and image and first and (differences := image.geometry.differences(first.geometry)):  # fmt: skip
            problems.append(f"{path} is not on the grid of {subject.images[0]} ({join(differences)}): add --register")  # fmt: skip
    if subject.mask and (mask := _read(subject.mask, problems)):
        if first and (differences := mask.geometry.differences(first.geometry)):
            problems.append(f"{subject.mask} is not on the grid of {subject.images[0]} ({join(differences)}): save it there, or name the channel first on which it was drawn")  # fmt: skip
        problems.extend(_strange_values(subject.mask, mask.array, known))
    return problems


def _read(path: Path, problems: list[str]) -> Image | None:
    try:
        return read_image(path)
    except PwmlError as error:
        problems.append(str(error))
        return None


def _strange_values(path: Path, mask: NDArray[Any], known: frozenset[int]) -> Iterator[str]:
    values = np.unique(mask)
    if not np.isin(values, list(known)).all():
        shown = join([f"{value:g}" for value in values[:6]]) + ", …" * (len(values) > 6)
        yield f"{path} holds the values {shown}, but the labels are {join(sorted(known))}: name each value, for example --labels FCI=1 LACI=2"  # fmt: skip


def _write(new: Path, subject: _Subject, *, registers: bool) -> None:
    folder = new / ("imagesTr" if subject.mask else "imagesTs")
    if subject.mask:
        copy_image(subject.mask, new / "labelsTr" / f"{subject.name}.nii.gz")
    for index, path in enumerate(subject.images):
        target = folder / f"{subject.name}_{index:04d}.nii.gz"
        if index and registers:
            picture = new / PICTURES / f"{subject.name}_{index:04d}.png"
            moved = register_pair(Pair(subject.name, subject.images[0], path, target, picture))
            logger.info("%s: %s", path, moved.describe())
        else:
            copy_image(path, target)
