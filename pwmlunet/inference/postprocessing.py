"""From probabilities to a mask, and who chose how."""

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.data.dataset import Labels
from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.evaluation.lesions import find_lesions
from pwmlunet.evaluation.probabilities import logit_of, probability_of
from pwmlunet.networks.dense_crf import DenseCrfConfig

MOST_CUT = 12.0
"""Up to this logit probabilities in single precision tell logits apart to 1/100."""

SETTINGS = "postprocessing.json"
"""In the folder of a run, and of a dataset's runs where several predict together."""

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Estimate(Config):
    """A figure and how sure it is."""

    value: float | None
    """The figure; None where it is undefined."""
    interval: Interval | None
    """Over resampled subjects; None with fewer than two."""


@dataclass(frozen=True)
class Figures(Config):
    """The lesions of all cases together at one point, under the main rule."""

    f1: Estimate
    """2 found / (predicted + reference)."""
    recall: Estimate
    """Found / reference."""
    precision: Estimate
    """Found / predicted."""
    false_positives_per_case: Estimate
    """Predicted lesions that found none / cases."""


@dataclass(frozen=True)
class Choice(Config):
    """Who chose the settings, from what, and how good they are; for people, nothing reads it."""

    criterion: str
    """What was wished for."""
    reasons: tuple[str, ...]
    """Why these settings."""
    n_subjects: int
    """Subjects with out-of-fold probabilities."""
    n_subjects_with_lesions: int
    """Those of them with lesions."""
    n_cases: int
    """Their cases."""
    n_lesions: int
    """Their lesions, of all targets."""
    n_folds: int
    """Folds that the probabilities come from."""
    figures: dict[str, Figures]
    """Nested: each subject at the point that the others chose; beside it fixed thresholds."""
    f1_differences: dict[str, Estimate]
    """Nested F1 less that at each fixed threshold, paired by subject."""
    best_threshold: Interval | None
    """Between which the threshold of the highest F1 lies when subjects are resampled, before temperature."""
    ece_before: float | None
    """Expected calibration error around lesions and candidates at temperature 1."""
    ece_after: float | None
    """The same, each subject at the temperature that the others chose."""


@dataclass(frozen=True)
class Postprocessing(Config):
    """How a mask is made of probabilities."""

    threshold: float = 0.5
    """A voxel above it belongs to a lesion."""
    smallest_lesion_mm3: float = 0.0
    """Smaller connected components are removed (mm² for 2-D images)."""
    least_peak_probability: float = 0.0
    """Components whose highest probability is not above it are removed."""
    temperature: float = 1.0
    """Logits are divided by it before they are cut: above 1 the networks are too sure, below 1 not enough."""
    crf: DenseCrfConfig | None = None
    """What the networks' probabilities go through before anything else; null leaves them as they are."""
    correction: bool = False
    """Whether the run's correction networks judge the candidates before anything else."""
    chosen: Choice | None = None
    """Who chose these settings; null where nobody did, or a person."""

    def problems(self) -> Any:
        """Values outside their range."""
        if not 0 < self.threshold < 1:
            yield f"threshold must be between 0 and 1, not {self.threshold}"
        if self.smallest_lesion_mm3 < 0:
            yield f"smallest_lesion_mm3 cannot be negative, not {self.smallest_lesion_mm3}"
        if not 0 <= self.least_peak_probability < 1:
            yield f"least_peak_probability must be at least 0 and below 1, not {self.least_peak_probability}"
        if not 0.05 <= self.temperature <= 20:
            yield f"temperature must be from 0.05 to 20, not {self.temperature}"
        if self.correction and self.crf:
            yield "a correction learns from what the networks say, not from what a CRF makes of it: set crf to null, or correction to false"

    def calibrate(self, probability: NDArray[np.float32]) -> NDArray[np.float32]:
        """The networks' probabilities (K, Z, Y, X) at this temperature."""
        if self.temperature == 1:
            return probability
        calibrated = np.empty(probability.shape, np.float32)
        for index in np.ndindex(probability.shape[:2]):  # by slice: logits are made in double precision
            calibrated[index] = probability_of(logit_of(probability[index]) / self.temperature)
        return calibrated

    def apply(
        self,
        probability: NDArray[np.floating[Any]],
        labels: Labels,
        spacing_zyx_mm: tuple[float, float, float],
    ) -> NDArray[np.uint8]:
        """The mask (Z, Y, X) for calibrated probabilities (K, Z, Y, X) on a grid of this spacing."""
        mask = np.zeros(probability.shape[1:], np.uint8)
        probability = nest(probability, labels)
        found = find_targets(probability, labels, self.threshold)
        for target, inside, p in zip(labels.targets, found, probability, strict=True):
            mask[self._cleaned(inside, p, math.prod(spacing_zyx_mm))] = target.written_as
        return mask

    def _cleaned(
        self, inside: NDArray[np.bool_], probability: NDArray[Any], voxel_mm3: float
    ) -> NDArray[np.bool_]:
        if self.smallest_lesion_mm3 <= voxel_mm3 and self.least_peak_probability <= self.threshold:
            return inside
        components, n = find_lesions(inside)
        n_voxels, peaks = sizes_and_peaks(components, n, probability)
        kept = np.append(False, self.keeps(n_voxels * voxel_mm3, peaks))
        return np.asarray(kept[components])

    def keeps(
        self, volumes_mm3: NDArray[np.floating[Any]], peaks: NDArray[np.floating[Any]]
    ) -> NDArray[np.bool_]:
        """Which components (N,) of these volumes and highest probabilities are lesions."""
        large = volumes_mm3 * (1 + _ROUNDING) >= self.smallest_lesion_mm3
        return np.asarray(large & (peaks > self.least_peak_probability))

    def at_temperature(self, temperature: float) -> "Postprocessing":
        """The settings that find the same lesions as these, at temperature 1, do.

        Their cuts must stay where single precision tells probabilities apart: at logits up to `MOST_CUT`.
        """
        return replace(
            self,
            threshold=_calibrated(self.threshold, temperature),
            least_peak_probability=_calibrated(self.least_peak_probability, temperature),
            temperature=temperature,
        )

    @property
    def least_score(self) -> float:
        """What the highest probability of a lesion must be above to be kept, on those that are not calibrated yet."""
        return _calibrated(max(self.threshold, self.least_peak_probability), 1 / self.temperature)

    @property
    def threshold_before_temperature(self) -> float:
        """The threshold on the probabilities that are not calibrated yet."""
        return _calibrated(self.threshold, 1 / self.temperature)

    def in_words(self) -> str:
        """The settings in words; what does nothing is left out."""
        words = f"threshold {self.threshold:.4g}"
        if self.smallest_lesion_mm3:
            words += f", lesions from {self.smallest_lesion_mm3:.3g} mm³"
        if self.least_peak_probability:
            words += f", highest probability above {self.least_peak_probability:.7g}"
        if self.temperature != 1:
            words += f", temperature {self.temperature:g}"
        if self.correction:
            words += ", after the correction"
        return f"{words}, after a {self.crf.in_words()}" if self.crf else words


def _calibrated(probability: float, temperature: float) -> float:
    if probability == 0 or temperature == 1:
        return probability
    logit = math.log(probability / (1 - probability)) / temperature
    return float(f"{1 / (1 + math.exp(-logit)):.9g}")


def nest(probability: NDArray[np.floating[Any]], labels: Labels) -> NDArray[np.floating[Any]]:
    """The probabilities (K, Z, Y, X) where a region is at least as probable as one within it.

    In a mask the inner one's value stands for both.
    """
    if not labels.are_regions:
        return probability
    values = [set(target.values) for target in labels.targets]
    return np.stack([probability[[inner <= outer for inner in values]].max(0) for outer in values])


def find_targets(
    probability: NDArray[np.floating[Any]], labels: Labels, threshold: float
) -> NDArray[np.bool_]:
    """Where the mask of nested probabilities has each target, (K, Z, Y, X); only regions may overlap."""
    mask = labels.decode(probability, threshold)
    if labels.are_regions:
        return labels.encode(mask)
    return np.stack([mask == target.written_as for target in labels.targets])


def sizes_and_peaks(
    components: NDArray[Any], n: int, probability: NDArray[np.floating[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]]]:
    """Voxels and highest probability (N,) of components numbered from 1."""
    index = np.flatnonzero(components)
    number = components.ravel()[index].astype(np.int64) - 1
    peaks = np.zeros(n, probability.dtype)
    np.maximum.at(peaks, number, probability.ravel()[index])
    return np.bincount(number, minlength=n), peaks


def write_settings(path: Path, postprocessing: Postprocessing, unchosen: Postprocessing) -> None:
    """Writes the settings; others that were there, which a person may have made, are kept as postprocessing.json.old."""
    if path.is_file() and Postprocessing.read(path) not in (unchosen, postprocessing):
        shutil.copyfile(path, path.with_name(f"{path.name}.old"))
    postprocessing.write(path)
