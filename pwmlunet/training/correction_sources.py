"""Candidates to learn from and to judge: cases as a network saw them, what it found there, and what that is."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pwmlunet.evaluation.probabilities import read_probability
from pwmlunet.inference.candidate_classes import NO_LESION, Reference, classify_by_reference
from pwmlunet.inference.candidate_regions import cut_regions, find_candidates
from pwmlunet.inference.postprocessing import sizes_and_peaks
from pwmlunet.networks.correction import CorrectionConfig
from pwmlunet.training.run import Run

_MOST_FALSE = 200  # of a case that are learned from, the most probable first


@dataclass(frozen=True)
class Source:
    """A case as a network saw it that had learned neither from its fold nor from the one that is to be judged."""

    run: Run
    name: str
    fold: str
    """Whose network it is."""

    @property
    def path(self) -> Path:
        """Its probabilities."""
        return self.run.model.fold_folder(self.fold) / "validation" / f"{self.name}.npz"

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Probabilities (K, Z, Y, X) and mask (Z, Y, X) on the case's own grid."""
        mask = self.run.store.reference(self.name)
        return read_probability(self.path, mask.shape, len(self.run.model.labels.targets)), mask

    def candidates(self, threshold: float) -> "Candidates":
        """The case's candidates at a threshold."""
        probability, mask = self.read()
        components, n = find_candidates(probability, threshold)
        reference = Reference.of(mask, self.run.model.labels)
        classes = classify_by_reference(components, n, probability, reference).classes
        return Candidates(self, probability, components, n, classes)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The N candidates of a case."""

    source: Source
    probability: NDArray[np.float32]
    components: NDArray[np.int32]
    n: int
    classes: NDArray[np.int64]
    """By the reference (N,)."""

    def cut(self, config: CorrectionConfig, *, reach: float = 1.0) -> Tensor:
        """Their regions."""
        case = self.source.run.store.read(self.source.name)
        way_back = case.facts.way_back
        return cut_regions(case.image, way_back, self.probability, self.components, self.n, config, reach=reach)  # fmt: skip

    def to_learn_from(self) -> "Candidates":
        """Those of known class; of very many false ones the most probable."""
        classes = self.classes
        _, peaks = sizes_and_peaks(self.components, self.n, self.probability.max(0))
        false = np.flatnonzero(classes == NO_LESION)
        kept = np.zeros(self.n, bool)
        kept[false[np.argsort(-peaks[false], kind="stable")[:_MOST_FALSE]]] = True
        kept |= classes > NO_LESION
        numbers = np.append(0, np.cumsum(kept) * kept).astype(np.int32)
        return replace(self, components=numbers[self.components], n=int(kept.sum()), classes=classes[kept])
