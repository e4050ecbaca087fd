"""Writes configuration.md and scores.md from the classes: fields, defaults and the lines under the fields.

python documentation/generate_configuration.py
"""

import ast
import dataclasses
import inspect
import json
import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pwmlunet.config import Config
from pwmlunet.data.image import Geometry
from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.evaluation.detection import Candidate, Froc, FrocPoint
from pwmlunet.evaluation.evaluate import VERSION
from pwmlunet.evaluation.lesion_table import LesionRow, LesionTable, Totals
from pwmlunet.evaluation.lesions import Detection, Lesion, LesionScores, Match
from pwmlunet.evaluation.profiles import PROFILES
from pwmlunet.evaluation.profiles.folders import Figure, ProfileResult
from pwmlunet.evaluation.reliability import Reliability, ReliabilityBin, ReliabilityCounts
from pwmlunet.evaluation.scores import CaseScores, TargetScores
from pwmlunet.evaluation.sizes import SizeBin
from pwmlunet.evaluation.summary import Mean, Summary, TargetSummary
from pwmlunet.evaluation.voxels import VoxelScores
from pwmlunet.inference.best import Best
from pwmlunet.inference.best import Candidate as Contender
from pwmlunet.inference.postprocessing import Choice, Estimate, Figures, Postprocessing
from pwmlunet.networks import NETWORKS
from pwmlunet.networks.correction import CorrectionConfig
from pwmlunet.networks.dense_crf import DenseCrfConfig
from pwmlunet.planning.density import DensityConfig
from pwmlunet.planning.fingerprint import CaseFingerprint, ChannelFacts, Fingerprint, LesionFacts
from pwmlunet.planning.plan import Configuration, Decision, ExpectedInput, Plan
from pwmlunet.planning.preprocessing import NORMALISATIONS, Preparation
from pwmlunet.training.config import RECIPES, AugmentationConfig, TrainingConfig
from pwmlunet.training.correction_learning import CorrectionRecipe
from pwmlunet.training.losses import LOSSES

_CONFIGURATION = """\
# Configuration

<!-- Made by documentation/generate_configuration.py from the classes themselves: edit the line under the field
in the code, then run the script. -->

Five JSON files hold every choice. All are plain text that a person can read; `plan.json` and
`postprocessing.json` are meant to be edited. Reading is strict: an unknown key, a missing key, a wrong type or an
impossible value is an error that names the file and the key, and guesses what was meant.

| file | holds | made by | edit it? |
|---|---|---|---|
| `fingerprint.json` | facts of the dataset | `pwml_plan_and_preprocess` | no |
| `plan.json` | what was decided from them, and why | `pwml_plan_and_preprocess` | yes, the one in the preprocessed dataset |
| `training.json` | the recipe of a run | `pwml_train` | no: give options to `pwml_train` |
| `correction/training.json` | the recipe of a run's correction networks | `pwml_train_correction` | no: give options to it |
| `postprocessing.json` | how a mask is made of probabilities | `pwml_train` | yes, the one in the model folder |

A key with a default may be left out. [Commands](commands.md) says how options on the command line change a recipe,
[methods](methods.md) what networks and losses compute.
"""


def configuration() -> str:
    """The whole text of configuration.md."""
    return "\n".join(
        [
            _CONFIGURATION,
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
            *_section(DensityConfig, "`prior` of a configuration"),
            *(
                line
                for name, network in NETWORKS.items()
                for line in _section(network, f'`network` with `"type": "{name}"`')
            ),
            *_section(CorrectionConfig, "`correction`"),
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
            "## correction/training.json\n",
            "How `pwml_train_correction` trains; any value may be changed with `--set KEY=VALUE`.\n",
            *_section(CorrectionRecipe, "The recipe of correction networks"),
            "## postprocessing.json\n",
            *_section(Postprocessing, "The whole file"),
            *_section(DenseCrfConfig, "`crf`"),
            *_section(Choice, "`chosen`"),
            *_section(Figures, "`figures` of a choice"),
            *_section(Estimate, "Each figure"),
            "## fingerprint.json\n",
            *_section(Fingerprint, "The whole file"),
            *_section(CaseFingerprint, "`cases`: a list of"),
            *_section(Geometry, "`geometry` of a case"),
            *_section(ChannelFacts, "`channels`: a list of"),
            *_section(LesionFacts, "`lesions`: a list of"),
        ]
    )


_SCORES = """\
# Scores

<!-- Made by documentation/generate_configuration.py from the classes themselves: edit the line under the field
in the code, then run the script. -->

What `pwml_evaluate` counts and writes. The rules first; they also stand, in words, at the top of each `summary.json`.

- **Space.** Everything is counted on the image's own grid, in mm from its affine. A picture without spacing has 1 mm a pixel,
  and the summary says so. Voxels labelled "ignore" are taken out of both masks before anything else.
- **A lesion** is a connected component: voxels that meet at a corner belong together (26 in 3-D, 8 in a single slice).
- **Found** means matched. Reference and predicted lesions are matched one to one, such that the sum of the IoU of the pairs is
  greatest, and a pair counts from an IoU of 0.1. With "any overlap" one component over the whole slice finds
  everything; with an IoU of 0.5 a lesion of 2 × 2 pixels that is drawn one pixel aside is a miss and a false alarm. Both
  stand beside it, and so does "centroids within 2 mm".
- **Empty cases.** Nothing there and nothing predicted: out of the means, and counted as clean. Nothing there and something
  predicted: false positives, counted for each clean subject too. Something there and nothing predicted: Dice 0, recall
  0, F1 0; precision and distances are undefined, and how often is counted. No mean holds a NaN, and each has its n.
- **Intervals** are 95 %, by bootstrap over subjects (2000 resamples, fixed seed): slices of one head are no
  independent cases. With one subject there are none, and the summary says so.
- **FROC** needs probabilities (`CASE.npz` beside the mask: `pwml_predict --save-probabilities`, nnU-Net's `--save_probabilities`).
  Candidates are components of the probability above 0.1, each cut at half of its highest value, ranked by the mean and by
  the highest logit of their voxels. (Uncut, a sure lesion of a few voxels drowns in its faint surroundings.)
- **Reliability** compares promised with observed probability in the neighbourhood of lesions and candidates. Over whole images
  every model looks calibrated, because it is right about the background; even near lesions most voxels are rightly near
  0, so that the curve says more than its mean error.
- **Sizes** are binned by the quartiles of the training lesions where the predictions know them (`prediction.json`), else by
  those of the scored lesions, or by `--size-bins`. The summary says which.

## Profiles

How a paper or a challenge counts, for setting a published number beside ours: `pwml_evaluate --profile NAME`. The
figures go beside the honest ones, with a sentence on how they differ.

"""


def scores() -> str:
    """The whole text of scores.md."""
    rows = [["profile", "source", "how it differs"]]
    rows += [[f"`{name}`", profile.source, profile.differs] for name, profile in PROFILES.items()]
    return "\n".join(
        [
            _SCORES + "\n".join(_table(rows)) + "\n",
            "## summary.json\n",
            f"Version {VERSION}: `version`, `rules` (in words), `summary` and `cases`. `cases.csv` and `lesions.csv` beside it hold the",
            "main numbers as tables, a row for each case and target and for each lesion.\n",
            *_section(Summary, "`summary`"),
            *_section(TargetSummary, "`targets`: one for each name"),
            *_section(Mean, "`means`: one for each score"),
            *_section(Interval, "`interval`"),
            *_section(Detection, "`pooled`: one for each matching rule"),
            *_section(SizeBin, "`by_size`: a list of"),
            *_section(Froc, "`froc`: one for each ranking"),
            *_section(FrocPoint, "`curve`: a list of"),
            *_section(Reliability, "`reliability`"),
            *_section(ReliabilityBin, "`bins`: a list of"),
            *_section(CaseScores, "`cases`: a list of"),
            *_section(TargetScores, "`targets` of a case"),
            *_section(VoxelScores, "`voxels`"),
            *_section(LesionScores, "`lesions`"),
            *_section(Lesion, "`reference` and `predicted`: a list of"),
            *_section(Match, "`matches`: a list of"),
            *_section(Candidate, "`candidates`: a list of"),
            *_section(ReliabilityCounts, "`reliability` of a case"),
            *_section(ProfileResult, "`profiles`: a list of"),
            *_section(Figure, "`targets` of a profile, by target and name"),
            "## CASE_lesions.json\n",
            "What `pwml_predict` writes beside each mask; `CASE_lesions.csv` has the same rows and the totals last.\n",
            *_section(LesionTable, "The whole file"),
            *_section(Totals, "`totals`: one for each target"),
            *_section(LesionRow, "`lesions`: a list of"),
            "## best.json\n",
            "What `pwml_find_best` chose, in the dataset's folder of results.\n",
            *_section(Best, "The whole file"),
            *_section(Contender, "`candidates`: a list of"),
        ]
    )


PAGES = {
    Path(__file__).with_name("configuration.md"): configuration,
    Path(__file__).with_name("scores.md"): scores,
}


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
        meaning = re.sub(r"\bNone\b", "null", lines[field.name])
        rows.append([f"`{field.name}`", _kind(hints[field.name]), *cells, meaning])
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
    words = {
        bool: "true or false",
        Path: "path",
        int: "whole number",
        float: "number",
        str: "text",
        type(None): "null",
    }
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
    for path, page in PAGES.items():
        path.write_text(page(), encoding="utf-8")
