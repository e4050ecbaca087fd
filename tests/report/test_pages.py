from pathlib import Path

import pytest
from jinja2 import UndefinedError
from matplotlib.figure import Figure

from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.report.pages import (
    count,
    data_uri,
    interval,
    number,
    percent,
    render_page,
    size_range,
    write_page,
)


def test_a_page_needs_every_value_its_template_names() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render_page("report.html.j2")


def test_the_browser_is_told_to_fetch_nothing() -> None:
    assert "default-src 'none'" in render_page("page.html.j2")


def test_numbers_that_do_not_exist_are_dashes() -> None:
    assert [number(None), number(float("nan")), percent(None), percent(float("nan")), interval(None)] == [
        "–"
    ] * 5


def test_numbers_have_fixed_digits_and_a_minus() -> None:
    assert (number(0.126), number(-3.06, 1), percent(0.666)) == ("0.13", "−3.1", "67 %")
    assert interval(Interval(-0.5, 2), 1) == "−0.5 to 2.0"


def test_counts_and_ranges_in_words() -> None:
    assert [count(0, "case"), count(1, "case"), count(2, "case")] == ["0 cases", "1 case", "2 cases"]
    assert [size_range(0, 2.5), size_range(2.5, 10), size_range(10, None)] == ["below 2.5", "2.5 to 10", "from 10"]  # fmt: skip


def test_a_figure_becomes_the_same_address_each_time() -> None:
    addresses = []
    for _ in range(2):
        figure = Figure((3, 2))
        figure.add_subplot().plot([1, 3, 2])
        addresses.append(data_uri(figure))
    assert addresses[0] == addresses[1]
    assert addresses[0].startswith("data:image/svg+xml;base64,")


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    write_page(tmp_path / "new" / "a.html", "– ≥ mm³")
    assert (tmp_path / "new" / "a.html").read_text(encoding="utf-8") == "– ≥ mm³"
    assert len(list((tmp_path / "new").iterdir())) == 1
