"""The commands: parse, call one function, print one closing line."""

import argparse
import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pwmlunet import __version__
from pwmlunet.errors import PwmlError

Parser = argparse.ArgumentParser
Command = Callable[[Sequence[str] | None], None]


def _command(function: Callable[[argparse.Namespace], None]) -> Callable[[Callable[[], Parser]], Command]:
    """Pairs a parser with what it runs; a PwmlError becomes its sentence and exit code 2."""

    def with_parser(parser: Callable[[], Parser]) -> Command:
        @functools.wraps(parser)
        def main(arguments: Sequence[str] | None = None) -> None:
            parsed = parser().parse_args(arguments)
            # Torch's threads wait asleep: spinning, as they do by default, triples a prediction on a busy machine.
            os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
            logging.getLogger().handlers[0].setLevel(logging.INFO)  # a training's log file takes more
            logging.getLogger("pwmlunet").setLevel(logging.INFO)
            try:
                function(parsed)
            except PwmlError as error:
                _print(f"error: {error}", file=sys.stderr)
                sys.exit(2)
            except KeyboardInterrupt:
                _print("stopped", file=sys.stderr)
                sys.exit(130)

        return main

    return with_parser


_print = print  # the closing lines of commands are what a user reads


def _parser(name: str, description: str) -> Parser:
    parser = Parser(
        prog=name,
        description=description,
        allow_abbrev=False,
        epilog="See documentation/commands.md for examples.",
    )
    parser.add_argument("--version", action="version", version=f"pwmlunet {__version__}")
    return parser


def _add_device(parser: Parser) -> None:
    parser.add_argument(
        "--device", default=None, help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)"
    )


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
    _print(f"{_cases(n_training)} to train on and {n_to_predict} to predict in {converted.folder}")


@_command(_run_convert)
def convert() -> Parser:
    """pwml_convert: other layouts to a raw dataset."""
    parser = _parser("pwml_convert", "Turn other layouts into a raw dataset.")
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
        _print(f"  {topic:<{width}}  {words}")
    n_cases = len(prepared.fingerprint.cases)
    _print(
        f"{prepared.n_made} of {_cases(n_cases)} preprocessed now, plan in {prepared.folder / 'plan.json'}"
    )


@_command(_run_plan)
def plan_and_preprocess() -> Parser:
    """pwml_plan_and_preprocess: look at a raw dataset, decide, prepare its cases."""
    parser = _parser("pwml_plan_and_preprocess", "Look at a raw dataset, decide, and prepare its cases.")
    parser.add_argument("-d", "--dataset", required=True, help="number or name of the dataset")
    parser.add_argument(
        "--memory-gb", type=float, help="memory that a training step may use (default: the GPU's)"
    )
    parser.add_argument("--workers", type=int, help="cases at a time (default: one for each core, at most 8)")
    parser.add_argument("--replan", action="store_true", help="make a new plan although there is one")
    return parser


# pwml_train

_TRAINING_OPTIONS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "--loss": (
        "loss",
        str,
        'a loss or weighted sum: sbfl, focal, bce_dice, focal_tversky, "sbfl + 0.5*dice"',
    ),
    "--epochs": ("epochs", int, "epochs"),
    "--steps": ("steps_per_epoch", int, "steps in an epoch"),
    "--batch": ("batch_size", int, "patches in a step"),
    "--rate": ("learning_rate", float, "learning rate"),
    "--seed": ("seed", int, "seed of weights, patches and augmentation"),
    "--workers": ("workers", int, "processes that draw patches (0: none)"),
    "--precision": ("precision", str, "auto, float32, bfloat16 or float16"),
    "--checkpoint": ("checkpoint", str, "best or last"),
}


def _run_train(arguments: argparse.Namespace) -> None:
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.evaluation.evaluate import summarise, table
    from pwmlunet.training.interruption import TrainingStoppedError
    from pwmlunet.training.run import open_run
    from pwmlunet.training.trainer import FoldTrainer

    run = open_run(Workspace.from_environment(), arguments.dataset, _recipe(arguments), arguments.run)
    for fold in arguments.fold:
        run.split(fold)  # an unknown fold is told before the first is trained
    for fold in arguments.fold:
        try:
            scores = FoldTrainer(run, fold).train()
        except TrainingStoppedError as error:
            _print(f"{error}; the same command goes on", file=sys.stderr)
            sys.exit(130)
        if scores:
            _print(table(summarise(scores), scores))
        _print(f"fold {fold} is trained{'' if scores else ' already'}: {run.model.fold_folder(fold)}")


def _recipe(arguments: argparse.Namespace) -> Any:
    """The recipe of --recipe, with the options of the command line laid over it."""
    from pwmlunet.config import did_you_mean
    from pwmlunet.training.config import RECIPES, TrainingConfig

    if arguments.recipe not in RECIPES:
        raise PwmlError(f"unknown recipe {arguments.recipe!r}{did_you_mean(arguments.recipe, RECIPES)}")
    values = RECIPES[arguments.recipe].to_dict()
    values["configuration"] = arguments.configuration or ""
    for field in [*(field for field, _, _ in _TRAINING_OPTIONS.values()), "device"]:
        if getattr(arguments, field) is not None:
            values[field] = getattr(arguments, field)
    if arguments.compile:
        values["compile"] = True
    for setting in arguments.set:
        _set(values, setting)
    return TrainingConfig.from_dict(values, "the recipe")


def _set(values: dict[str, Any], setting: str) -> None:
    """Lays KEY=VALUE over nested values; a key may be augmentation.noise."""
    key, separator, text = setting.partition("=")
    if not separator:
        raise PwmlError(f"--set {setting}: write KEY=VALUE, such as augmentation.noise=0.1")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise PwmlError(f"--set {setting}: {parent!r} holds no further settings")
    try:
        values[last] = json.loads(text)
    except json.JSONDecodeError:
        values[last] = text


@_command(_run_train)
def train() -> Parser:
    """pwml_train: train folds."""
    parser = _parser("pwml_train", "Train one or several folds; the same command goes on where it stopped.")
    parser.add_argument("dataset", help="number or name of the dataset")
    parser.add_argument("fold", nargs="+", help="0 to 4, several of them, or all (every case)")
    parser.add_argument("-c", "--configuration", help="configuration of plan.json (default: the plan's)")
    parser.add_argument("--run", help="name of the model folder (default: the configuration's)")
    parser.add_argument("--recipe", default="default", help="default or trident_paper")
    for option, (field, kind, text) in _TRAINING_OPTIONS.items():
        parser.add_argument(option, dest=field, type=kind, help=text)
    _add_device(parser)
    parser.add_argument("--compile", action="store_true", help="try torch.compile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any setting of training.json, such as augmentation.noise=0.1")  # fmt: skip
    return parser


# pwml_predict


def _run_predict(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from pwmlunet.data.dataset import find_cases, read_dataset_json
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.inference.model import TrainedModel, find_model
    from pwmlunet.inference.postprocessing import Postprocessing
    from pwmlunet.inference.predictor import Predictor, predict_folder

    if arguments.model:
        model = TrainedModel.open(arguments.model)
    else:
        model = find_model(Workspace.from_environment(), arguments.dataset, arguments.configuration)
    ending = read_dataset_json(model.folder / "dataset.json")["file_ending"]
    cases = _part(find_cases(arguments.input, len(model.plan.channel_names), ending), arguments.part)
    postprocessing = model.postprocessing
    if arguments.threshold is not None:
        changed = replace(postprocessing, threshold=arguments.threshold).to_dict()
        postprocessing = Postprocessing.from_dict(changed, "--threshold")
    predictor = Predictor(
        model,
        folds=arguments.folds,
        device=arguments.device or "auto",
        flips=not arguments.no_flips,
        postprocessing=postprocessing,
    )
    n_predicted = predict_folder(
        predictor,
        cases,
        arguments.output,
        file_ending=ending,
        save_probabilities=arguments.save_probabilities,
        skip_existing=arguments.skip_existing,
    )
    known = f", {len(cases) - n_predicted} were there already" if n_predicted < len(cases) else ""
    networks = f"{len(predictor.networks)} network{'s'[: len(predictor.networks) != 1]}"
    _print(f"{_cases(n_predicted)} predicted by {networks} of {model.folder}{known}: {arguments.output}")


def _cases(n: int) -> str:
    return f"{n} case{'s'[: n != 1]}"


def _part(cases: Sequence[Any], part: str | None) -> Sequence[Any]:
    """Every n-th case from the k-th on, for k/n."""
    if part is None:
        return cases
    k, _, n = part.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise PwmlError(f"--part {part}: write k/n with k from 1 to n, such as 2/4")
    return cases[int(k) - 1 :: int(n)]


@_command(_run_predict)
def predict() -> Parser:
    """pwml_predict: find lesions in new images."""
    parser = _parser("pwml_predict", "Find lesions in the images of a folder (CASE_0000.nii.gz, …).")
    parser.add_argument("-i", "--input", type=Path, required=True, help="folder of images")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the masks")
    parser.add_argument("-d", "--dataset", help="dataset of the model (default: the only trained one)")
    parser.add_argument(
        "-c",
        "--configuration",
        help="run of the model, by default called as its configuration (default: the only one)",
    )
    parser.add_argument("-m", "--model", type=Path, help="a model folder, instead of -d and -c")
    parser.add_argument(
        "-f", "--folds", nargs="+", help="folds to average (default: the finished numbered ones, else all)"
    )
    parser.add_argument("--threshold", type=float, help="probability above which a voxel is lesion")
    parser.add_argument(
        "--save-probabilities", "--save_probabilities", action="store_true", help="also write CASE.npz"
    )
    parser.add_argument(
        "--continue", dest="skip_existing", action="store_true", help="skip cases that have a mask"
    )
    parser.add_argument("--part", metavar="k/n", help="predict only the k-th of n parts of the cases")
    parser.add_argument("--no-flips", action="store_true", help="four times faster, a little less accurate")
    _add_device(parser)
    return parser


# pwml_evaluate


def _run_evaluate(arguments: argparse.Namespace) -> None:
    from pwmlunet.evaluation.evaluate import evaluate_folders, summarise, table, write_summary

    scores = evaluate_folders(
        arguments.reference, arguments.prediction, labels=arguments.labels, only_common=arguments.only_common
    )
    path = arguments.output or arguments.prediction / "summary.json"
    write_summary(path, scores)
    _print(table(summarise(scores), scores))
    if arguments.images:
        from pwmlunet.evaluation.overlay import overlay_cases

        picture = path.with_name("overlay.png")
        overlay_cases(
            arguments.reference, arguments.prediction, arguments.images, picture, labels=arguments.labels
        )
        _print(f"pictures in {picture}")
    _print(f"scores of {_cases(len(scores))} in {path}")


@_command(_run_evaluate)
def evaluate() -> Parser:
    """pwml_evaluate: score predicted masks."""
    parser = _parser("pwml_evaluate", "Score predicted masks against reference masks of the same names.")
    parser.add_argument("-r", "--reference", type=Path, required=True, help="folder of reference masks")
    parser.add_argument("-p", "--prediction", type=Path, required=True, help="folder of predicted masks")
    parser.add_argument(
        "-o", "--output", type=Path, help="where summary.json goes (default: the predictions)"
    )
    parser.add_argument("--labels", type=Path, help="dataset.json (default: found beside the masks)")
    parser.add_argument("--images", type=Path, help="folder of images: also draw overlay.png")
    parser.add_argument("--only-common", action="store_true", help="score the cases that both folders have")
    return parser


# pwml_demo


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
    _print(f"synthetic neonatal T1 heads in {raw}")
    for step, options in steps:
        _print(f"\n$ pwml_{step.__name__} {' '.join(options)}")
        step(options)
    _print(f"\ndone; look at {home / 'predictions' / 'overlay.png'}")


@_command(_run_demo)
def demo() -> Parser:
    """pwml_demo: the whole job on synthetic cases."""
    parser = _parser("pwml_demo", "Make synthetic cases, then plan, train, predict and score them.")
    parser.add_argument(
        "--folder", type=Path, default=Path("demo"), help="where everything goes (default: demo)"
    )
    parser.add_argument(
        "--epochs", type=int, default=20, help="epochs of each of the two folds (default: 20)"
    )
    return parser
