"""The classical method: bright outliers of the tissue midway between ventricles and the brain's edge; nothing is learned.

After Mukherjee et al. 2019, as far as others describe it; documentation/methods.md says what was decided here.
Everything happens in single slices: lesions are a few pixels wide, and slices are often thick.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from pwmlunet.config import Config, join
from pwmlunet.data.dataset import CaseFiles, Labels
from pwmlunet.data.image import Geometry
from pwmlunet.data.store import Orientation, SliceAxis, orientation_of
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.masks import LESION
from pwmlunet.evaluation.sizes import quartiles_mm3
from pwmlunet.inference.anatomy import (
    AnatomyConfig,
    SpacingYX,
    excess_over_surroundings,
    find_anatomy,
    fit_gaussian,
    radius_mm,
)
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.inference.predictor import Prediction
from pwmlunet.planning.cropping import box_of, foreground
from pwmlunet.planning.fingerprint import Fingerprint, LesionFacts
from pwmlunet.planning.plan import read_labels
from pwmlunet.planning.preprocessing import read_case

logger = logging.getLogger(__name__)

_STEEPNESS = 4.0  # a score of twice the least one is a probability of 16 / 17
_LEAST_SHARE = (
    0.5  # of the least score: FROC leaves fainter candidates out, their probabilities are below 0.1
)
_LEAST_RADIUS_PIXELS = 8.0  # of a head in which anything can be told apart
_EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True)
class ClassicalConfig(Config):
    """What the classical method goes by. Shares are of the head's radius, sizes those in one slice."""

    least_score: float = 2.5
    """What gets a probability of 0.5: standard deviations above the tissue, times how near to the midway contour."""
    anatomy: AnatomyConfig = field(default_factory=AnatomyConfig)
    """Where brain and ventricles are."""
    band: float = 0.6
    """The tissue is sampled where the nearness to the midway contour is above it: 1 on it, 0 at brain's edge and ventricles."""
    smooth_mm: float = 0.4
    """Width (sigma) of the Gaussian that takes noise away."""
    surroundings_mm: float = 5.0
    """Width (sigma) of the Gaussian mean that is taken from each pixel: deep grey matter is bright as a whole."""
    height: float = 0.4
    """A candidate reaches down to this share of its peak."""
    least_area_mm2: float = 0.0
    """Smaller candidates are no lesions."""
    most_area_mm2: float = 15.0
    """Larger candidates are no lesions."""
    most_elongation: float = 4.0
    """Longest by shortest standard deviation of a candidate's pixels; longer ones are cortex or vessels."""
    least_depth_share: float = 0.28
    """Candidates whose peak is nearer to the head's edge are no lesions."""
    least_slice_share: float = 0.4
    """Slices in which the head's radius is below this share of its largest one are passed over."""

    @classmethod
    def of_fingerprint(cls, fingerprint: Fingerprint, target: str) -> Self:
        """Sizes from a target's training lesions; the defaults where it has none.

        From half of the smallest area to one and a half times the 95th percentile: of confluent lesions there are few,
        and a limit that lets them in lets the cortex in. Surroundings are as wide as the largest.
        """
        areas = [
            _area_mm2(lesion, case.geometry)
            for case in fingerprint.cases
            for lesion in case.lesions
            if lesion.target == target
        ]
        if not areas:
            return cls()
        large = float(np.percentile(areas, 95))
        diameter = 2 * float(np.sqrt(large / np.pi))
        surroundings = max(cls.surroundings_mm, diameter)
        return cls(least_area_mm2=min(areas) / 2, most_area_mm2=1.5 * large, surroundings_mm=surroundings)


def _area_mm2(lesion: LesionFacts, geometry: Geometry) -> float:
    """Of a lesion in the slice where it is largest."""
    axis, row, column = _orientation(geometry).order
    pixel_mm2 = geometry.spacing_zyx_mm[row] * geometry.spacing_zyx_mm[column]
    return float(np.pi / 4 * lesion.diameter_zyx_voxels[axis] ** 2 * pixel_mm2)


def _orientation(geometry: Geometry) -> Orientation:
    """Slices along the file's axis whose spacing is much coarser than the others, as is planned for MR; else along z."""
    axes: tuple[SliceAxis, SliceAxis, SliceAxis] = ("z", "y", "x")
    coarsest = int(np.argmax(geometry.spacing_zyx_mm))
    others = np.delete(geometry.spacing_zyx_mm, coarsest)
    is_coarse = not geometry.is_2d and geometry.spacing_zyx_mm[coarsest] >= 1.5 * others.max()
    return orientation_of(geometry, axes[coarsest] if is_coarse else "z")


class ClassicalPredictor:
    """The method ready to predict a folder, as a `Predictor` of networks does."""

    def __init__(
        self,
        labels: Labels = LESION,
        config: ClassicalConfig | None = None,
        postprocessing: Postprocessing | None = None,
        lesion_quartiles_mm3: dict[str, tuple[float, float, float]] | None = None,
    ) -> None:
        self.labels = labels
        self.config = config or ClassicalConfig()
        self.postprocessing = postprocessing or Postprocessing()
        self.lesion_quartiles_mm3 = lesion_quartiles_mm3

    @classmethod
    def of_dataset(cls, folder: Path, postprocessing: Postprocessing | None = None) -> Self:
        """For the first target of a planned dataset, sizes from its training lesions.

        Raises:
            PwmlError: fingerprint.json or dataset.json is missing or damaged.
        """
        labels = read_labels(folder / "dataset.json")
        fingerprint = Fingerprint.read(folder / "fingerprint.json")
        target = labels.targets[0].name
        if others := [other.name for other in labels.targets[1:]]:
            logger.info(
                "the classical method finds one kind of lesion: it is called %s, not %s", target, join(others)
            )
        volumes = [lesion.volume_mm3 for lesion in fingerprint.lesions if lesion.target == target]
        quartiles = {target: quartiles_mm3(volumes)} if volumes else None
        return cls(labels, ClassicalConfig.of_fingerprint(fingerprint, target), postprocessing, quartiles)

    def predict_files(self, files: CaseFiles) -> Prediction:
        """The prediction for a case's files."""
        images, _ = read_case(files, None)
        return self.find([image.array for image in images], images[0].geometry, files.name)

    def find(self, channels: Sequence[NDArray[Any]], geometry: Geometry, name: str) -> Prediction:
        """The prediction for channels (Z, Y, X), of which only the first is looked at.

        All pixels of a candidate have its probability: 0.5 for the least score of a lesion, 0 beside candidates and for
        all targets but the first.

        Raises:
            PwmlError: no head is found.
        """
        orientation = _orientation(geometry)
        volume = orientation.to_grid(channels[0])
        head = foreground(volume)
        _, row, column = orientation.order
        spacing_yx_mm = geometry.spacing_zyx_mm[row], geometry.spacing_zyx_mm[column]
        probability = np.zeros((len(self.labels.targets), *geometry.shape_zyx), np.float32)
        found = orientation.to_grid(probability[0])  # a view: what is written to it is in `probability`
        _, *box = box_of(head)
        rows, columns = (slice(*interval) for interval in box)
        for z in self._slices_with_a_head(head, spacing_yx_mm, name):
            image = volume[z, rows, columns].astype(np.float32)
            score = score_slice(image, head[z, rows, columns], spacing_yx_mm, self.config)
            found[z, rows, columns] = self._probability(score)
        calibrated = self.postprocessing.calibrate(probability)
        mask = self.postprocessing.apply(calibrated, self.labels, geometry.spacing_zyx_mm)
        middle_z, middle_y, middle_x = map(float, ndimage.center_of_mass(orientation.to_file(head)))
        return Prediction(calibrated, mask, geometry, head_centre_zyx=(middle_z, middle_y, middle_x))

    def _slices_with_a_head(
        self, head: NDArray[np.bool_], spacing_yx_mm: SpacingYX, name: str
    ) -> NDArray[np.int64]:
        radii = np.array([radius_mm(piece, spacing_yx_mm) for piece in head])
        if radii.max() < _LEAST_RADIUS_PIXELS * max(spacing_yx_mm):
            raise PwmlError(f"case {name}: no head is found, its largest bright piece is {2 * radii.max():.3g} mm wide: is it the right kind of image?")  # fmt: skip
        return np.flatnonzero(radii >= self.config.least_slice_share * radii.max())

    def _probability(self, score: NDArray[np.float32]) -> NDArray[np.float32]:
        odds = (score / self.config.least_score) ** _STEEPNESS
        return np.asarray(odds / (1 + odds), np.float32)


def score_slice(
    image: NDArray[np.float32], head: NDArray[np.bool_], spacing_yx_mm: SpacingYX, config: ClassicalConfig
) -> NDArray[np.float32]:
    """The candidates of a slice (Y, X): the score of its candidate for each pixel of one, 0 elsewhere.

    A score is the peak's excess over the tissue in standard deviations, times how near to the midway contour it is.
    """
    score = np.zeros(image.shape, np.float32)
    anatomy = find_anatomy(image, head, spacing_yx_mm, config.anatomy)
    widths = config.smooth_mm, config.surroundings_mm
    excess = excess_over_surroundings(image, anatomy.brain, widths, spacing_yx_mm)
    mean, deviation = fit_gaussian(excess[anatomy.midway > config.band])
    if not deviation:  # nothing to stand out from
        return score
    deviations = np.where(anatomy.brain, (excess - mean) / deviation, 0)
    peak_score = (deviations * anatomy.midway).astype(np.float32)
    is_peak = deviations == ndimage.maximum_filter(deviations, 3)
    is_deep = anatomy.depth_mm >= config.least_depth_share * anatomy.radius_mm
    for y, x in np.argwhere(is_peak & is_deep & (peak_score > _LEAST_SHARE * config.least_score)):
        pixels = _grow(deviations, (y, x), spacing_yx_mm, config)
        if pixels is not None and _is_shaped(np.transpose(pixels) * spacing_yx_mm, spacing_yx_mm, config):
            score[pixels] = np.maximum(score[pixels], peak_score[y, x])
    return score


def _grow(
    deviations: NDArray[np.float64], peak_yx: tuple[int, int], spacing: SpacingYX, config: ClassicalConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Rows and columns of the pixels around a peak above a share of its height; none where one of them is higher.

    They are looked for within three times the side of a square as large as the largest lesion.
    """
    reach = [int(np.ceil(3 * np.sqrt(config.most_area_mm2) / s)) for s in spacing]
    corner_y, corner_x = (max(0, at - r) for at, r in zip(peak_yx, reach, strict=True))
    (y, x), height = peak_yx, deviations[peak_yx]
    window = deviations[corner_y : y + reach[0] + 1, corner_x : x + reach[1] + 1]
    pieces, _ = ndimage.label(window > config.height * height, _EIGHT)
    piece = pieces == pieces[y - corner_y, x - corner_x]
    if window[piece].max() > height:
        return None
    rows, columns = np.nonzero(piece)
    return rows + corner_y, columns + corner_x


def _is_shaped(places_mm: NDArray[np.floating[Any]], spacing: SpacingYX, config: ClassicalConfig) -> bool:
    """Whether pixels (N, 2) have the size and shape of a lesion."""
    area = len(places_mm) * spacing[0] * spacing[1]
    spread = np.cov(places_mm.T, bias=True) + np.diag(np.square(spacing)) / 12  # a pixel is a small rectangle
    shortest, longest = np.sqrt(np.linalg.eigvalsh(spread))
    is_round = longest <= config.most_elongation * shortest
    return bool(is_round and config.least_area_mm2 <= area <= config.most_area_mm2)
