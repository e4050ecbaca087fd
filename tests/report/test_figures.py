from pathlib import Path

import pytest
from drawing import chances, drawn, scored
from matplotlib.figure import Figure

from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.summary import TargetSummary, summarise
from pwmlunet.report.figures import (
    Curve,
    draw_curves,
    draw_froc,
    draw_recall_by_size,
    draw_reliability,
    read_curves,
)
from pwmlunet.report.pages import data_uri


def summary() -> TargetSummary:
    cases = [
        scored(drawn("11.1...1"), drawn("11.....1"), "a", probability=chances("98.4...6")[None]),
        scored(drawn("11......"), drawn("11...1.."), "b", probability=chances("75...7..")[None]),
    ]
    return summarise(cases, size_edges_mm3=(4, 50)).targets["lesion"]


def texts(figure: Figure) -> str:
    return " ".join(text.get_text() for axes in figure.axes for text in axes.texts)


def test_recall_by_size_says_how_many_lesions_it_is_about() -> None:
    figure = draw_recall_by_size(summary().by_size)
    assert texts(figure) == "1 of 2 2 of 2 0 of 0"
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["below 4", "4 to 50", "from 50"]
    assert [patch.get_height() for patch in axes.patches] == [0.5, 1]
    assert "mm³" in axes.get_xlabel()


def test_froc_is_drawn_as_steps_from_edge_to_edge() -> None:
    froc = summary().froc
    assert froc is not None
    (axes,) = draw_froc(froc).axes
    x, y = axes.lines[0].get_data()
    assert (x[0], x[-1]) == pytest.approx(axes.get_xlim())
    assert y[-1] == froc["mean_probability"].sensitivity_at["8"]
    assert y[0] == max(
        p.sensitivity for p in froc["mean_probability"].curve if not p.false_positives_per_subject
    )
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1/8", "1/4", "1/2", "1", "2", "4", "8"]


def test_reliability_shows_filled_bins() -> None:
    reliability = summary().reliability
    assert reliability is not None
    top, _ = draw_reliability(reliability).axes
    promised, observed = top.lines[1].get_data()
    filled = [b for b in reliability.bins if b.n_voxels]
    assert list(promised) == [b.mean_probability for b in filled]
    assert list(observed) == [b.observed_share for b in filled]


def write_metrics(folder: Path, *lines: str, ending: str = "\n") -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("\n".join(lines) + ending)


def test_curves_are_read_by_fold_without_a_line_being_written(tmp_path: Path) -> None:
    scored = '{"epoch": 2, "loss": 0.25, "learning_rate": 0.1, "val_lesion_f1": 0.5, "val_dice": null}'
    write_metrics(tmp_path / "fold_1", '{"epoch": 1, "loss": 0.5, "learning_rate": 0.1}', scored, '{"epoch": 3, "lo', ending="")  # fmt: skip
    write_metrics(tmp_path / "fold_0", '{"epoch": 1, "loss": 1, "learning_rate": 0.1}')
    write_metrics(tmp_path / "fold_2", "")
    assert read_curves(tmp_path) == (
        Curve("fold_0", (1,), (1.0,), (None,), (None,)),
        Curve("fold_1", (1, 2), (0.5, 0.25), (None, 0.5), (None, None)),
    )
    assert read_curves(tmp_path / "fold_0") == ()


@pytest.mark.parametrize("line", ['{"epoch": 1}', "{]}", "[1]}", '{"epoch": "a", "loss": 1}'])
def test_other_files_than_a_training_writes_are_refused(tmp_path: Path, line: str) -> None:
    write_metrics(tmp_path / "fold_0", line)
    with pytest.raises(PwmlError, match="is not what a training writes"):
        read_curves(tmp_path)


def test_curves_have_a_line_a_fold_and_leave_out_what_was_not_scored() -> None:
    curves = [
        Curve(f"fold_{i}", (1, 2, 3), (3.0, 2.0, 1.0), (None, 0.5, None), (None,) * 3) for i in range(2)
    ]
    loss, f1, dice = draw_curves(curves).axes
    assert [len(axes.lines) for axes in (loss, f1, dice)] == [2, 2, 2]
    assert f1.lines[1].get_xydata().tolist() == [[2, 0.5]]
    assert data_uri(draw_curves(curves[:1]))
