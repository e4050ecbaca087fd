"""Shared by the tests of the ground: a disk that fills up, and a small raw dataset."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pwmlunet.data.image import Geometry, write_image


@pytest.fixture
def full_disk() -> Iterator[None]:
    """No file may grow beyond 20 kB: what follows is what a full disk gives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Writes a raw dataset of two channels and three cases; keywords replace keys of dataset.json."""

    def make(name: str = "Dataset001_Tiny", parent: Path = tmp_path, **changes: Any) -> Path:
        folder = parent / name
        content = {
            "channel_names": {"0": "FLAIR", "1": "T1"},
            "labels": {"background": 0, "lesion": 1, "ignore": 2},
            "numTraining": 3,
            "file_ending": ".nrrd",
        }
        geometry = Geometry((2, 3, 4), (3.0, 0.7, 0.5))
        array = np.zeros((2, 3, 4), np.uint8)
        for case in ("sub-01_ses-1", "sub-01_ses-2", "other"):
            for channel in range(2):
                write_image(folder / "imagesTr" / f"{case}_{channel:04d}.nrrd", array, geometry)
            write_image(folder / "labelsTr" / f"{case}.nrrd", array, geometry)
        content = {key: value for key, value in {**content, **changes}.items() if value is not None}
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder

    return make
