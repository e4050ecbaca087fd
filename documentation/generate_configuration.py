"""Writes configuration.md from the config classes: their fields, defaults and the lines under the fields.

python documentation/generate_configuration.py
"""

import ast
import dataclasses
import inspect
import json
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pwmlunet.config import Config
from pwmlunet.data.image import Geometry
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.networks import NETWORKS
from pwmlunet.planning.fingerprint import CaseFingerprint, ChannelFacts, Fingerprint, LesionFacts
from pwmlunet.planning.plan import Configuration, Decision, ExpectedInput, Plan
from pwmlunet.planning.preprocessing import NORMALISATIONS, Preparation
from pwmlunet.training.config import RECIPES, AugmentationConfig, TrainingConfig
from pwmlunet.training.losses import LOSSES

TARGET = Path(__file__).with_name("configuration.md")

_INTRODUCTION = """\
# Configuration

<!-- Made by documentation/generate_configuration.py from the classes themselves: edit the line under the field
in the code, then run the script. -->

Four JSON files hold every choice. All are plain text that a person can read; `plan.json` and
`postprocessing.json` are meant to be edited. Reading is strict: an unknown key, a missing key, a wrong type or an
impossible value is an error that names the file and the key, and guesses what was meant.

| file | holds | made by | edit it? |
|---|---|---|---|
| `fingerprint.json` | facts of the dataset | `pwml_plan_and_preprocess` | no |
| `plan.json` | what was decided from them, and why | `pwml_plan_and_preprocess` | yes, the one in the preprocessed dataset |
| `training.json` | the recipe of a run | `pwml_train` | no: give options to `pwml_train` |
| `postprocessing.json` | how a mask is made of probabilities | `pwml_train` | yes, the one in the model folder |

A key with a default may be left out. [Commands](commands.md) says how options on the command line change a recipe,
[methods](methods.md) what networks and losses compute.
"""


def generate() -> str:
    """The whole text of configuration.md."""
    return "\n".join(
        [
            _INTRODUCTION,
            "## plan.json\n",
            "Edit it after planning, then run `pwml_plan_and_preprocess` again: an edited plan is kept, and only",
            "cases whose preparation changed are prepared again. A configuration may inherit from another:\n",
            "```json",
            '"trident_wide": {"inherits": "trident", "network": {"width": 32}}',
            "```\n",
            *_section(Plan, "The whole file"),
            *_section(Preparation, "`preparations`: one for each name"),
            f"Normalisations: {_names(NORMALISATIONS)}.\n",
            *_section(Configuration, "`configurations`: one for each name"),
            *(
                line
                for name, network in NETWORKS.items()
                for line in _section(network, f'`network` with `"type": "{name}"`')
            ),
            *_section(ExpectedInput, "`expected_input`"),
            *_section(Decision, "`decisions`: a list of"),
            "## training.json\n",
            f"Recipes, chosen with `pwml_train --recipe`: {_names(RECIPES)}. Any value may be changed with an option",
            "or with `--set KEY=VALUE`.\n",
            *_section(TrainingConfig, "The recipe", {n: r.to_dict() for n, r in RECIPES.items()}),
            f"Losses: {_names(LOSSES)}; a sum gives each a weight: `sbfl + 0.5*dice`.\n",
            *_section(
                AugmentationConfig,
                "`augmentation`",
                {n: r.augmentation.to_dict() for n, r in RECIPES.items()},
            ),
            "## postprocessing.json\n",
            *_section(Postprocessing, "The whole file"),
            "## fingerprint.json\n",
            *_section(Fingerprint, "The whole file"),
            *_section(CaseFingerprint, "`cases`: a list of"),
            *_section(Geometry, "`geometry` of a case"),
            *_section(ChannelFacts, "`channels`: a list of"),
            *_section(LesionFacts, "`lesions`: a list of"),
        ]
    )


def _section(
    config: type[Config], title: str, recipes: Mapping[str, Mapping[str, Any]] | None = None
) -> list[str]:
    """A title, the class's own words, and a table of its fields; with recipes, their values side by side."""
    lines = field_docstrings(config)
    hints = get_type_hints(config)
    names = list(recipes) if recipes else ["default"]
    header = ["key", "value", *(f"`{name}`" if recipes else name for name in names), "meaning"]
    rows = []
    for field in dataclasses.fields(config):
        values = [recipes[name][field.name] for name in names] if recipes else [_default(field)]
        cells = [_value(value) for value in values]
        rows.append([f"`{field.name}`", _kind(hints[field.name]), *cells, lines[field.name]])
    return [f"### {title}\n", inspect.cleandoc(config.__doc__ or "") + "\n", *_table([header, *rows]), ""]


def field_docstrings(config: type[Config]) -> dict[str, str]:
    """The text under each field, inherited ones included.

    Raises:
        ValueError: a field has none.
    """
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        if dataclasses.is_dataclass(cls):
            found |= dict(_own_docstrings(cls))
    if missing := [field.name for field in dataclasses.fields(config) if field.name not in found]:
        raise ValueError(f"{config.__name__}: no text under the field {', '.join(missing)}")
    return found


def _own_docstrings(cls: type) -> Iterator[tuple[str, str]]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            yield field.target.id, " ".join(str(below.value.value).split())


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return dataclasses.MISSING if field.default_factory is dataclasses.MISSING else field.default_factory()


def _value(value: Any) -> str:
    """A value as it stands in JSON; nothing for none, and no nested objects."""
    if value is dataclasses.MISSING:
        return "–"
    if isinstance(value, Config | Mapping):
        return "see below"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _kind(hint: Any) -> str:
    """A type in a reader's words."""
    words = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null"}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(f'`"{choice}"`' for choice in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(option) for option in arguments)
    if origin is dict:
        return f"object of {_kind(arguments[1])}"
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"list of {_kind(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)} × {_kind(arguments[0])}"
    return words.get(hint) or "object"


def _names(table: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}`" for name in table)


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for index, row in enumerate(rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        if not index:
            yield "|" + "---|" * len(row)


if __name__ == "__main__":
    TARGET.write_text(generate(), encoding="utf-8")
