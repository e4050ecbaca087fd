"""The same stages for several tools, measured in turn so that all of them see the same load."""

import json
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from measuring import Measurement, measure
from tiny_lesions import NAME, write_dataset

from pwmlunet.data.image import read_image, write_image

COMMANDS = ("train", "predict", "plan", "evaluate")
STAGES = (*(f"{command} --help" for command in COMMANDS), "plan", "predict", "evaluate")
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Tool:
    """How a tool is told to do each stage."""

    name: str
    environment: Mapping[str, str]
    commands: Mapping[str, Sequence[str]]
    """By stage."""
    untrained: Sequence[str]
    """Makes a model with random weights after the stage `plan`: it predicts as long as a trained one."""
    preprocessed: Path
    """What the stage `plan` begins without."""


@dataclass(frozen=True)
class Inputs:
    """The files that all tools work on."""

    raw: Path
    dataset: Path
    images: Path
    """The cases to predict."""
    references: Path
    """Their masks."""
    masks: Path
    """Masks to evaluate: the references, one voxel off."""


def make_inputs(folder: Path, *, n_training: int, n_predicted: int, shape_zyx: Sequence[int]) -> Inputs:
    """The inputs below a folder, made where they are new."""
    z, y, x = shape_zyx
    raw = folder / "raw"
    dataset = write_dataset(raw, n_training=n_training, n_test=4, shape_zyx=(z, y, x))
    inputs = Inputs(raw, dataset, *(folder / name for name in ("images", "references", "masks")))
    for path in sorted((dataset / "labelsTs").iterdir())[:n_predicted]:
        image = path.name.replace(".nii.gz", "_0000.nii.gz")
        for source, target in ((dataset / "imagesTs" / image, inputs.images), (path, inputs.references)):
            target.mkdir(exist_ok=True)
            shutil.copy(source, target)
        mask = read_image(path)
        write_image(inputs.masks / path.name, np.roll(mask.array, 1, axis=2), mask.geometry)
    return inputs


def ours(folder: Path, inputs: Inputs, *, name: str = "pwmlunet", code: Path | None = None) -> Tool:
    """This package; `code` is another checkout of it."""
    home = folder / name
    scripts = Path(sys.executable).parent
    environment = {**os.environ, "PWML_HOME": str(home), "PWML_RAW": str(inputs.raw)}
    if code:
        environment["PYTHONPATH"] = str(code)
    pwml = {c: str(scripts / f"pwml_{c}") for c in ("train", "predict", "evaluate")}
    pwml["plan"] = str(scripts / "pwml_plan_and_preprocess")
    masks, summary = str(home / "masks"), str(home / "summary.json")
    return Tool(
        name,
        environment,
        {
            **{f"{command} --help": [pwml[command], "--help"] for command in COMMANDS},
            "plan": [pwml["plan"], "-d", "501"],
            "predict": [pwml["predict"], "-i", str(inputs.images), "-o", masks, "--no-flips", "--device", "cpu"],
            "evaluate": [pwml["evaluate"], "-r", str(inputs.references), "-p", str(inputs.masks), "-o", summary],
        },
        [sys.executable, str(HERE / "untrained_model.py"), "501"],
        home / "preprocessed" / NAME,
    )  # fmt: skip


def compare(tools: Sequence[Tool], log: Path, *, stages: Sequence[str], repetitions: int) -> str:
    """Measures the stages, writes each measurement as a line of JSON, and returns a table in Markdown.

    Ratios are against the first tool: medians over repetitions in which both ran one after the other.
    """
    rows = [_header(tools)]
    for stage in STAGES:
        if stage not in stages:
            continue
        found: list[list[Measurement]] = [[] for _ in tools]
        for repetition in range(repetitions):
            for tool, measured in zip(tools, found, strict=True):
                if stage == "plan":
                    shutil.rmtree(tool.preprocessed, ignore_errors=True)
                measured.append(measure(tool.commands[stage], tool.environment))
                _log(log, tool.name, stage, repetition, measured[-1])
        rows.append(_row(stage, found))
        print(rows[-1], file=sys.stderr, flush=True)
        if stage == "plan":
            for tool in tools:
                measure(tool.untrained, tool.environment)
    return "\n".join(rows)


def _log(path: Path, tool: str, stage: str, repetition: int, measured: Measurement) -> None:
    load = os.getloadavg()[0]
    line = {"tool": tool, "stage": stage, "repetition": repetition, **asdict(measured), "load": round(load, 2)}  # fmt: skip
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _header(tools: Sequence[Tool]) -> str:
    columns = [f"{t.name}: wall s | CPU s | GB" for t in tools]
    columns += [f"{t.name}: times the wall | times the CPU | times the memory" for t in tools[1:]]
    header = f"| stage | {' | '.join(columns)} |"
    return f"{header}\n{'|---' * (header.count('|') - 1)}|"


def _row(stage: str, found: Sequence[Sequence[Measurement]]) -> str:
    cells = [stage]
    costs = [[(r.wall_seconds, r.cpu_seconds, r.peak_gb) for r in runs] for runs in found]
    for runs in costs:
        cells += [f"{statistics.median(values):.2f}" for values in zip(*runs, strict=True)]
    for runs in costs[1:]:
        ratios = [np.divide(theirs, first) for theirs, first in zip(runs, costs[0], strict=True)]
        cells += [f"{ratio:.1f}" for ratio in np.median(ratios, axis=0)]
    return f"| {' | '.join(cells)} |"
