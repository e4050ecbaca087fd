"""The documentation says what the code does: settings, command lines, links and examples."""

import argparse
import json
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ENTRY_POINTS, entry_point

from pwmlunet.cli.predicting import _part
from pwmlunet.cli.training import _recipe
from pwmlunet.config import Config
from pwmlunet.errors import PwmlError
from pwmlunet.files import read_json, write_json
from pwmlunet.inference.model import TrainedModel, save_tensors
from pwmlunet.networks import NETWORKS
from pwmlunet.planning.normalisation import NORMALISATIONS
from pwmlunet.planning.plan import Plan
from pwmlunet.training.config import RECIPES
from pwmlunet.training.losses import LOSSES

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "documentation"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(FOLDER.glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(text_of(page)) if language in languages]


def prose(page: Path) -> str:
    return FENCE.sub("", text_of(page))


# configuration.md


@cache
def generator() -> dict[str, Any]:
    return runpy.run_path(str(FOLDER / "generate_configuration.py"))


@pytest.mark.parametrize("name", ["configuration.md", "scores.md"])
def test_the_generated_pages_are_current(name: str) -> None:
    current = text_of(FOLDER / name) == generator()["PAGES"][FOLDER / name]()
    assert current, f"{name} is stale: run python documentation/generate_configuration.py"


def test_inherited_fields_are_described() -> None:
    described = generator()["field_docstrings"](NETWORKS["trident"])
    assert {"width", "norm", "n_slices"} <= described.keys()
    assert all(text.endswith(".") for text in described.values())


@dataclass(frozen=True)
class Bare(Config):
    said: int = 1
    """A line."""
    unsaid: int = 2


def test_a_field_without_a_line_under_it_is_an_error() -> None:
    with pytest.raises(ValueError, match="Bare: no text under the field unsaid"):
        generator()["field_docstrings"](Bare)


# command lines


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words of each pwml_… line in fenced blocks; continued lines are joined, comments left out."""
    for code in blocks(page, "sh", "bash", ""):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True) if "pwml_" in line else []
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words and words[0].startswith("pwml_"):
                yield words


def parser_of(command: str) -> argparse.ArgumentParser:
    return entry_point(command).__wrapped__()  # type: ignore[attr-defined,no-any-return]


def check_line(words: list[str]) -> None:
    """Parses a line as the command would; ValueError says what is wrong with it."""
    command = words[0].removeprefix("pwml_")
    if command not in ENTRY_POINTS:
        raise ValueError(f"no such command: {shlex.join(words)}")
    try:
        arguments = parser_of(command).parse_args(words[1:])
        if command == "train":
            _recipe(arguments)
        if command == "predict":
            _part([], arguments.part)
    except SystemExit as error:
        if error.code:
            raise ValueError(f"does not parse: {shlex.join(words)}") from error
    except PwmlError as error:
        raise ValueError(f"{error}: {shlex.join(words)}") from error


LINES = [(page.name, words) for page in PAGES for words in command_lines(page)]


@pytest.mark.parametrize(("page", "words"), LINES, ids=[f"{p}: {' '.join(w)}" for p, w in LINES])
def test_command_lines_parse(page: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "gentle", RECIPES["default"])  # extending.md makes it
    monkeypatch.setitem(LOSSES, "brier", LOSSES["bce"])
    check_line(words)


@pytest.mark.parametrize(
    "line",
    ["pwml_train 27", "pwml_train 27 0 --los sbf", "pwml_train 27 0 --set augmentation.nois=1", "pwml_trian 27 0", "pwml_predict -i a -o b --part 3/2"],
)  # fmt: skip
def test_a_wrong_command_line_is_noticed(line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(line)):
        check_line(line.split())


def test_every_command_has_examples_on_its_page() -> None:
    shown = [words[0] for words in command_lines(FOLDER / "commands.md")]
    assert {f"pwml_{command}": shown.count(f"pwml_{command}") >= 2 for command in ENTRY_POINTS} == {
        f"pwml_{command}": True for command in ENTRY_POINTS
    }


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The longest name of each option, those of subcommands included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options_of(below)
        elif action.option_strings and not isinstance(action, argparse._HelpAction | argparse._VersionAction):
            yield next(name for name in action.option_strings if name.startswith("--"))


@pytest.mark.parametrize("command", ENTRY_POINTS)
def test_every_option_is_described(command: str) -> None:
    _, section = text_of(FOLDER / "commands.md").split(f"\n## pwml_{command}\n")
    section = section.split("\n## ")[0]
    described = {name for row in re.findall(r"^\|(.*?)\|", section, re.M) for name in re.findall(r"`(--[\w-]+)", row)}  # fmt: skip
    assert described == set(options_of(parser_of(command)))


# links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    named = re.findall(r"`((?:pwmlunet|documentation|tests|benchmarks)/[\w./]*)`", prose(page))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A head\n[a](page.md#a-head) [b](#a-foot) [c](other.md) [d](https://x.org)")
    assert list(broken_links(page)) == ["#a-foot", "other.md"]


# examples


@pytest.fixture
def plan_path(prepared_home: Path) -> Path:
    """A plan as planning wrote it and a person edited it."""
    return prepared_home / "preprocessed" / "Dataset001_Tiny" / "plan.json"


FRAGMENTS = blocks(FOLDER / "methods.md", "json")


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda text: "".join(text.split())[:40])
def test_entries_of_a_plan_are_read_and_built(fragment: str, plan_path: Path, tmp_path: Path) -> None:
    content, added = read_json(plan_path), json.loads(fragment)
    for key, entries in added.items():
        content[key] |= entries
    write_json(tmp_path / "plan.json", content)
    edited = Plan.read(tmp_path / "plan.json")
    for name in added["configurations"]:
        with torch.device("meta"):
            network = edited.configurations[name].network.build(1, 1)
        width = int(re.search(r"k(\d+)", name)[1]) if re.search(r"k\d+", name) else 64  # type: ignore[index]
        assert next(network.parameters()).shape[0] == width


def test_the_papers_settings_are_shown() -> None:
    assert len(FRAGMENTS) >= 2


def test_golden_values_are_those_of_the_losses() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|$", text_of(FOLDER / "methods.md"), re.MULTILINE)
    probability = torch.tensor([0.3, 0.2, 0.1, 0.6], dtype=torch.float64).view(1, 1, 1, 1, 4)
    target = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).view_as(probability)
    assert {name for name, _ in rows} == set(LOSSES)
    for name, value in rows:
        found = LOSSES[name](probability.logit(), target, torch.ones_like(target)).item()
        assert found == pytest.approx(float(value), abs=5e-7), name


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples add to the package's tables; what they add is taken out again."""
    for table in (NETWORKS, LOSSES, NORMALISATIONS, RECIPES):
        for name in ("dilated", "brier", "median_head", "gentle"):
            monkeypatch.setitem(table, name, None)
            del table[name]


EXAMPLES = blocks(FOLDER / "extending.md", "python")


def test_each_kind_of_extension_has_an_example() -> None:
    named = {table for table in ("NETWORKS", "LOSSES", "NORMALISATIONS", "RECIPES") for e in EXAMPLES if f"\n{table}[" in e}  # fmt: skip
    assert named == {"NETWORKS", "LOSSES", "NORMALISATIONS", "RECIPES"}
    assert all("\nassert " in example for example in EXAMPLES)


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_of_extensions_run(example: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(example)
    runpy.run_path(str(tmp_path / "example.py"), run_name="example")


def test_the_example_of_the_readme_runs(
    plan_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "demo/results/Dataset001_SyntheticT1/resunet_2d"
    write_model(folder, Plan.read(plan_path))
    (example,) = blocks(ROOT / "README.md", "python")
    (tmp_path / "example.py").write_text(example)
    array = np.random.default_rng(0).integers(0, 900, (2, 60, 52))
    prediction = runpy.run_path("example.py", {"array": array})["prediction"]
    assert prediction.mask.shape == array.shape
    assert prediction.probability.shape == (1, *array.shape)


def write_model(folder: Path, plan: Plan) -> None:
    """A model folder as a training leaves it, with random weights."""
    labels = {"background": 0, "lesion": 1}
    content = {"channel_names": {"0": "T1"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    recipe: dict[str, Any] = {**RECIPES["default"].to_dict(), "configuration": "trident"}
    for name, values in (("plan", plan.to_dict()), ("dataset", content), ("training", recipe)):
        write_json(folder / f"{name}.json", values)
    save_tensors(folder / "fold_0/weights.pt", TrainedModel.open(folder).build().state_dict())


def test_every_config_of_the_page_is_a_config() -> None:
    found = [value for value in generator().values() if isinstance(value, type) and issubclass(value, Config)]
    titles = [t for path in generator()["PAGES"] for t in re.findall(r"^### ", text_of(path), re.MULTILINE)]
    assert len(titles) == len(found) - 1 + len(NETWORKS)  # Config itself is imported too
