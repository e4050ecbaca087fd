"""pwml_reproduce."""

import argparse
from pathlib import Path

from pwmlunet.cli.command import (
    Parser,
    add_device,
    add_pretrained,
    command,
    new_parser,
    say,
    stopping_in_order,
)


def _run_reproduce(arguments: argparse.Namespace) -> None:
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.reproduction.page import check_place, text, write_reproduction
    from pwmlunet.reproduction.reproduce import Wishes, page_of, reproduce
    from pwmlunet.reproduction.studies import QUICK, get_study

    study = get_study(arguments.study).only(arguments.rows)
    workspace = Workspace.from_environment()
    path = arguments.output or page_of(workspace, arguments.dataset, study)
    check_place(path)  # before days of training
    wishes = Wishes(
        folds=tuple(arguments.folds),
        seeds=tuple(arguments.seeds),
        device=arguments.device,
        pretrained=Path(arguments.pretrained) if arguments.pretrained else None,
        quick=QUICK if arguments.quick else None,
    )
    with stopping_in_order():
        found = reproduce(workspace, arguments.dataset, study, wishes)
    write_reproduction(path, found)
    say(text(found))
    say(f"\nfigures beside the paper's in {path}")


@command(_run_reproduce)
def reproduce() -> Parser:
    """pwml_reproduce: a paper's table on another dataset."""
    parser = new_parser(
        "pwml_reproduce",
        "Train the rows of a paper's table on a dataset, and set their figures beside the printed ones; the same command goes on where it stopped.",
    )
    parser.add_argument("study", help="fci_laci, priority_unet, rs_rcnn or trident")
    parser.add_argument("-d", "--dataset", required=True, help="number or name of the dataset")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="rows of the study, such as B D k1.5 (default: all)")  # fmt: skip
    parser.add_argument("--folds", nargs="+", default=[], metavar="FOLD", help="folds of splits.json (default: all)")  # fmt: skip
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0],
        metavar="SEED",
        help="train every row once for each (default: 0)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small networks and short trainings, for a CPU; the page says what was shrunk",
    )
    add_pretrained(parser)
    add_device(parser)
    parser.add_argument("-o", "--output", type=Path, help="the page (default: reproduction_STUDY.html in the dataset's results)")  # fmt: skip
    return parser
