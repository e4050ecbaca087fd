"""What a correction network learned and changes, as a page: candidates, how they were judged, and pictures of them."""

import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

import pwmlunet
from pwmlunet.evaluation.comparison import ScoreComparison
from pwmlunet.evaluation.voxels import ratio
from pwmlunet.report.compare import signed
from pwmlunet.report.pages import as_data_uri, data_uri, render_page, write_page
from pwmlunet.report.views import in_turns, outlines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["lost", "false", "wrong kind", "right"]
"""What became of a candidate: a lesion that was removed, none that was kept, a lesion of another kind, or neither."""

# Dark, and light or dashed: told apart in grey print.
_LESION, _OTHER, _PALE = "#1f5582", "#c8641e", "#e0a373"
_N_BINS = 10


@dataclass(frozen=True)
class ThresholdPoint:
    """What the candidates at one threshold would be."""

    threshold: float
    """Stage one's probability above which voxels make candidates."""
    n_found: int
    """Reference lesions that a candidate finds."""
    n_false: int
    """Candidates that are no lesion."""


@dataclass(frozen=True)
class ShownCandidate:
    """A candidate of a held-out case and what the correction network says of it."""

    case: str
    """Whose it is."""
    reference: int
    """Its class in the reference; 0 where it is no lesion."""
    judged: int
    """The class that it has in the end; 0 where it was removed."""
    probabilities: tuple[float, ...]
    """Of each class, as the correction network gives them; they add up to 1."""
    peak: float
    """Stage one's highest probability in it."""
    z: int | None = None
    """The slice of its centroid, counted from 0."""

    @property
    def score(self) -> float:
        """How probable it is that it is a lesion of any kind."""
        return 1 - self.probabilities[0]

    @property
    def wrongness(self) -> float:
        """What the network left for other classes than that of the reference."""
        return 1 - self.probabilities[self.reference]

    @property
    def kind(self) -> Kind:
        """What became of it."""
        if self.judged == self.reference:
            return "right"
        if self.judged == 0:
            return "lost"
        return "false" if self.reference == 0 else "wrong kind"


@dataclass(frozen=True, eq=False)
class CandidatePicture:
    """What the correction network sees of a candidate in the slice of its centroid."""

    candidate: ShownCandidate
    """Which one."""
    channels: NDArray[np.floating[Any]]
    """Intensities (C, Y, X) in [0, 1]."""
    mask: NDArray[np.bool_]
    """Where it is (Y, X)."""
    side_mm: float
    """Of the square that is shown."""


@dataclass(frozen=True, eq=False)
class CorrectionPage:
    """All that is on the page; what is empty is left out, and said where it would be missed."""

    run: str
    """Name of stage one's run."""
    dataset: str
    """Name of the dataset."""
    folds: tuple[str, ...]
    """The folds whose cases were held out."""
    n_subjects: int
    """How many were held out."""
    n_cases: int
    """Likewise."""
    n_lesions: int
    """Reference lesions in these cases, of all kinds."""
    classes: tuple[str, ...]
    """What a candidate may be; the first is no lesion."""
    channels: tuple[str, ...]
    """Names of the channels in the pictures."""
    is_used: bool
    """Whether predictions are corrected from now on."""
    verdict: str
    """Why, in a sentence."""
    threshold: float
    """The chosen threshold of candidates."""
    thresholds: tuple[ThresholdPoint, ...]
    """What else could have been chosen, the lowest first."""
    candidates: tuple[ShownCandidate, ...]
    """Of all held-out cases, at the chosen threshold."""
    points: dict[str, str] = field(default_factory=dict)
    """What is compared and how it is to be read; the first is the baseline (stage one at its own point)."""
    scores: dict[str, tuple[ScoreComparison, ...]] = field(default_factory=dict)
    """By target: each score at each of the points."""
    pictures: tuple[CandidatePicture, ...] = ()
    """Candidates to look at (see `worth_showing`), in any order."""
    fold_thresholds: dict[str, float] = field(default_factory=dict)
    """By fold: the threshold that the other folds chose for its candidates, where it was chosen so."""
    remarks: tuple[str, ...] = ()
    """What else must be known to judge the numbers, a sentence each."""

    def of_kind(self, *kinds: Kind) -> list[ShownCandidate]:
        """The candidates of which one of these became."""
        return [candidate for candidate in self.candidates if candidate.kind in kinds]

    def confusion(self) -> NDArray[np.int64]:
        """How many candidates of each reference class (rows) were judged to be of each class (columns)."""
        counts = np.zeros((len(self.classes), len(self.classes)), np.int64)
        for candidate in self.candidates:
            counts[candidate.reference, candidate.judged] += 1
        return counts


def worth_showing(
    candidates: Sequence[ShownCandidate], *, n_mistakes: int = 24, n_right: int = 8
) -> list[int]:
    """Numbers of the candidates to look at: the worst mistakes of each kind, then the surest right ones of each class."""
    mistakes: defaultdict[Kind, list[int]] = defaultdict(list)
    right: defaultdict[int, list[int]] = defaultdict(list)
    for number in sorted(range(len(candidates)), key=lambda i: -candidates[i].wrongness):
        candidate = candidates[number]
        if candidate.kind == "right":
            right[candidate.reference].insert(0, number)
        else:
            mistakes[candidate.kind].append(number)
    return [*list(in_turns(mistakes.values()))[:n_mistakes], *list(in_turns(right.values()))[:n_right]]


def write_correction_page(path: Path, page: CorrectionPage) -> None:
    """Writes the page as one HTML file that needs no other."""
    counts = page.confusion()
    ordered = sorted(page.pictures, key=lambda picture: -picture.candidate.wrongness)
    is_lesion = np.array([candidate.reference > 0 for candidate in page.candidates], bool)
    rankings = {
        "stage one's highest probability": np.array([candidate.peak for candidate in page.candidates]),
        "the correction's score": np.array([candidate.score for candidate in page.candidates]),
    }
    can_rank = is_lesion.any() and not is_lesion.all()
    text = render_page(
        "correction.html.j2",
        page=page,
        made_on=f"{date.today():%Y-%m-%d}",
        version=pwmlunet.__version__,
        signed=signed,
        ratio=ratio,
        threshold_chart=data_uri(draw_thresholds(page)) if page.thresholds else "",
        counts=counts.tolist(),
        score_chart=data_uri(draw_scores(rankings, is_lesion)) if page.candidates else "",
        ranking_chart=data_uri(draw_ranking(rankings, is_lesion, page.n_cases)) if can_rank else "",
        separations={words: separation(s, is_lesion) for words, s in rankings.items()} if can_rank else {},
        mistakes=[picture for picture in ordered if picture.candidate.kind != "right"],
        right=[picture for picture in ordered if picture.candidate.kind == "right"],
        addresses=_addresses,
        outline=_outline,
    )  # fmt: skip
    write_page(path, text)


def separation(scores: NDArray[np.floating[Any]], is_lesion: NDArray[np.bool_]) -> float:
    """The share of pairs of a lesion and none in which the lesion has the higher score; equal scores count half."""
    none = np.sort(scores[~is_lesion])
    below, not_above = (np.searchsorted(none, scores[is_lesion], side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(none)))


def draw_thresholds(page: CorrectionPage) -> "Figure":
    """Recall, and false candidates per case, against the threshold of candidates; the chosen one is marked."""
    from matplotlib.figure import Figure

    figure = Figure((5.6, 4.2), layout="constrained")
    recall, false = figure.subplots(2, 1, sharex=True)
    x = [row.threshold for row in page.thresholds]
    shares = [ratio(row.n_found, page.n_lesions) for row in page.thresholds]
    if page.n_lesions:
        recall.plot(x, shares, "o-", color=_LESION)
    else:
        recall.text(0.5, 0.5, "no reference lesion", ha="center", fontsize=9)
    false.plot(x, [row.n_false / page.n_cases for row in page.thresholds], "s-", color=_OTHER)
    _style(recall, "", "lesions found (share)")
    _style(false, "threshold of candidates", "false candidates per case")
    recall.set_ylim(0, 1.08)
    false.set_ylim(bottom=0)
    for axes in (recall, false):
        axes.axvline(page.threshold, color="#111111", linestyle="--", linewidth=1.2, zorder=1)
    recall.text(page.threshold, 0.06, f" chosen: {page.threshold:g}", fontsize=9)
    recall.set_xlim(0, max(1.0, *x))
    return figure


def draw_scores(rankings: dict[str, NDArray[np.floating[Any]]], is_lesion: NDArray[np.bool_]) -> "Figure":
    """How many lesions and how many others have which score, before and after the correction network."""
    from matplotlib.figure import Figure

    figure = Figure((9.6, 3.2), layout="constrained")
    edges = np.linspace(0, 1, _N_BINS + 1)
    sides = (("not a lesion", ~is_lesion, _PALE, ""), ("lesion", is_lesion, _LESION, "//"))
    top = 2.0
    for axes, (words, scores) in zip(figure.subplots(1, 2, sharey=True), rankings.items(), strict=True):
        for place, (label, which, colour, hatch) in enumerate(sides):
            heights = np.histogram(np.clip(scores[which], 0, 1), edges)[0]
            left = edges[:-1] + (0.1 + 0.4 * place) / _N_BINS
            axes.bar(left, np.maximum(heights, 0.5), 0.4 / _N_BINS, align="edge", color=colour, hatch=hatch, edgecolor="#ffffff", linewidth=0, label=f"{label} (n {which.sum()})")  # fmt: skip
            top = max(top, heights.max())
        axes.set_xlim(0, 1)
        axes.set_yscale("log")  # one candidate can be seen beside a thousand
        _style(axes, words, "")
    ticks = [n * 10**power for power in range(6) for n in (1, 3) if n * 10**power <= top]
    figure.axes[0].set_yticks(ticks, [str(n) for n in ticks])
    for axes in figure.axes:
        axes.minorticks_off()
        axes.set_ylim(0.5, 1.3 * top)
    figure.axes[0].set_ylabel("candidates (logarithmic)")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False, fontsize=9)  # fmt: skip
    return figure


def draw_ranking(
    rankings: dict[str, NDArray[np.floating[Any]]], is_lesion: NDArray[np.bool_], n_cases: int
) -> "Figure":
    """Of the candidates that are lesions, the share that is kept against how many others are, by either score."""
    from matplotlib.figure import Figure

    figure = Figure((5.6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    styles = ((_OTHER, "--"), (_LESION, "-"))
    for (words, scores), (colour, style) in zip(rankings.items(), styles, strict=True):
        levels = np.unique(scores)[::-1]  # candidates of one score are kept or removed together
        kept, false = (
            [0, *(np.count_nonzero(scores[which] >= level) for level in levels)]
            for which in (is_lesion, ~is_lesion)
        )
        axes.plot(np.array(false) / n_cases, np.array(kept) / is_lesion.sum(), drawstyle="steps-post", color=colour, linestyle=style, linewidth=2, label=f"by {words}")  # fmt: skip
    _style(axes, "false candidates kept, per case", "lesions kept (share)")
    axes.set_ylim(0, 1.03)
    axes.set_xlim(left=0)
    figure.legend(loc="outside upper left", frameon=False, fontsize=9)
    return figure


def _style(axes: "Axes", x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e7ea", linewidth=0.8)
    axes.set_axisbelow(True)


def _addresses(picture: CandidatePicture, channels: Sequence[str]) -> dict[str, str]:
    """The pixels of each channel."""
    return {name: _png(pixels) for name, pixels in zip(channels, picture.channels, strict=True)}


def _outline(mask: NDArray[np.bool_]) -> str:
    """The path of an SVG, in pixels."""
    lines = (" ".join(f"{x},{y}" for y, x in line[:-1]) for line in outlines(mask))
    return "".join(f"M{line}Z" for line in lines)


def _png(pixels: NDArray[np.floating[Any]]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.asarray(np.clip(pixels, 0, 1) * 255, np.uint8)).save(buffer, "PNG", optimize=True)
    return as_data_uri(buffer.getvalue(), "png")
