"""pwml_train_correction."""

import argparse
from typing import Any

from pwmlunet.cli.command import (
    Parser,
    add_device,
    add_settings,
    command,
    new_parser,
    overlay,
    say,
    stopping_in_order,
)
from pwmlunet.errors import PwmlError


def _run_train_correction(arguments: argparse.Namespace) -> None:
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.training.correction import train_correction as train
    from pwmlunet.training.correction_outcome import conclude

    workspace = Workspace.from_environment()
    run = _find_run(workspace, arguments)
    with stopping_in_order():
        corrected = train(
            workspace,
            arguments.dataset,
            run,
            _recipe(arguments),
            folds=arguments.folds or (),
            device=arguments.device,
        )
    say(conclude(workspace, arguments.dataset, corrected).text)


def _find_run(workspace: Any, arguments: argparse.Namespace) -> str:
    """The name of the run that is meant: that of -c, else the one that pwml_find_best chose, else the only one."""
    from pwmlunet.inference.best import find_models

    models, _ = find_models(workspace, arguments.dataset, arguments.configuration)
    if len(models) > 1:
        names = ", ".join(model.folder.name for model in models)
        raise PwmlError(f"pwml_find_best chose several runs together ({names}), and a correction belongs to one: name it with -c")  # fmt: skip
    return str(models[0].folder.name)


def _recipe(arguments: argparse.Namespace) -> Any:
    """The recipe with the options of the command line laid over it."""
    from pwmlunet.training.correction_learning import CorrectionRecipe

    values = CorrectionRecipe().to_dict()
    if arguments.seed is not None:
        values["seed"] = arguments.seed
    for setting in arguments.set:
        overlay(values, setting)
    return CorrectionRecipe.from_dict(values, "the recipe")


@command(_run_train_correction)
def train_correction() -> Parser:
    """pwml_train_correction: train networks that judge what a run finds."""
    parser = new_parser(
        "pwml_train_correction",
        "Train networks that look at each candidate of a run, say whether it is a lesion and of which kind, and are used where that helps.",
    )
    parser.add_argument("dataset", help="number or name of the dataset")
    parser.add_argument(
        "-c",
        "--configuration",
        help="run that finds the candidates (default: what pwml_find_best chose, else the only one)",
    )
    parser.add_argument("-f", "--folds", nargs="+", help="folds of the run (default: all that are finished)")
    parser.add_argument("--seed", type=int, help="seed of the correction networks")
    add_device(parser)
    add_settings(parser, "correction/training.json, such as steps=800")
    return parser
