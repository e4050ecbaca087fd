from dataclasses import replace

import pytest
import torch

from pwmlunet.errors import PwmlError
from pwmlunet.networks.base import Batch
from pwmlunet.training.augmentation import Augmenter
from pwmlunet.training.config import AugmentationConfig

OFF = AugmentationConfig(
    flip=False,
    **{
        f"{name}_probability": 0.0
        for name in ("rotation", "scaling", "elastic", "brightness", "contrast", "gamma", "noise", "blur", "low_resolution")
    },
)  # fmt: skip
SPATIAL = ("flip", "rotation_probability", "scaling_probability", "elastic_probability")
INTENSITY = tuple(
    f"{name}_probability" for name in ("brightness", "contrast", "gamma", "noise", "blur", "low_resolution")
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=6, channels=2, n_slices=3, height=32, width=48):
    image = torch.randn(n, channels, n_slices, height, width, generator=generator(9))
    target = torch.zeros(n, 1, 1, height, width)
    target[:, :, :, 8:11, 20:24] = 1
    valid = torch.ones_like(target)
    valid[:, :, :, 25:, :10] = 0
    return Batch(image, target, valid)


def test_nothing_changes_where_everything_is_off():
    given = batch()
    changed = Augmenter(OFF)(given, generator())
    assert torch.allclose(changed.image, given.image, atol=1e-4)
    assert torch.allclose(changed.target, given.target, atol=1e-4)
    assert torch.equal(changed.valid, given.valid)


@pytest.mark.parametrize("name", SPATIAL)
def test_image_neighbours_target_and_valid_move_together(name):
    """Every slice of the image is made equal to the target and stays so; so does what is valid."""
    given = batch()
    image = torch.cat([given.target, given.valid], 1).expand(-1, -1, 3, -1, -1).clone()
    config = replace(OFF, **{name: name == "flip" or 1.0})
    changed = Augmenter(config)(Batch(image, given.target, given.valid), generator())
    for z in range(3):
        assert torch.allclose(changed.image[:, :1, z], changed.target[:, :, 0], atol=1e-5)
        assert torch.equal((changed.image[:, 1:, z] > 0.999).float(), changed.valid[:, :, 0])
    moved = (changed.target - given.target).abs().amax((1, 2, 3, 4)) > 0.5
    assert moved.sum() >= 2
    assert set(changed.valid.unique().tolist()) == {0, 1}
    assert changed.target.min() >= 0 and changed.target.max() <= 1 + 1e-5
    assert (changed.target.sum((1, 2, 3, 4)) > 3).all()


def test_flips_are_exact_and_reach_every_mirror_image():
    given = batch(n=64, channels=1)
    changed = Augmenter(replace(OFF, flip=True))(given, generator())
    seen = set()
    for i in range(64):
        for axes in ((), (-1,), (-2,), (-2, -1)):
            for along in ((), (1,)):
                if torch.allclose(changed.image[i], given.image[i].flip((*axes, *along)), atol=1e-3):
                    assert torch.allclose(changed.target[i], given.target[i].flip(axes), atol=1e-4)
                    seen.add((axes, along))
    assert len(seen) == 8


def test_rotation_keeps_lengths_in_patches_that_are_not_square():
    given = batch(n=32, height=32, width=64)
    target = torch.zeros_like(given.target)
    target[..., 12:20, 28:36] = 1
    config = replace(OFF, rotation_probability=1.0, rotation_degrees=45.0)
    changed = Augmenter(config)(Batch(given.image, target, given.valid), generator())
    assert torch.allclose(changed.target.sum((1, 2, 3, 4)), torch.tensor(64.0), rtol=0.04)


def test_scaling_enlarges_by_its_factor():
    given = batch(n=8)
    target = torch.zeros_like(given.target)
    target[..., 12:20, 20:28] = 1
    config = replace(OFF, scaling_probability=1.0, scaling=(1.5, 1.5))
    changed = Augmenter(config)(Batch(given.image, target, given.valid), generator())
    assert torch.allclose(changed.target.sum((1, 2, 3, 4)), torch.tensor(64 * 2.25), rtol=0.03)


@pytest.mark.parametrize("name", INTENSITY)
def test_intensities_change_and_labels_do_not(name):
    given = batch()
    before = given.image.clone()
    changed = Augmenter(replace(OFF, **{name: 1.0}))(given, generator())
    assert changed.image.shape == given.image.shape and changed.image.isfinite().all()
    assert ((changed.image - given.image).abs().amax((1, 2, 3, 4)) > 1e-3).sum() >= 5
    assert torch.allclose(changed.target, given.target, atol=1e-4)
    assert torch.equal(given.image, before)
    flat = Batch(torch.full_like(given.image, 3.0), given.target, given.valid)
    assert Augmenter(replace(OFF, **{name: 1.0}))(flat, generator()).image.isfinite().all()


@pytest.mark.parametrize("name", ["blur_probability", "low_resolution_probability", "gamma_probability"])
def test_slices_do_not_mix(name):
    given = batch()
    other = given.image.clone()
    other[:, :, 2] = other[:, :, 2].flip(-1)  # the same range of values
    augmenter = Augmenter(replace(OFF, **{name: 1.0}))
    one = augmenter(given, generator()).image
    two = augmenter(Batch(other, given.target, given.valid), generator()).image
    assert torch.allclose(one[:, :, :2], two[:, :, :2], atol=1e-4)
    assert not torch.allclose(one[:, :, 2], two[:, :, 2], atol=1e-2)


def test_the_generator_alone_decides():
    augmenter, given = Augmenter(AugmentationConfig()), batch()
    torch.manual_seed(1)
    one = augmenter(given, generator(5))
    torch.manual_seed(2)
    two = augmenter(given, generator(5))
    assert torch.equal(one.image, two.image) and torch.equal(one.target, two.target)
    assert not torch.equal(one.image, augmenter(given, generator(6)).image)


def test_single_slices_are_augmented():
    changed = Augmenter(AugmentationConfig())(batch(n_slices=1), generator())
    assert changed.image.shape == (6, 2, 1, 32, 48)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"blur_probability": 1.1}, "blur_probability must be between 0 and 1"),
        ({"paste_probability": -0.1}, "paste_probability must be between 0 and 1"),
        ({"scaling": [0, 1]}, "scaling must be two positive numbers"),
        ({"gamma": [1.5, 0.7]}, "gamma must be two positive numbers, the smaller one first"),
        ({"blur_pixels": [0, 1]}, "blur_pixels must be two positive"),
        ({"channel_dropout": 1.5}, "channel_dropout must be between 0 and 1"),
        ({"rich_rotation_degrees": [10, 5]}, "rich_rotation_degrees must be two numbers from 0 to 180"),
        ({"rich_rotation_degrees": [-5, 5]}, "rich_rotation_degrees must be two numbers from 0 to 180"),
    ],
)
def test_values_out_of_range_are_told(values, expected):
    with pytest.raises(PwmlError, match=expected):
        AugmentationConfig.from_dict(values, "the recipe")


def test_a_prior_moves_with_the_image_and_keeps_its_values():
    """Channel 1 is the target itself: it ends where the target ends, untouched by noise and contrast."""
    given = batch(n=16, channels=1)
    prior = given.target.expand(-1, -1, 3, -1, -1)
    config = replace(AugmentationConfig(), paste_probability=1.0, rotation_probability=1.0)
    empty = given.target.clone()
    empty[::2] = 0  # into which lesions are pasted
    image = torch.cat([given.image, prior], 1)
    changed = Augmenter(config, 1)(Batch(image, empty, given.valid), generator())
    for i in range(1, 16, 2):
        for z in range(3):
            assert torch.allclose(changed.image[i, 1, z], changed.target[i, 0, 0], atol=1e-5)
    assert changed.image[:, 1].min() >= 0 and changed.image[:, 1].max() <= 1 + 1e-5
    assert not torch.equal(changed.image[:, 0], given.image[:, 0])
    assert torch.equal(image[:, 1:], prior)  # what was given is as it was


def test_slices_of_a_volume_are_turned_with_their_labels():
    target = torch.zeros(16, 1, 4, 32, 48)
    target[:, :, 0, 8:11, 20:24] = 1
    valid = torch.ones_like(target)
    valid[:, :, 3] = 0
    changed = Augmenter(replace(OFF, flip=True))(Batch(target.clone(), target, valid), generator())
    assert torch.allclose(changed.image, changed.target, atol=1e-5)
    first = {int(t.amax((0, 2, 3)).argmax()) for t in changed.target}
    ignored = {int(v.amax((0, 2, 3)).argmin()) for v in changed.valid}
    assert first == ignored == {0, 3}


def test_channels_are_left_out_after_all_else_never_all_and_never_the_prior():
    """Noise and brightness come before, so that a channel left out is exactly zero; the last one is a prior."""
    given = batch(n=400, channels=4, n_slices=1, height=16, width=16)
    config = replace(OFF, noise_probability=1.0, brightness_probability=1.0, channel_dropout=0.5)
    changed = Augmenter(config, 3)(given, generator())
    left_out = (changed.image == 0).flatten(2).all(2)
    assert not left_out[:, 3].any()
    n_left_out = left_out[:, :3].sum(1)
    assert set(n_left_out.tolist()) == {0, 1, 2}
    assert (n_left_out > 0).float().mean() == pytest.approx(0.5, abs=0.1)
    assert left_out[n_left_out > 0, :3].float().mean(0).tolist() == pytest.approx([0.5] * 3, abs=0.1)
    untouched = Augmenter(replace(config, channel_dropout=0.0), 3)(given, generator())
    assert torch.equal(changed.image[~left_out], untouched.image[~left_out])


def rotations(changed):
    """The angle in degrees of each patch, found from where a bright pixel right of the middle went."""
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    weight = changed.image[:, 0, 0]
    rows, columns = ((weight * place).sum((1, 2)) / weight.sum((1, 2)) for place in (y, x))
    return torch.rad2deg(torch.atan2(rows, columns))


def test_patches_of_rich_slices_are_rotated_within_their_range_either_way():
    image = torch.zeros(300, 1, 1, 64, 64)
    image[..., 30:34, 52:56] = 1
    given = Batch(image, torch.zeros(300, 1, 1, 64, 64), torch.ones(300, 1, 1, 64, 64))
    rich = torch.arange(300) % 3 == 0
    config = replace(OFF, rotation_probability=0.5, rotation_degrees=3.0)
    own = Augmenter(replace(config, rich_rotation_degrees=(5.0, 10.0)))
    angles = rotations(own(given, generator(), rich))
    sizes = angles[rich].abs()
    assert sizes.min() > 4.9 and sizes.max() < 10.1 and sizes.max() - sizes.min() > 4
    assert 30 < (angles[rich] > 0).sum() < 70
    others = angles[~rich].abs()
    assert others.max() < 3.1 and 60 < (others < 0.01).sum() < 140
    usual = Augmenter(config)(given, generator(), rich)
    assert rotations(usual).abs().max() < 3.1  # rich ones are as the others where no range is given
