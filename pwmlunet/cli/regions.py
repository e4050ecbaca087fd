"""pwml_regions."""

import argparse

from pwmlunet.cli.command import Parser, add_device, command, new_parser, say


def _run_regions(arguments: argparse.Namespace) -> None:
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.inference.regions import measure_regions, text

    measured = measure_regions(
        Workspace.from_environment(),
        arguments.dataset,
        arguments.configuration,
        folds=arguments.folds or (),
        device=arguments.device or "auto",
    )
    say(text(measured))


@command(_run_regions)
def regions() -> Parser:
    """pwml_regions: where a two-stage network loses lesions."""
    parser = new_parser(
        "pwml_regions",
        "Count how many lesions of the held-out cases a two-stage network proposes, keeps and segments.",
    )
    parser.add_argument("-d", "--dataset", required=True, help="dataset of the run")
    parser.add_argument(
        "-c",
        "--configuration",
        required=True,
        help="a run of a two-stage network; pwml_train calls it as its configuration",
    )
    parser.add_argument(
        "-f", "--folds", nargs="+", help="folds whose cases are looked at (default: all that are finished)"
    )
    add_device(parser)
    return parser
