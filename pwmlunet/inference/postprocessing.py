"""From probabilities to a mask."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config
from pwmlunet.data.dataset import Labels
from pwmlunet.evaluation.lesions import find_lesions


@dataclass(frozen=True)
class Postprocessing(Config):
    """How a mask is made of probabilities."""

    threshold: float = 0.5
    """A voxel above it belongs to a lesion."""
    smallest_lesion_mm3: float = 0.0
    """Smaller connected components are removed (mm² for 2-D images)."""

    def problems(self) -> Any:
        """Values outside their range."""
        if not 0 < self.threshold < 1:
            yield f"threshold must be between 0 and 1, not {self.threshold}"
        if self.smallest_lesion_mm3 < 0:
            yield f"smallest_lesion_mm3 cannot be negative, not {self.smallest_lesion_mm3}"

    def apply(
        self,
        probability: NDArray[np.floating[Any]],
        labels: Labels,
        spacing_zyx_mm: tuple[float, float, float],
    ) -> NDArray[np.uint8]:
        """The mask (Z, Y, X) for probabilities (K, Z, Y, X) on a grid of this spacing."""
        mask = labels.decode(probability, self.threshold)
        fewest = int(np.ceil(self.smallest_lesion_mm3 / np.prod(spacing_zyx_mm) - 1e-6))
        if fewest <= 1:
            return mask
        for target in labels.targets:
            components, _ = find_lesions(mask == target.written_as)
            is_small = np.bincount(components.ravel()) < fewest
            is_small[0] = False
            mask[is_small[components]] = 0
        return mask
