"""The tiny dataset with a plan of small entries, and rows whose probabilities are made by hand."""

import json

import pytest

from pwmlunet.data.workspace import Workspace
from pwmlunet.training import trainer

DATASET = "Dataset001_Tiny"


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
