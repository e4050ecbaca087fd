"""pwml_find_best."""

import argparse

from pwmlunet.cli.command import Parser, command, new_parser, say


def _run_find_best(arguments: argparse.Namespace) -> None:
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.inference.choosing import Wish
    from pwmlunet.inference.selection import find_best as find

    promise = {
        "at_most_false_positives": arguments.at_most_false_positives,
        "at_least_recall": arguments.at_least_recall,
    }
    found = find(
        Workspace.from_environment(),
        arguments.dataset,
        criterion=arguments.criterion,
        wish=Wish.from_dict(promise, "the wish") if any(v is not None for v in promise.values()) else None,
        runs=arguments.runs,
        crf=arguments.crf,
    )
    say(found.text)


@command(_run_find_best)
def find_best() -> Parser:
    """pwml_find_best: compare the trained runs, calibrate the best, and predict with it from then on."""
    parser = new_parser(
        "pwml_find_best",
        "Compare trained runs and their ensembles on the cases that their folds held out, and calibrate the best.",
    )
    parser.add_argument("dataset", help="number or name of the dataset")
    parser.add_argument("--runs", nargs="+", help="names of the model folders (default: all of the dataset)")
    parser.add_argument(
        "--criterion",
        choices=("lesion_f1", "lesion_recall", "dice"),
        default="lesion_f1",
        help="what is compared, as a mean over subjects with lesions (default: lesion_f1)",
    )
    parser.add_argument(
        "--crf",
        action="store_true",
        help="also try dense CRFs on the best (slower), and keep one that helps for certain",
    )
    wish = parser.add_mutually_exclusive_group()
    wish.add_argument(
        "--at-most-false-positives", type=float, metavar="N", help="a promise: at most N false lesions a case"
    )
    wish.add_argument("--at-least-recall", type=float, metavar="R", help="a promise: at least the share R of lesions is found")  # fmt: skip
    return parser
