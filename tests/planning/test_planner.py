from dataclasses import replace

import pytest

from pwmlunet.data.image import Geometry
from pwmlunet.errors import PwmlError
from pwmlunet.networks.trident import TridentConfig
from pwmlunet.planning.fingerprint import CaseFingerprint, ChannelFacts, Fingerprint, LesionFacts
from pwmlunet.planning.memory import training_bytes
from pwmlunet.planning.planner import Budget, make_plan

SMALL = Budget(100.0, (8,), "test")


def facts(
    *,
    n=3,
    shape=(20, 256, 256),
    spacing=(3.0, 0.7, 0.7),
    head=(90, 100),
    n_voxels=4,
    extent=(1, 2, 2),
    diameter=2.3,
    channels=("T1",),
    is_2d=False,
    spacings=None,
):
    """A fingerprint of like cases whose head is a box of `head` rows and columns (file's last axes)."""
    cases = []
    for i in range(n):
        geometry = Geometry(shape, spacings[i] if spacings else spacing, is_2d=is_2d)
        box = ((0, shape[0]), (10, 10 + head[0]), (20, 20 + head[1]))
        lesion = LesionFacts("lesion", n_voxels, 5.9, extent, (diameter, diameter / 2, diameter / 4), 1.4)
        channel = ChannelFacts(100.0 + i, 20.0, (10.0, 100.0, 200.0))
        cases.append(
            CaseFingerprint(f"c{i}", f"s{i}", geometry, box, (channel,) * len(channels), (lesion,), 20, 1)
        )
    return Fingerprint("Dataset001_A", channels, tuple(cases))


def plan_for(budget=SMALL, **changes):
    return make_plan(facts(**changes), budget)


@pytest.mark.parametrize(
    ("changes", "axis"),
    [
        ({}, "z"),
        ({"shape": (256, 20, 256), "spacing": (0.7, 3.0, 0.7)}, "y"),
        ({"shape": (256, 256, 20), "spacing": (0.7, 0.7, 3.0)}, "x"),
        ({"spacing": (1.0, 1.0, 1.0)}, "z"),
        ({"spacing": (0.7, 0.7, 1.0)}, "z"),  # not much coarser
        ({"shape": (1, 256, 256), "spacing": (1.0, 0.2, 9.0), "is_2d": True}, "z"),
    ],
)
def test_the_slice_axis(changes, axis):
    assert plan_for(**changes).preparations["slices"].slice_axis == axis


def test_a_small_head_is_cropped_and_enlarged_as_in_the_paper():
    preparation = plan_for().preparations["slices"]
    assert (preparation.crop, preparation.long_side, preparation.spacing_yx_mm) == ("head_square", 256, None)
    assert preparation.normalisation == ("zscore_head",)
    assert plan_for(channels=("FLAIR", "T1")).preparations["slices"].normalisation == ("zscore_head",) * 2


@pytest.mark.parametrize(
    ("head", "n_voxels", "long_side"),
    [
        ((30, 40), 4, 128),  # 2.5 times, on whole steps of 32
        ((100, 90), 4, 256),
        ((100, 134), 4, 256),  # 1.91 times
        ((100, 136), 4, None),  # 1.88 times: one-pixel lesions would not all come back
        ((250, 300), 4, None),  # never coarser than native
        ((250, 300), 40, None),  # large lesions have small neighbours
    ],
)
def test_heads_are_enlarged_about_twice_or_not_at_all(head, n_voxels, long_side):
    plan = plan_for(shape=(20, 600, 600), head=head, n_voxels=n_voxels)
    assert plan.preparations["slices"].long_side == long_side


@pytest.mark.parametrize(
    ("spacings", "n_voxels", "expected"),
    [
        ([(3.0, 0.7, 0.7)] * 3, 4, None),
        ([(3.0, 0.70, 0.7), (3.0, 0.71, 0.7), (3.0, 0.72, 0.7)], 4, None),
        ([(3.0, 0.5, 0.6), (3.0, 0.7, 0.8), (3.0, 1.0, 1.0)], 4, (0.5, 0.6)),
        ([(3.0, 0.5, 0.6), (3.0, 0.7, 0.8), (3.0, 1.0, 1.0)], 40, (0.7, 0.8)),
    ],
)
def test_a_head_that_fills_the_field_keeps_its_pixels_or_gets_a_common_spacing(spacings, n_voxels, expected):
    preparation = plan_for(head=(220, 240), spacings=spacings, n_voxels=n_voxels).preparations["slices"]
    assert (preparation.crop, preparation.long_side) == ("nonzero", None)
    assert preparation.spacing_yx_mm == expected


def test_other_slice_axes_are_judged_in_their_own_plane():
    """Coronal slices along y: thickness and number of slices say nothing about rows and columns."""
    spacings = [(0.5, 3.0, 0.6), (0.7, 4.5, 0.8), (1.0, 3.0, 1.0)]
    fingerprint = facts(shape=(256, 24, 256), spacings=spacings, extent=(2, 3, 2))
    cases = tuple(replace(c, head_box_zyx=((8, 248), (0, 24), (10, 240))) for c in fingerprint.cases)
    plan = make_plan(replace(fingerprint, cases=cases), SMALL)
    preparation = plan.preparations["slices"]
    assert (preparation.slice_axis, preparation.crop, preparation.spacing_yx_mm) == (
        "y",
        "nonzero",
        (0.5, 0.6),
    )
    assert plan.configurations["trident"].patch_size_yx == (160, 160)
    assert plan.configurations["trident"].slice_step == 2
    small = tuple(replace(c, head_box_zyx=((8, 88), (0, 24), (10, 60))) for c in fingerprint.cases)
    preparation = make_plan(replace(fingerprint, cases=small), SMALL).preparations["slices"]
    assert (preparation.crop, preparation.long_side) == ("head_square", 224)


@pytest.mark.parametrize(
    ("spacing", "extent", "n_slices", "step"),
    [
        (1.0, 1, 3, 1),
        (1.0, 3, 3, 2),
        (1.0, 5, 3, 2),
        (1.0, 6, 5, 2),
        (1.0, 12, 5, 3),
        (3.0, 1, 3, 1),
        (3.0, 2, 3, 1),
        (4.6, 2, 3, 1),
        (6.0, 1, 3, 1),
    ],
)
def test_neighbours_by_slice_spacing_and_extent(spacing, extent, n_slices, step):
    plan = plan_for(spacing=(spacing, 0.7, 0.7), extent=(extent, 2, 2))
    configuration = plan.configurations["trident"]
    assert (configuration.network.n_slices, configuration.slice_step) == (n_slices, step)
    assert any(d.topic == "default" and d.choice == plan.default == "resunet_2d" for d in plan.decisions)


def test_single_slices_have_no_neighbours():
    plan = plan_for(shape=(1, 256, 256), spacing=(1.0, 0.2, 0.2))
    assert (plan.default, plan.configurations["trident"].slice_step) == ("resunet_2d", 1)
    assert plan.configurations["resunet_2d"].network.n_slices == 1


@pytest.mark.parametrize(
    ("head", "diameter", "n_stages"),
    [
        ((100, 90), 2.0, 4),
        ((100, 90), 4.0, 5),
        ((100, 90), 12.0, 6),
        ((100, 90), 90.0, 6),
        ((40, 40), 0.5, 4),
    ],
)
def test_depth_by_the_diameter_on_the_grid(head, diameter, n_stages):
    plan = plan_for(head=head, diameter=diameter)
    assert {c.network.n_stages for c in plan.configurations.values()} == {n_stages}


@pytest.mark.parametrize(
    ("changes", "patch"),
    [({}, (128, 128)), ({"head": (40, 30)}, (96, 96)), ({"head": (250, 200), "n_voxels": 40}, (128, 96)),
     ({"shape": (9, 700, 700), "head": (690, 400)}, (192, 192))],
)  # fmt: skip
def test_patches_are_half_the_grid(changes, patch):
    plan = plan_for(**changes)
    assert {c.patch_size_yx for c in plan.configurations.values()} == {patch}


def test_the_widest_network_that_fits_is_chosen():
    def needed(width, batch):
        return training_bytes(TridentConfig(width=width), 1, 1, (3, 128, 128), batch) / 1e9

    def chosen(memory_gb, widths):
        network = plan_for(Budget(memory_gb, widths, "test")).configurations["trident"]
        return network.network.width, network.batch_size

    widths = (16, 8)
    widest = needed(16, 8)
    assert chosen(widest * 1.001, widths) == (16, 8)
    assert chosen(widest * 0.999, widths) == (8, 8)
    smallest = needed(8, 2)
    assert chosen(smallest * 1.001, (8,)) == (8, 2)
    with pytest.raises(PwmlError, match=r"the smallest network needs .* GB a step: raise --memory-gb"):
        chosen(smallest * 0.999, (8,))


def test_a_budget_is_what_was_asked_for():
    assert Budget.find(3.5).memory_gb == 3.5
    assert Budget.find(None).memory_gb > 0


def test_every_decision_has_its_reason_and_the_expected_input_its_range():
    plan = plan_for(spacings=[(3.0, 0.7, 0.6), (3.3, 0.7, 0.6), (2.9, 0.72, 0.6)])
    topics = [decision.topic for decision in plan.decisions]
    assert len(set(topics)) == len(topics) >= 8 and all(d.choice and d.reason for d in plan.decisions)
    assert plan.expected_input.spacing_low_zyx_mm == (2.9, 0.7, 0.6)
    assert plan.expected_input.spacing_high_zyx_mm == (3.3, 0.72, 0.6)
    assert plan.expected_input.channels == (ChannelFacts(101.0, 20.0, (10.0, 100.0, 200.0)),)
    assert plan.expected_input.lesion_quartiles_mm3 == {"lesion": pytest.approx((5.9, 5.9, 5.9))}
