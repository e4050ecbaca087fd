import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pwmlunet.errors import PwmlError
from pwmlunet.networks.correction import CorrectionConfig, CorrectionNetwork, classify
from pwmlunet.training.correction_learning import (
    REACH,
    CorrectionRecipe,
    change,
    class_weights,
    learn,
    weighted_loss,
)

CPU = torch.device("cpu")
NETWORK = CorrectionConfig(region_pixels=16, width=4, n_hidden=8, dropout=0.1)
RECIPE = CorrectionRecipe(steps=60, batch_size=16, learning_rate=5e-3, warmup_steps=5, weight_average=0.9)
STILL = CorrectionRecipe(
    rotation_degrees=0,
    flip=False,
    shift=0,
    scaling=(1, 1),
    brightness=0,
    contrast=(1, 1),
    gamma=(1, 1),
    noise=0,
)


def candidates(n: int, seed: int = 0, n_pixels: int = 24) -> tuple[Tensor, Tensor]:
    """Discs (1) and stripes (0) of the same brightness and area, anywhere near the centre, in noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(n_pixels) - 11.5, torch.arange(n_pixels) - 11.5, indexing="ij")
    classes = torch.arange(n) % 2
    angle, dy, dx = (
        torch.rand(3, n, 1, 1, generator=generator) * torch.tensor([math.pi, 2, 2])[:, None, None, None]
    )
    along = (x - dx) * angle.cos() + (y - dy) * angle.sin()
    across = (y - dy) * angle.cos() - (x - dx) * angle.sin()
    longer = torch.where(classes == 1, 1.0, 2.2)[:, None, None]
    shape = ((along / longer) ** 2 + (across * longer) ** 2 < 3**2).float()
    image = 0.3 + 0.4 * shape + 0.1 * torch.randn(shape.shape, generator=generator)
    return torch.stack((image.clamp(0, 1), shape, 0.5 * shape), 1)[:, None], classes


def middle(regions: Tensor, n_pixels: int = 16) -> Tensor:
    edge = (regions.shape[-1] - n_pixels) // 2
    return regions[..., edge : edge + n_pixels, edge : edge + n_pixels]


def learned(
    regions: Tensor, classes: Tensor, recipe: CorrectionRecipe = RECIPE, **values: Any
) -> CorrectionNetwork:
    given = {"n_classes": 2, "seed": 0} | values
    return learn(NETWORK, regions, classes, given["n_classes"], recipe, seed=given["seed"], device=CPU)


def same(one: CorrectionNetwork, other: CorrectionNetwork) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# learning


def test_it_tells_discs_from_stripes_that_it_has_not_seen() -> None:
    regions, classes = candidates(100)
    network = learned(regions.half(), classes)
    others, wanted = candidates(200, seed=1)
    assert not network.training
    assert (classify(network, middle(others)).argmax(1) == wanted).float().mean() > 0.9


@pytest.mark.parametrize("optimiser", ["adamw", "rmsprop"])
def test_the_same_seed_learns_the_same_and_leaves_torch_as_it_was(optimiser: Any) -> None:
    regions, classes = candidates(20)
    recipe = replace(RECIPE, steps=3, optimiser=optimiser)
    before = torch.get_rng_state()
    first = learned(regions, classes, recipe)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert same(first, learned(regions, classes, recipe))
    assert not same(first, learned(regions, classes, recipe, seed=1))


def test_optimisers_differ() -> None:
    regions, classes = candidates(20)
    recipe = replace(RECIPE, steps=2)
    assert not same(
        learned(regions, classes, recipe), learned(regions, classes, replace(recipe, optimiser="rmsprop"))
    )


def test_an_absent_class_is_never_named() -> None:
    regions, classes = candidates(20)
    network = learned(regions, classes * 2, replace(RECIPE, steps=30, label_smoothing=0.2), n_classes=3)
    probability = classify(network, middle(regions))
    assert probability[:, 1].max() < probability[:, [0, 2]].min()


def test_two_candidates_are_enough() -> None:
    regions, classes = candidates(2)
    network = learned(regions, classes)
    assert classify(network, middle(regions)).argmax(1).tolist() == classes.tolist()


@pytest.mark.parametrize(
    ("classes", "complaint"),
    [([], "no candidates.*lower threshold"), ([1, 1], "all candidates are of class 1.*lower threshold")],
)
def test_nothing_to_tell_apart_is_said(classes: list[int], complaint: str) -> None:
    regions, _ = candidates(len(classes))
    with pytest.raises(PwmlError, match=complaint):
        learned(regions, torch.tensor(classes, dtype=torch.long))


def test_a_loss_that_is_not_finite_is_said() -> None:
    regions, classes = candidates(16)
    regions[3, 0, 1] = torch.nan
    with pytest.raises(PwmlError, match="loss of the correction network is nan at step 0"):
        learned(regions, classes)


def test_a_mean_of_the_weights_is_kept_that_soon_forgets_the_first() -> None:
    regions, classes = candidates(20)
    last, half, most = (
        learned(regions, classes, replace(RECIPE, steps=2, weight_average=a)) for a in (0, 0.5, 0.9)
    )
    assert not same(last, half)
    assert same(half, most)


# the loss


def test_weights_of_classes_by_hand() -> None:
    classes = torch.tensor([0] * 16 + [1] * 4 + [3])
    assert torch.equal(class_weights(classes, 4, 0), torch.tensor([1.0, 1, 0, 1]))
    torch.testing.assert_close(class_weights(classes, 4, 1), torch.tensor([7 / 16, 7 / 4, 0, 7]))
    halves = torch.tensor([1 / 4, 1 / 2, 0, 1]) * 21 / (4 + 2 + 1)
    torch.testing.assert_close(class_weights(classes, 4, 0.5), halves)


def test_the_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, -1, 0], [0.5, 2, 9]])
    weights = torch.tensor([0.5, 2, 0])
    log_q = [[v - math.log(sum(map(math.exp, row))) for v in row] for row in logits.tolist()]
    first = 0.5 * (0.9 * -log_q[0][0] + 0.1 * -log_q[0][1])  # the absent class gets nothing
    second = 2 * (0.1 * -log_q[1][0] + 0.9 * -log_q[1][1])
    loss = weighted_loss(logits, torch.tensor([0, 1]), weights, smoothing=0.2)
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-5)


# random changes


def changed(regions: Tensor, recipe: CorrectionRecipe, seed: int = 0, **values: Any) -> Tensor:
    config = replace(NETWORK, **values)
    return change(regions, config, recipe, torch.Generator().manual_seed(seed))


def test_without_changes_the_middle_is_what_was_there() -> None:
    regions, _ = candidates(6)
    assert regions.shape[-1] == round(16 * REACH)
    torch.testing.assert_close(changed(regions, STILL), middle(regions), atol=1e-5, rtol=0)


def ramps() -> Tensor:
    """A region whose two channels say each pixel's row and column, from the middle, in 100 pixels."""
    place = (torch.arange(24.0) - 11.5) / 100 + 0.5
    return torch.stack((place[:, None].expand(24, 24), place.expand(24, 24)))[None, None]


def places(recipe: CorrectionRecipe, n: int = 1) -> Tensor:
    """Rows and columns (n, 2, 16, 16) that the pixels of changed regions come from."""
    regions = ramps().expand(n, -1, -1, -1, -1)
    return (changed(regions, recipe, sees_mask=False, sees_probability=False)[:, 0] - 0.5) * 100


def test_shifts_show_the_image_beyond() -> None:
    """Up to a share of the region's side along each axis, and no border that is repeated."""
    moved = places(replace(STILL, shift=0.125), 300) - places(STILL)
    by = moved.mean((2, 3), keepdim=True)
    torch.testing.assert_close(moved, by.expand_as(moved), atol=1e-3, rtol=0)
    assert by.amax((0, 2, 3)).tolist() == pytest.approx([2, 2], abs=0.05)
    assert by.amin((0, 2, 3)).tolist() == pytest.approx([-2, -2], abs=0.05)


def test_turns_keep_the_distance_from_the_middle() -> None:
    there, turned = places(STILL), places(replace(STILL, rotation_degrees=180), 300)
    distance = (there**2).sum(1)
    torch.testing.assert_close((turned**2).sum(1), distance.expand(300, -1, -1), atol=0.02, rtol=0)
    angles = torch.atan2(turned[:, 1, 0, 8], turned[:, 0, 0, 8]).abs()
    assert angles.min() < 0.1 and angles.max() > math.pi - 0.1


def test_flips_are_all_there_and_nothing_else() -> None:
    regions, _ = candidates(1)
    wanted = [middle(regions).flip(axes) for axes in ([], [3], [4], [3, 4])]
    seen = [changed(regions, replace(STILL, flip=True), seed) for seed in range(30)]
    found = [[torch.allclose(s, w, atol=1e-5) for w in wanted].index(True) for s in seen]
    assert set(found) == {0, 1, 2, 3}


def test_scaling_enlarges() -> None:
    enlarged = places(replace(STILL, scaling=(1.25, 1.25)))
    torch.testing.assert_close(enlarged, places(STILL) / 1.25, atol=1e-3, rtol=0)


def test_slices_turn_together_and_planes_each_by_itself() -> None:
    one, _ = candidates(3)
    regions = one.expand(-1, 3, -1, -1, -1)
    recipe = replace(STILL, rotation_degrees=180, shift=0.1, flip=True)
    together = changed(regions, recipe, views="slices")
    assert torch.equal(together[:, 0], together[:, 1]) and torch.equal(together[:, 0], together[:, 2])
    apart = changed(regions, recipe, views="planes")
    assert not torch.allclose(apart[:, 0], apart[:, 1], atol=0.1)
    torch.testing.assert_close(apart[:, 1, 1] * 0.5, apart[:, 1, 2])  # the channels of a plane move together


def test_neighbouring_slices_change_places_and_planes_do_not() -> None:
    regions, _ = candidates(20)
    regions = regions * torch.tensor([0.2, 0.5, 1.0]).view(1, 3, 1, 1, 1)
    brightness = changed(regions, replace(STILL, flip=True), views="slices")[:, :, 2].amax((2, 3))
    assert torch.equal(brightness[:, 1], brightness[:, 1].mean().expand(20))
    assert {round(float(v), 2) for v in brightness[:, 0]} == {0.1, 0.5}
    planes = changed(regions, replace(STILL, flip=True), views="planes")[:, :, 2].amax((2, 3))
    assert {round(float(v), 2) for v in planes[:, 0]} == {0.1}


@pytest.mark.parametrize(
    "values", [{"brightness": 0.1}, {"contrast": (0.5, 0.6)}, {"gamma": (2.0, 2.5)}, {"noise": 0.2}]
)
def test_intensities_change_in_image_channels_alone(values: dict[str, Any]) -> None:
    regions, _ = candidates(4)
    regions = torch.cat((regions[:, :, :1], regions[:, :, :1], regions[:, :, 1:]), 2)  # two image channels
    before, after = middle(regions), changed(regions, replace(STILL, **values))
    torch.testing.assert_close(after[:, :, 2:], before[:, :, 2:], atol=1e-5, rtol=0)
    for channel in (0, 1):
        assert (after[:, :, channel] - before[:, :, channel]).abs().max() > 0.02
    assert not torch.allclose(after[:, :, 0], after[:, :, 1], atol=1e-3)  # each by itself
    assert 0 <= after.min() <= after.max() <= 1


def test_channels_are_left_out_but_never_all() -> None:
    regions, _ = candidates(200)
    image = regions[:, :, :1] + 0.01
    regions = torch.cat((image, image, image, regions[:, :, 1:]), 2)
    regions[:50, :, 1:3] = 0  # the case has the first channel alone
    regions[:5, :, 0] = 0  # or none
    after = changed(regions, replace(STILL, channel_dropout=0.7, brightness=0.1))
    present = after[:, 0, :3].amax((2, 3)) > 0
    assert present[:50].tolist() == [[False] * 3] * 5 + [[True, False, False]] * 45
    assert set(present[50:].sum(1).tolist()) == {1, 2, 3}
    assert (present[50:].sum(1) == 3).float().mean() == pytest.approx(0.3, abs=0.08)
    assert present[50:].float().mean() == pytest.approx(0.3 + 0.7 * 0.5, abs=0.06)
    assert (after[:, 0, 3].amax((1, 2)) > 0.5).all()


# the recipe


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 1}, "batch_size 2"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"noise": -0.1}, "noise cannot be negative"),
        ({"seed": -1}, "seed cannot be negative"),
        ({"channel_dropout": 1.1}, "channel_dropout must be from 0 to 1"),
        ({"class_balance": 1.5}, "class_balance must be between 0 and 1"),
        ({"scaling": [1.2, 0.8]}, "scaling must be two positive numbers"),
        ({"gamma": [0.0, 1.0]}, "gamma must be two positive numbers"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PwmlError, match=f"training.json: .*{complaint}"):
        CorrectionRecipe.from_dict(values, "training.json")
