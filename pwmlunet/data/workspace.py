"""Where raw datasets, preprocessed cases and trained models live."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pwmlunet.config import did_you_mean, join
from pwmlunet.data.dataset import FOLDER_NAME
from pwmlunet.errors import PwmlError


@dataclass(frozen=True)
class Workspace:
    """The three folders of all datasets, and other places where raw datasets are looked for."""

    raw: Path
    preprocessed: Path
    results: Path
    more_raw: tuple[Path, ...] = ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Workspace":
        """The folders that PWML_RAW, PWML_PREPROCESSED and PWML_RESULTS name, by default parts of PWML_HOME.

        PWML_HOME itself is by default the folder `pwmlunet` in the user's home. Raw datasets in nnU-Net's
        `nnUNet_raw` are found too; nothing is written there.
        """
        home = Path(environment.get("PWML_HOME") or Path.home() / "pwmlunet").expanduser()

        def place(variable: str, name: str) -> Path:
            return Path(environment.get(variable) or home / name).expanduser()

        peer = environment.get("nnUNet_raw")
        return cls(
            place("PWML_RAW", "raw"),
            place("PWML_PREPROCESSED", "preprocessed"),
            place("PWML_RESULTS", "results"),
            (Path(peer).expanduser(),) if peer else (),
        )

    def find_raw(self, identifier: str) -> Path:
        """The raw dataset folder of a number (1), a full name (Dataset001_T1) or a short one (T1)."""
        folders = _datasets(self._raw_places)
        if not folders:
            raise PwmlError(
                f"no dataset found in {join(self._raw_places)}: put a folder DatasetNNN_Name there, or set PWML_RAW"
            )
        return _choose(identifier, folders)

    def find_preprocessed(self, identifier: str) -> Path:
        """The folder of a planned dataset."""
        folders = _datasets([self.preprocessed])
        if not any(is_called(folder, identifier) for folder in folders):
            raw = [folder for folder in _datasets(self._raw_places) if is_called(folder, identifier)]
            what = [f"{folder.name} is not planned yet" for folder in raw]
            if not folders:
                what.append(f"nothing is planned yet in {self.preprocessed}")
            if what:
                raise PwmlError(f"{what[0]}: run pwml_plan_and_preprocess -d {identifier}")
        return _choose(identifier, folders)

    @property
    def _raw_places(self) -> list[Path]:
        return [self.raw, *self.more_raw]


def _datasets(parents: list[Path]) -> list[Path]:
    there = [parent for parent in parents if parent.is_dir()]
    found = {p.resolve(): p for parent in there for p in sorted(parent.iterdir())}
    return [p for p in found.values() if p.is_dir() and FOLDER_NAME.fullmatch(p.name)]


def _choose(identifier: str, folders: list[Path]) -> Path:
    chosen = [folder for folder in folders if is_called(folder, identifier)]
    if len(chosen) > 1:
        raise PwmlError(
            f"dataset {identifier!r} means several folders ({join(chosen)}): rename one, or give the full name"
        )
    if not chosen:
        raise PwmlError(
            f"unknown dataset {identifier!r}{did_you_mean(identifier, [f.name for f in folders])}"
        )
    return chosen[0]


def is_called(folder: Path, identifier: str) -> bool:
    """Whether a number, a full or a short name means a folder DatasetNNN_Name."""
    number, name = FOLDER_NAME.fullmatch(folder.name).groups()  # type: ignore[union-attr]
    if identifier.isdecimal():
        return int(number) == int(identifier)
    return identifier in (folder.name, name)
