"""pwml_predict."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pwmlunet.cli.command import Parser, add_device, command, count_cases, new_parser, say
from pwmlunet.errors import PwmlError


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
    say(f"{count_cases(n_predicted)} predicted by {networks} of {model.folder}{known}: {arguments.output}")


def _part(cases: Sequence[Any], part: str | None) -> Sequence[Any]:
    """Every n-th case from the k-th on, for k/n."""
    if part is None:
        return cases
    k, _, n = part.partition("/")
    if not (k.isdecimal() and n.isdecimal() and 1 <= int(k) <= int(n)):
        raise PwmlError(f"--part {part}: write k/n with k from 1 to n, such as 2/4")
    return cases[int(k) - 1 :: int(n)]


@command(_run_predict)
def predict() -> Parser:
    """pwml_predict: find lesions in new images."""
    parser = new_parser("pwml_predict", "Find lesions in the images of a folder (CASE_0000.nii.gz, …).")
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
    add_device(parser)
    return parser
