"""A folder of images to a folder of masks, lesion tables and what made them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pwmlunet.data.dataset import CaseFiles, Labels
from pwmlunet.data.image import write_image
from pwmlunet.data.parallel import name_case
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.lesion_table import LesionTable, tabulate, write_lesion_table
from pwmlunet.evaluation.masks import DESCRIPTION
from pwmlunet.evaluation.probabilities import write_probability
from pwmlunet.files import make_folder, read_json, write_json
from pwmlunet.inference.classical import ClassicalPredictor
from pwmlunet.inference.device import enough_memory
from pwmlunet.inference.predictor import Prediction, Predictor


def predict_folder(
    predictor: Predictor | ClassicalPredictor,
    cases: Sequence[CaseFiles],
    output: Path,
    *,
    file_ending: str,
    save_probabilities: bool = False,
    skip_existing: bool = False,
) -> int:
    """Writes a mask and a lesion table for each case; how many were predicted.

    A failed case does not stop the others. `prediction.json` says what made the masks.

    Args:
        predictor: The models, or the classical method.
        cases: Their files.
        output: The folder that is written to.
        file_ending: Of the masks.
        save_probabilities: Whether CASE.npz is written too.
        skip_existing: Whether cases that have a mask are left as they are.

    Raises:
        PwmlError: the cases that failed, each with its reason; or masks would be written among the images.
    """
    if any(path.parent.resolve() == output.resolve() for case in cases for path in case.images):
        raise PwmlError(f"{output} is the folder of the images: choose another one for the masks")
    make_folder(output)
    _describe(predictor, output / DESCRIPTION, is_going_on=skip_existing)
    problems = []
    todo = [c for c in cases if not (skip_existing and (output / f"{c.name}{file_ending}").is_file())]
    for case in tqdm(todo, "predict", leave=False, disable=len(todo) < 2):
        try:
            with enough_memory("try --device cpu, or one of the networks alone (--folds)"):
                prediction = predictor.predict_files(case)
            write_lesion_table(output, _table(predictor, case.name, prediction))
            if save_probabilities:
                write_probability(output / f"{case.name}.npz", prediction.probability)
            write_image(output / f"{case.name}{file_ending}", prediction.mask, prediction.geometry)
        except PwmlError as error:
            problems.append(name_case(error, case.name))
    if problems:
        raise PwmlError.of_some(problems, len(todo), "cases")
    return len(todo)


def _table(predictor: Predictor | ClassicalPredictor, case: str, prediction: Prediction) -> LesionTable:
    return tabulate(
        case,
        prediction.mask,
        prediction.geometry,
        _labels(predictor),
        probability=prediction.probability,
        spread=prediction.spread,
        head_centre_zyx=prediction.head_centre_zyx,
    )


def _labels(predictor: Predictor | ClassicalPredictor) -> Labels:
    return predictor.labels if isinstance(predictor, ClassicalPredictor) else predictor.model.labels


def _describe(predictor: Predictor | ClassicalPredictor, path: Path, *, is_going_on: bool) -> None:
    """Writes what made the masks of a folder, and what a score of them wants to know.

    Raises:
        PwmlError: other settings made the masks that are there and shall stay.
    """
    made_by = _classical(predictor) if isinstance(predictor, ClassicalPredictor) else _networks(predictor)
    content = {"version": 1, **made_by, "postprocessing": predictor.postprocessing.to_dict()}
    if is_going_on and path.is_file() and read_json(path) != content:
        raise PwmlError(f"{path.parent} holds masks made with other models or settings ({path.name}): choose another folder, or leave out --continue")  # fmt: skip
    write_json(path, content)


def _networks(predictor: Predictor) -> dict[str, Any]:
    models = [member.model for member in predictor.members]
    return {
        "models": [f"{model.folder.parent.name}/{model.folder.name}" for model in models],
        "n_networks": predictor.n_networks,
        "lesion_quartiles_mm3": models[0].plan.to_dict()["expected_input"]["lesion_quartiles_mm3"],
    }


def _classical(predictor: ClassicalPredictor) -> dict[str, Any]:
    quartiles = predictor.lesion_quartiles_mm3
    return {
        "models": [],
        "n_networks": 0,
        "lesion_quartiles_mm3": quartiles and {name: list(edges) for name, edges in quartiles.items()},
        "classical": predictor.config.to_dict(),
    }
