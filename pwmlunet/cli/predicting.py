"""pwml_predict."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
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


_OF_NETWORKS = {
    "configuration": "-c",
    "model": "-m",
    "folds": "-f",
    "no_flips": "--no-flips",
    "correction": "--correction",
    "device": "--device",
}


@dataclass(frozen=True)
class _Finder:
    """What finds lesions, and what it expects."""

    predictor: Any
    name: str
    file_ending: str
    channel_names: Sequence[str]
    may_lack: frozenset[int] = frozenset()


def _run_predict(arguments: argparse.Namespace) -> None:
    from pwmlunet.data.dataset import find_cases
    from pwmlunet.inference.folder import predict_folder

    finder = _classical(arguments) if arguments.classical else _networks(arguments)
    names, ending = finder.channel_names, finder.file_ending
    cases = _part(find_cases(arguments.input, names, ending, may_lack=finder.may_lack), arguments.part)
    n_predicted = predict_folder(
        finder.predictor,
        cases,
        arguments.output,
        file_ending=finder.file_ending,
        save_probabilities=arguments.save_probabilities,
        skip_existing=arguments.skip_existing,
    )
    if arguments.review:
        _review(arguments.output, [case.name for case in cases])
    known = f", {len(cases) - n_predicted} were there already" if n_predicted < len(cases) else ""
    say(f"{count_cases(n_predicted)} predicted by {finder.name}{known}: {arguments.output}")


def _networks(arguments: argparse.Namespace) -> _Finder:
    """The trained networks that are meant."""
    from pwmlunet.data.dataset import read_dataset_json
    from pwmlunet.inference.predictor import Predictor

    models, postprocessing = _models(arguments)
    predictor = Predictor(
        *models,
        folds=arguments.folds,
        device=arguments.device or "auto",
        flips=not arguments.no_flips,
        postprocessing=_by_hand(arguments, postprocessing),
    )
    networks = f"{predictor.n_networks} network{'s'[: predictor.n_networks != 1]}"
    ending = read_dataset_json(models[0].folder / "dataset.json")["file_ending"]
    name = f"{networks} of {join(model.folder for model in models)}"
    return _Finder(predictor, name, ending, models[0].plan.channel_names, predictor.may_lack)


def _classical(arguments: argparse.Namespace) -> _Finder:
    """The classical method, for any images or with what is known of a dataset; it sees the first channel only."""
    from pwmlunet.data.dataset import read_dataset_json
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.inference.classical import ClassicalPredictor
    from pwmlunet.inference.postprocessing import Postprocessing

    if refused := [option for field, option in _OF_NETWORKS.items() if getattr(arguments, field)]:
        raise PwmlError(f"--classical asks no network: leave out {join(refused)}")
    postprocessing = _by_hand(arguments, Postprocessing())
    name = "the classical method, which learned nothing"
    if arguments.dataset is None:
        predictor = ClassicalPredictor(postprocessing=postprocessing)
        return _Finder(predictor, name, _find_ending(arguments.input), ["image"])
    folder = Workspace.from_environment().find_preprocessed(arguments.dataset)
    predictor = ClassicalPredictor.of_dataset(folder, postprocessing)
    content = read_dataset_json(folder / "dataset.json")
    first, ending = content["channel_names"]["0"], content["file_ending"]
    return _Finder(predictor, f"{name} but the sizes of lesions in {folder.name}", ending, [first])


def _find_ending(folder: Path) -> str:
    """The ending of the images in a folder."""
    from pwmlunet.data.dataset import list_files
    from pwmlunet.data.image import FILE_ENDINGS

    endings = [ending for ending in FILE_ENDINGS if list_files(folder, f"_0000{ending}")]
    if not endings:
        raise PwmlError(f"{folder} holds no images named CASE_0000 with an ending of {join(FILE_ENDINGS)}: name them so")  # fmt: skip
    if len(endings) > 1:
        raise PwmlError(f"{folder} holds images of several kinds ({join(endings)}): put each kind into a folder of its own")  # fmt: skip
    return endings[0]


def _models(arguments: argparse.Namespace) -> Any:
    """The models that are meant, and their postprocessing."""
    from pwmlunet.data.workspace import Workspace
    from pwmlunet.inference.best import find_models
    from pwmlunet.inference.correction_trial import other_settings
    from pwmlunet.inference.model import TrainedModel

    if arguments.model:
        models = [TrainedModel.open(arguments.model)]
        postprocessing = models[0].postprocessing
    else:
        workspace = Workspace.from_environment()
        models, postprocessing = find_models(workspace, arguments.dataset, arguments.configuration)
    if arguments.correction is None or arguments.correction == postprocessing.correction:
        return models, postprocessing
    if len(models) > 1:
        raise PwmlError("a correction belongs to one run, and several are asked together: name one with -c")
    return models, other_settings(models[0], corrected=arguments.correction)


def _by_hand(arguments: argparse.Namespace, postprocessing: Any) -> Any:
    """Postprocessing with what the command line says laid over it."""
    from pwmlunet.inference.postprocessing import Postprocessing

    given = {field: getattr(arguments, field) for field, _ in _POSTPROCESSING.values()}
    changed = {field: value for field, value in given.items() if value is not None}
    options = join(option for option, (field, _) in _POSTPROCESSING.items() if field in changed)
    if not changed:
        return postprocessing
    return Postprocessing.from_dict({**postprocessing.to_dict(), **changed, "chosen": None}, options)


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
        side = f" on the {row.side}" if row.side else ""
        say(
            f"  {case}: {row.target}{side}, {slices}, row {row.centroid_y_voxel:.0f}, column "
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
    parser.add_argument(
        "--classical",
        action="store_true",
        help="no network and no training: bright spots midway between ventricles and the brain's edge (-d: of the size of its training lesions)",
    )
    parser.add_argument(
        "--correction",
        action=argparse.BooleanOptionalAction,
        help="whether the run's correction networks judge what it finds (default: where cross-validation said that it helps)",
    )
    for option, (field, text) in _POSTPROCESSING.items():
        parser.add_argument(
            option,
            dest=field,
            type=float,
            help=f"{text} (default: postprocessing.json; of --classical 0.5, 0, 0 and 1)",
        )
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
