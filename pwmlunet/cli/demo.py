"""pwml_demo."""

import argparse
import os
from pathlib import Path

from pwmlunet.cli.command import Command, Parser, command, new_parser, say
from pwmlunet.cli.predicting import predict
from pwmlunet.cli.preparing import plan_and_preprocess
from pwmlunet.cli.scoring import evaluate, report
from pwmlunet.cli.selecting import find_best
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
    predictions, page = home / "predictions", home / "report.html"
    images, masks = ["--images", str(raw / "imagesTs")], ["-r", str(raw / "labelsTs"), "-p", str(predictions)]
    steps: list[tuple[Command, list[str]]] = [
        (plan_and_preprocess, ["-d", "1"]),
        (train, ["1", "0", "1", "--epochs", str(arguments.epochs)]),
        (find_best, ["1"]),
        (predict, ["-i", str(raw / "imagesTs"), "-o", str(predictions), "--save-probabilities", "--review"]),
        (evaluate, [*masks, *images]),
        (report, [*masks, *images, "-o", str(page)]),
    ]
    say(f"synthetic neonatal T1 heads in {raw}")
    for step, options in steps:
        say(f"\n$ pwml_{step.__name__} {' '.join(options)}")
        step(options)
    say(f"\ndone; open {page} in a browser")


@command(_run_demo)
def demo() -> Parser:
    """pwml_demo: the whole job on synthetic cases."""
    parser = new_parser(
        "pwml_demo", "Make synthetic cases, then plan, train, calibrate, predict, score and report."
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("demo"), help="where everything goes (default: demo)"
    )
    parser.add_argument(
        "--epochs", type=int, default=20, help="epochs of each of the two folds (default: 20)"
    )
    return parser
