"""Numbered pictures of slices, of which some have a mask → raw dataset."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.data.convert import HEADLINE, Converted, building, check_folder
from pwmlunet.data.dataset import read_dataset_json, write_dataset_json
from pwmlunet.data.image import Geometry, Image, read_image, write_image
from pwmlunet.errors import PwmlError
from pwmlunet.files import explain

SLICE_ENDINGS = (".png", ".tif", ".tiff")
LABELS = {"background": 0, "lesion": 1, "ignore": 2}
"""Of datasets made from slices; slices without a mask are "ignore"."""


@dataclass(frozen=True)
class _Slice:
    number: int
    image: Path
    mask: Path | None


@dataclass
class _SliceReader:
    """Reads slices into volumes and gathers what is wrong with them."""

    spacing_zyx_mm: tuple[float, float, float]
    problems: list[str] = field(default_factory=list)
    mask_values: dict[int, Path] = field(default_factory=dict)
    """Values that mean lesion, each with the first mask that has it."""

    def read_run(self, run: list[_Slice]) -> tuple[Image, Image] | None:
        """The stacked slices and their mask on a grid where z is the slice's number; None after a problem."""
        slices = [self._read_picture(s.image) for s in run]
        masks = [self._read_mask(s, image) for s, image in zip(run, slices, strict=True)]
        whole = [(s, image) for s, image in zip(run, slices, strict=True) if image is not None]
        for (a, first), (b, other) in itertools.pairwise(whole):
            if first.shape != other.shape or first.dtype != other.dtype:
                self.problems.append(f"{a.image} ({_describe(first)}) and {b.image} ({_describe(other)}) follow each other, but differ: save them alike")  # fmt: skip
                return None
        if len(whole) < len(run) or any(mask is None for mask in masks):
            return None
        dz, dy, dx = self.spacing_zyx_mm
        array = np.stack([image for _, image in whole])
        depth, height, width = array.shape
        geometry = Geometry((depth, height, width), (dz, dy, dx), (0.0, 0.0, run[0].number * dz))
        return Image(array, geometry), Image(np.stack([m for m in masks if m is not None]), geometry)

    def _read_picture(self, path: Path) -> NDArray[Any] | None:
        try:
            array = read_image(path).array
        except PwmlError as error:
            self.problems.append(str(error))
            return None
        if len(array) != 1:
            self.problems.append(f"{path} holds {len(array)} slices: save one slice per file")
            return None
        return np.asarray(array[0])

    def _read_mask(self, slice_: _Slice, image: NDArray[Any] | None) -> NDArray[np.uint8] | None:
        """Labels of a slice, all "ignore" where it has no mask; None after a problem."""
        if slice_.mask is None:
            return None if image is None else np.full(image.shape, LABELS["ignore"], np.uint8)
        mask = self._read_picture(slice_.mask)
        if mask is None or image is None:
            return None
        values = np.unique(mask)
        if mask.shape != image.shape:
            self.problems.append(f"{slice_.mask} ({_describe(mask)}) and {slice_.image} ({_describe(image)}) differ in size: save the mask on the image's grid")  # fmt: skip
        elif len(values) > 2 or values[0] != 0:
            self.problems.append(f"{slice_.mask} holds the values {join(values[:6])}{', …' * (len(values) > 6)}: a mask has 0 and one other value")  # fmt: skip
        else:
            self.mask_values.update({int(v): slice_.mask for v in values[1:] if v not in self.mask_values})
            return np.where(mask != 0, np.uint8(LABELS["lesion"]), np.uint8(LABELS["background"]))
        return None


def _describe(slice_: NDArray[Any]) -> str:
    return f"{slice_.shape[1]} x {slice_.shape[0]} pixels of {slice_.dtype}"


def convert_slices(
    *,
    images: Path,
    labels: Path | None,
    channel: str,
    spacing_zyx_mm: tuple[float, float, float],
    folder_of_dataset: Path,
) -> Converted:
    """Makes a raw dataset of pictures SUBJECT/NUMBER.png, a case of each run of consecutive numbers.

    A slice without a mask gets the ignore label; a run without any mask, and every run where `labels` is
    None, goes to imagesTs.

    Raises:
        PwmlError: all problems of all files at once; nothing is written then.
    """
    check_folder(folder_of_dataset, training=labels is not None)
    _check_channel(folder_of_dataset, channel)
    if not channel.strip() or not all(math.isfinite(mm) and mm > 0 for mm in spacing_zyx_mm):
        raise PwmlError(f"a channel's name and three spacings above 0 mm are needed, not {channel!r} and {join(spacing_zyx_mm)}")  # fmt: skip
    runs, subjects = _find_runs(images, labels)
    with building(folder_of_dataset) as new:
        training = _write_runs(new, runs, _SliceReader(spacing_zyx_mm))
        if training:
            subjects = {name: subjects[name] for name in training}
            write_dataset_json(new, channel_names=(channel,), labels=LABELS, subjects=subjects)
    return Converted(folder_of_dataset, training, tuple(sorted(runs.keys() - set(training))))


def _check_channel(folder: Path, channel: str) -> None:
    """PwmlError if images of this channel do not belong to the dataset that the folder may hold."""
    if not (folder / "dataset.json").exists():
        return
    content = read_dataset_json(folder / "dataset.json")
    names, ending = list(content["channel_names"].values()), content["file_ending"]
    if names != [channel] or ending != ".nii.gz":
        raise PwmlError(f"{folder} has the channels {join(names)} in {ending}, not {channel} in .nii.gz: choose another number")  # fmt: skip


def _write_runs(new: Path, runs: Mapping[str, list[_Slice]], reader: _SliceReader) -> tuple[str, ...]:
    """Writes each run as a case; the names of those that have a mask."""
    training = tuple(name for name, run in runs.items() if any(s.mask for s in run))
    for name, run in runs.items():
        volume = reader.read_run(run)
        if volume is None or reader.problems:
            continue
        image, mask = volume
        if name in training:
            write_image(new / "labelsTr" / f"{name}.nii.gz", mask.array, mask.geometry)
        part = "imagesTr" if name in training else "imagesTs"
        write_image(new / part / f"{name}_0000.nii.gz", image.array, image.geometry)
    if len(reader.mask_values) > 1:
        used = join(f"{value} in {path}" for value, path in sorted(reader.mask_values.items()))
        reader.problems.append(f"masks mark lesions with different values ({used}): save all with the same")
    if reader.problems:
        raise PwmlError.listing(HEADLINE, reader.problems)
    return training


def _find_runs(images: Path, labels: Path | None) -> tuple[dict[str, list[_Slice]], dict[str, str]]:
    """The slices of each case and its subject's real name, both by the case's name."""
    problems: list[str] = []
    pictures = _find_pictures(images, problems)
    masks = _find_pictures(labels, problems) if labels else {}
    for subject, numbers in masks.items():
        for number in sorted(numbers.keys() - pictures.get(subject, {}).keys()):
            problems.append(f"{numbers[number]} is a mask without an image: add {images / subject / numbers[number].name}")  # fmt: skip
    runs: dict[str, list[_Slice]] = {}
    subjects: dict[str, str] = {}
    for subject, short in _short_names(pictures, problems).items():
        found = pictures[subject]
        slices = [_Slice(n, found[n], masks.get(subject, {}).get(n)) for n in sorted(found)]
        for run in _consecutive(slices):
            name = f"sub-{short}_slices-{run[0].number:03d}-{run[-1].number:03d}"
            runs[name], subjects[name] = run, subject
    if problems:
        raise PwmlError.listing(HEADLINE, problems)
    return runs, subjects


def _consecutive(slices: list[_Slice]) -> Iterator[list[_Slice]]:
    for _, run in itertools.groupby(enumerate(slices), lambda pair: pair[1].number - pair[0]):
        yield [slice_ for _, slice_ in run]


def _short_names(subjects: Mapping[str, Any], problems: list[str]) -> dict[str, str]:
    """Each subject's name in letters and digits."""
    short = {subject: re.sub(r"[^A-Za-z0-9]", "", subject) for subject in subjects}
    owner: dict[str, str] = {}
    for subject, name in short.items():
        if not name:
            problems.append(f"subject {subject!r} has no letter from A to Z and no digit: rename its folder")
        elif owner.setdefault(name.casefold(), subject) != subject:
            problems.append(f"subjects {owner[name.casefold()]!r} and {subject!r} would both become sub-{name}: rename one")  # fmt: skip
    return short


def _find_pictures(folder: Path, problems: list[str]) -> dict[str, dict[int, Path]]:
    """Pictures SUBJECT/NUMBER.png by subject and number."""
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
        found = {p.name: _numbered(p, problems) for p in entries if p.is_dir()}
    except OSError as error:
        raise explain(error, folder, "read") from error
    loose = [p.name for p in entries if p.suffix.lower() in SLICE_ENDINGS and not p.is_dir()]
    if loose:
        problems.append(
            f"{folder} holds {loose[0]} outside of a subject's folder: move it to SUBJECT/NUMBER.png"
        )
    elif not found:
        problems.append(f"{folder} is empty: put pictures there as SUBJECT/NUMBER.png")
    return found


def _numbered(folder: Path, problems: list[str]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SLICE_ENDINGS and p.name[0] != "."):
        if not re.fullmatch(r"[0-9]+", path.stem):
            problems.append(f"{path} is not named by its slice's number: rename it, for example {folder / '058.png'}")  # fmt: skip
        elif found.setdefault(int(path.stem), path) != path:
            problems.append(f"{found[int(path.stem)]} and {path} are the same slice: remove one")
    if not found and not any(p.suffix.lower() in SLICE_ENDINGS for p in folder.iterdir()):
        problems.append(f"{folder} holds no pictures ({join(SLICE_ENDINGS)}): add some or remove the folder")
    return found
