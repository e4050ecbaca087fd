"""Registration of files: the moved volume and a picture to check beside it; folders are taken pair by pair."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from pwmlunet.data.image import read_image, write_image
from pwmlunet.data.parallel import default_workers, map_cases
from pwmlunet.data.registration import Registered, find_obstacle, register
from pwmlunet.data.registration_picture import draw_registration
from pwmlunet.errors import PwmlError
from pwmlunet.files import explain

logger = logging.getLogger(__name__)

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


@dataclass(frozen=True)
class Pair:
    """A volume to be moved onto another one, and what is written."""

    name: str
    fixed: Path
    moving: Path
    output: Path
    picture: Path


def register_pair(pair: Pair) -> Registered:
    """Writes the moving volume on the fixed one's grid and a picture to check; the log says what is odd.

    Raises:
        PwmlError: a file cannot be read or written, or is a single slice or empty.
    """
    images = [read_image(path) for path in (pair.fixed, pair.moving)]
    for path, image in zip((pair.fixed, pair.moving), images, strict=True):
        if obstacle := find_obstacle(image):
            raise PwmlError(f"{path} cannot be registered: {obstacle}")
    registered = register(*images)
    write_image(pair.output, registered.image.array, registered.image.geometry)
    draw_registration(pair.picture, images[0], registered)
    if registered.warning:
        logger.warning("%s: %s", pair.moving, registered.warning)
    return registered


def register_files(fixed: Path, moving: Path, output: Path) -> dict[Path, Registered]:
    """Registers a file, or all files of a folder, and writes OUTPUT and OUTPUT_check.png.

    In folders, files of the same name belong together; a channel's number (_0000) at its end does not count.

    Returns:
        What came of each written file.

    Raises:
        PwmlError: all problems of all files at once. Files that belong to nobody are found before any work.
    """
    pairs = _pairs_in(fixed, moving, output) if moving.is_dir() else [_pair(fixed, moving, output)]
    found, problems = map_cases(register_pair, pairs, workers=default_workers(), title="registering")
    if problems:
        raise PwmlError.of_some(problems, len(pairs), "pairs")
    return {pair.output: registered for pair, registered in zip(pairs, found, strict=True)}


def _pair(fixed: Path, moving: Path, output: Path) -> Pair:
    if fixed.is_dir() or output.is_dir():
        raise PwmlError(f"{moving} is a file: give files for the fixed image and the output too, or three folders")  # fmt: skip
    if not output.name.endswith(VOLUME_ENDINGS):
        raise PwmlError(f"{output} is no name for a volume: end it in .nii.gz")
    if output.resolve() in (fixed.resolve(), moving.resolve()):
        raise PwmlError(f"{output} would be overwritten: give the output another name or folder")
    stem = _without_ending(output)
    return Pair(stem, fixed, moving, output, output.with_name(f"{stem}_check.png"))


def _pairs_in(fixed: Path, moving: Path, output: Path) -> list[Pair]:
    if not fixed.is_dir():
        raise PwmlError(f"{moving} is a folder and {fixed} is none: give three files or three folders")
    problems: list[str] = []
    targets, movers = (_volumes(folder, problems) for folder in (fixed, moving))
    if not movers:
        raise PwmlError(f"{moving} holds no volumes ({', '.join(VOLUME_ENDINGS)}): check the path")
    for name in sorted(movers.keys() - targets.keys()):
        problems.append(f"{movers[name]} has no partner of that name in {fixed}: add it or remove the file")
    for name in sorted(targets.keys() - movers.keys()):
        problems.append(f"{targets[name]} has no partner of that name in {moving}: add it or remove the file")
    if problems:
        raise PwmlError.listing("nothing was registered because of these problems", problems)
    return [_pair(targets[name], path, output / path.name) for name, path in movers.items()]


def _volumes(folder: Path, problems: list[str]) -> dict[str, Path]:
    """The volumes of a folder by name, less ending and channel."""
    found: dict[str, Path] = {}
    try:
        paths = sorted(p for p in folder.iterdir() if p.name.endswith(VOLUME_ENDINGS) and p.name[0] != ".")
    except OSError as error:
        raise explain(error, folder, "read") from error
    for path in paths:
        first = found.setdefault(re.sub(r"_\d{4}$", "", _without_ending(path)), path)
        if first != path:
            problems.append(f"{first} and {path} have the same name: leave one channel in the folder")
    return found


def _without_ending(path: Path) -> str:
    return path.name.removesuffix(next((e for e in VOLUME_ENDINGS if path.name.endswith(e)), ""))
