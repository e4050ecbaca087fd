"""Predictor: from images to probabilities and masks on each image's own grid."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.data.dataset import CaseFiles
from pwmlunet.data.image import Geometry
from pwmlunet.data.store import WayBack
from pwmlunet.inference.candidates import THRESHOLDS
from pwmlunet.inference.device import choose_device, keep_freed_memory, prediction_format
from pwmlunet.inference.model import FoldNetwork, TrainedModel
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.refining import SeenImage
from pwmlunet.inference.sliding_window import PlacedNetwork, Window, predict_volume
from pwmlunet.planning.alignment import CoarseImage
from pwmlunet.planning.fingerprint import channel_facts
from pwmlunet.planning.plan import ExpectedInput
from pwmlunet.planning.preprocessing import find_head, prepare, read_case, restore

logger = logging.getLogger(__name__)


_Maps = tuple[NDArray[np.float32], NDArray[np.float32] | None]
_Prepared = tuple[NDArray[np.floating[Any]], WayBack]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What was found in a case, on its own grid."""

    probability: NDArray[np.float32]
    """(K, Z, Y, X), one for each target of the dataset; calibrated where the model is."""
    mask: NDArray[np.uint8]
    """(Z, Y, X), the dataset's label values."""
    geometry: Geometry
    spread: NDArray[np.float32] | None = None
    """Standard deviation over the networks, before calibration, of the probability's shape; None for one network."""
    head_centre_zyx: tuple[float, float, float] | None = None
    """The middle of the head, or of the fan of ultrasound, in voxels; None where the image itself was not seen."""


@dataclass(frozen=True)
class _Member:
    """A model, its networks, and how they are led over a volume."""

    model: TrainedModel
    networks: list[FoldNetwork]
    window: Window
    reference: CoarseImage | None


class Predictor:
    """Trained models ready to predict; the mean over the models of the mean over each model's folds.

    Example:
        >>> predictor = Predictor(TrainedModel.open(Path("model")))  # doctest: +SKIP
        >>> prediction = predictor.predict(array, spacing_zyx_mm=(3.0, 0.7, 0.7))  # doctest: +SKIP
    """

    def __init__(
        self,
        *models: TrainedModel,
        networks: Sequence[FoldNetwork] | None = None,
        folds: Sequence[str] | None = None,
        device: str = "auto",
        flips: bool = True,
        postprocessing: Postprocessing | None = None,
    ) -> None:
        self.device = choose_device(device)
        self.members = [
            _Member(
                model,
                [replace(n, network=n.network.to(self.device)) for n in networks or model.load(folds)],
                Window(model.configuration, flips, prediction_format(self.device)),
                model.reference,
            )
            for model in models
        ]
        self.postprocessing = postprocessing or models[0].postprocessing
        keep_freed_memory()

    @property
    def model(self) -> TrainedModel:
        """The first model: its labels and file ending are those of all."""
        return self.members[0].model

    @property
    def n_networks(self) -> int:
        """How many networks are asked."""
        return sum(len(member.networks) for member in self.members)

    def predict(
        self,
        array: NDArray[Any],
        spacing_zyx_mm: tuple[float, float, float] | None = None,
        *,
        geometry: Geometry | None = None,
    ) -> Prediction:
        """The prediction for an image (Z, Y, X) or, with several channels, (C, Z, Y, X).

        Either the spacing or the whole geometry is given; only the spacing influences the mask.
        """
        if array.ndim not in (3, 4):
            raise ValueError(f"an image is (Z, Y, X) or (C, Z, Y, X), not {array.shape}")
        channels = list(array if array.ndim == 4 else array[None])
        if geometry is None:
            if spacing_zyx_mm is None:
                raise ValueError("give spacing_zyx_mm or geometry")
            geometry = Geometry(channels[0].shape, spacing_zyx_mm)
        head = find_head(channels[0], self.model.preparation)
        return self._predict(channels, geometry, head, "array")

    def _predict(
        self, channels: list[NDArray[Any]], geometry: Geometry, head: NDArray[np.bool_], name: str
    ) -> Prediction:
        def prepared(member: _Member) -> _Prepared:
            preparation, reference = member.model.preparation, member.reference
            image, _, way_back = prepare(channels, geometry, preparation, reference=reference, name=name)
            return image, way_back

        first, *others = self.members
        case = prepared(first)
        maps = chain([self._ask(first, *case)], (self._ask(member, *prepared(member)) for member in others))
        return self._finish(_together(maps, len(self.members)), *case, _middle(head))

    def predict_prepared(self, image: NDArray[np.floating[Any]], way_back: WayBack) -> Prediction:
        """The prediction for a case (C, Z, Y, X) that is on the grid of the first model's network already."""
        return self._finish(self._ask(self.members[0], image, way_back), image, way_back)

    def predict_files(self, files: CaseFiles) -> Prediction:
        """The prediction for a case's files; what does not look like the training cases is logged."""
        images, _ = read_case(files, None)
        channels, geometry = [image.array for image in images], images[0].geometry
        head = find_head(channels[0], self.model.preparation)
        for oddity in oddities(channels, geometry, self.model.plan.expected_input, head):
            logger.warning("case %s: %s", files.name, oddity)
        return self._predict(channels, geometry, head, files.name)

    def predict_slices(
        self, image: NDArray[np.floating[Any]], way_back: WayBack, slices: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Probabilities (K, n, Y, X) of the first model for slices [start, stop) of a prepared case, on its grid; no CRF."""
        member = self.members[0]
        networks = _placed(member.networks, way_back)
        mean, _ = predict_volume(networks, image, member.window, self.device, slices)
        return self.postprocessing.calibrate(mean.numpy())

    def _ask(self, member: _Member, image: NDArray[np.floating[Any]], way_back: WayBack) -> _Maps:
        """A member's probabilities and their spread on the case's own grid."""
        networks = _placed(member.networks, way_back)
        mean, spread = predict_volume(networks, image, member.window, self.device)
        restored = restore(mean, way_back).numpy()
        del mean  # a large volume's maps take a few hundred megabytes each
        return restored, None if spread is None else restore(spread, way_back).numpy()

    def _finish(
        self,
        maps: _Maps,
        image: NDArray[np.floating[Any]],
        way_back: WayBack,
        head_centre_zyx: tuple[float, float, float] | None = None,
    ) -> Prediction:
        """What the settings make of all models' maps; the image is the first model's."""
        probability, spread = maps
        settings, geometry = self.postprocessing, way_back.geometry
        if settings.crf:
            cuts = (*THRESHOLDS, settings.threshold_before_temperature)  # pwml_find_best looks at all of them
            probability = SeenImage.of_prepared(image, way_back).refine(probability, settings.crf, *cuts)
        probability = settings.calibrate(probability)
        mask = settings.apply(probability, self.model.labels, geometry.spacing_zyx_mm)
        return Prediction(probability, mask, geometry, spread, head_centre_zyx)


def _placed(networks: Sequence[FoldNetwork], way_back: WayBack) -> list[PlacedNetwork]:
    """The networks with their densities laid over a case."""
    return [PlacedNetwork(n.network, n.density.place(way_back) if n.density else None) for n in networks]


def _together(maps: Iterator[_Maps], n_models: int) -> _Maps:
    """The mean over the models, and the spread over all their networks as if each model had as many."""
    mean, spread = next(maps)
    if n_models == 1:
        return mean, spread
    square = _second_moment(mean, spread)
    for probability, spread in maps:
        mean += probability
        square += _second_moment(probability, spread)
    mean /= n_models
    square /= n_models
    square -= mean**2
    return mean, np.sqrt(np.maximum(square, 0, out=square), out=square)


def _second_moment(mean: NDArray[np.float32], spread: NDArray[np.float32] | None) -> NDArray[np.float32]:
    square = mean**2
    if spread is not None:
        square += spread**2
    return square


def _middle(head: NDArray[np.bool_]) -> tuple[float, float, float]:
    """The middle of the head in voxels (z, y, x), or of the image where no head is found."""
    whole = head if head.any() else np.ones_like(head)
    counts = [whole.sum((1, 2)), whole.sum((0, 2)), whole.sum((0, 1))]  # voxels in each slice, row and column
    z, y, x = (float(np.arange(len(n)) @ n / n.sum()) for n in counts)
    return z, y, x


def oddities(
    channels: Sequence[NDArray[Any]], geometry: Geometry, expected: ExpectedInput, head: NDArray[np.bool_]
) -> list[str]:
    """In words, how a case and the head in it differ from the training cases; empty for one that does not."""
    found = []
    spacing = np.array(geometry.spacing_zyx_mm)
    low, high = np.array(expected.spacing_low_zyx_mm) / 1.5, np.array(expected.spacing_high_zyx_mm) * 1.5
    if (spacing < low).any() or (spacing > high).any():
        trained = join(f"{s:.3g}" for s in expected.spacing_low_zyx_mm)
        found.append(f"its spacing {join(f'{s:.3g}' for s in spacing)} mm is far from the training cases' ({trained} mm)")  # fmt: skip
    for index, (image, known) in enumerate(zip(channels, expected.channels, strict=False)):
        facts = channel_facts(image, head)
        seen = (np.array(facts.percentiles) - facts.mean) / max(facts.std, 1e-6)
        usual = (np.array(known.percentiles) - known.mean) / max(known.std, 1e-6)
        if (np.abs(seen - usual) > (1.5, 1.0, 3.0)).any():
            found.append(
                f"channel {index} has other contrasts than the training images: is it the right kind of image?"
            )
    return found
