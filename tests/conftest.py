"""A tiny raw dataset and what comes of it, made once for all tests; tests that change it take a copy."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import entry_point
from scipy.spatial.transform import Rotation

from pwmlunet.data.dataset import write_dataset_json
from pwmlunet.data.image import Geometry, write_image
from pwmlunet.data.workspace import Workspace
from pwmlunet.training.config import TrainingConfig

torch.set_num_threads(1)  # tensors this small only wait for a second thread
os.environ.setdefault("OMP_NUM_THREADS", "1")  # nor need the commands that tests start one

SHAPE_ZYX = (4, 56, 48)
SUBJECTS = {
    "sub-01_ses-1": "sub-01",
    "sub-01_ses-2": "sub-01",
    "sub-02": "sub-02",
    "sub-03": "sub-03",
    "sub-04": "sub-04",
}
RECIPE = TrainingConfig(
    "",
    epochs=2,
    steps_per_epoch=4,
    batch_size=4,
    warmup_steps=2,
    validate_every=1,
    learning_rate=1e-2,
    device="cpu",
    precision="float32",
)


@dataclass(frozen=True)
class RawCase:
    """A case before it is written: image (Z, Y, X), mask, grid."""

    image: Any
    mask: Any
    geometry: Geometry


def oblique(
    shape_zyx: tuple[int, int, int], spacing_zyx_mm: tuple[float, float, float] = (3.0, 0.7, 0.5)
) -> Geometry:
    """A grid that is turned about every axis and lies off the scanner's centre."""
    direction = Rotation.from_euler("xyz", (8, -13, 21), degrees=True).as_matrix().ravel().tolist()
    return Geometry(shape_zyx, spacing_zyx_mm, (-31.5, 12.25, 47.0), tuple(direction))


def head_with_lesions(seed: int, shape_zyx: tuple[int, int, int] = SHAPE_ZYX, n_lesions: int = 3) -> RawCase:
    """An off-centre ellipse wider than high, brighter on one side, with lesions of 1 to 6 pixels."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[tuple(slice(n) for n in shape_zyx)]
    centre_y, centre_x = 0.55 * shape_zyx[1], 0.45 * shape_zyx[2]
    inside = ((y - centre_y) / 10) ** 2 + ((x - centre_x) / 13) ** 2 <= 1
    image = np.where(inside, 100 + 2 * (x - centre_x) + 3 * z, 5) + rng.normal(0, 2, shape_zyx)
    mask = np.zeros(shape_zyx, np.uint8)
    for size in rng.permutation([1, 3, 6])[:n_lesions]:
        where = (
            rng.integers(shape_zyx[0]),
            round(centre_y) + rng.integers(-4, 4),
            round(centre_x) + rng.integers(-6, 4),
        )
        mask[where[0], where[1] : where[1] + 1 + int(size > 3), where[2] : where[2] + min(3, size)] = 1
    return RawCase((image + 80 * mask).astype(np.int16), mask, oblique(shape_zyx))


def write_raw(
    folder: Path, cases: dict[str, RawCase], labels: dict[str, int] | None = None, ending: str = ".nii.gz"
) -> Path:
    """Writes a raw dataset of one channel whose subjects are as in SUBJECTS."""
    for name, case in cases.items():
        write_image(folder / "imagesTr" / f"{name}_0000{ending}", case.image, case.geometry)
        write_image(
            folder / "labelsTr" / f"{name}{ending}",
            case.mask,
            replace(case.geometry, shape_zyx=case.mask.shape),
        )
    write_dataset_json(
        folder,
        channel_names=("T1",),
        labels=labels or {"background": 0, "lesion": 1},
        subjects={name: SUBJECTS.get(name, name) for name in cases},
        file_ending=ending,
    )
    return folder


def tiny_cases() -> dict[str, RawCase]:
    """The five cases; the last subject has no lesion."""
    return {name: head_with_lesions(i, n_lesions=3 if i < 4 else 0) for i, name in enumerate(SUBJECTS)}


def shrink_plan(folder: Path) -> None:
    """Edits plan.json as a person would: a small trident and small patches for a test."""
    path = folder / "plan.json"
    content = json.loads(path.read_text()) | {"default": "trident"}
    for configuration in content["configurations"].values():
        if "inherits" not in configuration:
            configuration |= {"patch_size_yx": [32, 32], "batch_size": 4}
            configuration["network"] |= {"width": 4, "n_stages": 3}
    path.write_text(json.dumps(content))


def workspace_in(home: Path) -> Workspace:
    return Workspace.from_environment({"PWML_HOME": str(home)})


@pytest.fixture(scope="session")
def tiny() -> Any:
    """The helpers of this file, for tests in any folder."""
    import types

    return types.SimpleNamespace(
        head_with_lesions=head_with_lesions,
        oblique=oblique,
        RawCase=RawCase,
        recipe=RECIPE,
        shape_zyx=SHAPE_ZYX,
        shrink_plan=shrink_plan,
        cases=tiny_cases,
        workspace_in=workspace_in,
        write_raw=write_raw,
    )


@pytest.fixture(scope="session")
def raw_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with one raw dataset; not to be changed."""
    home = tmp_path_factory.mktemp("raw_home")
    write_raw(home / "raw" / "Dataset001_Tiny", tiny_cases())
    return home


@pytest.fixture(scope="session")
def prepared_home(raw_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a raw and a preprocessed dataset and a small plan; not to be changed."""
    from pwmlunet.planning.pipeline import plan_and_preprocess

    home = tmp_path_factory.mktemp("prepared") / "home"
    shutil.copytree(raw_home, home)
    plan_and_preprocess(workspace_in(home), "1", memory_gb=2, workers=1)
    shrink_plan(home / "preprocessed" / "Dataset001_Tiny")
    return home


@pytest.fixture(scope="session")
def trained_home(prepared_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two trained folds; not to be changed."""
    from pwmlunet.training.run import open_run
    from pwmlunet.training.trainer import FoldTrainer

    home = tmp_path_factory.mktemp("trained") / "home"
    shutil.copytree(prepared_home, home)
    run = open_run(workspace_in(home), "1", RECIPE, None)
    for fold in ("0", "1"):
        FoldTrainer(run, fold).train()
    return home


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Copies a home to where a test may change it, and makes it the commands' home."""

    def copy(home: Path) -> Path:
        copied = tmp_path / "home"
        shutil.copytree(home, copied)  # with times, by which unchanged files are known
        for variable in ("PWML_RAW", "PWML_PREPROCESSED", "PWML_RESULTS", "nnUNet_raw"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv("PWML_HOME", str(copied))
        return copied

    return copy


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs a command in this process: exit code, what it printed, what it complained."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            entry_point(name)([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield run
    root.handlers[:], root.level = handlers, level
