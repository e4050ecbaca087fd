"""pwml_convert and pwml_plan_and_preprocess."""

import argparse
from pathlib import Path

from pwmlunet.cli.command import Parser, command, count_cases, new_parser, say

# pwml_convert


def _run_convert(arguments: argparse.Namespace) -> None:
    from pwmlunet.data.convert import convert_msd, dataset_folder
    from pwmlunet.data.slices import convert_slices
    from pwmlunet.data.workspace import Workspace

    raw = Workspace.from_environment().raw
    if arguments.layout == "msd":
        converted = convert_msd(arguments.folder, raw=raw, number=arguments.dataset, name=arguments.name)
    else:
        converted = convert_slices(
            images=arguments.images,
            labels=arguments.labels,
            channel=arguments.channel,
            spacing_zyx_mm=tuple(arguments.spacing_zyx_mm),
            folder_of_dataset=dataset_folder(raw, arguments.dataset, arguments.name),
        )
    n_training, n_to_predict = len(converted.training), len(converted.to_predict)
    say(f"{count_cases(n_training)} to train on and {n_to_predict} to predict in {converted.folder}")


@command(_run_convert)
def convert() -> Parser:
    """pwml_convert: other layouts to a raw dataset."""
    parser = new_parser("pwml_convert", "Turn other layouts into a raw dataset.")
    layouts = parser.add_subparsers(dest="layout", required=True)
    slices = layouts.add_parser("slices", help="folders SUBJECT/NUMBER.png of single slices")
    slices.add_argument("--images", type=Path, required=True, help="folder of SUBJECT/NUMBER.png")
    slices.add_argument("--labels", type=Path, help="the same for masks; leave it out for images to predict")
    slices.add_argument("--channel", required=True, help="name of the channel, e.g. T1")
    slices.add_argument("--spacing-zyx-mm", type=float, nargs=3, required=True, metavar=("Z", "Y", "X"))
    slices.add_argument("--dataset", type=int, required=True, help="number of the dataset")
    slices.add_argument("--name", required=True, help="name of the dataset")
    msd = layouts.add_parser("msd", help="a task of the Medical Segmentation Decathlon")
    msd.add_argument("folder", type=Path, help="folder of the task, with its dataset.json")
    msd.add_argument("--dataset", type=int, help="number of the dataset (default: the task's)")
    msd.add_argument("--name", help="name of the dataset (default: the task's)")
    return parser


# pwml_plan_and_preprocess


def _run_plan(arguments: argparse.Namespace) -> None:
    from pwmlunet.data.parallel import default_workers
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.planning.pipeline import plan_and_preprocess

    prepared = plan_and_preprocess(
        Workspace.from_environment(),
        arguments.dataset,
        memory_gb=arguments.memory_gb,
        workers=arguments.workers or default_workers(),
        replan=arguments.replan,
    )
    rows = [
        *prepared.fingerprint.summary(),
        *((d.topic, f"{d.choice}: {d.reason}") for d in prepared.plan.decisions),
    ]
    width = max(len(topic) for topic, _ in rows)
    for topic, words in rows:
        say(f"  {topic:<{width}}  {words}")
    n_cases = len(prepared.fingerprint.cases)
    say(
        f"{prepared.n_made} of {count_cases(n_cases)} preprocessed now, plan in {prepared.folder / 'plan.json'}"
    )


@command(_run_plan)
def plan_and_preprocess() -> Parser:
    """pwml_plan_and_preprocess: look at a raw dataset, decide, prepare its cases."""
    parser = new_parser("pwml_plan_and_preprocess", "Look at a raw dataset, decide, and prepare its cases.")
    parser.add_argument("-d", "--dataset", required=True, help="number or name of the dataset")
    parser.add_argument(
        "--memory-gb", type=float, help="memory that a training step may use (default: the GPU's)"
    )
    parser.add_argument("--workers", type=int, help="cases at a time (default: one for each core, at most 8)")
    parser.add_argument("--replan", action="store_true", help="make a new plan although there is one")
    return parser
