"""Runs in folders, compared, and the comparison to look at: as text, as a figure and as a page."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pwmlunet.data.dataset import Labels
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.comparison import (
    Comparison,
    Difference,
    RunValue,
    SizeComparison,
    TargetComparison,
    compare,
)
from pwmlunet.evaluation.runs import read_runs
from pwmlunet.report.pages import columns, data_uri, interval, number, render_page, size_range, write_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_N_CASES = 20  # as many as a screen holds; the page has all
_WIDEST = 20  # of a name in a table on a screen

# Dark to light and each with its own shape: told apart in grey print.
_MARKERS = (("#1f5582", "o"), ("#c8641e", "s"), ("#5b8c5a", "^"), ("#8c5a8a", "D"), ("#8a949c", "v"))


def compare_folders(
    folders: Sequence[Path],
    *,
    reference: Path | None = None,
    labels: Labels | Path | None = None,
    only_common: bool = False,
    size_edges_mm3: Sequence[float] | None = None,
) -> Comparison:
    """The runs in some folders side by side (for the arguments see `read_run` and `compare`)."""
    runs = read_runs(folders, reference=reference, labels=labels, only_common=only_common)
    return compare(runs, size_edges_mm3=size_edges_mm3, only_common=only_common)


def text(comparison: Comparison) -> str:
    """The comparison as tables for a screen."""
    runs = comparison.runs
    parts = [f"baseline: {runs[0]}; {comparison.n_cases} cases of {comparison.n_subjects} subjects"]
    for name, target in comparison.targets.items():
        title = [name, "=" * len(name)] if len(comparison.targets) > 1 else []
        parts += ["", *title, *_table([*_scores(target), *_sizes(target)], runs), "", *_cases(target, runs)]
    return "\n".join([*parts, "", *comparison.remarks])


def _scores(target: TargetComparison) -> Iterator[tuple[str, Sequence[RunValue]]]:
    for score in target.scores:
        unit = f", {score.unit}" if score.unit else ""
        direction = "; lower is better" if score.lower_is_better else ""
        yield f"{score.words}{unit} (n: {score.over}{direction})", score.runs


def _sizes(target: TargetComparison) -> Iterator[tuple[str, Sequence[RunValue]]]:
    for size in target.by_size:
        yield f"recall of lesions {size_in_words(size)} (n: reference lesions)", size.runs


def _table(blocks: Sequence[tuple[str, Sequence[RunValue]]], runs: Sequence[str]) -> Iterator[str]:
    """A line for each run, below a line that says of what."""
    header = ["", "value", "95 % interval", "n", "difference", "95 % interval", ""]
    rows = [
        [f"  {_clip(run)}", *_cells(v)] for _, values in blocks for run, v in zip(runs, values, strict=True)
    ]
    lines = columns([header, *rows])
    yield from lines[:2]
    for index, (title, _) in enumerate(blocks):
        yield title
        yield from lines[2 + index * len(runs) : 2 + (index + 1) * len(runs)]


def _cells(value: RunValue) -> list[str]:
    digits = 0 if value.value is not None and abs(value.value) >= 100 else 2
    cells = [number(value.value, digits), interval(value.interval, digits), str(value.n)]
    if value.difference is None:
        return [*cells, "", "", "baseline"]
    difference = value.difference
    common = "" if difference.n == value.n else f" (n {difference.n})"
    change = [signed(difference.value, digits), interval(difference.interval, digits)]
    return [*cells, *change, f"{difference.verdict}{common}"]


def signed(value: float | None, digits: int = 2) -> str:
    """A difference with its sign, or a dash."""
    text = number(value, digits)
    return f"+{text}" if value is not None and float(f"{value:.{digits}f}") > 0 else text


def size_in_words(size: SizeComparison) -> str:
    """The range of a size bin."""
    return f"{size_range(size.low_mm3, size.high_mm3)} mm³"


def _cases(target: TargetComparison, runs: Sequence[str]) -> Iterator[str]:
    """The cases on which the runs disagree most."""
    yield from (f"[{index}] {_clip(run)}" for index, run in enumerate(runs, 1))
    header = [f"{score} [{index}]" for score in ("F1", "Dice") for index in range(1, len(runs) + 1)]
    rows = [
        [_clip(case.name), str(case.n_reference), *(number(v) for v in (*case.lesion_f1, *case.dice))]
        for case in target.cases[:_N_CASES]
    ]
    yield from columns([["case", "lesions", *header], *rows])
    if (n := len(target.cases) - _N_CASES) > 0:
        yield f"… and {n} more, on which the runs disagree less"


def _clip(name: str) -> str:
    return name if len(name) <= _WIDEST else f"…{name[1 - _WIDEST :]}"


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Writes the comparison as one HTML file that needs no other, and its numbers as JSON beside it.

    Raises:
        PwmlError: the JSON would replace something else (see `check_place`).
    """
    check_place(path)
    figures = {name: data_uri(forest(target, comparison.runs)) for name, target in comparison.targets.items()}
    page = render_page(
        "compare.html.j2",
        comparison=comparison,
        figures=figures,
        signed=signed,
        size_in_words=size_in_words,
    )
    write_page(path, page)
    comparison.write(path.with_suffix(".json"))


def check_place(path: Path) -> None:
    """Raises PwmlError where the numbers of a comparison would replace its page, or what is no comparison."""
    numbers = path.with_suffix(".json")
    if numbers == path:
        raise PwmlError(f"{path} is where the numbers go: name the page, such as {path.with_suffix('.html').name}, with -o")  # fmt: skip
    if numbers.exists() and not _is_comparison(numbers):
        raise PwmlError(f"{numbers} was not written by pwml_compare: choose another place with -o, or move it")  # fmt: skip


def _is_comparison(path: Path) -> bool:
    try:
        Comparison.read(path)
    except PwmlError:
        return False
    return True


def forest(target: TargetComparison, runs: Sequence[str]) -> "Figure":
    """The differences to the baseline with their intervals, of the scores that are shares."""
    from matplotlib.figure import Figure

    rows = [
        (score.words, score.runs) for score in target.scores if not score.unit and not score.lower_is_better
    ]
    rows += [(f"recall, {size_in_words(size)}", size.runs) for size in target.by_size]
    figure = Figure((7.5, 1.2 + 0.22 * len(rows) * len(runs)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="#56606a", linewidth=1)
    for index, run in enumerate(runs[1:]):
        shift = (index - (len(runs) - 2) / 2) * 0.7 / len(runs[1:])
        differences = [values[index + 1].difference for _, values in rows]
        _draw(axes, differences, shift=shift, label=_plain(run), number=index)
    axes.set_yticks(range(len(rows)), [words for words, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"worse  ←  difference to {_plain(runs[0])}  →  better")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper left", frameon=False, ncols=2)
    return figure


def _plain(name: str) -> str:
    """A name that matplotlib neither sets as a formula nor keeps from the legend for its underscore."""
    return f" {name}".replace("$", r"\$")


def _draw(
    axes: "Axes", differences: Sequence[Difference | None], *, shift: float, label: str, number: int
) -> None:
    colour, marker = _MARKERS[number % len(_MARKERS)]
    for row, difference in enumerate(differences):
        if difference is not None and difference.interval is not None:
            ends = difference.interval.low, difference.interval.high
            axes.plot(ends, [row + shift] * 2, color=colour, linewidth=1.5)
    places = [(d.value, row + shift) for row, d in enumerate(differences) if d and d.value is not None]
    axes.scatter(
        [x for x, _ in places], [y for _, y in places], color=colour, marker=marker, label=label, zorder=3
    )
