"""pwml_evaluate."""

import argparse
from pathlib import Path

from pwmlunet.cli.command import Parser, command, count_cases, new_parser, say


def _run_evaluate(arguments: argparse.Namespace) -> None:
    from pwmlunet.evaluation.evaluate import evaluate_folders, summarise, table, write_summary

    scores = evaluate_folders(
        arguments.reference, arguments.prediction, labels=arguments.labels, only_common=arguments.only_common
    )
    path = arguments.output or arguments.prediction / "summary.json"
    write_summary(path, scores)
    say(table(summarise(scores), scores))
    if arguments.images:
        from pwmlunet.evaluation.overlay import overlay_cases

        picture = path.with_name("overlay.png")
        overlay_cases(
            arguments.reference, arguments.prediction, arguments.images, picture, labels=arguments.labels
        )
        say(f"pictures in {picture}")
    say(f"scores of {count_cases(len(scores))} in {path}")


@command(_run_evaluate)
def evaluate() -> Parser:
    """pwml_evaluate: score predicted masks."""
    parser = new_parser("pwml_evaluate", "Score predicted masks against reference masks of the same names.")
    parser.add_argument("-r", "--reference", type=Path, required=True, help="folder of reference masks")
    parser.add_argument("-p", "--prediction", type=Path, required=True, help="folder of predicted masks")
    parser.add_argument(
        "-o", "--output", type=Path, help="where summary.json goes (default: the predictions)"
    )
    parser.add_argument("--labels", type=Path, help="dataset.json (default: found beside the masks)")
    parser.add_argument("--images", type=Path, help="folder of images: also draw overlay.png")
    parser.add_argument("--only-common", action="store_true", help="score the cases that both folders have")
    return parser
