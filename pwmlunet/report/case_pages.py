"""The cases of a report: what became of each lesion in words, and the strips that show it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.image import Geometry, read_image
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.lesion_table import LesionRow, LesionTable, tabulate
from pwmlunet.evaluation.lesions import Lesion, Lesions, LesionScores, measure_lesions
from pwmlunet.evaluation.masks import MaskPairs
from pwmlunet.evaluation.scores import CaseScores
from pwmlunet.report.pages import count, percent
from pwmlunet.report.planes import planes_of
from pwmlunet.report.strips import Scene, Strip, draw_strips
from pwmlunet.report.views import Fate, Fates, LesionKey, in_turns, lesion_f1, read_channel

Kind = Fate | Literal["predicted"]
"""What a finding is; "predicted" where there is no reference to say more."""

_FINDING_BYTES = 150  # what a finding takes of a page beside its text

KINDS: tuple[Fate, ...] = ("found", "missed", "false")
"""What a reader can choose from."""


@dataclass(frozen=True)
class Finding:
    """One lesion of a strip, in words."""

    kind: Kind
    """What became of it."""
    text: str
    """Its sizes, and how sure the network was."""
    number: int | None = None
    """Of its row in the table of predicted lesions."""


@dataclass(frozen=True)
class ShownStrip:
    """A strip and what is said about it."""

    strip: Strip
    """The pictures."""
    findings: tuple[Finding, ...]
    """Its lesions, in the order of the numbers in the pictures."""
    target: str
    """The label's name; empty where there is only one."""

    @property
    def kinds(self) -> str:
        """What it can be filtered by; a case without lesions has "none"."""
        return " ".join(sorted({finding.kind for finding in self.findings})) or "none"

    @property
    def n_bytes(self) -> int:
        """What it takes of the page, at most."""
        words = sum(_FINDING_BYTES + len(finding.text) for finding in self.findings)
        return words + sum(panel.n_bytes for panel in self.strip.panels)


@dataclass(frozen=True)
class CasePage:
    """One case."""

    name: str
    """Its name."""
    scores: CaseScores | None
    """Scores; None without a reference."""
    rows: tuple[LesionRow, ...]
    """The predicted lesions, measured; empty with a reference."""
    strips: tuple[ShownStrip, ...]
    """Worst places first, or the least sure; the labels take turns."""
    n_places: int
    """Places to look at; those without a strip are left out, to keep the page small."""
    geometry: Geometry
    """The grid of its masks."""

    @property
    def n_left_out(self) -> int:
        """Places that are not shown."""
        return self.n_places - len(self.strips)

    @property
    def shown_numbers(self) -> frozenset[int | None]:
        """The rows whose lesions are shown."""
        return frozenset(finding.number for shown in self.strips for finding in shown.findings)

    @property
    def has_planes(self) -> bool:
        """Whether all three planes are shown."""
        return len(planes_of(self.geometry)) > 1

    @property
    def unit(self) -> str:
        """What lengths are in: where every spacing is 1, a file may not have said."""
        is_silent = set(self.geometry.spacing_zyx_mm) == {1.0} and not self.geometry.is_placed
        return "pixels" if is_silent else "mm"

    @property
    def lesion_f1(self) -> float | None:
        """Over its targets together; None without a reference, or where there is nothing in either mask."""
        return lesion_f1(self.scores) if self.scores else None

    @property
    def n_failures(self) -> int:
        """Missed and false lesions."""
        targets = self.scores.targets.values() if self.scores else ()
        return sum(len(target.lesions.missed) + len(target.lesions.false) for target in targets)

    @property
    def rank(self) -> tuple[float, float, str]:
        """The worst or the least sure case has the lowest."""
        probabilities = [row.mean_probability for row in self.rows if row.mean_probability is not None]
        f1 = self.lesion_f1
        first = f1 if f1 is not None else min(probabilities, default=2.0)
        return first, -self.n_failures, self.name


@dataclass(frozen=True, eq=False)
class Case:
    """What is needed to make the page of a case."""

    name: str
    """Its name."""
    pairs: MaskPairs
    """Its masks; the prediction on both sides where there is no reference."""
    images: Path | None
    """Folder of its image."""
    scores: CaseScores | None
    """Its scores; None without a reference."""
    table: LesionTable | None
    """Its lesions as they were predicted, where that was written."""
    most_strips: int
    """How many places may be drawn."""

    def page(self) -> CasePage:
        """Reads the files of the case and draws its strips.

        Raises:
            PwmlError: the image is missing or on another grid than the masks, or the table is of another mask.
        """
        reference, prediction, _ = self.pairs.read(self.name)
        file = self.pairs.files[self.name][1]
        geometry = read_image(file).geometry
        image = None if self.images is None else read_channel(self.images, self.name, geometry)
        rows = () if self.scores else self._rows(prediction, geometry, file)
        labels = self.pairs.labels
        valid = labels.valid(reference)
        n_places, strips = [], []  # by target
        if self.scores is None or self.scores.n_labelled_slices:
            masks = zip(labels.targets, labels.encode(reference), labels.encode(prediction), strict=True)
            for target, truth, guess in masks:
                truth = truth & valid if self.scores else np.zeros_like(guess)
                scene = Scene(geometry, truth, guess & valid, image, ~valid)
                n, shown = self._strips(scene, target.name, rows)
                n_places.append(n)
                strips.append(shown)
        drawn = tuple(islice(in_turns(strips), self.most_strips))
        return CasePage(self.name, self.scores, rows, drawn, sum(n_places), geometry)

    def _rows(self, prediction: NDArray[Any], geometry: Geometry, file: Path) -> tuple[LesionRow, ...]:
        """The lesions as they were tabled, the least sure first; or measured now, with no midline to tell sides by."""
        labels = self.pairs.labels
        if self.table is None:
            measured = tabulate(self.name, prediction, geometry, labels).lesions
            return tuple(replace(row, side=None) for row in measured)
        masks = zip(labels.targets, labels.encode(prediction), strict=True)
        lesions = [(t.name, measure_lesions(mask, geometry.spacing_zyx_mm)) for t, mask in masks]
        here = [(self._name(name), n) for name, found in lesions for n in found.n_voxels.tolist()]
        if sorted(here) != sorted((self._name(row.target), row.n_voxels) for row in self.table.lesions):
            raise PwmlError(f"{file} has other lesions than its table {self.name}_lesions.json: predict the case again")  # fmt: skip
        return self.table.lesions

    def _strips(
        self, scene: Scene, target: str, rows: Sequence[LesionRow]
    ) -> tuple[int, Iterator[ShownStrip]]:
        """How many strips one target has, and the strips, drawn as they are asked for."""
        fates = Fates.of(scene.reference, scene.prediction, scene.geometry.spacing_zyx_mm)
        if self.scores is None:
            own = [row for row in rows if self._name(row.target) == self._name(target)]
            row_of = _rows_by_lesion(fates.sides[1], own)
            order = sorted(row_of, key=lambda lesion: row_of[lesion].number)
            words = {lesion: _predicted(row) for lesion, row in row_of.items()}
        else:
            order = fates.by_interest()
            words = _scored(self.scores.targets[target].lesions)
        n, strips = draw_strips(scene, fates, order)
        name = self._name(target)
        return n, (ShownStrip(s, tuple(words[finding[0]] for finding in s.findings), name) for s in strips)

    def _name(self, target: str) -> str:
        """The target's name where it tells anything."""
        return target if len(self.pairs.labels.targets) > 1 else ""


def _rows_by_lesion(lesions: Lesions, rows: Sequence[LesionRow]) -> dict[LesionKey, LesionRow]:
    """The row of each predicted lesion of one target: that of as many voxels and the nearest centroid."""
    found = {}
    for number, (size, centroid) in enumerate(zip(lesions.n_voxels, lesions.centroids_zyx, strict=True)):
        same = [row for row in rows if row.n_voxels == size]
        places = [(row.centroid_z_voxel, row.centroid_y_voxel, row.centroid_x_voxel) for row in same]
        found[True, number] = same[int(np.abs(np.array(places) - centroid).sum(1).argmin())]
    return found


def _scored(lesions: LesionScores) -> dict[LesionKey, Finding]:
    """What became of each lesion, in words; under both keys for one that was found."""
    words: dict[LesionKey, Finding] = {}
    for number in lesions.missed:
        words[False, number] = Finding("missed", f"reference {_size(lesions.reference[number])}")
    for number in lesions.false:
        words[True, number] = Finding("false", f"prediction {_size(lesions.predicted[number])}")
    for match in lesions.matches:
        sizes = _size(lesions.reference[match.reference]), _size(lesions.predicted[match.predicted])
        text = f"reference {sizes[0]}; prediction {sizes[1]}; IoU {match.iou:.2f}"
        words[False, match.reference] = words[True, match.predicted] = Finding("found", text)
    return words


def _size(lesion: Lesion) -> str:
    """Volume, and probability where it is known."""
    size = f"{_volume(lesion.volume_mm3)} ({count(lesion.n_voxels, 'voxel')})"
    if lesion.mean_probability is None or lesion.max_probability is None:
        return size
    return f"{size}, probability {percent(lesion.mean_probability)} on average, {percent(lesion.max_probability)} at most"


def _predicted(row: LesionRow) -> Finding:
    """A predicted lesion in words."""
    parts = [
        f"{_volume(row.volume_mm3)} ({count(row.n_voxels, 'voxel')})",
        f"largest diameter {row.largest_diameter_mm:.1f} mm",
    ]
    if row.mean_probability is not None and row.max_probability is not None:
        parts.append(
            f"probability {percent(row.mean_probability)} on average, {percent(row.max_probability)} at most"
        )
    if row.spread_over_folds is not None:
        parts.append(f"the networks differ by ± {percent(row.spread_over_folds)}")
    return Finding("predicted", ", ".join(parts), row.number)


def _volume(mm3: float) -> str:
    return f"{mm3:.3g} mm³" if mm3 < 100 else f"{mm3:.0f} mm³"
