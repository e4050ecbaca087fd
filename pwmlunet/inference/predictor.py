"""Predictor: from images to probabilities and masks on each image's own grid."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from pwmlunet.config import join
from pwmlunet.data.dataset import CaseFiles
from pwmlunet.data.image import Geometry, write_image
from pwmlunet.data.parallel import name_case
from pwmlunet.data.store import WayBack
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.probabilities import write_probability
from pwmlunet.files import make_folder
from pwmlunet.inference.device import choose_device, keep_freed_memory, prediction_format
from pwmlunet.inference.model import TrainedModel
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.sliding_window import Window, predict_volume
from pwmlunet.networks.base import SegmentationNetwork
from pwmlunet.planning.cropping import foreground
from pwmlunet.planning.fingerprint import channel_facts
from pwmlunet.planning.plan import ExpectedInput
from pwmlunet.planning.preprocessing import prepare, read_case, restore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in a case, on its own grid."""

    probability: NDArray[np.float32]
    """(K, Z, Y, X), one for each target of the dataset."""
    mask: NDArray[np.uint8]
    """(Z, Y, X), the dataset's label values."""
    geometry: Geometry


class Predictor:
    """A trained model ready to predict; the mean over its folds' networks.

    Example:
        >>> predictor = Predictor(TrainedModel.open(Path("model")))  # doctest: +SKIP
        >>> prediction = predictor.predict(array, spacing_zyx_mm=(3.0, 0.7, 0.7))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: TrainedModel,
        *,
        networks: Sequence[SegmentationNetwork] | None = None,
        folds: Sequence[str] | None = None,
        device: str = "auto",
        flips: bool = True,
        postprocessing: Postprocessing | None = None,
    ) -> None:
        self.model = model
        self.device = choose_device(device)
        self.networks = [n.to(self.device) for n in networks or model.load(folds)]
        self.postprocessing = postprocessing or model.postprocessing
        self.window = Window(model.configuration, flips, prediction_format(self.device))
        keep_freed_memory()

    def predict(
        self,
        array: NDArray[Any],
        spacing_zyx_mm: tuple[float, float, float] | None = None,
        *,
        geometry: Geometry | None = None,
    ) -> Prediction:
        """The prediction for an image (Z, Y, X) or, with several channels, (C, Z, Y, X).

        Either the spacing or the whole geometry is given; only the spacing influences the result.
        """
        if array.ndim not in (3, 4):
            raise ValueError(f"an image is (Z, Y, X) or (C, Z, Y, X), not {array.shape}")
        channels = list(array if array.ndim == 4 else array[None])
        if geometry is None:
            if spacing_zyx_mm is None:
                raise ValueError("give spacing_zyx_mm or geometry")
            geometry = Geometry(channels[0].shape, spacing_zyx_mm)
        image, _, way_back = prepare(channels, geometry, self.model.preparation)
        return self.predict_prepared(image, way_back)

    def predict_prepared(self, image: NDArray[np.float32], way_back: WayBack) -> Prediction:
        """The prediction for a case (C, Z, Y, X) that is on the network's grid already."""
        tensor = torch.from_numpy(np.array(image, np.float32))  # a copy: a memory map is read-only
        probability = restore(
            predict_volume(self.networks, tensor, self.window, self.device), way_back
        ).numpy()
        geometry = way_back.geometry
        mask = self.postprocessing.apply(probability, self.model.labels, geometry.spacing_zyx_mm)
        return Prediction(probability, mask, geometry)

    def predict_files(self, files: CaseFiles) -> Prediction:
        """The prediction for a case's files; what does not look like the training cases is logged."""
        channels, _ = read_case(files, None)
        for oddity in oddities(
            [c.array for c in channels], channels[0].geometry, self.model.plan.expected_input
        ):
            logger.warning("case %s: %s", files.name, oddity)
        return self.predict(np.stack([c.array for c in channels]), geometry=channels[0].geometry)


def oddities(channels: Sequence[NDArray[Any]], geometry: Geometry, expected: ExpectedInput) -> list[str]:
    """In words, how a case differs from the training cases; empty for one that does not."""
    found = []
    spacing = np.array(geometry.spacing_zyx_mm)
    low, high = np.array(expected.spacing_low_zyx_mm) / 1.5, np.array(expected.spacing_high_zyx_mm) * 1.5
    if (spacing < low).any() or (spacing > high).any():
        trained = join(f"{s:.3g}" for s in expected.spacing_low_zyx_mm)
        found.append(f"its spacing {join(f'{s:.3g}' for s in spacing)} mm is far from the training cases' ({trained} mm)")  # fmt: skip
    head = foreground(channels[0])
    for index, (image, known) in enumerate(zip(channels, expected.channels, strict=False)):
        facts = channel_facts(image, head)
        seen = (np.array(facts.percentiles) - facts.mean) / max(facts.std, 1e-6)
        usual = (np.array(known.percentiles) - known.mean) / max(known.std, 1e-6)
        if (np.abs(seen - usual) > (1.5, 1.0, 3.0)).any():
            found.append(
                f"channel {index} has other contrasts than the training images: is it the right kind of image?"
            )
    return found


def predict_folder(
    predictor: Predictor,
    cases: Sequence[CaseFiles],
    output: Path,
    *,
    file_ending: str,
    save_probabilities: bool = False,
    skip_existing: bool = False,
) -> int:
    """Writes a mask for each case, and its probabilities where asked for; how many were predicted.

    A failed case does not stop the others.

    Raises:
        PwmlError: the cases that failed, each with its reason.
    """
    make_folder(output)
    problems = []
    todo = [c for c in cases if not (skip_existing and (output / f"{c.name}{file_ending}").is_file())]
    for case in tqdm(todo, "predict", leave=False, disable=len(todo) < 2):
        try:
            prediction = predictor.predict_files(case)
            if save_probabilities:
                write_probability(output / f"{case.name}.npz", prediction.probability)
            write_image(output / f"{case.name}{file_ending}", prediction.mask, prediction.geometry)
        except PwmlError as error:
            problems.append(name_case(error, case.name))
        except (torch.OutOfMemoryError, MemoryError):
            problems.append(f"case {case.name}: there is not enough memory: try --device cpu or --no-flips")
    if problems:
        raise PwmlError.listing(f"{len(problems)} of {len(todo)} cases failed, the others are done", problems)
    return len(todo)
