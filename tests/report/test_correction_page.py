import base64
import io
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from PIL import Image

from pwmlunet.evaluation.bootstrap import Interval
from pwmlunet.evaluation.comparison import Difference, RunValue, ScoreComparison
from pwmlunet.report.correction import (
    CandidatePicture,
    CorrectionPage,
    ShownCandidate,
    ThresholdPoint,
    draw_ranking,
    draw_scores,
    draw_thresholds,
    separation,
    worth_showing,
    write_correction_page,
)

CLASSES = ("not a lesion", "FCI", "LACI")
LOST = ShownCandidate("sub-1", 1, 0, (0.875, 0.0625, 0.0625), 0.75, 3)
FALSE = ShownCandidate("sub-2", 0, 2, (0.25, 0.125, 0.625), 0.5, 4)
WRONG = ShownCandidate("sub-3", 2, 1, (0.125, 0.5, 0.375), 0.875, 5)
RIGHT = ShownCandidate("sub-4", 2, 2, (0.0625, 0.0625, 0.875), 1.0, 6)
GONE = ShownCandidate("sub-4", 0, 0, (0.75, 0.125, 0.125), 0.25)


def picture(candidate: ShownCandidate, n_channels: int = 2) -> CandidatePicture:
    """Two bright rows in the second channel, and a candidate that is neither centred nor square."""
    channels = np.zeros((n_channels, 12, 16), np.float32)
    channels[-1, 2:4] = 1
    mask = np.zeros((12, 16), bool)
    mask[2:4, 5:10] = True
    mask[4, 5] = True
    return CandidatePicture(candidate, channels, mask, 14.4)


def score(words: str, *values: RunValue, **options: Any) -> ScoreComparison:
    given = {"unit": "", "over": "lesions of both masks", "lower_is_better": False, **options}
    return ScoreComparison(words, words, runs=values, **given)


BETTER = Difference(0.125, Interval(0.0625, 0.25), 40, "better")
F1 = score("lesion F1", RunValue(0.5, Interval(0.375, 0.75), 40, None), RunValue(0.625, None, 38, BETTER))


def page(**options: Any) -> CorrectionPage:
    """Two subjects' folds with each kind of mistake."""
    candidates = (RIGHT, LOST, GONE, WRONG, FALSE)
    given: dict[str, Any] = {
        "run": "flair/unet",
        "dataset": "Dataset007_Pairs",
        "folds": ("0", "1"),
        "n_subjects": 3,
        "n_cases": 4,
        "n_lesions": 8,
        "classes": CLASSES,
        "channels": ("T2 FLAIR", "T1 FLAIR"),
        "is_used": True,
        "verdict": "it is better for certain",
        "threshold": 0.2,
        "thresholds": (ThresholdPoint(0.1, 7, 30), ThresholdPoint(0.2, 6, 9), ThresholdPoint(0.5, 2, 1)),
        "candidates": candidates,
        "points": {"stage one": "at threshold 0.5", "with the correction": ""},
        "scores": {"lesion": (F1,)},
        "pictures": tuple(map(picture, candidates)),
        "fold_thresholds": {"0": 0.1, "1": 0.3},
        "remarks": ("fold 1 has no LACI",),
    }
    return CorrectionPage(**given | options)


def plain(**options: Any) -> CorrectionPage:
    """The same without charts."""
    return page(thresholds=(), candidates=(), pictures=(), **options)


def single(*candidates: ShownCandidate, **options: Any) -> CorrectionPage:
    """A dataset of one kind of lesion and one channel, of which nothing was compared or tried."""
    given: dict[str, Any] = {
        "classes": ("not a lesion", "lesion"),
        "channels": ("T1",),
        "folds": ("0",),
        "candidates": candidates,
        "thresholds": (),
        "points": {},
        "scores": {},
        "pictures": tuple(picture(candidate, 1) for candidate in candidates),
        "fold_thresholds": {},
        "remarks": (),
    }
    return page(**given | options)


HIT = ShownCandidate("a", 1, 1, (0.25, 0.75), 0.5)
MIMIC = ShownCandidate("b", 0, 0, (0.75, 0.25), 0.5)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Writes a page and gives its text."""

    def write(page: CorrectionPage) -> str:
        path = tmp_path / "correction" / "report.html"
        write_correction_page(path, page)
        return path.read_text(encoding="utf-8")

    return write


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of all parts."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_correction_page(path, page())
    return path.read_text(encoding="utf-8")


def words(html: str) -> str:
    """What a reader sees, in one line."""
    body = html[html.index("<body>") :]
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def rows(html: str, section: str) -> list[list[str]]:
    """The tables of a section, cell by cell."""
    part = html[html.index(f'<section id="{section}"') :]
    part = part[: part.index("</section>")]
    found = re.findall(r"<tr.*?</tr>", part, re.DOTALL)
    return [[words(f"<body>{cell}") for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in found]  # fmt: skip


def cards(html: str) -> list[str]:
    return [words(f"<body>{card}") for card in html.split('<div class="card">')[1:]]


def test_names_are_no_markup(written: Any) -> None:
    html = written(plain(run="<b>run</b>"))
    assert "<b>run" not in html
    assert "&lt;b&gt;run" in html


def test_the_page_is_one_file_that_fetches_nothing(html: str) -> None:
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", html)
    assert "url(" not in html
    assert "<script" not in html
    assert "default-src 'none'" in html


def test_it_says_of_what_it_is_and_what_was_decided(html: str, written: Any) -> None:
    shown = words(html)
    assert "8 reference lesions and 5 candidates in 4 cases of 3 subjects; held-out folds: 0, 1." in shown
    assert "The correction is used. It is better for certain." in shown
    assert shown.endswith("Fold 1 has no LACI.")
    assert "The correction is left off. It is better" in words(written(plain(is_used=False)))


def test_scores_have_intervals_n_and_differences(written: Any) -> None:
    false = score("false positives per case", RunValue(2.0, None, 4, None), RunValue(1.5, None, 4, Difference(-0.5, None, 4, "no interval")), lower_is_better=True, over="cases")  # fmt: skip
    html = written(plain(scores={"lesion": (F1, false)}))
    table = rows(html, "gain")
    first = ["lesion F1 n: lesions of both masks", "stage one", "0.50", "0.38 to 0.75", "40"]
    assert table[1] == [*first, "", "", "baseline"]
    assert table[2] == ["with the correction", "0.62", "–", "38", "+0.12", "0.06 to 0.25", "better"]
    assert table[3][0] == "false positives per case lower is better; n: cases"
    assert table[4] == ["with the correction", "1.50", "–", "4", "−0.50", "–", "no interval"]
    assert "Stage one: at threshold 0.5. " in words(html)
    assert "With the correction:" not in words(html)  # it has nothing more to say of it


def test_each_target_has_its_table(written: Any) -> None:
    html = written(plain(scores={"FCI": (F1,), "LACI": (F1,)}))
    assert len(rows(html, "gain")) == 6
    assert "LACI . A difference is to stage one" in words(html)


def test_thresholds_have_recall_and_false_candidates_per_case(html: str) -> None:
    assert rows(html, "thresholds")[1:] == [
        ["0.1", "88 % (7 of 8)", "7.50 (30 in 4)"],
        ["chosen: 0.2", "75 % (6 of 8)", "2.25 (9 in 4)"],
        ["0.5", "25 % (2 of 8)", "0.25 (1 in 4)"],
    ]
    assert "0.1 (fold 0), 0.3 (fold 1)." in words(html)


def test_the_chosen_threshold_is_marked() -> None:
    recall, false = draw_thresholds(page()).axes
    assert recall.lines[0].get_ydata().tolist() == [7 / 8, 6 / 8, 2 / 8]
    assert false.lines[0].get_ydata().tolist() == [30 / 4, 9 / 4, 1 / 4]
    assert [line.get_xdata()[0] for line in (recall.lines[1], false.lines[1])] == [0.2, 0.2]
    assert recall.texts[0].get_text().strip() == "chosen: 0.2"


def test_candidates_are_counted_by_class(html: str) -> None:
    assert rows(html, "judged")[1:] == [
        ["not a lesion", "1", "0", "1", "2", "50 %"],
        ["FCI", "1", "0", "0", "1", "0 %"],
        ["LACI", "0", "1", "1", "2", "50 %"],
    ]
    shown = words(html)
    assert "Removed: 1 of 2 candidates (50 %) that are no lesion." in shown
    assert "Kept: 2 of 3 candidates (67 %) that are lesions." in shown
    assert "Of the right kind: 1 of 2 lesions (50 %) that were kept." in shown


def test_scores_are_told_apart_by_how_often_a_lesion_is_above_another(html: str) -> None:
    # stage one: .75, .875, 1 against .5, .25; the correction: .125, .875, .9375 against .75, .25
    is_lesion = np.array([True, True, True, False, False])
    assert separation(np.array([0.75, 0.875, 1, 0.5, 0.25]), is_lesion) == 1
    assert separation(np.array([0.125, 0.875, 0.9375, 0.75, 0.25]), is_lesion) == pytest.approx(4 / 6)
    assert separation(np.array([0.5, 0.5]), np.array([True, False])) == 0.5
    expected = "in 100 % of the pairs by stage one's highest probability, in 67 % of the pairs by the correction's score."
    assert expected in words(html)


def test_candidates_of_one_score_are_kept_together() -> None:
    rankings = {"a": np.array([0.9, 0.5, 0.5, 0.1]), "b": np.array([0.2, 0.8, 0.4, 0.4])}
    (axes,) = draw_ranking(rankings, np.array([True, True, False, False]), 2).axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[0, 0], [0, 0.5], [0.5, 1], [1, 1]],
        [[0, 0], [0, 0.5], [1, 0.5], [1, 1]],
    ]


def test_bars_count_lesions_and_others() -> None:
    rankings = {"peak": np.array([0.0, 0.05, 1.0, 0.55]), "score": np.array([0.25, 0.25, 0.75, 0.75])}
    panels = draw_scores(rankings, np.array([False, False, True, True])).axes
    heights = [[[bar.get_height() for bar in bars] for bars in axes.containers] for axes in panels]
    none = 0.5  # the foot of the axis
    assert heights[0] == [[2, *[none] * 9], [*[none] * 5, 1, *[none] * 3, 1]]
    assert heights[1] == [[none, none, 2, *[none] * 7], [*[none] * 7, 2, none, none]]
    labels = [text.get_text() for text in panels[0].figure.legends[0].get_texts()]
    assert labels == ["not a lesion (n 2)", "lesion (n 2)"]
    assert panels[0].get_ylim() == panels[1].get_ylim() == (0.5, 1.3 * 2)


def test_pictures_are_ordered_by_how_wrong_the_network_was(html: str) -> None:
    lost, false, wrong, gone, right = cards(html)
    assert lost.startswith(
        "lost sub-1, slice 3 2 mm T2 FLAIR 2 mm T1 FLAIR is FCI judged not a lesion score 0.12"
    )
    assert "(FCI 0.06, LACI 0.06) stage one 0.75" in lost
    assert false.startswith("false sub-2, slice 4 ")
    assert wrong.startswith("wrong kind sub-3, slice 5 ")
    assert "is LACI judged FCI score 0.88" in wrong
    assert gone.startswith("right sub-4 2 mm")  # no slice is known
    assert right.startswith("right sub-4, slice 6 ")
    assert "3 mistakes: 1 lost, 1 false, 1 of a wrong kind. All are shown." in words(html)
    for kind in ("lost", "false", "wrong", "right"):
        assert f'<span class="kind {kind}">' in html.split('<div class="card">', 1)[1]
        assert f".kind.{kind} {{" in html


def test_a_picture_shows_each_channel_and_the_outline(html: str) -> None:
    card = html.split('<div class="card">')[1]
    first, second = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(address))))
        for address in re.findall(r'href="data:image/png;base64,([^"]*)"', card)
    )
    expected = np.zeros((12, 16), np.uint8)
    assert first.tolist() == expected.tolist()
    expected[2:4] = 255
    assert second.tolist() == expected.tolist()
    paths = re.findall(r'class="outline" d="M([^"]*)Z"', card)
    assert len(paths) == 2
    corners = [tuple(map(int, point.split(","))) for point in paths[0].split()]
    pixels = [(x + 0.5, y + 0.5) for y in range(12) for x in range(16)]
    inside = Outline([*corners, corners[0]]).contains_points(pixels).reshape(12, 16)
    assert inside.tolist() == picture(LOST).mask.tolist()
    bar = re.search(r'class="bar" d="M\S+ \S+h([\d.]+)"', card)
    assert bar is not None
    assert float(bar[1]) * 14.4 / 16 == pytest.approx(2, abs=1e-3)  # mm


def test_a_picture_has_as_many_channels_as_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_correction_page(tmp_path / "a.html", single(HIT, pictures=(picture(HIT),)))


def test_worth_showing_are_the_worst_of_each_kind_and_the_surest_right_ones() -> None:
    worse = replace(LOST, probabilities=(0.9375, 0, 0.0625))
    surer = replace(GONE, probabilities=(0.875, 0.125, 0))
    candidates = [GONE, RIGHT, LOST, WRONG, surer, worse, FALSE]
    assert worth_showing(candidates) == [5, 6, 3, 2, 4, 1, 0]
    assert worth_showing(candidates, n_mistakes=2, n_right=0) == [5, 6]
    assert worth_showing(candidates, n_mistakes=0, n_right=2) == [4, 1]
    assert worth_showing([]) == []


def test_mistakes_that_are_not_shown_are_told(written: Any) -> None:
    html = written(page(thresholds=(), pictures=(picture(LOST), picture(RIGHT))))
    assert len(cards(html)) == 2
    assert "1 of a wrong kind. 1 is shown, of each kind the worst." in words(html)
    assert "1 of 2, of each class the surest." in words(html)
    html = written(page(thresholds=(), pictures=()))
    assert "1 of a wrong kind. None is shown." in words(html)
    assert "outlines" not in words(html)


def test_one_class_and_one_channel_without_mistakes(written: Any) -> None:
    html = written(single(HIT, MIMIC))
    assert rows(html, "judged") == [
        ["Is", "judged not a lesion", "judged lesion", "Candidates", "Right"],
        ["not a lesion", "1", "0", "1", "100 %"],
        ["lesion", "0", "1", "1", "100 %"],
    ]
    shown = words(html)
    assert "kind" not in shown
    assert "No candidate was judged wrongly. Judged rightly 2 of 2." in shown
    assert "a lesion that was removed" not in shown
    assert "Nothing was compared." in shown
    assert "held-out fold: 0." in shown
    assert "What must be known" not in shown
    assert cards(html)[0] == "right a 2 mm T1 is lesion judged lesion score 0.75 stage one 0.50"


@pytest.mark.parametrize(
    ("candidate", "sentences"),
    [
        (MIMIC, ("No candidate is a lesion: there is nothing to tell apart.", "Kept: 0 of 0 candidates that are lesions.")),
        (HIT, ("Every candidate is a lesion: there is nothing to tell apart.", "Removed: 0 of 0 candidates that are no lesion.")),
    ],
)  # fmt: skip
def test_candidates_of_one_sort_are_not_ranked(
    candidate: ShownCandidate, sentences: tuple[str, str], written: Any
) -> None:
    html = written(single(candidate))
    for sentence in sentences:
        assert sentence in words(html)
    assert "of the pairs" not in words(html)
    assert html.count("<img") == 1  # the scores


def test_no_candidate_and_no_threshold(written: Any) -> None:
    html = written(single(n_lesions=0))
    shown = words(html)
    assert "0 reference lesions and 0 candidates" in shown
    assert "There is no candidate: stage one gives no voxel of the held-out cases more than 0.2." in shown
    assert "No other threshold than 0.2 was tried." in shown
    assert "<img" not in html
    assert "Pictures" not in shown


def test_no_reference_lesion_has_no_recall(written: Any) -> None:
    given = single(n_lesions=0, thresholds=(ThresholdPoint(0.2, 0, 1),))
    assert rows(written(given), "thresholds")[1] == ["chosen: 0.2", "– (0 of 0)", "0.25 (1 in 4)"]
    recall = draw_thresholds(given).axes[0]
    assert "no reference lesion" in [text.get_text() for text in recall.texts]
    assert len(recall.lines) == 1  # the chosen threshold


def test_a_score_that_does_not_exist_is_a_dash(written: Any) -> None:
    none = score("lesion F1", RunValue(None, None, 0, None), RunValue(None, None, 0, Difference(None, None, 0, "no interval")))  # fmt: skip
    table = rows(written(plain(scores={"lesion": (none,)})), "gain")
    assert table[1][2:] == ["–", "–", "0", "", "", "baseline"]
    assert table[2][1:] == ["–", "–", "0", "–", "–", "no interval"]
