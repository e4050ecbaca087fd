from dataclasses import replace

import numpy as np
import pytest

from pwmlunet.data.image import Geometry
from pwmlunet.errors import PwmlError
from pwmlunet.networks.resunet_3d import ResUNet3dConfig
from pwmlunet.networks.trident import TridentConfig
from pwmlunet.planning import rules
from pwmlunet.planning.budget import Budget
from pwmlunet.planning.fingerprint import CaseFingerprint, ChannelFacts, Fingerprint, LesionFacts
from pwmlunet.planning.memory import training_bytes
from pwmlunet.planning.planner import make_plan

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
        centre = (shape[0] / 2, 40.0 + i, 50.0)
        wide = (diameter, diameter / 2, diameter / 4)
        lesion = LesionFacts("lesion", n_voxels, 5.9, extent, wide, 1.4, centre)
        channel = ChannelFacts(100.0 + i, 20.0, (10.0, 100.0, 200.0))
        cases.append(
            CaseFingerprint(
                f"c{i}", f"s{i}", geometry, box, 9999, False, (channel,) * len(channels), (lesion,), 20, 1
            )
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
    assert {c.patch_size_yx for name, c in plan.configurations.items() if name != "resunet_3d"} == {patch}


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
    tight = plan_for(Budget(smallest * 1.001, (8,), "test"))
    assert {c.batch_size for c in tight.configurations.values()} == {2}  # as fair a comparison as may be
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


@pytest.mark.parametrize(
    ("names", "changes"), [(("T1",), {}), (("FLAIR",), {}), (("T2", "FLAIR"), {"spacing": (0.8, 0.8, 0.8)})]
)
def test_mr_keeps_its_default_and_is_offered_the_other_networks(names, changes):
    plan = plan_for(channels=names, **changes)
    assert plan.default == "resunet_2d"
    assert set(plan.configurations) == {
        "trident",
        "resunet_2d",
        "unet_2d",
        "two_stage",
        "priority_2d",
        "log_odds_2d",
        "resunet_3d",
    }
    assert (plan.n_folds, plan.smallest_lesion_mm3) == (5, 0.0)
    assert {c.loss for c in plan.configurations.values()} == {"sbfl"}
    modality, prior = (next(d for d in plan.decisions if d.topic == t) for t in ("modality", "prior density"))
    assert modality.choice != "ultrasound" and names[0] in modality.reason
    assert prior.choice and "nats" in prior.reason
    priority = plan.configurations["priority_2d"]
    same = plan.configurations["unet_2d"]
    assert (priority.network.width, priority.network.n_stages) == (same.network.width, same.network.n_stages)
    assert (priority.patch_size_yx, priority.batch_size) == (same.patch_size_yx, same.batch_size)


def with_boxes(boxes_yx, **changes):
    """A fingerprint of cases with one lesion each, of these rows and columns in five slices."""
    fingerprint = facts(n=len(boxes_yx), **changes)
    cases = [
        replace(case, lesions=(replace(case.lesions[0], extent_zyx=(5, *box)),))
        for case, box in zip(fingerprint.cases, boxes_yx, strict=True)
    ]
    return replace(fingerprint, cases=tuple(cases))


def two_stage_for(fingerprint, budget=SMALL):
    plan = make_plan(fingerprint, budget)
    (decision,) = (d for d in plan.decisions if d.topic == "anchors")
    return plan.configurations["two_stage"], decision


def test_anchors_rise_from_small_lesions_to_large_ones():
    """Sides of 1, 2, ... 21 pixels: the 10th percentile is 3, the 95th 20; native pixels."""
    sides = [(side / 2, 2 * side) for side in range(1, 22)]
    native = {"shape": (20, 300, 300), "head": (100, 136), "diameter": 2.0}
    configuration, decision = two_stage_for(with_boxes(sides, **native))
    assert configuration.network.anchor_sizes == (3.0, 7.7, 20.0)
    assert configuration.network.anchor_sizes[1] == pytest.approx((3 * 20) ** 0.5, abs=0.05)
    assert configuration.network.finest_stride == 2 and configuration.network.stride == 8
    assert decision.choice == "3, 7.7, 20 pixels" and "3 to 20 pixels" in decision.reason
    shuffled = with_boxes(sides[::-1], **native)
    assert two_stage_for(shuffled)[0] == configuration


def test_anchors_are_in_pixels_of_the_grid():
    fingerprint = with_boxes([(20, 20)] * 3, head=(100, 128))
    preparation = make_plan(fingerprint, SMALL).preparations["slices"]
    assert preparation.long_side == 256
    enlarged = 256 / (128 * (1 + 2 * preparation.margin))
    configuration, decision = two_stage_for(fingerprint)
    assert configuration.network.anchor_sizes[-1] == pytest.approx(20 * enlarged, abs=0.5)
    assert f"{20 * enlarged:.3g} pixels" in decision.reason


@pytest.mark.parametrize(
    ("boxes", "diameter", "sizes"),
    [
        ([(4, 4)] * 3, 2.0, (2.6, 3.2, 4.0)),  # alike: smaller ones too, 1.25 times apart
        ([(1, 1)] * 3, 2.0, (1.0, 1.2, 1.6)),  # not below a pixel
        ([(2, 3), (2, 200), (120, 900)], 2.0, (6.0, 28.0, 128.0)),  # no larger than the patch of 128 × 160
        ([(400, 300)] * 3, 150.0, (52.0, 66.0, 82.0, 102.0, 128.0)),
    ],
)
def test_anchors_are_apart_and_within_the_patch(boxes, diameter, sizes):
    changes = {"shape": (20, 600, 600), "head": (250, 300), "diameter": diameter}
    configuration, _ = two_stage_for(with_boxes(boxes, **changes))
    assert configuration.patch_size_yx == (128, 160)
    assert configuration.network.anchor_sizes == sizes


def test_the_two_stage_network_takes_the_others_width_and_fits():
    configuration, _ = two_stage_for(facts(), Budget(100.0, (16, 8), "test"))
    assert (configuration.network.width, configuration.batch_size) == (16, 8)
    needed = training_bytes(configuration.network, 1, 1, (1, 128, 128), 8) / 1e9
    tight = Budget(training_bytes(TridentConfig(width=8), 1, 1, (3, 128, 128), 2) / 1e9 * 1.001, (8,), "test")
    plan = make_plan(facts(), tight)
    assert needed <= 100 and "two_stage" in plan.configurations
    for planned in plan.configurations.values():
        patch_zyx = (planned.patch_slices + planned.network.n_slices - 1, *planned.patch_size_yx)
        assert training_bytes(planned.network, 1, 1, patch_zyx, planned.batch_size) <= tight.memory_gb * 1e9


def volume(**changes):
    configuration = plan_for(**changes).configurations["resunet_3d"]
    patch_zyx = (configuration.patch_slices, *configuration.patch_size_yx)
    return configuration.network.n_flat_stages, configuration.network.slice_stride, patch_zyx


@pytest.mark.parametrize(
    ("thickness", "n_flat"), [(0.7, 0), (1.3, 0), (1.5, 1), (2.7, 1), (2.9, 2), (5.5, 2), (5.7, 3), (40.0, 3)]
)
def test_slices_are_halved_once_pixels_have_caught_up(thickness, n_flat):
    """Native pixels of 0.7 mm and three halvings: 2, 4 and 8 times as large."""
    large = {"shape": (64, 700, 700), "head": (300, 300)}
    found, slice_stride, _ = volume(spacing=(thickness, 0.7, 0.7), diameter=2.0, **large)
    assert found == n_flat and slice_stride == 2 ** (3 - n_flat)


def test_thickness_is_compared_with_pixels_of_the_grid():
    """Enlarged 2.5 times, pixels of 0.7 mm are a tenth of slices of 3 mm, not a quarter."""
    assert volume(diameter=2.0)[0] == 3
    _, _, (z, y, x) = volume(spacing=(3.0, 0.7, 0.7), shape=(200, 256, 256), diameter=2.0)
    assert z * 3.0 == pytest.approx(y * 0.7 * 104 / 256, rel=0.15) and y == x


def test_a_narrower_network_is_better_than_a_tiny_patch():
    def needed(width, side):
        return training_bytes(ResUNet3dConfig(width=width, n_stages=4), 1, 1, (side,) * 3, 2) / 1e9

    def chosen(memory_gb):
        budget = Budget(memory_gb, (32, 8), "test")
        return budget.fit_volume(ResUNet3dConfig(n_stages=4), (0.7,) * 3, (96, 200, 200), 1, widest=32)

    step, patch_zyx = chosen(needed(32, 64) * 1.001)
    assert (step.width, patch_zyx) == (32, (64, 64, 64))
    step, patch_zyx = chosen(needed(32, 64) * 0.999)
    assert step.width == 8 and min(patch_zyx) > 64


def test_a_volume_has_like_mm_along_each_axis():
    _, _, (z, y, x) = volume(shape=(300, 700, 700), spacing=(1.5, 0.5, 0.75), head=(690, 690), diameter=2.0)
    assert z * 1.5 == pytest.approx(y * 0.5, rel=0.1) and x * 0.75 == pytest.approx(y * 0.5, rel=0.1)
    assert z * y * x == pytest.approx(128**3, rel=0.2)


@pytest.mark.parametrize(
    ("n_slices", "strides"), [(8, 2), (15, 2), (16, 4), (20, 4), (31, 4), (32, 8), (64, 8)]
)
def test_a_volume_is_not_far_beyond_the_slices_of_a_case(n_slices, strides):
    """The deepest map keeps four slices."""
    _, slice_stride, (z, _, _) = volume(
        shape=(n_slices, 300, 300), spacing=(0.7, 0.7, 0.7), head=(280, 280), diameter=2.0
    )
    assert slice_stride == strides and z % strides == 0
    assert z < n_slices + strides


@pytest.mark.parametrize("n_slices", [1, 3, 7])
def test_few_slices_are_no_volume(n_slices):
    plan = plan_for(shape=(n_slices, 256, 256))
    assert "resunet_3d" not in plan.configurations
    (reason,) = (d.reason for d in plan.decisions if d.topic == "3-D network")
    assert f"the median case {n_slices}" in reason


def test_a_volume_fits_the_budget_or_is_left_out():
    changes = {"shape": (96, 256, 256), "spacing": (0.7, 0.7, 0.7), "head": (230, 230)}

    def chosen(memory_gb):
        plan = plan_for(Budget(memory_gb, (8,), "test"), **changes)
        found = plan.configurations.get("resunet_3d")
        return plan, found and (found.patch_slices, *found.patch_size_yx)

    plan, large = chosen(2.0)
    network = plan.configurations["resunet_3d"].network
    needed = training_bytes(network, 1, 1, large, 2) / 1e9
    assert needed <= 2.0
    _, smaller = chosen(needed * 0.999)
    assert all(a < b for a, b in zip(smaller, large, strict=True))
    assert plan.configurations["resunet_3d"].batch_size == 2
    narrow = Budget(1e9, (64, 48, 32), "test")
    assert plan_for(narrow, **changes).configurations["resunet_3d"].network.width == 32


def test_a_prior_of_enlarged_heads_is_in_mm_of_the_median_head():
    """Lesions at the same share of heads of different size lie at the same place."""
    fingerprint = facts(n=6, shape=(20, 256, 256))

    def sized(case, side, place):
        box = ((0, 20), (50, 50 + side), (60, 60 + side))
        centre = (10.0, 50 + (side - 1) / 2 + place * side, 60 + (side - 1) / 2)
        return replace(case, head_box_zyx=box, lesions=(replace(case.lesions[0], centre_zyx=centre),))

    def gain(places):
        sides = (70, 80, 90, 100, 110, 120)
        cases = tuple(sized(*one) for one in zip(fingerprint.cases, sides, places, strict=True))
        plan = make_plan(replace(fingerprint, cases=cases), SMALL)
        assert plan.preparations["slices"].long_side
        (reason,) = (d.reason for d in plan.decisions if d.topic == "prior density")
        return float(reason.split()[3])

    assert gain([0.4] * 6) == pytest.approx(gain([0.0] * 6), abs=0.02)
    assert gain([0.4] * 6) > gain([28 / side for side in (70, 80, 90, 100, 110, 120)]) + 0.1


def test_a_prior_needs_lesions_of_two_subjects():
    fingerprint = facts(n=3)
    cases = tuple(replace(case, subject="s0") for case in fingerprint.cases)
    plan = make_plan(replace(fingerprint, cases=cases), SMALL)
    assert "priority_2d" not in plan.configurations
    assert [d.choice for d in plan.decisions if d.topic == "prior density"] == ["none"]
    assert "priority_2d" in make_plan(facts(n=2), SMALL).configurations


def test_single_slices_are_compared_in_the_plane(monkeypatch):
    seen = []
    real = rules.concentration
    monkeypatch.setattr(rules, "concentration", lambda *a: seen.append(a) or real(*a))
    make_plan(facts(n=5, shape=(1, 256, 256), spacing=(9.0, 0.2, 0.5), head=(100, 80), is_2d=True), SMALL)
    make_plan(facts(n=2, shape=(20, 256, 256), spacing=(3.0, 0.2, 0.5), head=(100, 80)), SMALL)
    (flat, area), (solid, volume_mm3) = seen
    # from the middle of a box of rows 10 to 109 and columns 20 to 99; heads are made equally large
    assert np.concatenate(flat) == pytest.approx(
        np.array([[(40 + i - 59.5) * 0.2, (50 - 59.5) * 0.5] for i in range(5)])
    )
    assert np.concatenate(solid)[1] == pytest.approx([0.5 * 3.0, (41 - 59.5) * 0.2, (50 - 59.5) * 0.5])
    assert (area, volume_mm3) == pytest.approx((9999 * 0.9, 9999 * 0.3))
