"""Looking at held-out cases: briefly while a network learns, and in full when it is done."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pwmlunet.data.dataset import Labels
from pwmlunet.data.image import write_image
from pwmlunet.data.store import CaseFacts, PreprocessedCase
from pwmlunet.evaluation.evaluate import write_summary
from pwmlunet.evaluation.probabilities import write_probability
from pwmlunet.evaluation.scores import CaseScores, score_case
from pwmlunet.evaluation.summary import summarise
from pwmlunet.inference.model import FoldNetwork, TrainedModel
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.predictor import Predictor
from pwmlunet.training.run import Run

logger = logging.getLogger(__name__)

_SELECTION_THRESHOLDS = (0.3, 0.5, 0.7)
_LOOKED_AT_VOXELS = 2**22  # of a case: more than an MR volume on its grid, 29 full slices of ultrasound


def look(run: Run, cases: Sequence[str], network: FoldNetwork, device: torch.device) -> tuple[float, float]:
    """Lesion F1 and Dice of a network on held-out cases, without flips.

    Cases are looked at whole; of large volumes, the slices among which most lesion voxels lie. F1 is the mean
    over three thresholds: with few lesions, one threshold says more about chance.
    """
    predictor = Predictor(
        run.model, networks=[network], device=str(device), flips=False, postprocessing=Postprocessing()
    )
    labels = _told_apart(run.model)
    scores: dict[float, list[CaseScores]] = {t: [] for t in _SELECTION_THRESHOLDS}
    for name in cases:
        case = run.store.read(name)
        reference, probability, spacing = _seen(run, case, predictor)
        for threshold in _SELECTION_THRESHOLDS:
            cut = replace(run.model.unchosen, threshold=threshold)
            mask = cut.apply(probability, run.model.labels, spacing)
            scores[threshold].append(_score(labels, case.facts, spacing, reference, mask))
    f1 = float(np.mean([_pooled_f1(scored) for scored in scores.values()]))
    return f1, _mean_dice(scores[0.5])


def _told_apart(model: TrainedModel) -> Labels:
    """The labels as the network tells them apart: all as one where it finds any lesion."""
    return model.labels if model.configuration.finds == "each" else model.labels.as_one()


def _seen(
    run: Run, case: PreprocessedCase, predictor: Predictor
) -> tuple[NDArray[np.uint8], NDArray[np.float32], tuple[float, float, float]]:
    """What is looked at of a case: reference, probability and spacing, on the case's own grid where it is whole."""
    assert case.mask is not None
    n_slices, rows, columns = case.mask.shape
    most = max(run.model.configuration.patch_slices, _LOOKED_AT_VOXELS // (rows * columns))
    way_back = case.facts.way_back
    if n_slices <= most:
        whole = predictor.predict_prepared(case.image, way_back)
        return run.store.reference(case.name), whole.probability, way_back.geometry.spacing_zyx_mm
    first = _most_lesion(run, case.mask, most)
    probability = predictor.predict_slices(case.image, way_back, (first, first + most))
    return np.asarray(case.mask[first : first + most]), probability, way_back.spacing_zyx_mm


def _most_lesion(run: Run, mask: NDArray[np.uint8], n_slices: int) -> int:
    """The first of so many slices that hold the most lesion voxels; those in the middle where all are as good."""
    in_slice = [np.count_nonzero(run.model.labels.encode(piece).any(0)) for piece in mask]
    before = np.concatenate([[0.0], np.cumsum(in_slice)])
    held = before[n_slices:] - before[:-n_slices]
    held[len(held) // 2] += 0.5
    return int(held.argmax())


def validate(run: Run, fold: str, device: torch.device) -> list[CaseScores]:
    """Predicts the held-out cases as a user would and scores them; probabilities are kept."""
    folder = run.model.fold_folder(fold) / "validation"
    raw = run.model.unchosen  # what is chosen later is chosen from these probabilities
    predictor = Predictor(run.model, folds=[fold], device=str(device), postprocessing=raw)
    labels = _told_apart(run.model)
    scores = []
    for name in tqdm(run.split(fold).val, f"validate fold {fold}", leave=False):
        case = run.store.read(name)
        prediction = predictor.predict_prepared(case.image, case.facts.way_back)
        write_probability(folder / f"{name}.npz", prediction.probability)
        _write_mask(folder / f"{name}.nii.gz", prediction.mask, prediction.geometry)
        scores.append(
            _score(
                labels,
                case.facts,
                prediction.geometry.spacing_zyx_mm,
                run.store.reference(name),
                prediction.mask,
                prediction.probability[: len(labels.targets)],
            )
        )
    write_summary(folder / "summary.json", scores)
    return scores


def _score(
    labels: Labels,
    facts: CaseFacts,
    spacing_zyx_mm: tuple[float, float, float],
    reference: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    probability: NDArray[np.float32] | None = None,
) -> CaseScores:
    return score_case(
        reference,
        mask,
        spacing_zyx_mm=spacing_zyx_mm,
        labels=labels,
        name=facts.name,
        subject=facts.subject,
        probability=probability,
    )


def _write_mask(path: Path, mask: Any, geometry: Any) -> None:
    """Writes a mask for people to look at; where there is no SimpleITK the probabilities must do."""
    try:
        write_image(path, mask, geometry)
    except ModuleNotFoundError:
        logger.warning("%s is not written: SimpleITK is not installed here", path.name)


def _pooled_f1(cases: Sequence[CaseScores]) -> float:
    f1s = [t.pooled["iou_0.1"].f1 for t in summarise(cases).targets.values()]
    return float(np.mean([f1 or 0.0 for f1 in f1s]))


def _mean_dice(cases: Sequence[CaseScores]) -> float:
    dices = [t.means["dice"].value for t in summarise(cases).targets.values()]
    return float(np.mean([dice or 0.0 for dice in dices]))
