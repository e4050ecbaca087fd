"""A picture of what was found, missed and invented: slices of several cases, with zooms, in one PNG."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import join
from pwmlunet.data.dataset import Labels
from pwmlunet.data.image import FILE_ENDINGS, read_image
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.evaluate import CaseScores, evaluate_folders
from pwmlunet.evaluation.lesions import Lesions, find_touching, match_by_iou, measure_lesions
from pwmlunet.evaluation.masks import MaskPairs, pair_masks
from pwmlunet.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ZOOM_PIXELS = 48
"""Side of the zoom in the image's own pixels; a larger lesion gets a larger one."""

# Light and solid against dark and dashed: told apart in grey print and by colour-blind readers too.
_REFERENCE: dict[str, Any] = {"colors": "#ffe45e", "linestyles": ["solid"], "linewidths": 1.8}
_PREDICTION: dict[str, Any] = {"colors": "#ff2d8a", "linestyles": [(0, (1.8, 1.2))], "linewidths": 1.8}
_PANEL_INCH, _GAP_INCH, _TITLE_INCH, _LEGEND_INCH = 2.5, 0.06, 0.32, 0.4

Box = tuple[int, int, int, int]
"""Top, bottom, left, right of a part of a slice, half-open."""


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
    status = _Status.of(reference, prediction, spacing_zyx_mm)
    for z, box, words in status.places(failures_first):
        yield OverlayRow(
            image[z].copy(),  # a view would keep the whole volume
            reference[z].copy(),
            prediction[z].copy(),
            box,
            title=" · ".join(s for s in (title, f"slice {z}" if len(image) > 1 else "", words) if s),
            ignore=None if valid is None else ~valid[z],
            aspect=spacing_zyx_mm[1] / spacing_zyx_mm[2],
        )


@dataclass(frozen=True, eq=False)
class _Status:
    """The lesions of a case and their fate; a lesion is (whether predicted, its number from 0)."""

    sides: tuple[Lesions, Lesions]
    matched: tuple[frozenset[int], frozenset[int]]

    @classmethod
    def of(
        cls, reference: NDArray[np.bool_], prediction: NDArray[np.bool_], spacing: tuple[float, float, float]
    ) -> "_Status":
        sides = measure_lesions(reference, spacing), measure_lesions(prediction, spacing)
        touching = find_touching(*sides)
        kept = match_by_iou(touching, 0.1)
        pairs = touching.reference[kept].tolist(), touching.predicted[kept].tolist()
        return cls(sides, (frozenset(pairs[0]), frozenset(pairs[1])))

    def places(self, failures_first: bool) -> Iterator[tuple[int, Box, str]]:
        """Slices, boxes and what is in them in words, until each lesion was in a box."""
        seen: set[tuple[bool, int]] = set()
        for lesion in self.by_interest(failures_first):
            if lesion not in seen:
                z, box = self.slice_and_box(lesion)
                seen |= self.lesions_in(z, box)
                yield z, box, self.words(z, box)
        if not seen:
            depth, height, width = self.sides[0].components.shape
            yield (
                depth // 2,
                _box_around(0, height, 0, width, shape=(height, width)),
                "no lesion, none predicted",
            )

    def by_interest(self, failures_first: bool) -> list[tuple[bool, int]]:
        """Missed, false, then found lesions, or found ones before; the largest of each first."""

        def rank(lesion: tuple[bool, int]) -> tuple[bool, bool, int]:
            side, number = lesion
            is_found = number in self.matched[side]
            return is_found == failures_first, side, -int(self.sides[side].n_voxels[number])

        lesions = [(side, n) for side in (False, True) for n in range(len(self.sides[side].n_voxels))]
        return sorted(lesions, key=rank)

    def slice_and_box(self, lesion: tuple[bool, int]) -> tuple[int, Box]:
        """The slice in which the lesion is largest, and the box to enlarge around it."""
        components = self.sides[lesion[0]].components
        z_all, y_all, x_all = np.nonzero(components == lesion[1] + 1)
        z = int(np.bincount(z_all).argmax())
        y, x = y_all[z_all == z], x_all[z_all == z]
        return z, _box_around(y.min(), y.max() + 1, x.min(), x.max() + 1, shape=components.shape[1:])

    def lesions_in(self, z: int, box: Box) -> set[tuple[bool, int]]:
        """The lesions of which a part is in the box."""
        top, bottom, left, right = box
        parts = [side.components[z, top:bottom, left:right] for side in self.sides]
        return {(bool(i), int(n) - 1) for i, part in enumerate(parts) for n in np.unique(part) if n}

    def words(self, z: int, box: Box) -> str:
        """How many lesions in the box were found and missed, and how many are false."""
        fates = [(side, number in self.matched[side]) for side, number in self.lesions_in(z, box)]
        counts = {"found": (False, True), "missed": (False, False), "false": (True, False)}
        return join(f"{fates.count(fate)} {word}" for word, fate in counts.items() if fate in fates)


def _box_around(top: int, bottom: int, left: int, right: int, *, shape: tuple[int, ...]) -> Box:
    """A square box around a part, inside the image; larger than `ZOOM_PIXELS` only for a larger part."""
    side = max(ZOOM_PIXELS, bottom - top + 8, right - left + 8)
    edges = []
    for start, stop, size in ((top, bottom, shape[0]), (left, right, shape[1])):
        first = max(min((start + stop - side) // 2, size - side), 0)
        edges += [int(first), int(min(first + side, size))]
    return edges[0], edges[1], edges[2], edges[3]


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
    """Shows pixels in grey, from the 1st to the 98th percentile of what is not black, each pixel as it is."""
    lit = pixels[pixels > pixels.min()]
    low, high = np.percentile(lit, (1, 98)) if len(lit) else (0.0, 1.0)
    axes.imshow(pixels, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect, interpolation="nearest")  # fmt: skip
    axes.set_axis_off()


def _crop_to_content(axes: "Axes", row: OverlayRow) -> None:
    """Leaves out the empty surroundings of the head, but nothing of the box."""
    bright = row.image > row.image.min() + 0.1 * (np.percentile(row.image, 99.7) - row.image.min())
    bright[row.box[0] : row.box[1], row.box[2] : row.box[3]] = True
    rows, columns = (np.flatnonzero(bright.any(axis)) for axis in (1, 0))
    axes.set_xlim(columns[0] - 2.5, columns[-1] + 2.5)
    axes.set_ylim(rows[-1] + 2.5, rows[0] - 2.5)


def _draw_outlines(axes: "Axes", row: OverlayRow) -> None:
    top, bottom, left, right = row.box
    if row.ignore is not None and (ignore := row.ignore[top:bottom, left:right]).any():
        shade = np.zeros((*ignore.shape, 4))
        shade[ignore] = (0.35, 0.55, 0.9, 0.3)
        axes.imshow(shade, aspect=row.aspect, interpolation="nearest")
    for mask, style in ((row.reference, _REFERENCE), (row.prediction, _PREDICTION)):
        _outline(axes, mask[top:bottom, left:right], style)
    axes.set_xlim(-0.5, right - left - 0.5)
    axes.set_ylim(bottom - top - 0.5, -0.5)


def _outline(axes: "Axes", mask: NDArray[np.bool_], style: dict[str, Any]) -> None:
    """A line along the sides of the pixels of a mask, even where it meets the edge of the panel."""
    if not mask.any():
        return
    fine = 8  # enlarged, so that the contour follows the pixels instead of cutting their corners
    padded = np.kron(np.pad(mask, 1), np.ones((fine, fine)))
    y, x = ((np.arange(n) + 0.5) / fine - 1.5 for n in padded.shape)
    axes.contour(x, y, padded, levels=[0.5], **style)


def _draw_legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = (("reference", _REFERENCE), ("prediction", _PREDICTION))
    handles = [Line2D([], [], label=n, color=s["colors"], linestyle=s["linestyles"][0]) for n, s in names]
    label = Patch(facecolor=(0.35, 0.55, 0.9, 0.5), label="label unknown")
    figure.legend(handles=[*handles, label], loc="lower center", ncols=3, frameon=False, labelcolor="#f2f2f2", fontsize=9)  # fmt: skip


def overlay_cases(
    reference_folder: Path,
    prediction_folder: Path,
    images_folder: Path,
    path: Path,
    *,
    n_views: int = 8,
    labels: Labels | Path | None = None,
) -> None:
    """Writes one PNG with views of the worst cases (by lesion F1) and of those in the middle.

    All targets together are the lesions. With fewer cases than views a case is shown more than once.

    Raises:
        PwmlError: masks cannot be compared, or an image (CASE or CASE_0000) is missing or on another grid.
    """
    pairs = pair_masks(reference_folder, prediction_folder, labels=labels)
    cases = evaluate_folders(reference_folder, prediction_folder, labels=labels, only_common=True)
    chosen = choose_cases(cases, n_views)
    views = [
        list(islice(_views_of_case(pairs, name, images_folder, why), math.ceil(n_views / len(chosen))))
        for name, why in chosen.items()
    ]
    rounds = (row for turn in zip_longest(*views) for row in turn if row is not None)
    draw_overlay(path, list(islice(rounds, n_views)))


def choose_cases(cases: Sequence[CaseScores], n: int) -> dict[str, str]:
    """At most n cases with lesions, "worst" or "typical", half of each; without any, the first case."""
    f1 = {case.name: _lesion_f1(case) for case in cases}
    order = sorted((value, name) for name, value in f1.items() if value is not None)
    if not order:
        return {cases[0].name: "clean"}
    n_worst = min(math.ceil(n / 2), math.ceil(len(order) / 2))
    middle = (len(order) - 1) / 2
    rest = sorted(range(n_worst, len(order)), key=lambda rank: abs(rank - middle))[: n - n_worst]
    chosen = {name: "worst" for _, name in order[:n_worst]}
    return chosen | {order[rank][1]: "typical" for rank in sorted(rest)}


def _lesion_f1(case: CaseScores) -> float | None:
    """The lesion F1 of a case over its targets together; None where there is nothing in either mask."""
    found = [scores.lesions.main for scores in case.targets.values()]
    total = sum(part.n_reference + part.n_predicted for part in found)
    return sum(part.n_found + part.n_true for part in found) / total if total else None


def _views_of_case(pairs: MaskPairs, name: str, images: Path, why: str) -> Iterator[OverlayRow]:
    reference, prediction, spacing = pairs.read(name)
    labels = pairs.labels
    lesions, predicted = (np.asarray(labels.encode(mask).any(0)) for mask in (reference, prediction))
    image = _read_channel(images, name, reference.shape)
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


def _read_channel(folder: Path, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The first channel (Z, Y, X) of a case, named CASE_0000 as in imagesTr, or CASE."""
    paths = [folder / f"{name}{channel}{ending}" for channel in ("_0000", "") for ending in FILE_ENDINGS]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise PwmlError(f"{folder} holds no image of case {name} ({name}_0000 or {name}): add it")
    image = read_image(found).array
    if image.shape != shape:
        raise PwmlError(f"{found} has the shape {join(image.shape)}, its mask {join(shape)} (z, y, x)")
    return image
