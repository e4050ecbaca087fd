"""What a training leaves behind for people: training.log, metrics.jsonl and progress.png."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pwmlunet.files import explain, replacing

Row = Mapping[str, float | int | None]


def append_metrics(path: Path, row: Row) -> None:
    """Adds one line of numbers to metrics.jsonl."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")
    except OSError as error:
        raise explain(error, path, "write") from error


def keep_metrics(path: Path, epochs: int) -> list[dict[str, float]]:
    """The first lines of metrics.jsonl; later ones, of a run that stopped before it was saved, are dropped."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    if lines and not lines[-1].endswith("}"):  # the run was killed while it wrote
        lines.pop()
    kept = [row for row in map(json.loads, lines) if row["epoch"] <= epochs]
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return kept


def draw_progress(path: Path, rows: list[dict[str, float]], title: str) -> None:
    """Draws the loss, the held-out lesion scores and the learning rate over the epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    epochs = [row["epoch"] for row in rows]
    top.plot(epochs, [row["loss"] for row in rows], color="0.4", label="training loss")
    top.set_ylabel("loss")
    scores = top.twinx()
    scored = [row for row in rows if "val_lesion_f1" in row]
    for key, colour, label in (("val_lesion_f1", "C0", "lesion F1"), ("val_dice", "C1", "Dice")):
        scores.plot([r["epoch"] for r in scored], [r[key] for r in scored], "o-", color=colour, label=label)
    scores.set_ylim(0, 1)
    scores.set_ylabel("held-out slices")
    lines = [*top.get_lines(), *scores.get_lines()]
    scores.legend(lines, [str(line.get_label()) for line in lines], loc="upper center", ncols=3, fontsize=8)
    top.set_title(title)
    bottom.plot(epochs, [row["learning_rate"] for row in rows], color="C2")
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("epoch")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Writes what pwmlunet logs, details included, to a file too."""
    package = logging.getLogger("pwmlunet")
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise explain(error, path, "write") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        with suppress(OSError):
            handler.close()


class _LogFile(logging.FileHandler):
    """A log on a full disk loses lines; the files that matter tell of it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        pass
