import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import drawn, scored

from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.bootstrap import ratio_interval
from pwmlunet.evaluation.scores import CaseScores
from pwmlunet.evaluation.sizes import by_size, quartiles_mm3, training_quartiles_mm3


def two_cases() -> list[CaseScores]:
    """Lesions of 3, 6 and 12 mm³; the first is missed in a, the second in b; one of 3 mm³ is false."""
    return [
        scored(drawn("1..11....1111.."), drawn("...111...1111.1"), "a"),
        scored(drawn("1..11.........."), drawn("1.............."), "b"),
    ]


def test_recall_dice_and_bias_by_size() -> None:
    small, middle, large = by_size(two_cases(), "lesion", (4, 10))
    assert [(b.low_mm3, b.high_mm3) for b in (small, middle, large)] == [(0, 4), (4, 10), (10, None)]
    assert [(b.n_reference, b.n_found, b.recall) for b in (small, middle, large)] == [(2, 1, 0.5), (2, 1, 0.5), (1, 1, 1)]  # fmt: skip
    assert [b.dice for b in (small, middle, large)] == pytest.approx([1 / 2, (4 / 5) / 2, 1])
    assert [b.volume_bias_mm3 for b in (small, middle, large)] == pytest.approx([0, 3, 0])
    assert [(b.n_predicted, b.n_false) for b in (small, middle, large)] == [(2, 1), (1, 0), (1, 0)]


def test_intervals_are_over_all_subjects() -> None:
    clean = scored(drawn("..............."), drawn("..............."), "c")
    small, middle, large = by_size([*two_cases(), clean], "lesion", (4, 10))
    assert small.recall_interval == ratio_interval([0, 1, 0], [1, 1, 0])
    assert middle.recall_interval == ratio_interval([1, 0, 0], [1, 1, 0])
    assert large.recall_interval is None


def test_subjects_without_such_lesions_widen_an_interval() -> None:
    def case(name: str, reference: str, found: bool) -> CaseScores:
        return scored(drawn(reference), drawn(reference if found else "....."), name)

    cases = [case(f"s{i}", "1....", i % 2 == 0) for i in range(4)]
    others = [case(f"o{i}", "111..", True) for i in range(20)]
    small = by_size([*cases, *others], "lesion", (4,))[0]
    assert small.recall_interval == ratio_interval([1, 0, 1, 0, *[0] * 20], [1, 1, 1, 1, *[0] * 20])


def test_an_empty_bin_has_nothing_to_say() -> None:
    (_, empty) = by_size(two_cases(), "lesion", (100,))
    assert (empty.n_reference, empty.recall, empty.dice, empty.volume_bias_mm3) == (0, None, None, None)


def test_bins_hold_every_lesion_once_and_an_edge_belongs_to_the_bin_above() -> None:
    bins = by_size(two_cases(), "lesion", (3, 6, 12))
    assert [b.n_reference for b in bins] == [0, 2, 2, 1]
    near = [scored(drawn("1.11"), drawn("1.11"), spacing_zyx_mm=(3, 1, 0.699999988))]  # 0.7 in a NIfTI file
    assert [b.n_reference for b in by_size(near, "lesion", (2.1, 4.2))] == [0, 1, 1]


def test_equal_edges_are_one() -> None:
    assert len(by_size(two_cases(), "lesion", (6, 6, 6))) == 2
    assert by_size(two_cases(), "lesion", np.array([6.0])) == by_size(two_cases(), "lesion", [6])  # type: ignore[arg-type]


@pytest.mark.parametrize("edges", [(5, 3), (0, 3), (-1,), (float("nan"),), (float("inf"),)])
def test_edges_must_rise_above_zero(edges: tuple[float, ...]) -> None:
    with pytest.raises(PwmlError, match="must be rising volumes above 0"):
        by_size(two_cases(), "lesion", edges)


def test_quartiles() -> None:
    assert quartiles_mm3([4, 1, 3, 2, 5]) == (2, 3, 4)
    assert quartiles_mm3([7]) == (7, 7, 7)


def test_training_quartiles_come_from_prediction_json(tmp_path: Path) -> None:
    path = tmp_path / "prediction.json"
    assert training_quartiles_mm3(tmp_path) is None
    path.write_text(json.dumps({"model": "here"}))
    assert training_quartiles_mm3(tmp_path) is None
    path.write_text(json.dumps({"lesion_quartiles_mm3": {"lesion": [1, 2.5, 4]}}))
    assert training_quartiles_mm3(tmp_path) == {"lesion": (1.0, 2.5, 4.0)}


@pytest.mark.parametrize(
    "quartiles", [[1, 2, 3], {"lesion": 3}, {"lesion": [3, 2, 1]}, {"lesion": ["1", 2, 3]}]
)
def test_odd_training_quartiles_are_an_error(tmp_path: Path, quartiles: Any) -> None:
    (tmp_path / "prediction.json").write_text(json.dumps({"lesion_quartiles_mm3": quartiles}))
    with pytest.raises(PwmlError, match=r"prediction.json: .* must give rising volumes"):
        training_quartiles_mm3(tmp_path)


def test_clean_subjects_are_resampled_too() -> None:
    found = [int(i % 3 != 0) for i in range(9)]
    cases = [scored(drawn("1...."), drawn("1...." if f else "....."), f"s{i}") for i, f in enumerate(found)]
    clean = [scored(drawn("....."), drawn("....."), f"clean{i}") for i in range(20)]
    (small, _) = by_size([*cases, *clean], "lesion", (4,))
    with_clean = ratio_interval([*[0] * 20, *found], [*[0] * 20, *[1] * 9])  # by name: clean0 … s0 …
    assert small.recall_interval == with_clean != ratio_interval(found, [1] * 9)
