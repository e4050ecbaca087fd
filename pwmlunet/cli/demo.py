"""pwml_demo."""

import argparse
import os
from pathlib import Path

from pwmlunet.cli.command import Command, Parser, command, new_parser, say
from pwmlunet.cli.predicting import predict
from pwmlunet.cli.preparing import plan_and_preprocess
from pwmlunet.cli.scoring import evaluate
from pwmlunet.cli.training import train


def _run_demo(arguments: argparse.Namespace) -> None:
    from pwmlunet.demo import write_dataset

    home: Path = arguments.folder
    raw = home / "raw" / "Dataset001_SyntheticT1"
    os.environ["PWML_HOME"] = str(home)
    for variable in ("PWML_RAW", "PWML_PREPROCESSED", "PWML_RESULTS", "nnUNet_raw"):
        os.environ.pop(variable, None)
    if not (raw / "dataset.json").is_file():
        write_dataset(raw)
    epochs = ["--epochs", str(arguments.epochs)]
    steps: list[tuple[Command, list[str]]] = [
        (plan_and_preprocess, ["-d", "1"]),
        (train, ["1", "0", "1", *epochs]),
        (predict, ["-i", str(raw / "imagesTs"), "-o", str(home / "predictions")]),
        (
            evaluate,
            ["-r", str(raw / "labelsTs"), "-p", str(home / "predictions"), "--images", str(raw / "imagesTs")],
        ),
    ]
    say(f"synthetic neonatal T1 heads in {raw}")
    for step, options in steps:
        say(f"\n$ pwml_{step.__name__} {' '.join(options)}")
        step(options)
    say(f"\ndone; look at {home / 'predictions' / 'overlay.png'}")


@command(_run_demo)
def demo() -> Parser:
    """pwml_demo: the whole job on synthetic cases."""
    parser = new_parser("pwml_demo", "Make synthetic cases, then plan, train, predict and score them.")
    parser.add_argument(
        "--folder", type=Path, default=Path("demo"), help="where everything goes (default: demo)"
    )
    parser.add_argument(
        "--epochs", type=int, default=20, help="epochs of each of the two folds (default: 20)"
    )
    return parser
