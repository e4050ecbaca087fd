from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pwmlunet.config import Config
from pwmlunet.errors import PwmlError


@dataclass(frozen=True)
class Loss(Config):
    weight: float = 1.0

    @classmethod
    def variants(cls) -> Mapping[str, type[Loss]]:
        return {"dice": Dice, "focal": Focal}


@dataclass(frozen=True)
class Dice(Loss):
    smooth: float = 0.5


@dataclass(frozen=True)
class Focal(Loss):
    gamma: float = 2.0


@dataclass(frozen=True)
class Recipe(Config):
    epochs: int
    spacing_zyx_mm: tuple[float, float, float]
    device: Literal["cpu", "cuda"] = "cpu"
    flips: bool = True
    name: str = "default"
    folder: Path = Path("here")
    seed: int | None = None
    loss: Loss = Dice()
    more_losses: tuple[Loss, ...] = ()
    shares: dict[str, float] | None = None
    patience: int | str = 10

    def problems(self) -> Iterator[str]:
        if self.epochs < 1:
            yield f"epochs must be at least 1, not {self.epochs}"


VALUES: dict[str, Any] = {"epochs": 3, "spacing_zyx_mm": [3, 0.7, 0.5]}


def complaint(**changes: Any) -> str:
    with pytest.raises(PwmlError) as caught:
        Recipe.from_dict({**VALUES, **changes}, "recipe.json")
    return str(caught.value)


def test_round_trip_through_a_file_gives_an_equal_config(tmp_path: Path) -> None:
    recipe = Recipe(
        epochs=7,
        spacing_zyx_mm=(3.0, 0.7, 0.5),
        device="cuda",
        flips=False,
        name="größer",
        folder=Path("a/b"),
        seed=5,
        loss=Focal(gamma=3.0),
        more_losses=(Dice(smooth=0.25), Focal(weight=0.5)),
        shares={"lesion": 0.25},
    )
    recipe.write(tmp_path / "recipe.json")
    assert Recipe.read(tmp_path / "recipe.json") == recipe


def test_defaults_and_whole_floats_are_taken_and_lists_become_tuples() -> None:
    recipe = Recipe.from_dict({**VALUES, "epochs": 3.0}, "recipe.json")
    assert recipe == Recipe(epochs=3, spacing_zyx_mm=(3.0, 0.7, 0.5))
    assert isinstance(recipe.epochs, int)
    assert isinstance(recipe.spacing_zyx_mm[0], float)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epoch": 3}, "recipe.json: unknown key 'epoch' (did you mean 'epochs'?)"),
        ({"epochs": 2.5}, "recipe.json: epochs must be a whole number, not 2.5"),
        ({"epochs": True}, "recipe.json: epochs must be a whole number, not True"),
        ({"epochs": "3"}, "recipe.json: epochs must be a whole number, not '3'"),
        ({"epochs": 0}, "recipe.json: epochs must be at least 1, not 0"),
        ({"flips": 1}, "recipe.json: flips must be true or false, not 1"),
        ({"name": 1}, "recipe.json: name must be text, not 1"),
        ({"folder": 1}, "recipe.json: folder must be a path, not 1"),
        ({"device": "tpu"}, "recipe.json: device must be one of cpu, cuda, not 'tpu'"),
        ({"seed": "x"}, "recipe.json: seed must be a whole number, not 'x'"),
        ({"spacing_zyx_mm": [3, 0.7]}, "recipe.json: spacing_zyx_mm must have 3 entries, not 2: [3, 0.7]"),
        ({"spacing_zyx_mm": 3}, "recipe.json: spacing_zyx_mm must be a list, not 3"),
        ({"spacing_zyx_mm": [3, float("nan"), 1]}, "recipe.json: spacing_zyx_mm[1] must be a number, not nan"),
        ({"shares": [1]}, "recipe.json: shares must be an object with named values, not [1]"),
        ({"shares": {"a": "b"}}, "recipe.json: shares.a must be a number, not 'b'"),
        ({"loss": {"type": "dise"}}, "recipe.json: loss: \"type\" must be one of dice, focal, not 'dise'"),
        ({"loss": {"gamma": 1}}, 'recipe.json: loss: the key "type" is missing (one of dice, focal)'),
        ({"loss": {"type": "dice", "gamma": 1}}, "recipe.json: loss: unknown key 'gamma' (known: weight, smooth)"),
        ({"loss": 3}, "recipe.json: loss: expected an object with named values, found 3"),
        (
            {"more_losses": [{"type": "dice"}, {"type": "focal", "gamma": "x"}]},
            "recipe.json: more_losses[1]: gamma must be a number, not 'x'",
        ),
    ],
)  # fmt: skip
def test_each_wrong_value_is_told_with_its_place(changes: dict[str, Any], expected: str) -> None:
    assert complaint(**changes) == expected


def test_a_missing_key_is_named() -> None:
    with pytest.raises(PwmlError, match=r"^recipe.json: the key 'spacing_zyx_mm' is missing$"):
        Recipe.from_dict({"epochs": 1}, "recipe.json")


def test_a_union_takes_the_first_type_that_fits() -> None:
    assert Recipe.from_dict({**VALUES, "patience": 3.0}, "x").patience == 3
    assert Recipe.from_dict({**VALUES, "patience": "never"}, "x").patience == "never"
    assert complaint(patience=[1]) == "recipe.json: patience must be text, not [1]"
