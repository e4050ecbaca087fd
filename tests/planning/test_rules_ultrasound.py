"""The plan of 3-D ultrasound: which rule decides what, on fingerprints made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pwmlunet.data.image import Geometry
from pwmlunet.errors import PwmlError
from pwmlunet.networks.priority import PriorityConfig
from pwmlunet.planning.budget import Budget
from pwmlunet.planning.density import DensityConfig
from pwmlunet.planning.fingerprint import CaseFingerprint, ChannelFacts, Fingerprint, LesionFacts
from pwmlunet.planning.memory import training_bytes
from pwmlunet.planning.plan import Plan, write_plan
from pwmlunet.planning.planner import make_plan, parents_of
from pwmlunet.training.losses import parse_loss

CPU = Budget(2.0, (8,), "test")
LARGE = Budget(60.0, (16, 8), "test")
HEAD_FIRST = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
SHAPE = (90, 100, 95)  # the file's slices from below upwards, rows to the back, columns to the left
FAN = ((4, 88), (10, 96), (6, 90))


def lesion(centre, *, spacing, n_voxels=1200, extent=(13, 14, 15)):
    return LesionFacts(
        "lesion", n_voxels, n_voxels * math.prod(spacing), extent, (11.0, 12.0, 13.0), 1.5, tuple(map(float, centre))
    )  # fmt: skip


def facts(
    *,
    n=5,
    names=("cUS",),
    spacing=(0.15, 0.15, 0.15),
    spread=3.0,
    fan=True,
    n_voxels=1200,
    direction=HEAD_FIRST,
    shape=SHAPE,
    box=FAN,
):
    """Cases with four lesions each, which lie `spread` voxels around the same four places."""
    rng = np.random.default_rng(0)
    places = [(40, 30, 30), (50, 30, 66), (60, 80, 28), (42, 82, 70)]
    cases = []
    for i in range(n):
        lesions = tuple(
            lesion(np.array(p) + rng.normal(0, spread, 3), spacing=spacing, n_voxels=n_voxels) for p in places
        )
        channel = ChannelFacts(80.0, 20.0, (1.0, 80.0, 200.0))
        geometry = Geometry(shape, spacing, direction_xyz=direction)
        cases.append(
            CaseFingerprint(
                f"c{i:02d}",
                f"s{i:02d}",
                geometry,
                box,
                500_000,
                fan,
                (channel,) * len(names),
                lesions,
                90,
                30,
            )
        )
    return Fingerprint("Dataset002_Probe", names, tuple(cases))


def plan_for(budget=CPU, **changes):
    return make_plan(facts(**changes), budget)


def decision(plan, topic):
    (found,) = (d for d in plan.decisions if d.topic == topic)
    return found.choice, found.reason


def changed(fingerprint, index, **changes):
    cases = list(fingerprint.cases)
    cases[index] = replace(cases[index], **changes)
    return replace(fingerprint, cases=tuple(cases))


def test_the_preparation():
    plan = plan_for(names=("cUS", "second cUS"))
    preparation = plan.preparations["slices"]
    assert (preparation.slice_axis, preparation.crop, preparation.long_side) == ("coronal", "fan", None)
    assert preparation.normalisation == ("percentiles_head", "percentiles_head")
    assert preparation.spacing_yx_mm is None and preparation.expected_spacing_zyx_mm == (0.15, 0.15, 0.15)
    assert decision(plan, "modality") == ("ultrasound", "a channel is named cUS")
    assert decision(plan, "in-plane grid")[0] == "native"
    assert "speckle" in decision(plan, "in-plane grid")[1]


def test_what_is_seen_says_ultrasound_where_names_do_not():
    assert plan_for(names=("image",)).preparations["slices"].crop == "fan"
    assert plan_for(names=("image",), fan=False).preparations["slices"].crop != "fan"
    assert plan_for(names=("T2",)).preparations["slices"].crop != "fan"


def test_large_cases_are_kept_in_half_precision():
    assert plan_for().preparations["slices"].stored_as == "float32"
    large = {"shape": (380, 360, 400), "box": ((0, 380), (0, 360), (0, 400))}
    assert plan_for(**large).preparations["slices"].stored_as == "float16"


def test_the_configurations_and_their_whole_slices():
    plan = plan_for()
    assert set(plan.configurations) == {
        "priority_2d",
        "log_odds_2d",
        "unet_2d",
        "two_stage",
        "trident",
        "resunet_2d",
        "resunet_3d",
    }
    # coronal: rows are the file's z, columns its x; 84 × 84 in whole strides of 16
    sizes = {name: c.patch_size_yx for name, c in plan.configurations.items() if name != "resunet_3d"}
    assert set(sizes.values()) == {(96, 96)}
    wider = changed(facts(), 2, head_box_zyx=((4, 88), (10, 96), (0, 95)))
    assert make_plan(wider, CPU).configurations["unet_2d"].patch_size_yx == (96, 96)
    wider = changed(facts(shape=(90, 100, 120)), 2, head_box_zyx=((4, 88), (10, 96), (0, 97)))
    assert make_plan(wider, CPU).configurations["unet_2d"].patch_size_yx == (96, 112)


def test_facts_are_read_along_the_slices_whatever_the_files_order():
    """The same heads, stored with x first and one axis turned round."""
    straight = facts()
    direction = (0.0, 0.0, -1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)  # the file's x runs up, its z to the right

    def turn(case):
        z, y, x = SHAPE
        (z0, z1), interval_y, (x0, x1) = case.head_box_zyx
        lesions = tuple(
            replace(
                one,
                extent_zyx=one.extent_zyx[::-1],
                diameter_zyx_voxels=one.diameter_zyx_voxels[::-1],
                centre_zyx=(x - 1 - one.centre_zyx[2], one.centre_zyx[1], one.centre_zyx[0]),
            )
            for one in case.lesions
        )
        return replace(
            case,
            geometry=Geometry((x, y, z), (0.15, 0.15, 0.15), direction_xyz=direction),
            head_box_zyx=((x - x1, x - x0), interval_y, (z0, z1)),
            lesions=lesions,
        )

    turned = replace(
        straight,
        cases=tuple(turn(c) if i % 2 else c for i, c in enumerate(straight.cases)),
    )
    one, other = make_plan(straight, CPU), make_plan(turned, CPU)
    assert other.decisions == one.decisions
    assert other.configurations == one.configurations


def test_neighbours_lie_at_the_border_of_a_lesion():
    plan = plan_for()
    network = plan.configurations["trident"]
    assert (network.network.n_slices, network.slice_step) == (5, 4)  # 14 coronal slices
    assert "14" in decision(plan, "slices of a trident")[1]
    assert "nearly the same" in decision(plan, "slices of a trident")[1]


def test_anchors_are_as_large_as_lesions_are_in_coronal_slices():
    """Lesions of 13 × 14 × 15 voxels of the file; its axis of 14 leads through the slices."""
    plan = plan_for()
    assert "14 to 14 pixels" in decision(plan, "anchors")[1]
    assert plan.configurations["two_stage"].network.anchor_sizes == (7.1, 8.9, 11.0, 14.0)
    small = [
        replace(case, lesions=tuple(replace(one, extent_zyx=(6, 14, 6)) for one in case.lesions))
        for case in facts().cases
    ]
    plan = make_plan(replace(facts(), cases=tuple(small)), CPU)
    assert plan.configurations["two_stage"].network.anchor_sizes[-1] == 6.0


def test_the_default_has_a_prior_only_where_lesions_gather():
    plan = plan_for(n=8)
    assert plan.default == "log_odds_2d"
    gates, log_odds = (plan.configurations[name] for name in ("priority_2d", "log_odds_2d"))
    assert (gates.network.enters, log_odds.network.enters) == ("gates", "log_odds")
    assert replace(log_odds, network=gates.network) == gates
    choice, reason = decision(plan, "prior density")
    assert choice == "likely to help" and "nats" in reason and "8 subjects" in reason
    rng = np.random.default_rng(1)
    scattered = facts(n=8)
    cases = tuple(
        replace(
            case,
            lesions=tuple(
                replace(one, centre_zyx=tuple(rng.uniform(low, high) for low, high in FAN))
                for one in case.lesions
            ),
        )
        for case in scattered.cases
    )
    wide = replace(scattered, cases=tuple(replace(c, head_voxels=600_000) for c in cases))
    plan = make_plan(wide, CPU)
    assert plan.default == "unet_2d" and decision(plan, "prior density")[0] == "not known to help"
    assert "priority_2d" in plan.configurations


def test_a_prior_needs_two_subjects_with_lesions():
    fingerprint = facts(n=3)
    for index in (0, 2):
        fingerprint = changed(fingerprint, index, lesions=())
    plan = make_plan(fingerprint, CPU)
    assert plan.default == "unet_2d" and not {"priority_2d", "log_odds_2d"} & set(plan.configurations)
    assert decision(plan, "prior density")[0] == "none"


@pytest.mark.parametrize(("spacing", "slices"), [(0.15, 20), (0.3, 10), (0.6, 5)])
def test_slabs_are_three_millimetres_thick(spacing, slices):
    plan = plan_for(spacing=(spacing,) * 3)
    assert plan.configurations["priority_2d"].prior == DensityConfig(slab_slices=slices)
    assert isinstance(plan.configurations["priority_2d"].network, PriorityConfig)
    assert plan.configurations["unet_2d"].prior is None


@pytest.mark.parametrize(("n", "n_folds"), [(2, 2), (7, 7), (10, 10), (21, 10), (22, 5)])
def test_ten_folds_for_few_subjects(n, n_folds):
    assert plan_for(n=n).n_folds == n_folds


def test_dense_networks_are_planned_with_a_loss_by_which_they_begin():
    plan = plan_for()
    losses = {name: c.loss for name, c in plan.configurations.items()}
    assert losses.pop("two_stage") == "sbfl"  # its boxes hardly learn beside the other
    assert set(losses.values()) == {"100*sbfl + dice"} == {decision(plan, "loss")[0]} and len(losses) > 4
    nothing = torch.full((1, 1, 1, 64, 64), -9.0, requires_grad=True)  # a network that never says lesion
    target = torch.zeros_like(nothing)
    target[..., 30:33, 30:33] = 1
    slopes = [
        torch.autograd.grad(parse_loss(loss)(nothing, target, torch.ones_like(target)), nothing)[0].min()
        for loss in (losses["log_odds_2d"], "sbfl_dice")
    ]
    assert slopes[0] < 50 * slopes[1] < 0


@pytest.mark.parametrize(
    ("spacing", "n_voxels", "least"),
    [
        (0.15, 1200, 1.7),  # 4 mm³
        (0.15, 400, 1.3499),  # a little less, so that the lesion itself stays
        (0.15, 503, 1.6976),
        (0.9, 4, 1.7),  # 2.9 mm³
        (0.9, 1, 0.0),  # as small as a voxel
        (1.3, 9, 0.0),  # one voxel is larger than 1.7 mm³
    ],
)
def test_the_smallest_lesion(spacing, n_voxels, least):
    plan = plan_for(spacing=(spacing,) * 3, n_voxels=n_voxels)
    assert plan.smallest_lesion_mm3 == pytest.approx(least)
    assert plan.smallest_lesion_mm3 <= n_voxels * spacing**3
    assert decision(plan, "smallest lesion")[1]


def test_each_step_fits_the_budget():
    tight = Budget(0.3, (8,), "test")
    for plan in (plan_for(tight), plan_for(LARGE)):
        budget = tight if plan.configurations["unet_2d"].network.width == 8 else LARGE
        for configuration in plan.configurations.values():
            network = configuration.network
            patch = (configuration.patch_slices + network.n_slices - 1, *configuration.patch_size_yx)
            needed = training_bytes(network, 1, 1, patch, configuration.batch_size)
            assert needed <= budget.memory_gb * 1e9
    plan = plan_for(tight)
    assert plan.configurations["unet_2d"].batch_size == 8
    assert plan.configurations["trident"].batch_size < 8
    assert decision(plan, "trident")[0].startswith("8 channels, batch ")


def test_a_network_that_cannot_fit_is_left_out_and_the_rest_is_planned():
    smallest = training_bytes(plan_for().configurations["trident"].network, 1, 1, (5, 96, 96), 1) / 1e9
    plan = plan_for(Budget(smallest * 0.999, (8,), "test"))
    assert "trident" not in plan.configurations and "unet_2d" in plan.configurations
    assert decision(plan, "trident")[0] == "not planned"
    one = plan_for(Budget(smallest * 1.001, (8,), "test")).configurations["trident"]
    assert (one.batch_size, one.network.norm) == (1, "instance")  # one patch has no batch statistics


def test_a_plan_without_the_parent_of_a_configuration_is_written(tmp_path):
    smallest = training_bytes(plan_for().configurations["trident"].network, 1, 1, (5, 96, 96), 1) / 1e9
    plan = plan_for(Budget(smallest * 0.999, (8,), "test"))
    assert "resunet_2d" in plan.configurations
    write_plan(tmp_path / "plan.json", plan, parents_of(plan))
    assert Plan.read(tmp_path / "plan.json") == plan


def test_the_volume_is_a_cube_of_cubic_voxels():
    configuration = plan_for().configurations["resunet_3d"]
    assert configuration.network.n_flat_stages == 0 and configuration.tiles == "patch"
    assert (configuration.patch_slices, *configuration.patch_size_yx) == (96, 96, 96)
    assert configuration.batch_size == 2 and configuration.network.norm == "instance"


def test_the_same_facts_give_the_same_plan(tmp_path):
    assert plan_for() == plan_for()
    write_plan(tmp_path / "plan.json", plan_for(), parents_of(plan_for()))
    assert Plan.read(tmp_path / "plan.json") == plan_for()


def test_cases_without_a_fan_are_told():
    one = changed(facts(), 3, has_fan=False)
    with pytest.raises(PwmlError, match=r"^case c03: no fan is seen in a field of zeros: .* leave it out$"):
        make_plan(one, CPU)
    with pytest.raises(
        PwmlError, match=r"(?s)Dataset002_Probe is ultrasound and has problems \(2\).*c01.*c03"
    ):
        make_plan(changed(one, 1, has_fan=False), CPU)


def test_cases_of_another_spacing_are_told():
    def with_spacing(mm):
        return changed(facts(), 2, geometry=Geometry(SHAPE, (0.15, mm, 0.15)))

    make_plan(with_spacing(0.157), CPU)
    expected = r"^case c02: its spacing is 0\.16 × 0\.15 × 0\.15 mm, that of most cases 0\.15 × 0\.15 × 0\.15 mm .*resample"
    with pytest.raises(PwmlError, match=expected):
        make_plan(with_spacing(0.16), CPU)


def test_single_slices_of_ultrasound_are_planned_in_the_plane():
    fingerprint = facts(
        names=("US",), shape=(1, 100, 95), box=((0, 1), (10, 96), (6, 90)), spacing=(1.0, 0.2, 0.2)
    )
    cases = tuple(
        replace(
            case,
            geometry=replace(case.geometry, is_2d=True),
            lesions=tuple(replace(one, centre_zyx=(0.0, *one.centre_zyx[1:])) for one in case.lesions),
        )
        for case in fingerprint.cases
    )
    plan = make_plan(replace(fingerprint, cases=cases), CPU)
    assert plan.preparations["slices"].slice_axis == "z" and plan.smallest_lesion_mm3 == 0
    assert plan.configurations["unet_2d"].patch_size_yx == (96, 96)
    assert "resunet_3d" not in plan.configurations
