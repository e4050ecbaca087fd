import pytest

from pwmlunet.cli.training import _recipe, train
from pwmlunet.errors import PwmlError


def recipe_of(*options):
    return _recipe(train.__wrapped__().parse_args(["27", "0", *options]))


def test_options_are_laid_over_the_recipe_and_its_parts():
    plain, changed = (
        recipe_of(),
        recipe_of("--curriculum", "--optimiser", "rmsprop", "--channel-dropout", "0.25", "--rate", "1e-4"),
    )
    assert (plain.curriculum, plain.optimiser, plain.augmentation.channel_dropout) == (False, "adamw", 0.0)
    assert (changed.curriculum, changed.optimiser, changed.learning_rate) == (True, "rmsprop", 1e-4)
    assert changed.augmentation.channel_dropout == 0.25 and not changed.compile
    assert changed.augmentation.noise == plain.augmentation.noise
    turned = recipe_of("--set", "augmentation.rich_rotation_degrees=[5,10]")
    assert turned.augmentation.rich_rotation_degrees == (5, 10)


def test_an_unknown_optimiser_is_told():
    with pytest.raises(PwmlError, match="optimiser must be one of adamw, adam, sgd, rmsprop, not 'lion'"):
        recipe_of("--optimiser", "lion")
