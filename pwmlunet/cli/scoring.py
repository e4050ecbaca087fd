"""pwml_evaluate, pwml_compare and pwml_report."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pwmlunet.cli.command import Parser, command, count_cases, new_parser, say


def _run_evaluate(arguments: argparse.Namespace) -> None:
    from pwmlunet.evaluation.evaluate import evaluate_folders, write_summary
    from pwmlunet.evaluation.masks import pair_masks
    from pwmlunet.evaluation.profiles.folders import get_profile, profile_folders
    from pwmlunet.evaluation.sizes import training_quartiles_mm3
    from pwmlunet.evaluation.summary import summarise
    from pwmlunet.evaluation.tables import table, write_tables

    folders = arguments.reference, arguments.prediction
    names = [get_profile(name).name for name in arguments.profile]
    scores = evaluate_folders(*folders, labels=arguments.labels, only_common=arguments.only_common)
    edges = arguments.size_bins or training_quartiles_mm3(arguments.prediction)
    summary = summarise(scores, size_edges_mm3=edges)
    pairs = pair_masks(*folders, labels=arguments.labels)
    profiles = [profile_folders(pairs, name) for name in names]
    path = arguments.output or arguments.prediction / "summary.json"
    write_summary(path, scores, summary=summary, profiles=profiles)
    write_tables(path.parent, scores)
    say(table(summary, scores))
    for profile in profiles:
        say(f"\n{profile.text(summary)}")
    if arguments.images:
        from pwmlunet.report.overlay import overlay_cases

        picture = path.with_name("overlay.png")
        overlay_cases(*folders, arguments.images, picture, labels=arguments.labels)
        say(f"pictures in {picture}")
    say(f"scores of {count_cases(len(scores))} in {path}")


def _add_scoring(parser: Parser, action: str) -> None:
    """Adds the options of every command that scores masks."""
    parser.add_argument("--labels", type=Path, help="dataset.json (default: found beside the masks)")
    parser.add_argument(
        "--only-common", action="store_true", help=f"{action} the cases that all folders have"
    )


@command(_run_evaluate)
def evaluate() -> Parser:
    """pwml_evaluate: score predicted masks."""
    parser = new_parser("pwml_evaluate", "Score predicted masks against reference masks of the same names.")
    parser.add_argument("-r", "--reference", type=Path, required=True, help="folder of reference masks")
    parser.add_argument("-p", "--prediction", type=Path, required=True, help="folder of predicted masks")
    parser.add_argument(
        "-o", "--output", type=Path, help="where summary.json goes (default: the predictions)"
    )
    parser.add_argument("--images", type=Path, help="folder of images: also draw overlay.png")
    parser.add_argument(
        "--profile",
        action="append",
        default=[],
        metavar="NAME",
        help="also count as a paper does: trident, rs_rcnn, priority, fci_laci, wmh, isles, brats_lesionwise",
    )
    _add_size_bins(parser)
    _add_scoring(parser, "score")
    return parser


def _add_size_bins(parser: Parser) -> None:
    parser.add_argument(
        "--size-bins",
        type=float,
        nargs="+",
        metavar="MM3",
        help="volumes that separate the bins of size (default: the training lesions' quartiles)",
    )


# pwml_compare


def _run_compare(arguments: argparse.Namespace) -> None:
    from pwmlunet.report.compare import compare_folders, text, write_comparison

    comparison = compare_folders(
        arguments.runs,
        reference=arguments.reference,
        labels=arguments.labels,
        only_common=arguments.only_common,
        size_edges_mm3=arguments.size_bins,
    )
    write_comparison(arguments.output, comparison)
    say(text(comparison))
    say(f"{len(arguments.runs)} runs compared in {arguments.output}")


@command(_run_compare)
def compare() -> Parser:
    """pwml_compare: several runs side by side."""
    parser = new_parser("pwml_compare", "Set several scored runs side by side, each against the first.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder with the summary.json of pwml_evaluate, or a model folder (its held-out cases)")  # fmt: skip
    parser.add_argument(
        "-r", "--reference", type=Path, help="folder of reference masks: score the runs' masks now"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("comparison.html"),
        help="the page (default: comparison.html)",
    )
    _add_size_bins(parser)
    _add_scoring(parser, "compare")
    return parser


# pwml_report


def _run_report(arguments: argparse.Namespace) -> None:
    from pwmlunet.report.figures import read_curves
    from pwmlunet.report.report import write_report

    path = arguments.output or arguments.prediction / "report.html"
    n_cases = write_report(
        path,
        prediction=arguments.prediction,
        reference=arguments.reference,
        images=arguments.images,
        labels=arguments.labels,
        only_common=arguments.only_common,
        curves=[curve for model in _models_of(arguments) for curve in read_curves(model)],
        title=arguments.title,
    )
    say(f"report on {count_cases(n_cases)} in {path}")


def _models_of(arguments: argparse.Namespace) -> Sequence[Path]:
    """The model folders that are named, else those that prediction.json names and that are here."""
    if arguments.model:
        return list(arguments.model)
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.files import read_json

    path = arguments.prediction / "prediction.json"
    content: Any = read_json(path) if path.is_file() else {}
    named = content.get("models", []) if isinstance(content, dict) else []
    folders = [Workspace.from_environment().results / str(name) for name in named]
    return [folder for folder in folders if folder.is_dir()]


@command(_run_report)
def report() -> Parser:
    """pwml_report: one HTML page for people."""
    parser = new_parser(
        "pwml_report", "Make one HTML page of predictions, scored where references are given."
    )
    parser.add_argument("-p", "--prediction", type=Path, required=True, help="folder of predicted masks")
    parser.add_argument("-r", "--reference", type=Path, help="folder of reference masks")
    parser.add_argument("--images", type=Path, help="folder of images, shown around each lesion")
    parser.add_argument("-m", "--model", type=Path, nargs="+", help="model folders, for their training curves (default: those that made the predictions)")  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, help="the page (default: report.html among the predictions)"
    )
    parser.add_argument("--title", default="", help="heading of the page")
    _add_scoring(parser, "show")
    return parser
