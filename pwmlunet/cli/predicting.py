"""pwml_predict."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pwmlunet.cli.command import Parser, add_device, command, count_cases, new_parser, say
from pwmlunet.config import join
from pwmlunet.errors import PwmlError

_POSTPROCESSING: dict[str, tuple[str, str]] = {
    "--threshold": ("threshold", "probability above which a voxel is lesion"),
    "--smallest-lesion-mm3": ("smallest_lesion_mm3", "smaller lesions are removed"),
    "--least-peak-probability": (
        "least_peak_probability",
        "lesions in which no voxel is above it are removed",
    ),
    "--temperature": ("temperature", "what logits are divided by; 1 leaves probabilities as they are"),
}
_SHOWN = 10


def _run_predict(arguments: argparse.Namespace) -> None:
    from pwmlunet.data.dataset import find_cases, read_dataset_json
    from pwmlunet.inference.folder import predict_folder
    from pwmlunet.inference.predictor import Predictor

    models, postprocessing = _models(arguments)
    folder = models[0].folder
    ending = read_dataset_json(folder / "dataset.json")["file_ending"]
    cases = _part(find_cases(arguments.input, len(models[0].plan.channel_names), ending), arguments.part)
    predictor = Predictor(
        *models,
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
    if arguments.review:
        _review(arguments.output, [case.name for case in cases])
    known = f", {len(cases) - n_predicted} were there already" if n_predicted < len(cases) else ""
    networks = f"{predictor.n_networks} network{'s'[: predictor.n_networks != 1]}"
    names = join(model.folder for model in models)
    say(f"{count_cases(n_predicted)} predicted by {networks} of {names}{known}: {arguments.output}")


def _models(arguments: argparse.Namespace) -> Any:
    """The models that are meant, and their postprocessing with what the command line says laid over it."""
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.inference.model import TrainedModel
    from pwmlunet.inference.postprocessing import Postprocessing
    from pwmlunet.inference.selection import find_models

    if arguments.model:
        model = TrainedModel.open(arguments.model)
        models, postprocessing = [model], model.postprocessing
    else:
        workspace = Workspace.from_environment()
        models, postprocessing = find_models(workspace, arguments.dataset, arguments.configuration)
    given = {field: getattr(arguments, field) for field, _ in _POSTPROCESSING.values()}
    changed = {field: value for field, value in given.items() if value is not None}
    options = join(option for option, (field, _) in _POSTPROCESSING.items() if field in changed)
    if not changed:
        return models, postprocessing
    by_hand = {**postprocessing.to_dict(), **changed, "chosen": None}
    return models, Postprocessing.from_dict(by_hand, options)


def _review(folder: Path, cases: Sequence[str]) -> None:
    """Lists the least sure lesions of a folder of predictions, those of these cases among them."""
    from pwmlunet.evaluation.lesion_table import read_lesion_tables, write_review

    path = folder / "review.csv"
    tables = read_lesion_tables(folder)
    if missing := set(cases) - {table.case for table in tables}:
        raise PwmlError(f"{folder} has masks without a lesion table ({join(sorted(missing))}): predict them again, without --continue")  # fmt: skip
    lesions = write_review(path, tables)
    for case, row in lesions[:_SHOWN]:
        slices = f"slice {row.first_slice}" + (
            f" to {row.last_slice}" if row.last_slice > row.first_slice else ""
        )
        say(
            f"  {case}: {row.target} on the {row.side}, {slices}, row {row.centroid_y_voxel:.0f}, column "
            f"{row.centroid_x_voxel:.0f}, {row.volume_mm3:.3g} mm³, probability {row.mean_probability or 0:.2f}"
        )
    say(f"{len(lesions)} lesions, the least sure first, in {path}")


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
        help="run of the model, by default called as its configuration (default: what pwml_find_best chose, else the only one)",
    )
    parser.add_argument("-m", "--model", type=Path, help="a model folder, instead of -d and -c")
    parser.add_argument(
        "-f", "--folds", nargs="+", help="folds to average (default: the finished numbered ones, else all)"
    )
    for option, (field, text) in _POSTPROCESSING.items():
        parser.add_argument(option, dest=field, type=float, help=f"{text} (default: postprocessing.json)")
    parser.add_argument(
        "--review",
        action="store_true",
        help="also write review.csv: the lesions of all cases, the least sure first",
    )
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
