"""HTML pages that are one file each: templates, numbers as text, pictures inside the page."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNDEFINED = "–"
"""What stands for a number that does not exist."""


def render_page(template: str, **values: object) -> str:
    """The text of a page from a template beside this file; every value it names must be given.

    Templates extend `page.html.j2`, which fills in the style and the blocks `title`, `content` and `script`.
    Values are escaped. Numbers are written with the filters `number`, `percent`, `interval` and `count`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": percent, "interval": interval, "count": count}
    return environment.get_template(template).render(**values)


def write_page(path: Path, text: str) -> None:
    """Writes a page, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def number(value: float | None, digits: int = 2) -> str:
    """A number with a fixed count of digits, or a dash."""
    return UNDEFINED if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def percent(value: float | None) -> str:
    """A share in whole percent, or a dash."""
    return UNDEFINED if value is None or not math.isfinite(value) else f"{100 * value:.0f} %"


def interval(value: Interval | None, digits: int = 2) -> str:
    """Both ends in words (0.41 to 0.68), or a dash."""
    return UNDEFINED if value is None else f"{number(value.low, digits)} to {number(value.high, digits)}"


def count(n: int, noun: str) -> str:
    """How many of something: 1 case, 2 cases."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table for a screen, the first row above a rule."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def size_range(low_mm3: float, high_mm3: float | None) -> str:
    """A range of volumes in words, without the unit."""
    if high_mm3 is None:
        return f"from {low_mm3:.3g}"
    return f"{low_mm3:.3g} to {high_mm3:.3g}" if low_mm3 else f"below {high_mm3:.3g}"


def data_uri(figure: "Figure") -> str:
    """A figure as an SVG inside an address, for the `src` of an image."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "pwmlunet"}):  # the same figure gives the same text
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return as_data_uri(buffer.getvalue(), "svg+xml")


def as_data_uri(content: bytes, kind: str) -> str:
    """The content of an image file (png, jpeg, svg+xml) as an address."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
