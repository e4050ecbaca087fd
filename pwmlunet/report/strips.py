"""Strips of pictures around lesions, oriented as a radiologist reads them: grey pixels and outlines on top.

The pixels are small PNG files that the browser enlarges, the outlines are lines: sharp at any size, and a
place costs some ten kilobytes of the page.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.image import Geometry
from pwmlunet.evaluation.lesions import Lesions, measure_components
from pwmlunet.report.pages import as_data_uri
from pwmlunet.report.planes import Plane, planes_of
from pwmlunet.report.views import Box, Fates, LesionKey, Place, content_box, grey_range, outlines

_OVERVIEW_PIXELS = 256  # a whole slice shows where, the enlarged parts show what
_JPEG_QUALITY = 80
_PANEL_BYTES, _MARK_BYTES = (
    900,
    100,
)  # what a panel and a number in it take of a page, beside pixels and outlines
_ZOOM_MOST_PIXELS = 160  # of an enlarged part; a side of it is about as long on the screen
_MARK_PIXELS = 5  # what a number needs to the left or right of a lesion

Where = tuple[int, slice, slice]
"""The slice, the rows and the columns of a part of a plane."""


@dataclass(frozen=True)
class Panel:
    """One picture of a strip; lengths in its drawing are mm."""

    title: str
    """Plane and slice; what it shows, where that is not the same for all."""
    picture: str
    """The pixels as an address; empty where there is no image."""
    size_mm: tuple[float, float]
    """Width and height."""
    pixel_mm: tuple[float, float]
    """Width and height of a pixel, in which the outlines are given."""
    outlines: dict[str, str]
    """Paths of an SVG in pixels by what they go around: unknown, reference, prediction."""
    sides: str
    """What lies left, right, above and below; empty where it is not known."""
    is_overview: bool = False
    """Whether it is the whole slice."""
    box: Box | None = None
    """The enlarged part of a whole slice, in pixels."""
    marks: tuple[tuple[float, float, str], ...] = ()
    """Numbers and where they stand (x, y), in pixels."""

    @property
    def n_bytes(self) -> int:
        """What it takes of the page, at most; the line under an outline is drawn with the same path."""
        drawn = len(self.picture) + 2 * sum(map(len, self.outlines.values()))
        return _PANEL_BYTES + _MARK_BYTES * len(self.marks) + drawn


@dataclass(frozen=True)
class Strip:
    """The pictures of one place."""

    findings: tuple[tuple[LesionKey, ...], ...]
    """Its lesions; a found one and the one that found it are one finding."""
    panels: tuple[Panel, ...]
    """The whole slice; before, at and after, enlarged; other planes."""

    @property
    def zoom_mm(self) -> float:
        """The greatest side of an enlarged part: all are drawn to one scale."""
        return max((max(panel.size_mm) for panel in self.panels if not panel.is_overview), default=1.0)

    @property
    def bar_mm(self) -> int:
        """A round length, at most a quarter of an enlarged part."""
        return max((mm for mm in (1, 2, 5, 10, 20, 50) if 4 * mm <= self.zoom_mm), default=1)


@dataclass(frozen=True, eq=False)
class Scene:
    """The arrays of a case (Z, Y, X) on one grid."""

    geometry: Geometry
    """The grid."""
    reference: NDArray[np.bool_]
    """Where the lesions are; nowhere, without a reference."""
    prediction: NDArray[np.bool_]
    """Where they were predicted."""
    image: NDArray[Any] | None
    """Intensities, where there is an image."""
    unknown: NDArray[np.bool_]
    """Where nobody knows: labelled "ignore"."""


def draw_strips(scene: Scene, fates: Fates, order: Sequence[LesionKey]) -> tuple[int, Iterator[Strip]]:
    """How many strips show each lesion once, in the order given; and the strips, drawn as they are asked for.

    A lesion is a finding of the first strip that shows it. A case without lesions gives one whole slice.
    """
    planes = planes_of(scene.geometry)
    reference, prediction = (_turned(side, planes[0]) for side in fates.sides)
    turned = replace(fates, sides=(reference, prediction))
    places = list(turned.places(order))
    return len(places), _draw(scene, turned, planes, places)


def _turned(lesions: Lesions, plane: Plane) -> Lesions:
    """The lesions, numbered as they were, on the axes of a plane."""
    z, y, x = (lesions.spacing_zyx_mm[axis] for axis in plane.axes)
    return measure_components(plane.view(lesions.components), len(lesions), (z, y, x))


def _draw(scene: Scene, fates: Fates, planes: tuple[Plane, ...], places: Sequence[Place]) -> Iterator[Strip]:
    told: set[tuple[LesionKey, ...]] = set()
    for place in places:
        findings = tuple(f for f in fates.findings(place.lesions) if f not in told)
        told.update(findings)
        drawing = _Drawing(scene, planes, place)
        yield Strip(findings, tuple(drawing.panels(_marks(fates, findings, place))))


def _marks(
    fates: Fates, findings: Sequence[Sequence[LesionKey]], place: Place
) -> tuple[tuple[float, float, str], ...]:
    """A number beside each finding in an enlarged part, where there are several."""
    top, bottom, left, right = place.box
    marks = []
    for count, finding in enumerate(findings, 1):
        shown = [
            fates.sides[side].components[place.z, top:bottom, left:right] == n + 1 for side, n in finding
        ]
        y, x = np.nonzero(np.any(shown, axis=0))
        is_at_edge = x.max() + _MARK_PIXELS > right - left
        beside = x.min() - _MARK_PIXELS if is_at_edge else x.max() + 1.4
        marks.append((float(beside), float(y.mean()) + 0.5, str(count)))
    return tuple(marks) if len(marks) > 1 else ()


@dataclass(frozen=True, eq=False)
class _Drawing:
    """Draws one place."""

    scene: Scene
    planes: tuple[Plane, ...]
    place: Place

    def panels(self, marks: tuple[tuple[float, float, str], ...]) -> Iterator[Panel]:
        """The whole slice, then the enlarged parts; the slice itself without outlines, and with."""
        yield self.overview()
        parts = list(self.parts()) if self.place.lesions else []
        shades = self.shades(parts)
        for plane, where, word in parts:
            panel = self.panel(plane, where, word, shades)
            if plane is self.planes[0] and not word:
                yield replace(panel, title=f"{panel.title}, no outlines", outlines={})
                panel = replace(panel, marks=marks)
            yield panel

    def parts(self) -> Iterator[tuple[Plane, Where, str]]:
        """What is enlarged: before, at and after in the main plane, then the other planes."""
        main, z, (top, bottom, left, right) = self.planes[0], self.place.z, self.place.box
        depth = self.scene.geometry.shape_zyx[main.axes[0]]
        for index, word in ((z - 1, "before"), (z, ""), (z + 1, "after")):
            if 0 <= index < depth:
                yield main, (index, slice(top, bottom), slice(left, right)), word
        for plane in self.planes[1:]:
            yield plane, self.across(plane), ""

    def shades(self, parts: Sequence[tuple[Plane, Where, str]]) -> tuple[float, float]:
        """Black and white, the same for all enlarged parts: they are to be compared."""
        if self.scene.image is None or not parts:
            return 0.0, 1.0
        crops = [plane.view(self.scene.image)[where].ravel() for plane, where, _ in parts]
        return grey_range(np.concatenate(crops))

    def across(self, plane: Plane) -> Where:
        """The slice and the part of another plane: through the same pixel, as high and wide in mm as the box."""
        shape, spacing = self.scene.geometry.shape_zyx, self.scene.geometry.spacing_zyx_mm
        main, (top, bottom, _, _) = self.planes[0], self.place.box
        centre = plane.from_file(main.to_file((self.place.z, *self.place.centre), shape), shape)
        half_mm = (bottom - top) * spacing[main.axes[1]] / 2
        parts = []
        for axis, middle in zip(plane.axes[1:], centre[1:], strict=True):
            half = max(1, round(half_mm / spacing[axis]))
            first = max(min(middle - half, shape[axis] - 2 * half), 0)
            parts.append(slice(first, min(first + 2 * half, shape[axis])))
        return centre[0], parts[0], parts[1]

    def panel(self, plane: Plane, where: Where, word: str, shades: tuple[float, float]) -> Panel:
        """An enlarged part with its outlines."""
        scene = self.scene
        masks = {"unknown": scene.unknown, "reference": scene.reference, "prediction": scene.prediction}
        crops = {name: plane.view(mask)[where] for name, mask in masks.items()}
        rows, columns = crops["prediction"].shape
        height, width = (scene.geometry.spacing_zyx_mm[axis] for axis in plane.axes[1:])
        return Panel(
            title=f"{plane.name} {where[0]} ({word})" if word else f"{plane.name} {where[0]}",
            picture="" if scene.image is None else _png(plane.view(scene.image)[where], shades),
            size_mm=(columns * width, rows * height),
            pixel_mm=(width, height),
            outlines={name: _path(crop) for name, crop in crops.items() if crop.any()},
            sides=plane.sides,
        )

    def overview(self) -> Panel:
        """The whole slice without its empty surroundings; with outlines only where there is no image."""
        main, image = self.planes[0], self.scene.image
        height, width = (self.scene.geometry.shape_zyx[axis] for axis in main.axes[1:])
        whole, frame = (0, height, 0, width), None
        if self.place.lesions:
            if image is not None:
                whole = content_box(main.view(image)[self.place.z], self.place.box)
            top, bottom, left, right = self.place.box
            frame = (top - whole[0], bottom - whole[0], left - whole[2], right - whole[2])
        where = (self.place.z, slice(whole[0], whole[1]), slice(whole[2], whole[3]))
        panel = replace(self.panel(main, where, "", (0.0, 1.0)), is_overview=True, box=frame)
        return panel if image is None else replace(panel, picture=_jpeg(main.view(image)[where]), outlines={})


def _path(mask: NDArray[np.bool_]) -> str:
    """The outlines of a mask as the path of an SVG, in pixels."""
    lines = (" ".join(f"{x},{y}" for y, x in line[:-1]) for line in outlines(mask))
    return "".join(f"M{line}Z" for line in lines)


def _grey(pixels: NDArray[Any], shades: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = shades
    return np.asarray(np.clip((pixels.astype(np.float64) - low) / (high - low) * 255, 0, 255), np.uint8)


def _png(pixels: NDArray[Any], shades: tuple[float, float]) -> str:
    from PIL import Image

    picture = Image.fromarray(_grey(pixels, shades))
    picture.thumbnail((_ZOOM_MOST_PIXELS, _ZOOM_MOST_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return as_data_uri(buffer.getvalue(), "png")


def _jpeg(pixels: NDArray[Any]) -> str:
    from PIL import Image

    picture = Image.fromarray(_grey(pixels, grey_range(pixels)))
    picture.thumbnail((_OVERVIEW_PIXELS, _OVERVIEW_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return as_data_uri(buffer.getvalue(), "jpeg")
