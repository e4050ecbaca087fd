import json
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.evaluation.comparison import Difference
from pwmlunet.reproduction.figures import (
    Answer,
    HonestScore,
    PaperFigure,
    Reproduction,
    RowFigures,
    TargetFigures,
)
from pwmlunet.reproduction.page import check_place, ours, text, write_reproduction
from pwmlunet.reproduction.studies import FCI_LACI, PRIORITY_UNET, RS_RCNN
from pwmlunet.reproduction.study import Study, StudyRow


def made_up(n_seeds: int = 1, study: Study = PRIORITY_UNET) -> Reproduction:
    """A reproduction with a figure of its own in each cell."""
    score = HonestScore(0.4321, Interval(0.21, 0.65), 17, "lesions")
    rows = tuple(
        RowFigures(
            row.name,
            row.run,
            row.words,
            dict(figures_of(study, row, (index + 1) / 100, 0.01 * (n_seeds - 1))),
            dict.fromkeys(("lesion_f1", "lesion_recall", "lesion_precision", "dice"), score),
        )
        for index, row in enumerate(study.rows)
    )
    differences = dict.fromkeys(("lesion_f1", "lesion_recall"), Difference(0.1, Interval(0.05, 0.2), 17, "better"))  # fmt: skip
    answers = tuple(Answer(q.words, differences, "By lesion F1 it helps <so far>.") for q in study.questions)
    return Reproduction(
        study=study.name,
        dataset="Dataset007_Fan",
        n_subjects=12,
        n_cases=14,
        folds=("0", "1"),
        n_folds=10,
        seeds=tuple(range(n_seeds)),
        smallest_lesion_mm3=1.7,
        shrunk=("priority_2d has 8 channels instead of 32.",),
        different=("The folds are others.",),
        remarks=("One subject only.",),
        targets={"lesion": TargetFigures(17, rows, answers)},
    )


def figures_of(study: Study, row: StudyRow, less: float, spread: float) -> Iterator[tuple[str, PaperFigure]]:
    """The figures of a row: a little less than printed, and of what is not printed, some of nine."""
    for table in study.tables:
        if table.has(row.name):
            for name in (*table.columns, *table.beside):
                printed = row.printed.get(name)
                value = 300 * less if name == "slices_left_out" else (printed or 0.5) - less
                yield name, PaperFigure(printed, value, value - spread, value + spread, 9)


@pytest.fixture
def page(tmp_path):
    def write(found=None):
        path = tmp_path / "page.html"
        write_reproduction(path, found or made_up())
        return path.read_text()

    return write


def table(html: str, caption: str) -> list[list[str]]:
    """The cells of the body of the table with that caption."""
    (body,) = re.findall(rf"<caption>{caption}.*?<tbody>(.*?)</tbody>", html, re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", body)]


def test_printed_figures_stand_beside_ours(page) -> None:
    html = page()
    assert table(html, "Detection")[3] == ["Priority U-Net, SBFL + Dice", "0.5370", "0.4970", "0.5043", "0.4643"]  # fmt: skip
    assert table(html, "Volume")[1] == [
        "U-Net, SBFL + Dice",
        *("0.6043", "0.5843", "0.1806", "0.1606", "0.2611", "0.2411", "0.9999", "0.9799"),
    ]


def test_slices_left_out_stand_beside_what_the_paper_counts(page) -> None:
    html = page(made_up(study=RS_RCNN))
    modules, sweep = table(html, "Table 1"), table(html, "Table 2")
    assert modules[0][:3] == ["A: Mukherjee et al. 2019 (classical)", "0.4288", "0.4188"]
    assert modules[1][-4:] == ["62.07", "62.05", "0.4800", "6 of 9"]
    assert modules[5][:3] == ["E, but no lesion may be deleted (ours)", "–", "0.4400"]
    assert [row[0] for row in sweep] == ["C with k = 1.0", "C with k = 1.1", "C with k = 1.2", "C: B + H-RPN (k = 1.3)", "C with k = 1.4", "C with k = 1.5", "C with k = 1.7", "C with k = 2.0", "C with k = 3.0"]  # fmt: skip
    assert sweep[3][1:] == ["0.6508", "0.6208", "0.4700", "9 of 9"]
    assert "0.4700  9 of 9" in re.sub(" {3,}", "  ", text(made_up(study=RS_RCNN)))
    assert '<td class="n here">9 of 9 (9 to 9)</td>' in page(made_up(3, RS_RCNN))


def test_counts_are_written_in_full() -> None:
    assert (
        ours(PaperFigure(None, 1234.0, 1200.0, 1268.5, 2000), counts=True) == "1234 of 2000 (1200 to 1268.5)"
    )


def test_a_table_without_rows_is_left_out(page) -> None:
    found = made_up(study=RS_RCNN.only(["D", "E"]))
    for shown in (page(found), text(found)):
        assert "Table 1" in shown
        assert "Table 2" not in shown
    assert "What helps" not in page(made_up(study=RS_RCNN.only(["D"])))


def test_kinds_that_the_paper_counts_together_have_honest_scores_alone(page) -> None:
    found = made_up(study=FCI_LACI.only(["a", "b"]))
    (together,) = found.targets.values()
    kind = replace(together, rows=tuple(replace(row, figures={}) for row in together.rows))
    found = replace(found, targets={"FCI + LACI": together, "FCI": kind, "LACI": kind})
    assert [target.is_papers for target in found.targets.values()] == [True, False, False]
    html, shown = page(found), text(found)
    assert table(html, "Lesions and their kinds")[1][1:5] == ["0.9176", "0.8976", "0.9289", "0.9089"]
    for words in (html, shown):
        assert words.count("Lesions and their kinds") == 1
        assert words.count("Honest scores") == 3
    assert "17 lesions (FCI + LACI) and 17 lesions (FCI) and 17 lesions (LACI)" in " ".join(shown.split())


@pytest.mark.parametrize(
    "words",
    [
        "on another dataset the figures differ",
        "21 volumes of 3-D cranial ultrasound with 131 lesions, which are not public",
        "Dataset007_Fan, 12 subjects, 14 cases, 17 lesions (lesion); held-out folds: 0, 1 (of 10); seeds: 0.",
        "priority_2d has 8 channels instead of 32.",
        "The folds are others.",
        "One subject only.",
        "Does the prior help, with BCE + Dice?",
    ],
)
def test_page_and_text_say_what_a_reader_must_know(page, words) -> None:
    assert words in page()
    assert words in " ".join(text(made_up()).split())


def test_the_page_is_one_file_and_says_that_it_was_quick(page) -> None:
    html = page()
    assert "Made with --quick" in html
    assert "it helps &lt;so far&gt;" in html
    assert not re.search(r"(src|href)=", html)
    assert "Made with --quick" not in page(replace(made_up(), shrunk=()))


def test_honest_scores_have_their_intervals_and_n(page) -> None:
    assert page().count('<td class="n">0.43</td><td class="n">0.21 to 0.65</td><td class="n">17</td>') == 16
    assert text(made_up()).count("0.43 (0.21 to 0.65)") == 16


def test_several_seeds_show_their_range(page) -> None:
    html = page(made_up(3))
    assert table(html, "Detection")[0][2] == "0.4304 (0.4104 to 0.4504)"
    assert "mean over 3 seeds, lowest to highest" in html
    assert "seeds, lowest" not in page()


def test_the_text_is_aligned() -> None:
    lines = text(made_up()).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Volume"))
    first = lines[start].index("precision: paper")
    assert lines[start + 1] == "-" * max(map(len, lines[start : start + 6]))
    assert [line[first : first + 6] for line in lines[start + 2 : start + 6]] == ["0.5004", "0.6043", "0.5455", "0.5289"]  # fmt: skip


def test_figures_are_read_back(page, tmp_path) -> None:
    page()
    assert Reproduction.read(tmp_path / "page.json") == made_up()


def test_nothing_else_is_replaced(tmp_path) -> None:
    path = tmp_path / "page.html"
    write_reproduction(path, made_up())
    write_reproduction(path, made_up())
    other = tmp_path / "page.json"
    other.write_text(json.dumps({"precious": 1}))
    with pytest.raises(PwmlError, match="was not written by pwml_reproduce: choose another place with -o"):
        write_reproduction(path, made_up())
    with pytest.raises(PwmlError, match=r"name a file, such as .*place.html"):
        check_place(tmp_path / "place")
