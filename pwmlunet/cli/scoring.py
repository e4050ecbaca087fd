"""pwml_evaluate, pwml_compare and pwml_report."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pwmlunet.cli.command import Parser, command, count_cases, new_parser, say
from pwmlunet.errors import PwmlError


def _run_evaluate(arguments: argparse.Namespace) -> None:
    from pwmlunet.evaluation.evaluate import check_place, evaluate_folders, write_summary
    from pwmlunet.evaluation.masks import pair_masks
    from pwmlunet.evaluation.profiles.folders import get_profile, profile_folders
    from pwmlunet.evaluation.sizes import training_quartiles_mm3
    from pwmlunet.evaluation.summary import summarise
    from pwmlunet.evaluation.tables import table, write_tables

    folders = arguments.reference, arguments.prediction
    path = _file(arguments.output or arguments.prediction / "summary.json", ".json")
    check_place(path)  # what can be refused is refused before the scoring, which takes its time
    names = [get_profile(name).name for name in arguments.profile]
    edges = _size_bins(arguments) or training_quartiles_mm3(arguments.prediction)
    folds = _folds(arguments.splits)
    scores = evaluate_folders(*folders, labels=arguments.labels, only_common=arguments.only_common)
    summary = summarise(scores, size_edges_mm3=edges)
    pairs = pair_masks(*folders, labels=arguments.labels)
    profiles = [profile_folders(pairs, name, folds=folds) for name in names]
    closing = _draw_overlay(arguments, path, scores)
    write_summary(path, scores, summary=summary, profiles=profiles)
    write_tables(path.parent, scores)
    say("\n\n".join([table(summary, scores), *(profile.text(summary) for profile in profiles)]))
    if pairs.problems:
        say(f"note: {count_cases(len(pairs.problems))} without a counterpart left out")
    say(*closing, f"scores of {count_cases(len(scores))} in {path}", sep="\n")


def _file(path: Path, ending: str) -> Path:
    """The path of what is written, which a folder's name is not."""
    if path.suffix != ending:
        raise PwmlError(f"-o {path}: name a file, such as {path.with_suffix(ending)}")
    return path


def _folds(splits: Path | None) -> dict[str, str] | None:
    from pwmlunet.data.splits import read_held_out

    return read_held_out(splits) if splits else None


def _draw_overlay(arguments: argparse.Namespace, path: Path, scores: Sequence[Any]) -> list[str]:
    """Draws the pictures where there are images; the line that says so."""
    if not arguments.images:
        return []
    from pwmlunet.evaluation.masks import OVERLAY
    from pwmlunet.report.overlay import overlay_cases

    picture = path.with_name(OVERLAY)
    overlay_cases(
        arguments.reference,
        arguments.prediction,
        arguments.images,
        picture,
        cases=scores,
        labels=arguments.labels,
    )
    return [f"pictures in {picture}"]


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
    parser.add_argument(
        "--splits", type=Path, help="splits.json: the folds over which the profile trident takes its median"
    )
    _add_size_bins(parser)
    _add_scoring(parser, "score")
    return parser


def _add_size_bins(
    parser: Parser, default: str = "quartiles of the training lesions, else of the scored ones"
) -> None:
    parser.add_argument(
        "--size-bins",
        type=float,
        nargs="+",
        metavar="MM3",
        help=f"volumes that separate the bins of size (default: {default})",
    )


def _size_bins(arguments: argparse.Namespace) -> Sequence[float] | None:
    """The edges that are given; None where none are."""
    from pwmlunet.evaluation.sizes import check_edges

    edges: Sequence[float] | None = arguments.size_bins
    if edges:
        check_edges(edges)
    return edges


# pwml_compare


def _run_compare(arguments: argparse.Namespace) -> None:
    from pwmlunet.report.compare import check_place, compare_folders, text, write_comparison

    check_place(_file(arguments.output, ".html"))
    comparison = compare_folders(
        arguments.runs,
        reference=arguments.reference,
        labels=arguments.labels,
        only_common=arguments.only_common,
        size_edges_mm3=_size_bins(arguments),
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
    _add_size_bins(parser, "quartiles of the lesions compared")
    _add_scoring(parser, "compare")
    return parser


# pwml_report


def _run_report(arguments: argparse.Namespace) -> None:
    from pwmlunet.report.report import write_report

    path = _file(arguments.output or arguments.prediction / "report.html", ".html")
    n_cases = write_report(
        path,
        prediction=arguments.prediction,
        reference=arguments.reference,
        images=arguments.images,
        labels=arguments.labels,
        only_common=arguments.only_common,
        size_edges_mm3=_size_bins(arguments),
        curves=_curves(arguments),
        title=arguments.title,
    )
    say(f"report on {count_cases(n_cases)} in {path}")


def _curves(arguments: argparse.Namespace) -> list[Any]:
    """The training curves of the models that are named, else of those that made the predictions."""
    from pwmlunet.report.figures import read_curves

    for folder in arguments.model or ():
        if not any(folder.glob("fold_*/metrics.jsonl")):
            raise PwmlError(f"{folder} has no training curves (fold_*/metrics.jsonl): name a model folder with --model, or leave it out")  # fmt: skip
    folders = arguments.model or _models_of(arguments.prediction)
    return [curve for folder in folders for curve in read_curves(folder)]


def _models_of(prediction: Path) -> Sequence[Path]:
    """The model folders that prediction.json names and that are here."""
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.evaluation.masks import DESCRIPTION
    from pwmlunet.files import read_json

    path = prediction / DESCRIPTION
    content: Any = read_json(path) if path.is_file() else {}
    named = content.get("models", []) if isinstance(content, dict) else []
    if not isinstance(named, list):
        raise PwmlError(f'{path}: "models" must list model folders: predict again')
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
    _add_size_bins(parser)
    _add_scoring(parser, "show")
    return parser
