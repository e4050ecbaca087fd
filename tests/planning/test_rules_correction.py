"""What two stages see: which rule decides what, on fingerprints made by hand."""

import pytest

from pwmlunet.data.image import Geometry
from pwmlunet.networks.unet import UNetConfig
from pwmlunet.planning.budget import Budget
from pwmlunet.planning.fingerprint import CaseFingerprint, ChannelFacts, Fingerprint, LesionFacts
from pwmlunet.planning.planner import make_plan, parents_of

SMALL = Budget(100.0, (8,), "test")
PAIR = ("T2 FLAIR", "T1 FLAIR")
FCI = (1.5, 1.02)  # bright in one channel, hardly seen in the other
LACI = (1.6, 0.7)  # bright and dark


def facts(
    lesions,
    *,
    channels=PAIR,
    shape=(20, 256, 256),
    spacing=(6.0, 0.5, 0.5),
    sizes=((4.0, (1, 4, 4)),),
    are_regions=False,
    is_2d=False,
):
    """Three cases, each with these lesions, by name and contrasts; diameters and extents in turn."""
    box = ((0, shape[0]), (10, 100), (20, 120))
    channel = ChannelFacts(100.0, 20.0, (10.0, 100.0, 200.0))
    cases = []
    for i in range(3):
        made = []
        for n, (name, contrasts) in enumerate(lesions * len(sizes)):
            diameter, extent = sizes[n % len(sizes)]
            wide = (diameter, diameter / 3, diameter / 5)
            centre = (shape[0] / 2, 40.0 + i, 50.0 + n)
            made.append(LesionFacts(name, 12, 5.9, extent, wide, (*contrasts, 1.5)[0], centre, contrasts))
        geometry = Geometry(shape, spacing, is_2d=is_2d)
        head = (geometry, box, 9999, False, (channel,) * len(channels))
        cases.append(CaseFingerprint(f"c{i}", f"s{i}", *head, tuple(made), 20, 1))
    return Fingerprint("Dataset001_A", channels, tuple(cases), are_regions)


def plan_for(lesions, **changes):
    return make_plan(facts(lesions, **changes), SMALL)


def decision(plan, topic):
    return next((d for d in plan.decisions if d.topic == topic), None)


def test_a_channel_that_hides_a_kind_is_left_to_the_correction_network():
    plan = plan_for([("FCI", FCI), ("LACI", LACI)])
    primary, unet = plan.configurations["primary_2d"], plan.configurations["unet_2d"]
    assert (primary.channels, primary.finds) == ((0,), "any")
    assert primary.network == UNetConfig(width=8, n_stages=unet.network.n_stages, head_convolutions=2)
    assert (primary.patch_size_yx, primary.batch_size) == (unet.patch_size_yx, unet.batch_size)
    others = [c for name, c in plan.configurations.items() if name != "primary_2d"]
    assert {(c.channels, c.finds) for c in others} == {(None, "each")}
    assert parents_of(plan)["primary_2d"] == "unet_2d" and plan.default == "resunet_2d"
    assert plan.correction.channels is None
    first = decision(plan, "channels of the first network")
    assert first.choice == "T2 FLAIR" and "T1 FLAIR, which hardly shows some, tells the kind" in first.reason
    assert "FCI in T2 FLAIR; LACI in T2 FLAIR, T1 FLAIR" in first.reason
    assert decision(plan, "channels of the correction network").choice == "all"


@pytest.mark.parametrize(
    ("channels", "lesions", "seen"),
    [
        (PAIR[::-1], [("FCI", FCI[::-1]), ("LACI", LACI[::-1])], (1,)),
        (PAIR, [("FCI", (1.5, 1.3)), ("LACI", LACI)], None),  # each is seen in both
        (PAIR, [("bright", (1.5, 1.0)), ("dark", (1.0, 0.7))], None),  # none shows all: never none
        (("a", "b", "c"), [("x", (1.4, 1.0, 0.6)), ("y", (1.3, 1.5, 0.7))], (0, 2)),
        (("a", "b", "c"), [("x", (1.4, 1.01, 0.6)), ("y", (1.3, 1.01, 0.7))], (0, 2)),  # b shows nothing
        (
            PAIR,
            [("a", FCI), ("a", (1.5, 1.25)), ("a", (1.5, 0.8)), ("b", LACI)],
            (0,),
        ),  # what is usual counts
        (("FLAIR",), [("a", (1.5,)), ("b", (0.7,))], None),
        (PAIR, [("a", ()), ("b", ())], None),  # as an older fingerprint has it
    ],
)
def test_the_first_network_sees_what_shows_every_kind(channels, lesions, seen):
    plan = plan_for(lesions, channels=channels)
    assert plan.configurations["primary_2d"].channels == seen
    assert (decision(plan, "channels of the first network") is None) == (len(channels) == 1)


def test_one_kind_of_lesion_is_looked_for_in_all_channels():
    plan = plan_for([("lesion", FCI)])
    assert "primary_2d" not in plan.configurations
    assert (
        "a change between two times is seen in both only"
        in decision(plan, "channels of the first network").reason
    )
    assert plan.correction is not None


def test_regions_exclude_nothing():
    plan = plan_for([("whole", FCI), ("core", LACI)], are_regions=True)
    assert "primary_2d" not in plan.configurations
    assert decision(plan, "channels of the first network").choice == "all"


@pytest.mark.parametrize(
    ("sizes", "spacing", "region_mm"),
    [
        ([(4.0, (1, 4, 4))], (6.0, 0.5, 0.5), 8.0),  # 4 widths of 2 mm
        ([(4.0, (1, 4, 4))], (6.0, 0.4, 0.9), 9.6),  # of 4 × 0.6 mm, in two digits
        ([(2.0, (1, 4, 30))], (6.0, 0.5, 1.0), 45.0),  # one and a half times 30 mm
        ([(2.0, (1, 60, 4))], (6.0, 0.5, 1.0), 45.0),
        ([(4.0, (1, 4, 4))] * 39 + [(4.0, (1, 200, 4))], (6.0, 0.5, 0.5), 8.0),  # one in twenty may be larger
    ],
)  # fmt: skip
def test_the_region_holds_a_lesion_and_what_is_around_it(sizes, spacing, region_mm):
    plan = plan_for([("lesion", FCI)], sizes=sizes, spacing=spacing)
    assert plan.correction.region_mm == region_mm
    assert decision(plan, "region of the correction network").choice == f"{region_mm:g} mm"


def test_regions_are_measured_across_the_slices_that_are_planned():
    """Coronal slices along the file's y: its z and x are rows and columns."""
    sizes = [(9.0, (4, 2, 40))]
    plan = plan_for([("lesion", FCI)], sizes=sizes, spacing=(0.5, 6.0, 0.5), shape=(256, 20, 256))
    assert plan.preparations["slices"].slice_axis == "y"
    assert plan.correction.region_mm == 30.0  # 1.5 × 40 × 0.5, and 4 × 3 × 0.5 across y


@pytest.mark.parametrize(
    ("spacing", "n_slices", "views", "why"),
    [
        ((6.0, 0.5, 0.5), 20, "slice", "slices 6 mm apart share little"),
        ((3.0, 0.5, 0.5), 20, "slices", "slices 3 mm apart show parts of the same lesion"),
        ((1.0, 0.9, 1.0), 20, "planes", "1 × 0.9 × 1 mm are nearly cubes"),
        ((1.0, 0.7, 1.0), 20, "planes", "nearly cubes"),
        ((1.0, 0.65, 1.0), 20, "slices", "1 mm apart"),
        ((1.0, 1.0, 1.0), 7, "slices", "1 mm apart"),
        ((1.0, 1.0, 1.0), 8, "planes", "nearly cubes"),
        ((1.0, 1.0, 1.0), 1, "slice", "there are no slices beside it"),
    ],
)
def test_views_by_the_voxels_shape(spacing, n_slices, views, why):
    plan = plan_for([("lesion", FCI)], spacing=spacing, shape=(n_slices, 256, 256))
    assert plan.correction.views == views
    assert why in decision(plan, "views of the correction network").reason
    if spacing[0] == 6.0:
        t = decision(plan, "slices of a trident")
        assert (t.choice, t.reason) == ("1", "slices 6 mm apart share little")


def test_one_channel_leaves_no_choice_of_channels():
    plan = plan_for([("lesion", (1.5,))], channels=("T1",))
    assert not [d.topic for d in plan.decisions if d.topic.startswith("channels")]
    assert plan.correction.channels is None
