"""Synthetic cases of a modality, written as a raw dataset."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pwmlunet.data.dataset import FOLDER_NAME, write_dataset_json
from pwmlunet.data.image import Geometry, write_image
from pwmlunet.demo import flair, heads, spots, ultrasound
from pwmlunet.demo.lesions import CASES_PER_HEALTHY
from pwmlunet.errors import PwmlError
from pwmlunet.files import make_folder

Shape = tuple[int, int, int]
Channels = tuple[NDArray[Any], ...]
Scan = Callable[[Generator], tuple[Channels, NDArray[np.uint8], Geometry]]
"""Makes an image for each channel, mask and grid of a session of a subject."""


@dataclass(frozen=True)
class Modality:
    """How cases of a modality are made."""

    channel_names: tuple[str, ...]
    demo_shape_zyx: Shape
    lesions: tuple[int, int]
    """Of a subject that has any: at least and at most."""
    make_subject: Callable[[Generator, Shape, int], Scan]
    """A subject with so many lesions."""
    labels: tuple[str, ...] = ("lesion",)
    """Names of the label values from 1 on."""
    cases_per_healthy: int = CASES_PER_HEALTHY
    """One subject in so many has no lesion."""


def _make_head(rng: Generator, shape_zyx: Shape, n_lesions: int) -> Scan:
    return _one_channel(partial(heads.scan, heads.make_head(rng, shape_zyx=shape_zyx, n_lesions=n_lesions)))


def _make_brain(rng: Generator, shape_zyx: Shape, n_lesions: int) -> Scan:
    brain = ultrasound.make_brain(rng, n_lesions=n_lesions)
    return _one_channel(partial(ultrasound.scan, brain, shape_zyx=shape_zyx))


def _make_patient(rng: Generator, shape_zyx: Shape, n_lesions: int) -> Scan:
    patient = flair.make_patient(rng, n_slices=shape_zyx[0], n_lesions=n_lesions)
    return partial(flair.scan, patient, shape_zyx=shape_zyx)


def _one_channel(scan: Callable[[Generator], tuple[NDArray[Any], NDArray[np.uint8], Geometry]]) -> Scan:
    def scan_channel(rng: Generator) -> tuple[Channels, NDArray[np.uint8], Geometry]:
        image, mask, geometry = scan(rng)
        return (image,), mask, geometry

    return scan_channel


MODALITIES = {
    "t1": Modality(("T1",), heads.DEMO_SHAPE_ZYX, heads.LESIONS, _make_head),
    "cus": Modality(("cUS",), ultrasound.DEMO_SHAPE_ZYX, ultrasound.LESIONS, _make_brain),
    "flair": Modality(
        ("T2 FLAIR", "T1 FLAIR"),
        flair.DEMO_SHAPE_ZYX,
        flair.LESIONS,
        _make_patient,
        labels=spots.KINDS,
        cases_per_healthy=flair.CASES_PER_HEALTHY,
    ),
}


def write_dataset(
    folder: Path,
    *,
    modality: str = "t1",
    n_train: int = 12,
    n_test: int = 4,
    shape_zyx: Shape | None = None,
    seed: int = 0,
) -> None:
    """Writes a raw dataset of `n_train` training and `n_test` held-out cases into a new folder.

    The first training subject is scanned twice, every fifth subject (every third of FLAIR pairs) has no lesion,
    and labelsTs holds the references of the held-out subjects. The files are the same for the same seed.

    Raises:
        PwmlError: the folder is not called DatasetNNN_Name or holds something already, or `n_train` is below 2.
    """
    kind = MODALITIES[modality]
    _check(folder, n_train)
    sessions = [(1, 1), (1, 2), *((subject, 1) for subject in range(2, n_train + n_test))]
    for index, (subject, session) in enumerate(sessions[: n_train + n_test]):
        rng = np.random.default_rng([seed, subject])
        least, most = kind.lesions
        n_lesions = 0 if _is_healthy(subject, kind) else int(rng.integers(least, most + 1))
        scan = kind.make_subject(rng, shape_zyx or kind.demo_shape_zyx, n_lesions)
        images, mask, geometry = scan(np.random.default_rng([seed, subject, session]))
        name, part = f"sub-{subject:02d}_ses-{session}", "Tr" if index < n_train else "Ts"
        for channel, image in enumerate(images):
            write_image(folder / f"images{part}" / f"{name}_{channel:04d}.nii.gz", image, geometry)
        write_image(folder / f"labels{part}" / f"{name}.nii.gz", mask, geometry)
    write_dataset_json(
        folder,
        channel_names=kind.channel_names,
        labels={"background": 0, **{name: value for value, name in enumerate(kind.labels, start=1)}},
        subjects={f"sub-{i:02d}_ses-{j}": f"sub-{i:02d}" for i, j in sessions[:n_train]},
    )


def _is_healthy(subject: int, kind: Modality) -> bool:
    return (subject - 3) % kind.cases_per_healthy == 0  # the third subject of every modality


def _check(folder: Path, n_train: int) -> None:
    if not FOLDER_NAME.fullmatch(folder.name):
        raise PwmlError(f"{folder.name} is no dataset's name: call the folder DatasetNNN_Name, e.g. Dataset001_Demo")  # fmt: skip
    if n_train < 2:
        raise PwmlError(f"{n_train} training cases are too few: ask for 2 or more, the first subject has two sessions")  # fmt: skip
    if make_folder(folder) and any(folder.iterdir()):
        raise PwmlError(f"{folder} is not empty: choose another folder, or remove it first")
