"""The tiny dataset with a plan of small entries, pairs of FLAIR channels, and rows whose probabilities are made by hand."""

import json

import numpy as np
import pytest

from pwmlunet.data.dataset import write_dataset_json
from pwmlunet.data.image import write_image
from pwmlunet.data.workspace import Workspace
from pwmlunet.planning.pipeline import plan_and_preprocess
from pwmlunet.training import trainer

DATASET = "Dataset001_Tiny"
PAIRS = "Dataset002_Pairs"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Saves half of the time."""
    monkeypatch.setattr(trainer, "draw_progress", lambda *_: None)


@pytest.fixture
def home(copied, prepared_home):
    return copied(prepared_home)


@pytest.fixture
def folder(home):
    """The planned dataset."""
    return home / "preprocessed" / DATASET


@pytest.fixture
def workspace(home, tiny) -> Workspace:
    return tiny.workspace_in(home)


@pytest.fixture
def edit(folder):
    """Adds entries to the plan as a person would."""

    def add(**entries):
        path = folder / "plan.json"
        content = json.loads(path.read_text())
        for key, new in entries.items():
            content[key] |= new
        path.write_text(json.dumps(content))

    return add


@pytest.fixture
def small_trident(edit):
    """The paper's entries as small as a test's time asks for; the others inherit them."""
    network = {"type": "trident", "width": 64, "n_stages": 3, "n_slices": 3}
    edit(
        preparations={
            "paper": {
                "slice_axis": "z",
                "crop": "head_square",
                "normalisation": ["mean_subtracted"],
                "margin": 0.0,
                "long_side": 64,
            }
        },
        configurations={
            "paper_k64": {
                "preparation": "paper",
                "patch_size_yx": [32, 32],
                "batch_size": 4,
                "network": network,
            }
        },
    )


@pytest.fixture
def small_priority(edit):
    """A U-Net, and the same with a prior."""
    size = {"width": 4, "n_stages": 3}
    alike = {"preparation": "slices", "patch_size_yx": [32, 32], "batch_size": 4}
    edit(
        configurations={
            "unet_2d": {**alike, "network": {"type": "unet", **size}},
            "priority_2d": {**alike, "network": {"type": "priority", **size}, "prior": {}},
        }
    )


@pytest.fixture
def small_two_stage(edit):
    """The configuration that planning makes for the two-stage network, as small as a test's time asks for."""
    network = {
        "type": "two_stage",
        "width": 2,
        "n_stages": 3,
        "anchor_sizes": [4, 8],
        "n_proposals": 8,
        "n_regions": 4,
    }
    edit(
        configurations={
            "two_stage": {
                "preparation": "slices",
                "patch_size_yx": [32, 32],
                "batch_size": 4,
                "network": network,
            }
        }
    )


@pytest.fixture(scope="session")
def pairs_home(tiny, tmp_path_factory):
    """A home with T1 and T2 FLAIR of six subjects; LACI (2) is dark on T1, FCI (1) unseen. Not to be changed."""
    home = tmp_path_factory.mktemp("pairs")
    folder = home / "raw" / PAIRS
    names = [f"sub-{number:02d}" for number in range(6)]
    for seed, name in enumerate(names):
        case = tiny.head_with_lesions(seed)
        mask = case.mask * (1 + (np.arange(len(case.mask)) % 2)[:, None, None]).astype(np.uint8)
        t1 = case.image - 80 * (mask > 0) - 40 * (mask == 2)
        for channel, image in enumerate((t1, case.image)):
            write_image(
                folder / "imagesTr" / f"{name}_000{channel}.nii.gz", image.astype(np.int16), case.geometry
            )
        write_image(folder / "labelsTr" / f"{name}.nii.gz", mask, case.geometry)
    write_dataset_json(
        folder,
        channel_names=("T1_FLAIR", "T2_FLAIR"),
        labels={"background": 0, "FCI": 1, "LACI": 2},
        subjects={name: name for name in names},
        file_ending=".nii.gz",
    )
    plan_and_preprocess(tiny.workspace_in(home), "2", memory_gb=2, workers=1)
    _plan_pairs(home / "preprocessed" / PAIRS / "plan.json")
    return home


def _plan_pairs(path) -> None:
    """A small first network that sees T2 FLAIR, and a small second one that sees T1 FLAIR."""
    content = json.loads(path.read_text())
    network = {"type": "unet", "width": 8, "n_stages": 3}
    unet = {"preparation": "slices", "patch_size_yx": [24, 40], "batch_size": 4, "network": network}
    content["configurations"] |= {"unet_2d": unet, "primary_2d": {"inherits": "unet_2d", "channels": [1]}}
    content["correction"] = {
        "channels": [0],
        "region_mm": 8.0,
        "region_pixels": 16,
        "width": 4,
        "n_hidden": 8,
    }
    path.write_text(json.dumps(content))


@pytest.fixture
def pairs(copied, pairs_home):
    """The preprocessed folder of a home with pairs, which is the commands' home."""
    return copied(pairs_home) / "preprocessed" / PAIRS
