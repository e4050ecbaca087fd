"""pwml_convert and pwml_plan_and_preprocess."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pwmlunet.cli.command import Parser, command, count_cases, new_parser, say
from pwmlunet.errors import PwmlError

if TYPE_CHECKING:
    from pwmlunet.data.convert import Converted

# pwml_convert


def _run_convert(arguments: argparse.Namespace) -> None:
    if arguments.layout == "register":
        _register(arguments)
        return
    layouts = {"slices": _convert_slices, "msd": _convert_msd, "subjects": _convert_subjects}
    converted = layouts[arguments.layout](arguments)
    n_training, n_to_predict = len(converted.training), len(converted.to_predict)
    say(f"{count_cases(n_training)} to train on and {n_to_predict} to predict in {converted.folder}")


def _convert_slices(arguments: argparse.Namespace) -> "Converted":
    from pwmlunet.data.slices import convert_slices

    return convert_slices(
        images=arguments.images,
        labels=arguments.labels,
        channel=arguments.channel,
        spacing_zyx_mm=tuple(arguments.spacing_zyx_mm),
        folder_of_dataset=_new_dataset(arguments),
    )


def _convert_msd(arguments: argparse.Namespace) -> "Converted":
    from pwmlunet.data.convert import convert_msd
    from pwmlunet.data.workspace import Workspace

    raw = Workspace.from_environment().raw
    return convert_msd(arguments.folder, raw=raw, number=arguments.dataset, name=arguments.name)


def _convert_subjects(arguments: argparse.Namespace) -> "Converted":
    from pwmlunet.data.subjects import convert_subjects

    names = arguments.channel_names or arguments.channels
    if len(names) != len(arguments.channels):
        raise PwmlError(f"there are {len(arguments.channels)} --channels and {len(names)} --channel-names: give one name for each")  # fmt: skip
    files = [*arguments.channels, arguments.mask]
    for given in (files, names):
        if twice := [name for name in given if given.count(name) > 1]:
            raise PwmlError(f"{twice[0]!r} is given twice: every channel and the mask have a name of their own")  # fmt: skip
    return convert_subjects(
        arguments.folder,
        channels=dict(zip(arguments.channels, names, strict=True)),
        mask=arguments.mask,
        labels=dict(arguments.labels or [(arguments.label, 1)]),
        registers=arguments.register,
        folder_of_dataset=_new_dataset(arguments),
    )


def _new_dataset(arguments: argparse.Namespace) -> Path:
    from pwmlunet.data.convert import dataset_folder
    from pwmlunet.data.workspace import Workspace

    return dataset_folder(Workspace.from_environment().raw, arguments.dataset, arguments.name)


def _register(arguments: argparse.Namespace) -> None:
    from pwmlunet.data.registration_files import register_files

    registered = register_files(arguments.fixed, arguments.moving, arguments.output)
    for path, result in registered.items():
        say(f"{path}: {result.describe()}")
    say(f"{len(registered)} registered: look at the pictures NAME_check.png beside them")


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
    _add_new_dataset(slices)
    msd = layouts.add_parser("msd", help="a task of the Medical Segmentation Decathlon")
    msd.add_argument("folder", type=Path, help="folder of the task, with its dataset.json")
    msd.add_argument("--dataset", type=int, help="number of the dataset (default: the task's)")
    msd.add_argument("--name", help="name of the dataset (default: the task's)")
    _add_subjects(layouts.add_parser("subjects", help="folders SUBJECT/CHANNEL.nii.gz of volumes"))
    register = layouts.add_parser("register", help="move volumes onto the grid of others of the same heads")
    register.add_argument("--fixed", type=Path, required=True, help="volume that stays, or a folder of some")
    register.add_argument("--moving", type=Path, required=True, help="volume to be moved, or a folder")
    register.add_argument("--output", type=Path, required=True, help="the moved volume, or a folder")
    return parser


def _add_new_dataset(parser: Parser) -> None:
    parser.add_argument("--dataset", type=int, required=True, help="number of the dataset")
    parser.add_argument("--name", required=True, help="name of the dataset")


def _add_subjects(parser: Parser) -> None:
    parser.add_argument("folder", type=Path, help="folder of the subjects' folders")
    parser.add_argument(
        "--channels", nargs="+", required=True, metavar="FILE", help="names of the images, less the ending"
    )
    parser.add_argument("--mask", required=True, metavar="FILE", help="name of the masks, less the ending")
    parser.add_argument(
        "--channel-names", nargs="+", metavar="NAME", help="names of the channels (default: the files')"
    )
    labels = parser.add_mutually_exclusive_group()
    labels.add_argument("--label", default="lesion", help="what 1 in a mask means (default: lesion)")
    labels.add_argument(
        "--labels", nargs="+", type=_label, metavar="NAME=VALUE", help="what each value means"
    )
    parser.add_argument("--register", action="store_true", help="move the other channels onto the first")
    _add_new_dataset(parser)


def _label(text: str) -> tuple[str, int]:
    name, _, value = text.rpartition("=")
    if not name or not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not like FCI=1")
    return name, int(value)


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
