"""A picture of what was found, missed and invented: slices of several cases, with zooms, in one PNG."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.dataset import Labels
from pwmlunet.data.image import read_image
from pwmlunet.evaluation.masks import MaskPairs, pair_masks
from pwmlunet.evaluation.scores import CaseScores
from pwmlunet.files import replacing
from pwmlunet.report.views import (
    Box,
    Fates,
    content_box,
    grey_range,
    in_turns,
    lesion_f1,
    outlines,
    read_channel,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Light and solid against dark and dashed: told apart in grey print and by colour-blind readers too.
_REFERENCE: dict[str, Any] = {"color": "#ffe45e", "linestyle": "solid", "linewidth": 1.8}
_PREDICTION: dict[str, Any] = {"color": "#ff2d8a", "linestyle": (0, (1.8, 1.2)), "linewidth": 1.8}
_PANEL_INCH, _GAP_INCH, _TITLE_INCH, _LEGEND_INCH = 2.5, 0.06, 0.32, 0.4


@dataclass(frozen=True, eq=False)
class OverlayRow:
    """One view: a slice (Y, X) and the part of it that is enlarged."""

    image: NDArray[Any]
    """Intensities (Y, X)."""
    reference: NDArray[np.bool_]
    """Where the lesions are (Y, X)."""
    prediction: NDArray[np.bool_]
    """Where they were predicted (Y, X)."""
    box: Box
    """The part that is enlarged."""
    title: str = ""
    """Says which case and slice, and what was found, missed and invented inside the box."""
    ignore: NDArray[np.bool_] | None = None
    """Where the label is unknown (Y, X)."""
    aspect: float = 1.0
    """Height of a pixel / its width."""


def choose_views(
    image: NDArray[Any],
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    *,
    valid: NDArray[np.bool_] | None = None,
    spacing_zyx_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    title: str = "",
    failures_first: bool = True,
) -> Iterator[OverlayRow]:
    """Views of a case (Z, Y, X) until each lesion was seen: around missed ones first, then false, then found.

    Without `failures_first`, found ones come before. Lesions are counted under the main rule. A case without any lesion gives its middle slice.
    """
    if valid is not None:
        reference, prediction = reference & valid, prediction & valid
    fates = Fates.of(reference, prediction, spacing_zyx_mm)
    for place in fates.places(fates.by_interest(failures_first=failures_first)):
        z, words = place.z, fates.words(place.lesions) or "no lesion, none predicted"
        yield OverlayRow(
            image[z].copy(),  # a view would keep the whole volume
            reference[z].copy(),
            prediction[z].copy(),
            place.box,
            title=" · ".join(s for s in (title, f"slice {z}" if len(image) > 1 else "", words) if s),
            ignore=None if valid is None else ~valid[z],
            aspect=spacing_zyx_mm[1] / spacing_zyx_mm[2],
        )


def draw_overlay(path: Path, rows: Sequence[OverlayRow]) -> None:
    """Writes a PNG, each view as whole slice with box | enlarged | enlarged with both outlines."""
    if not rows:
        raise ValueError("there is nothing to draw")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n_columns = 1 if len(rows) < 4 else 2
    n_lines = math.ceil(len(rows) / n_columns)
    width = n_columns * (3 * _PANEL_INCH + 4 * _GAP_INCH)
    height = n_lines * (_PANEL_INCH + _TITLE_INCH) + _LEGEND_INCH
    figure = Figure((width, height), dpi=130, facecolor="#16181d")
    FigureCanvasAgg(figure)
    for index, row in enumerate(rows):
        line, column = divmod(index, n_columns)
        left = column * width / n_columns + _GAP_INCH
        _draw_row(figure, row, left, height - (line + 1) * (_PANEL_INCH + _TITLE_INCH))
    _draw_legend(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=figure.get_facecolor())


def _draw_row(figure: "Figure", row: OverlayRow, left_inch: float, bottom_inch: float) -> None:
    width, height = figure.get_size_inches()
    panels = []
    for index in range(3):
        left = left_inch + index * (_PANEL_INCH + _GAP_INCH)
        size = _PANEL_INCH / width, _PANEL_INCH / height
        panels.append(figure.add_axes((left / width, bottom_inch / height, *size)))
    title_inch = bottom_inch + _PANEL_INCH + 0.07
    figure.text(left_inch / width, title_inch / height, row.title, color="#f2f2f2", fontsize=9)
    top, bottom, left, right = row.box
    _show(panels[0], row.image, row.aspect)
    _crop_to_content(panels[0], row)
    corners = [left, right, right, left, left], [top, top, bottom, bottom, top]
    panels[0].plot(*(np.array(c) - 0.5 for c in corners), color="#ffffff", linewidth=0.9)
    for panel in panels[1:]:
        _show(panel, row.image[top:bottom, left:right], row.aspect)
    _draw_outlines(panels[2], row)


def _show(axes: "Axes", pixels: NDArray[Any], aspect: float) -> None:
    """Shows pixels in grey, each pixel as it is."""
    low, high = grey_range(pixels)
    axes.imshow(pixels, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    axes.set_axis_off()


def _crop_to_content(axes: "Axes", row: OverlayRow) -> None:
    """Leaves out the empty surroundings of the head."""
    top, bottom, left, right = content_box(row.image, row.box)
    axes.set_xlim(left - 2.5, right + 1.5)
    axes.set_ylim(bottom + 1.5, top - 2.5)


def _draw_outlines(axes: "Axes", row: OverlayRow) -> None:
    top, bottom, left, right = row.box
    if row.ignore is not None and (ignore := row.ignore[top:bottom, left:right]).any():
        shade = np.zeros((*ignore.shape, 4))
        shade[ignore] = (0.35, 0.55, 0.9, 0.3)
        axes.imshow(shade, aspect=row.aspect, interpolation="nearest")
    for mask, style in ((row.reference, _REFERENCE), (row.prediction, _PREDICTION)):
        for line in outlines(mask[top:bottom, left:right]):
            y, x = np.transpose(line) - 0.5  # corners lie half a pixel before the pixels' centres
            axes.plot(x, y, **style)
    axes.set_xlim(-0.5, right - left - 0.5)
    axes.set_ylim(bottom - top - 0.5, -0.5)


def _draw_legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = (("reference", _REFERENCE), ("prediction", _PREDICTION))
    handles = [Line2D([], [], label=n, **style) for n, style in names]
    label = Patch(facecolor=(0.35, 0.55, 0.9, 0.5), label="label unknown")
    figure.legend(handles=[*handles, label], loc="lower center", ncols=3, frameon=False, labelcolor="#f2f2f2", fontsize=9)  # fmt: skip


def overlay_cases(
    reference_folder: Path,
    prediction_folder: Path,
    images_folder: Path,
    path: Path,
    *,
    cases: Sequence[CaseScores],
    n_views: int = 8,
    labels: Labels | Path | None = None,
) -> None:
    """Writes one PNG with views of the worst cases (by lesion F1) and of those in the middle.

    All targets together are the lesions. With fewer cases than views a case is shown more than once.

    Args:
        reference_folder: Folder of reference masks.
        prediction_folder: Folder of predicted masks.
        images_folder: Folder of images, of which the first channel is shown.
        path: The PNG.
        cases: What the masks scored.
        n_views: How many views there may be.
        labels: What the values mean, or the dataset.json that says so (see `pair_masks`).

    Raises:
        PwmlError: masks cannot be compared, or an image (CASE or CASE_0000) is missing or on another grid.
    """
    pairs = pair_masks(reference_folder, prediction_folder, labels=labels)
    chosen = choose_cases(cases, n_views)
    views = [
        list(islice(_views_of_case(pairs, name, images_folder, why), math.ceil(n_views / len(chosen))))
        for name, why in chosen.items()
    ]
    draw_overlay(path, list(islice(in_turns(views), n_views)))


def choose_cases(cases: Sequence[CaseScores], n: int) -> dict[str, str]:
    """At most n cases with lesions, "worst" or "typical", half of each; without any, the first case."""
    f1 = {case.name: lesion_f1(case) for case in cases}
    order = sorted((value, name) for name, value in f1.items() if value is not None)
    if not order:
        return {cases[0].name: "clean"}
    n_worst = min(math.ceil(n / 2), math.ceil(len(order) / 2))
    middle = (len(order) - 1) / 2
    rest = sorted(range(n_worst, len(order)), key=lambda rank: abs(rank - middle))[: n - n_worst]
    chosen = {name: "worst" for _, name in order[:n_worst]}
    return chosen | {order[rank][1]: "typical" for rank in sorted(rest)}


def _views_of_case(pairs: MaskPairs, name: str, images: Path, why: str) -> Iterator[OverlayRow]:
    reference, prediction, spacing = pairs.read(name)
    geometry = read_image(pairs.files[name][0]).geometry
    labels = pairs.labels
    lesions, predicted = (np.asarray(labels.encode(mask).any(0)) for mask in (reference, prediction))
    image = read_channel(images, name, geometry)
    valid = None if labels.ignore is None else labels.valid(reference)
    return choose_views(
        image,
        lesions,
        predicted,
        valid=valid,
        spacing_zyx_mm=spacing,
        title=f"{why} · {name}",
        failures_first=why == "worst",
    )
