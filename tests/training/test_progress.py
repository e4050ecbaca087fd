import json

import pytest

from pwmlunet.errors import PwmlError
from pwmlunet.training.progress import append_metrics, draw_progress, keep_metrics


def row(epoch, **more):
    return {"epoch": epoch, "loss": 1 / epoch, "learning_rate": 1e-3, **more}


def test_rows_are_appended_and_later_ones_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert keep_metrics(path, 3) == []
    for epoch in (1, 2, 3):
        append_metrics(path, row(epoch))
    assert keep_metrics(path, 2) == [row(1), row(2)]
    assert [json.loads(line)["epoch"] for line in path.read_text().splitlines()] == [1, 2]


@pytest.mark.parametrize("rest", ['{"epo', '{"epoch": 2, "loss": 0.', "\n"])
def test_a_row_that_was_cut_by_a_power_failure_is_dropped(tmp_path, rest):
    path = tmp_path / "metrics.jsonl"
    append_metrics(path, row(1))
    path.write_text(path.read_text() + rest)
    assert keep_metrics(path, 5) == [row(1)]


def test_a_folder_that_is_gone_is_told(tmp_path):
    with pytest.raises(PwmlError, match="cannot write"):
        append_metrics(tmp_path / "gone" / "metrics.jsonl", row(1))


@pytest.mark.parametrize("rows", [[], [row(1)], [row(1), row(2, val_lesion_f1=0.5, val_dice=0.25)]])
def test_a_picture_is_drawn_of_any_number_of_rows(tmp_path, rows):
    draw_progress(tmp_path / "progress.png", rows, "a title")
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")
