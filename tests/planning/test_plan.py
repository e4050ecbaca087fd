import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pwmlunet.errors import PwmlError
from pwmlunet.networks.correction import CorrectionConfig
from pwmlunet.networks.trident import TridentConfig
from pwmlunet.networks.unet import UNetConfig
from pwmlunet.planning.fingerprint import ChannelFacts
from pwmlunet.planning.plan import (
    PLANNED,
    Configuration,
    Decision,
    ExpectedInput,
    Plan,
    read_labels,
    see,
    write_plan,
)
from pwmlunet.planning.preprocessing import Preparation

FACTS = ChannelFacts(1.5, 0.5, (0.0, 1.5, 3.0))
TRIDENT = Configuration("slices", (64, 96), 4, TridentConfig(width=8, n_slices=5), 2)
PLAN = Plan(
    "Dataset001_Tiny",
    ("T1",),
    "trident",
    {"slices": Preparation("y", "head_square", ("zscore_head",), long_side=64)},
    {
        "trident": TRIDENT,
        "resunet_2d": Configuration("slices", (64, 96), 4, TridentConfig(width=8, n_slices=1), 2),
        "unet_2d": Configuration("slices", (64, 96), 4, UNetConfig(width=8), 2, tiles="patch"),
    },
    ExpectedInput((3.0, 0.7, 0.5), (3.1, 0.7, 0.6), (FACTS,)),
    decisions=(Decision("patch", "64 × 96", "half of the grid"),),
)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "plan.json"
    write_plan(path, PLAN, {"resunet_2d": "trident", "unet_2d": "resunet_2d"})
    assert Plan.read(path) == PLAN
    PLAN.write(path)
    assert Plan.read(path) == PLAN


def test_a_child_says_only_what_differs(tmp_path):
    write_plan(tmp_path / "plan.json", PLAN, {"resunet_2d": "trident"})
    written = json.loads((tmp_path / "plan.json").read_text())["configurations"]
    assert written["resunet_2d"] == {"inherits": "trident", "network": {"n_slices": 1}}
    assert written["trident"]["network"]["type"] == "trident"


def read_with(configurations):
    values = PLAN.to_dict()
    return Plan.from_dict(
        {**values, "configurations": {**values["configurations"], **configurations}}, "plan.json"
    )


def test_inheritance_goes_through_generations_and_over_nested_values():
    plan = read_with(
        {
            "wide": {"inherits": "trident", "network": {"width": 16}},
            "wide, tiles": {"inherits": "wide", "tiles": "patch"},
            "other network": {"inherits": "wide", "network": {"type": "unet", "width": 6}},
        }
    )
    assert plan.configurations["wide, tiles"] == Configuration(
        "slices", (64, 96), 4, TridentConfig(width=16, n_slices=5), 2, tiles="patch"
    )
    assert plan.configurations["other network"].network == UNetConfig(width=6)


@pytest.mark.parametrize(
    ("configurations", "expected"),
    [
        ({"a": {"inherits": "tridnt"}}, r"'a' inherits from 'tridnt' \(did you mean 'trident'"),
        ({"a": {"inherits": ["trident"]}}, r"'a' inherits from "),
        ({"a": {"inherits": "a"}}, "'a' inherits from itself"),
        ({"a": {"inherits": "b"}, "b": {"inherits": "c"}, "c": {"inherits": "a"}}, "inherits from itself"),
        ({"a": {"inherits": "trident", "patch_size_yx": [64, 60]}}, r"a: patch_size_yx 64, 60 must be multiples .* 8"),
        ({"a": {"inherits": "trident", "patch_size_yx": [4, 64]}}, "must be multiples"),
        ({"a": {"inherits": "trident", "patch_size_yx": [64]}}, "patch_size_yx must have 2 entries"),
        ({"a": {"inherits": "trident", "slice_step": 0}}, "must be at least 1"),
        ({"a": {"inherits": "trident", "batchsize": 4}}, r"unknown key 'batchsize' \(did you mean 'batch_size'"),
        ({"a": {"inherits": "trident", "network": {"n_slices": 4}}}, "n_slices must be odd"),
        ({"a": {"inherits": "trident", "tiles": "tile"}}, "tiles must be one of slice, patch, trident"),
        ({"a": {"inherits": "trident", "preparation": "volumes"}}, "names the preparation 'volumes', which is not there"),
        ({"a": 3}, "a: expected an object"),
        ({"a": {"inherits": "trident", "channels": []}}, r"channels \[\] must be rising numbers from 0 on"),
        ({"a": {"inherits": "trident", "channels": [-1]}}, r"channels \[-1\] must be rising"),
        ({"a": {"inherits": "trident", "channels": [0, 0]}}, r"channels \[0, 0\] must be rising"),
        ({"a": {"inherits": "trident", "channels": [0, 1]}}, r"'a' sees channel 1, which is not there \(known: 0 \(T1\)\)"),
        ({"a": {"inherits": "trident", "finds": "lesion"}}, "finds must be one of each, any"),
    ],
)  # fmt: skip
def test_broken_configurations_are_told(configurations, expected):
    with pytest.raises(PwmlError, match=expected) as caught:
        read_with(configurations)
    assert str(caught.value).startswith("plan.json")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"default": "tridnt"}, r"default 'tridnt' is not a configuration \(did you mean 'trident'"),
        ({"channel_names": ["T1", "T2"]}, "needs one normalisation for each of 2 channels"),
        ({"configurations": []}, "configurations must be an object"),
        ({"preparations": {"slices": {"crop": "none"}}}, "the key 'slice_axis' is missing"),
        ({"colour": "red"}, "unknown key 'colour'"),
        (
            {"correction": {"channels": [0, 2]}},
            r"correction sees channel 2, which is not there \(known: 0 \(T1\)\)",
        ),
        ({"correction": {"channels": []}}, "channels must be"),
        ({"correction": {"gamma": 0}}, "gamma must be positive"),
    ],
)
def test_broken_plans_are_told(changes, expected):
    with pytest.raises(PwmlError, match=expected):
        Plan.from_dict({**PLAN.to_dict(), **changes}, "plan.json")


def test_a_configuration_is_found_by_name_or_by_default():
    assert PLAN.configuration(None) == ("trident", TRIDENT)
    assert PLAN.configuration("unet_2d")[0] == "unet_2d"
    with pytest.raises(PwmlError, match=r"unknown configuration 'unet' \(did you mean 'unet_2d'"):
        PLAN.configuration("unet")


def test_a_configuration_that_newer_plans_have_is_made_by_planning_again():
    with pytest.raises(PwmlError) as caught:
        PLAN.configuration("primary_2d")
    assert str(caught.value) == (
        "unknown configuration 'primary_2d' (known: trident, resunet_2d, unet_2d); "
        "a plan made by an older version may lack it: make a new one with --replan"
    )
    assert set(PLAN.configurations) < set(PLANNED)


def test_what_two_stages_see_is_written_and_read(tmp_path):
    names, normalisation = ("T2 FLAIR", "T1 FLAIR"), ("zscore_head",) * 2
    primary = replace(PLAN.configurations["unet_2d"], channels=(1,), finds="any")
    preparations = {"slices": replace(PLAN.preparations["slices"], normalisation=normalisation)}
    plan = replace(
        PLAN,
        channel_names=names,
        preparations=preparations,
        configurations=PLAN.configurations | {"primary_2d": primary},
        correction=CorrectionConfig(channels=(0, 1), region_mm=9.5, views="planes"),
    )
    write_plan(tmp_path / "plan.json", plan, {"primary_2d": "unet_2d"})
    assert Plan.read(tmp_path / "plan.json") == plan
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["configurations"]["primary_2d"] == {"inherits": "unet_2d", "channels": [1], "finds": "any"}
    del written["correction"], written["configurations"]["primary_2d"]
    assert Plan.from_dict(written, "plan.json").correction is None  # as older versions wrote it


@pytest.mark.parametrize("channels", [None, (0,), (2,), (1, 2), (0, 2), (0, 1, 3)])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_network_sees_its_channels(channels, kind):
    image = kind(np.arange(4 * 2 * 3.0).reshape(4, 2, 3, 1))
    seen = see(image, replace(TRIDENT, channels=channels))
    expected = [image[i] for i in (range(4) if channels is None else channels)]
    assert len(seen) == len(expected)
    assert all((one == other).all() for one, other in zip(seen, expected, strict=True))
    is_view = np.shares_memory(np.asarray(seen), np.asarray(image))
    assert is_view == (channels != (0, 1, 3))


@pytest.mark.parametrize("content", ["[]", "{}", '{"labels": 3}', "{"])
def test_labels_that_cannot_be_read_are_told(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(PwmlError, match=r"dataset\.json"):
        read_labels(tmp_path / "dataset.json")
