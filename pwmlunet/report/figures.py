"""Charts of a report: recall by size, FROC, reliability and training curves, each a matplotlib figure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.detection import FALSE_POSITIVE_RATES, Froc
from pwmlunet.evaluation.reliability import Reliability
from pwmlunet.evaluation.sizes import SizeBin
from pwmlunet.files import explain
from pwmlunet.report.pages import size_range

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Dark and solid against lighter and dashed: told apart in grey print.
_FIRST, _SECOND, _QUIET = "#1f5582", "#c8641e", "#8a949c"


@dataclass(frozen=True)
class Curve:
    """How the training of one fold went; the tuples are of one length."""

    name: str
    """fold_0, fold_1, …"""
    epochs: tuple[int, ...]
    """Numbers of the epochs."""
    loss: tuple[float, ...]
    """Mean training loss of each."""
    val_lesion_f1: tuple[float | None, ...]
    """Lesion F1 on held-out cases; None for epochs after which nothing was predicted."""
    val_dice: tuple[float | None, ...]
    """Dice on held-out cases, likewise."""


def read_curves(model_folder: Path) -> tuple[Curve, ...]:
    """The training curves of a model's folds, from their metrics.jsonl; empty where there are none.

    Raises:
        PwmlError: a line is not what a training writes.
    """
    curves = (_read_curve(path) for path in sorted(model_folder.glob("fold_*/metrics.jsonl")))
    return tuple(curve for curve in curves if curve.epochs)


def _read_curve(path: Path) -> Curve:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise explain(error, path, "read") if isinstance(error, OSError) else PwmlError(f"{path} is not a text file: train the fold again") from error  # fmt: skip
    if lines and not lines[-1].endswith("}"):  # a training is writing it, or was killed while it did
        lines.pop()
    try:
        rows = [json.loads(line) for line in lines if line.strip()]
        return Curve(
            path.parent.name,
            tuple(int(row["epoch"]) for row in rows),
            tuple(float(row["loss"]) for row in rows),
            *(tuple(_optional(row.get(key)) for row in rows) for key in ("val_lesion_f1", "val_dice")),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise PwmlError(f"{path} is not what a training writes: remove it, or train the fold again") from error  # fmt: skip


def _optional(value: float | None) -> float | None:
    return None if value is None else float(value)


def _new_figure(width: float = 5.6, height: float = 3.6) -> "Figure":
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def _axes(figure: "Figure", x_label: str, y_label: str) -> "Axes":
    axes: Axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e7ea", linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def draw_recall_by_size(bins: Sequence[SizeBin]) -> "Figure":
    """Recall in each range of volumes with its interval and the number of lesions."""
    figure = _new_figure()
    axes = _axes(figure, "volume of the reference lesion (mm³)", "found (share of lesions)")
    for place, part in enumerate(bins):
        if part.recall is not None:
            axes.bar(place, part.recall, width=0.6, color=_FIRST, alpha=0.35)
            axes.plot([place - 0.3, place + 0.3], [part.recall] * 2, color=_FIRST, linewidth=2)
            if interval := part.recall_interval:
                axes.plot([place, place], [interval.low, interval.high], color="#111111", linewidth=1.4)
        axes.text(place, 1.04, f"{part.n_found} of {part.n_reference}", ha="center", fontsize=9)
    axes.set_xticks(range(len(bins)), [size_range(part.low_mm3, part.high_mm3) for part in bins])
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.grid(visible=False, axis="x")
    return figure


def draw_froc(curves: Mapping[str, Froc]) -> "Figure":
    """Sensitivity against false positives per subject, ranked by the mean or the greatest probability."""
    figure = _new_figure()
    axes = _axes(figure, "false positives per subject (logarithmic)", "sensitivity (share of lesions found)")
    least, most = min(FALSE_POSITIVE_RATES.values()), max(FALSE_POSITIVE_RATES.values())
    styles = ((_FIRST, "-"), (_SECOND, "--"))
    for (name, curve), (colour, style) in zip(curves.items(), styles, strict=True):
        x, y = _steps(curve, least / 1.3, most * 1.3)
        axes.plot(x, y, drawstyle="steps-post", color=colour, linestyle=style, linewidth=2, label=f"ranked by {name.replace('_', ' ')}")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(least / 1.3, most * 1.3)
    axes.set_xticks(list(FALSE_POSITIVE_RATES.values()), list(FALSE_POSITIVE_RATES))
    axes.minorticks_off()
    axes.set_ylim(0, 1.03)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    return figure


def _steps(curve: Froc, least: float, most: float) -> tuple[list[float], list[float]]:
    """The curve from the left edge, where what was found without so many false positives counts, to the right."""
    points = [(p.false_positives_per_subject, p.sensitivity) for p in curve.curve]
    at_edge = max((y for x, y in points if x <= least), default=0.0)
    inside = [(x, y) for x, y in points if least < x <= most]
    last = inside[-1][1] if inside else at_edge
    x, y = zip((least, at_edge), *inside, (most, last), strict=True)
    return list(x), list(y)


def draw_reliability(reliability: Reliability) -> "Figure":
    """Observed share of lesion against the probability promised, and how many voxels that is about."""
    figure = _new_figure(5.6, 4.2)
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 1))
    axes, counts = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    pairs = [(b.mean_probability, b.observed_share) for b in reliability.bins]
    promised, observed = zip(*((p, o) for p, o in pairs if p is not None and o is not None), strict=True)
    axes.plot([0, 1], [0, 1], color=_QUIET, linestyle=":", label="perfect")
    axes.plot(promised, observed, "o-", color=_FIRST, label="observed")
    axes.set_ylabel("share that is lesion")
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    width = 1 / len(reliability.bins)
    centres = [(i + 0.5) * width for i in range(len(reliability.bins))]
    counts.bar(centres, [max(b.n_voxels, 0.5) for b in reliability.bins], width=0.9 * width, color=_QUIET)
    counts.set_yscale("log")
    counts.set_ylim(bottom=0.5)
    counts.set_ylabel("voxels")
    counts.set_xlabel("predicted probability")
    for part in (axes, counts):
        part.set_xlim(0, 1)
        part.spines[["top", "right"]].set_visible(False)
        part.grid(color="#e3e7ea", linewidth=0.8)
        part.set_axisbelow(True)
    axes.set_ylim(-0.02, 1.02)
    return figure


def draw_curves(curves: Sequence[Curve]) -> "Figure":
    """Training loss, and lesion F1 and Dice on held-out cases, over the epochs; one line a fold."""
    figure = _new_figure(9.6, 3.2)
    parts = (("training loss", "loss"), ("lesion F1, held out", "val_lesion_f1"), ("Dice, held out", "val_dice"))  # fmt: skip
    for axes, (label, field) in zip(figure.subplots(1, 3), parts, strict=True):
        for place, curve in enumerate(curves):
            x, y = _defined(curve.epochs, getattr(curve, field))
            axes.plot(x, y, color=f"C{place % 10}", linestyle=("-", "--", ":", "-.")[place % 4], label=curve.name)  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e3e7ea", linewidth=0.8)
        if field != "loss":
            axes.set_ylim(0, 1)
    if len(curves) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False, fontsize=9)  # fmt: skip
    return figure


def _defined(x: Sequence[int], y: Sequence[float | None]) -> tuple[list[int], list[float]]:
    pairs: Iterator[tuple[int, float]] = ((a, b) for a, b in zip(x, y, strict=True) if b is not None)
    kept = list(pairs)
    return [a for a, _ in kept], [b for _, b in kept]
