"""Predictor: from images to probabilities and masks on each image's own grid."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pwmlunet.config import join
from pwmlunet.data.dataset import CaseFiles
from pwmlunet.data.image import Geometry
from pwmlunet.data.store import WayBack
from pwmlunet.errors import PwmlError
from pwmlunet.inference.candidates import THRESHOLDS
from pwmlunet.inference.correction import Corrector
from pwmlunet.inference.device import choose_device, keep_freed_memory, prediction_format
from pwmlunet.inference.model import ALL, FoldNetwork, TrainedModel
from pwmlunet.inference.oddities import oddities
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.refining import SeenImage
from pwmlunet.inference.sliding_window import PlacedNetwork, Window, predict_volume
from pwmlunet.planning.alignment import CoarseImage
from pwmlunet.planning.plan import see
from pwmlunet.planning.preprocessing import find_first_present, find_head, prepare, read_case, restore

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
        self.corrector = self._open_corrector(folds) if self.postprocessing.correction else None
        keep_freed_memory()

    def _open_corrector(self, folds: Sequence[str] | None) -> Corrector:
        """The correction networks of the only model, of the folds that are asked."""
        if len(self.members) > 1:
            raise PwmlError("a correction belongs to one run, and several are asked together: set correction to false in their postprocessing.json, or name a run with -c")  # fmt: skip
        judges = [fold for fold in folds or () if fold != ALL]  # which has none of its own
        return Corrector.open(self.model, judges, str(self.device))

    @property
    def model(self) -> TrainedModel:
        """The first model: its labels and file ending are those of all."""
        return self.members[0].model

    @property
    def may_lack(self) -> frozenset[int]:
        """Numbers of the channels that a case may lack: nothing sees them, or all that do have learned to do without."""
        every = range(len(self.model.plan.channel_names))
        needed = {
            channel for sees, can_do_without in self._viewers() for channel in sees if not can_do_without
        }
        return frozenset(every) - needed

    def _viewers(self) -> Iterator[tuple[Sequence[int], bool]]:
        """Of the networks of each model, and of the correction: the channels they see, and whether they can do without some."""
        every = range(len(self.model.plan.channel_names))
        for member in self.members:
            yield member.model.configuration.channels or every, member.model.may_lack_channels
        if self.corrector:
            yield self.corrector.channels, self.corrector.correction.may_lack_channels

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
        return self._predict(channels, geometry, self._find_head(channels), "array")

    def _predict(
        self, channels: list[NDArray[Any]], geometry: Geometry, head: NDArray[np.bool_], name: str
    ) -> Prediction:
        self._accept_lacking(channels, name)

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
        images, _ = read_case(files, None, may_lack=bool(self.may_lack))
        channels, geometry = [image.array for image in images], images[0].geometry
        head, plan = self._find_head(channels), self.model.plan
        for oddity in oddities(channels, geometry, plan.expected_input, head, plan.channel_names):
            logger.warning("case %s: %s", files.name, oddity)
        return self._predict(channels, geometry, head, files.name)

    def _accept_lacking(self, channels: Sequence[NDArray[Any]], name: str) -> None:
        """Says which channels a case lacks, which are constant.

        Raises:
            PwmlError: it may not lack one of them, or a network sees none of those that are there.
        """
        names = self.model.plan.channel_names
        lacking = {i for i, channel in enumerate(channels) if channel.min() == channel.max()}
        if not lacking or not 1 < len(channels) == len(names):
            return
        listed = join(f"{i} ({names[i]})" for i in sorted(lacking))
        if any(lacking.issuperset(sees) for sees, _ in self._viewers()):
            raise PwmlError(f"case {name} lacks channel {listed}, and a network sees no other: add the file")
        if not lacking <= self.may_lack:
            raise PwmlError(f"case {name}: channel {listed} is constant: give it, or ask a model trained with --channel-dropout")  # fmt: skip
        logger.warning("case %s lacks channel %s: predicted from what is there", name, listed)

    def _find_head(self, channels: Sequence[NDArray[Any]]) -> NDArray[np.bool_]:
        return find_head(channels[find_first_present(channels)], self.model.preparation)

    def predict_slices(
        self, image: NDArray[np.floating[Any]], way_back: WayBack, slices: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Probabilities (K, n, Y, X) of the first model for slices [start, stop) of a prepared case, on its grid; no CRF."""
        mean, _ = self._look(self.members[0], image, way_back, slices)
        return self.postprocessing.calibrate(mean.numpy())

    def _ask(self, member: _Member, image: NDArray[np.floating[Any]], way_back: WayBack) -> _Maps:
        """A member's probabilities and their spread on the case's own grid."""
        mean, spread = self._look(member, image, way_back)
        restored = restore(mean, way_back).numpy()
        del mean  # a large volume's maps take a few hundred megabytes each
        return restored, None if spread is None else restore(spread, way_back).numpy()

    def _look(
        self,
        member: _Member,
        image: NDArray[np.floating[Any]],
        way_back: WayBack,
        slices: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """A member's probabilities (K, n, Y, X) and their spread on the grid of its networks."""
        networks, model = _placed(member.networks, way_back), member.model
        shown = see(image, model.configuration)
        mean, spread = predict_volume(networks, shown, member.window, self.device, slices)
        n_targets = len(model.labels.targets)
        return _for_each(mean, n_targets), None if spread is None else _for_each(spread, n_targets)

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
        if self.corrector:
            probability = self.corrector.correct(probability, image, way_back)
        probability = settings.calibrate(probability)
        mask = settings.apply(probability, self.model.labels, geometry.spacing_zyx_mm)
        return Prediction(probability, mask, geometry, spread, head_centre_zyx)


def _placed(networks: Sequence[FoldNetwork], way_back: WayBack) -> list[PlacedNetwork]:
    """The networks with their densities laid over a case."""
    return [PlacedNetwork(n.network, n.density.place(way_back) if n.density else None) for n in networks]


def _for_each(maps: Tensor, n_targets: int) -> Tensor:
    """Maps (K, Z, Y, X) for maps of each target, or of any lesion, for which the first target stands."""
    missing = n_targets - len(maps)
    return torch.cat((maps, maps.new_zeros(missing, *maps.shape[1:]))) if missing else maps


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
