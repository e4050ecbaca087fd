"""A picture by which a person judges a registration."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.image import Image
from pwmlunet.data.registration import Registered
from pwmlunet.data.store import orientation_of
from pwmlunet.files import replacing

_CUTS = ((0, 0.25), (0, 0.5), (0, 0.75), (1, 0.5), (2, 0.5))
"""Slices along an axis (slices, rows, columns) where so much of the brightness lies behind."""

_EDGES = (0.2, 0.6)  # of the brightness: around the head, and around its grey matter or fluid
_SMOOTHING_PIXELS = 1.0


def draw_registration(path: Path, fixed: Image, registered: Registered) -> None:
    """Draws slices of both volumes, and the moving one's edges on the fixed one before and after, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    orientation = orientation_of(fixed.geometry, "axial")
    spacing = [fixed.geometry.spacing_zyx_mm[axis] for axis in orientation.order]
    seen, before, after = (
        _bright(orientation.to_grid(image.array)) for image in (fixed, registered.unmoved, registered.image)
    )
    rows = {
        "fixed": (seen, None),
        "moved": (after, None),
        "edges before": (seen, before),
        "edges after": (seen, after),
    }
    figure = Figure(figsize=(15, 13), layout="constrained", facecolor="black")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(_CUTS), squeeze=False)
    for line, (name, (shown, edges)) in zip(grid, rows.items(), strict=True):
        for axes, (axis, share) in zip(line, _CUTS, strict=True):
            index = _where(seen, axis, share)
            _draw(axes, np.take(shown, index, axis), None if edges is None else np.take(edges, index, axis), axis, spacing)  # fmt: skip
        line[0].set_title(name, color="white", loc="left")
    figure.suptitle(registered.warning or registered.describe(), color="white")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=70)


def _bright(array: NDArray[Any]) -> NDArray[np.float32]:
    """Brightness from 0 to 1, glare and noise cut off."""
    low = float(np.clip(0, array.min(), array.max()))
    high = float(np.percentile(array[array > low], 99)) if (array > low).any() else low + 1
    return np.clip((array.astype(np.float32) - low) / (high - low), 0, 1)


def _where(array: NDArray[np.float32], axis: int, share: float) -> int:
    others = tuple(i for i in range(3) if i != axis)
    summed = np.cumsum(array.sum(others, np.float64))
    return int(np.searchsorted(summed, share * summed[-1]))


def _draw(
    axes: Any, shown: NDArray[np.float32], edges: NDArray[np.float32] | None, axis: int, spacing: list[float]
) -> None:
    from scipy.ndimage import gaussian_filter

    down, right = (i for i in range(3) if i != axis)
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, aspect=spacing[down] / spacing[right], origin="upper" if axis == 0 else "lower")  # fmt: skip
    if edges is not None and edges.max() > _EDGES[0]:
        smooth = gaussian_filter(edges, _SMOOTHING_PIXELS)
        levels = [level for level in _EDGES if smooth.min() < level < smooth.max()]
        axes.contour(smooth, levels, colors=["yellow", "red"][: len(levels)], linewidths=0.6)
    axes.set_axis_off()
