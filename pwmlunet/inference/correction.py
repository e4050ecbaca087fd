"""Corrector: judges each candidate of the first network, and rewrites the probabilities accordingly."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pwmlunet.config import Config, join
from pwmlunet.data.dataset import Labels
from pwmlunet.data.store import WayBack
from pwmlunet.errors import PwmlError
from pwmlunet.inference.candidate_classes import class_names
from pwmlunet.inference.candidate_regions import cut_regions, find_candidates
from pwmlunet.inference.device import choose_device
from pwmlunet.inference.model import TrainedModel, load_tensors
from pwmlunet.networks.correction import CorrectionConfig, CorrectionNetwork, classify

CORRECTION = "correction"
"""The folder in a run's folder."""

DESCRIPTION = "correction.json"
"""What describes its networks, in that folder."""

_TOGETHER = 512  # candidates: a case that is flooded with them does not flood the memory

VERSION = 1
"""Of the description's layout."""


def rewrite(
    probability: NDArray[np.floating[Any]],
    components: NDArray[np.int32],
    scores: NDArray[np.floating[Any]],
    labels: Labels,
    *,
    removes: bool = True,
) -> NDArray[np.float32]:
    """Probabilities (K, Z, Y, X) whose peak in each candidate is its lesion score, and 0 outside of candidates.

    A candidate keeps its shape: at a threshold t it is there if its score s is above t, drawn where its probability
    was above t / s of its peak. Where targets exclude each other all of it is of the kind that scores highest.

    Args:
        probability: (K, Z, Y, X), stage one's.
        components: (Z, Y, X), its candidates, numbered from 1.
        scores: (N, 1 + n), the probabilities that a candidate is no lesion, or of each kind.
        labels: The dataset's.
        removes: Whether a lesion score replaces the peak; otherwise only the kind is changed.
    """
    where = np.nonzero(components)
    numbers = components[where] - 1
    inside = np.stack([p[where] for p in probability]).astype(np.float32, copy=False)
    peaks = np.zeros(len(scores), np.float32)
    np.maximum.at(peaks, numbers, inside.max(0))
    levels = (1 - scores[:, 0]).astype(np.float32) if removes else peaks
    if len(class_names(labels)) == 1:
        shapes = inside / peaks[numbers]
    else:
        shapes = _relative(scores[:, 1:])[numbers].T * (inside.max(0) / peaks[numbers])
    rewritten = np.zeros(probability.shape, np.float32)
    for target, values in zip(rewritten, shapes * levels[numbers], strict=True):
        target[where] = values
    return rewritten


def _relative(kinds: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """How likely each kind of (N, n) is beside the lesion score: 1 for the likeliest, at most 1/2 for others."""
    sums = np.maximum(kinds.sum(1, keepdims=True), np.finfo(np.float32).tiny)
    shares = (kinds / sums).astype(np.float32)
    shares[np.arange(len(kinds)), kinds.argmax(1)] = 1
    return np.asarray(shares)


@dataclass(frozen=True)
class Correction(Config):
    """The correction networks of a run."""

    version: int
    """Of this layout."""
    network: CorrectionConfig
    """The networks, and what they see."""
    threshold: float
    """Where any target's probability is above it there are candidates."""
    thresholds: dict[str, float]
    """The same for each fold, chosen without its cases; a network learned from the candidates at its own fold's."""
    classes: tuple[str, ...]
    """Kinds of lesions, in the order of the network's outputs; before them stands what is no lesion."""
    n_channels: int
    """Channels of the dataset."""
    may_lack_channels: bool = False
    """Whether they learned from candidates with channels left out."""

    def problems(self) -> Iterator[str]:
        """What another version may have written, and values outside their range."""
        if self.version != VERSION:
            yield f"it is of version {self.version}, not {VERSION}: run pwml_train_correction again"
        if not all(0 <= threshold < 1 for threshold in (self.threshold, *self.thresholds.values())):
            yield "thresholds must be at least 0 and below 1"
        if not self.thresholds or not self.classes:
            yield "thresholds and classes cannot be empty"
        if any(channel >= self.n_channels for channel in self.network.channels or ()):
            yield f"the network sees channels {join(self.network.channels or ())}, there are {self.n_channels} (from 0)"

    def build(self) -> CorrectionNetwork:
        """The network with random weights."""
        n_seen = self.n_channels if self.network.channels is None else len(self.network.channels)
        return self.network.build(n_seen, 1 + len(self.classes))


@dataclass(frozen=True, eq=False)
class Corrector:
    """A run's correction networks, ready to judge; their mean, where there are several."""

    correction: Correction
    networks: list[CorrectionNetwork]
    labels: Labels
    threshold: float
    """Where candidates are: the fold's own where only its network judges."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Numbers of the dataset's channels that the networks see."""
        return self.correction.network.channels or tuple(range(self.correction.n_channels))

    @classmethod
    def open(
        cls, model: TrainedModel, folds: Sequence[str] | None = None, device: str = "cpu"
    ) -> "Corrector":
        """The networks of the given folds of a run (all by default).

        Raises:
            PwmlError: a file is missing, damaged, or describes another dataset or network.
        """
        folder = model.folder / CORRECTION
        correction = _read(folder / DESCRIPTION, model)
        chosen = list(folds or sorted(correction.thresholds))
        if missing := [fold for fold in chosen if fold not in correction.thresholds]:
            raise PwmlError(f"{folder} has no network of fold {join(missing)} (there are {join(sorted(correction.thresholds))}): run pwml_train_correction")  # fmt: skip
        networks = [_load(folder / f"fold_{fold}" / "weights.pt", correction) for fold in chosen]
        where = choose_device(device)
        threshold = correction.thresholds[chosen[0]] if len(chosen) == 1 else correction.threshold
        return cls(correction, [network.to(where) for network in networks], model.labels, threshold)

    def score(
        self,
        image: NDArray[np.floating[Any]],
        way_back: WayBack,
        probability: NDArray[np.floating[Any]],
        components: NDArray[np.int32],
        n: int,
    ) -> NDArray[np.float32]:
        """How probable it is that each candidate is no lesion, or of each kind (N, 1 + n); see `cut_regions`."""
        config, parts = self.correction.network, [torch.empty(0, 1 + len(self.correction.classes))]
        for start in range(0, n, _TOGETHER):
            some = slice(start, start + _TOGETHER)
            regions = cut_regions(image, way_back, probability, components, n, config, some=some)
            parts.append(torch.stack([classify(network, regions) for network in self.networks]).mean(0))
        return torch.cat(parts).numpy()

    def correct(
        self, probability: NDArray[np.floating[Any]], image: NDArray[np.floating[Any]], way_back: WayBack
    ) -> NDArray[np.float32]:
        """Probabilities (K, Z, Y, X) on the case's own grid, rewritten by what the networks say of each candidate."""
        components, n = find_candidates(probability, self.threshold)
        scores = self.score(image, way_back, probability, components, n)
        return rewrite(probability, components, scores, self.labels)


def _read(path: Path, model: TrainedModel) -> Correction:
    """The description of a run's correction, if it is for the run's dataset."""
    if not path.is_file():
        raise PwmlError(f"{path} is missing: run pwml_train_correction, or copy the model again")
    correction = Correction.read(path)
    n_channels, classes = len(model.plan.channel_names), class_names(model.labels)
    if correction.n_channels != n_channels:
        raise PwmlError(f"{path} is for images of {correction.n_channels} channels, the model's have {n_channels}: run pwml_train_correction again")  # fmt: skip
    if correction.classes != classes:
        raise PwmlError(f"{path} tells {join(correction.classes)} apart, the model's labels are {join(classes)}: run pwml_train_correction again")  # fmt: skip
    return correction


def _load(path: Path, correction: Correction) -> CorrectionNetwork:
    network = correction.build()
    if not path.is_file():
        raise PwmlError(f"{path} is missing: run pwml_train_correction, or copy the model again")
    try:
        network.load_state_dict(load_tensors(path))
    except PwmlError as error:
        raise PwmlError(f"{path} is damaged or no checkpoint: run pwml_train_correction again") from error
    except (RuntimeError, TypeError) as error:
        raise PwmlError(f"{path} belongs to another network than {DESCRIPTION} describes: run pwml_train_correction again") from error  # fmt: skip
    return network.eval()
