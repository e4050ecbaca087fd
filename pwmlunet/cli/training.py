"""pwml_train."""

import argparse
from collections.abc import Callable
from typing import Any

from pwmlunet.cli.command import (
    Parser,
    add_device,
    add_pretrained,
    add_settings,
    command,
    lay,
    new_parser,
    overlay,
    say,
    stopping_in_order,
)
from pwmlunet.errors import PwmlError

_TRAINING_OPTIONS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "--loss": (
        "loss",
        str,
        'a loss or weighted sum: sbfl, focal, bce_dice, focal_tversky, "sbfl + 0.5*dice" (default: the plan\'s)',
    ),
    "--epochs": ("epochs", int, "epochs"),
    "--steps": ("steps_per_epoch", int, "steps in an epoch"),
    "--batch": ("batch_size", int, "patches in a step"),
    "--rate": ("learning_rate", float, "learning rate"),
    "--seed": ("seed", int, "seed of weights, patches and augmentation"),
    "--workers": ("workers", int, "processes that draw patches (0: none)"),
    "--precision": ("precision", str, "auto, float32, bfloat16 or float16"),
    "--checkpoint": ("checkpoint", str, "best or last"),
    "--optimiser": ("optimiser", str, "adamw, adam, sgd or rmsprop"),
    "--channel-dropout": ("augmentation.channel_dropout", float, "share of patches with channels left out"),
}
"""Each with its key in training.json, its type and its help."""

_SWITCHES = {
    "--curriculum": ("curriculum", "begin with the slices richest in tiny lesions"),
    "--compile": ("compile", "try torch.compile"),
}


def _run_train(arguments: argparse.Namespace) -> None:
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.evaluation.summary import summarise
    from pwmlunet.evaluation.tables import table
    from pwmlunet.training.pretrained import check_pretrained
    from pwmlunet.training.run import open_run
    from pwmlunet.training.trainer import FoldTrainer

    run = open_run(Workspace.from_environment(), arguments.dataset, _recipe(arguments), arguments.run)
    for fold in arguments.fold:
        run.split(fold)  # an unknown fold is told before the first is trained
    check_pretrained(run, arguments.fold)
    for fold in arguments.fold:
        with stopping_in_order():
            scores = FoldTrainer(run, fold).train()
        if scores:
            say(table(summarise(scores), scores))
        say(f"fold {fold} is trained{'' if scores else ' already'}: {run.model.fold_folder(fold)}")


def _recipe(arguments: argparse.Namespace) -> Any:
    """The recipe of --recipe, with the options of the command line laid over it."""
    from pwmlunet.config import did_you_mean
    from pwmlunet.training.config import RECIPES, TrainingConfig

    if arguments.recipe not in RECIPES:
        raise PwmlError(f"unknown recipe {arguments.recipe!r}{did_you_mean(arguments.recipe, RECIPES)}")
    values = RECIPES[arguments.recipe].to_dict()
    values["configuration"] = arguments.configuration or ""
    keys = [key for key, _, _ in _TRAINING_OPTIONS.values()] + [key for key, _ in _SWITCHES.values()]
    for key in [*keys, "pretrained", "device"]:
        if getattr(arguments, key) is not None:
            lay(values, key, getattr(arguments, key))
    for setting in arguments.set:
        overlay(values, setting)
    return TrainingConfig.from_dict(values, "the recipe")


@command(_run_train)
def train() -> Parser:
    """pwml_train: train folds."""
    parser = new_parser(
        "pwml_train", "Train one or several folds; the same command goes on where it stopped."
    )
    parser.add_argument("dataset", help="number or name of the dataset")
    parser.add_argument(
        "fold", nargs="+", help="its number in splits.json, from 0 on; several of them; or all (every case)"
    )
    parser.add_argument("-c", "--configuration", help="configuration of plan.json (default: the plan's)")
    parser.add_argument("--run", help="name of the model folder (default: the configuration's)")
    parser.add_argument("--recipe", default="default", help="default or trident_paper")
    for option, (key, kind, text) in _TRAINING_OPTIONS.items():
        metavar = key.split(".")[-1].upper()
        parser.add_argument(option, dest=key, type=kind, help=text, metavar=metavar)
    for option, (key, text) in _SWITCHES.items():
        parser.add_argument(option, dest=key, action="store_const", const=True, help=text)
    add_pretrained(parser)
    add_device(parser)
    add_settings(parser, "training.json, such as augmentation.noise=0.1")
    return parser
