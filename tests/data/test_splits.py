import json
from collections import Counter

import numpy as np
import pytest

from pwmlunet.data.splits import Split, make_splits, read_held_out, read_splits, write_splits
from pwmlunet.errors import PwmlError


def each(lesions):
    """Lesions of one kind."""
    return {case: (n,) for case, n in lesions.items()}


def test_the_rare_kind_is_dealt_out_first():
    """Of subjects with many lesions a few have the rare kind: every fold shall hold one of them out."""
    lesions = {f"case{i:02d}": (1 if i % 5 == 2 else 0, 20 - i) for i in range(20)}
    splits = make_splits({case: case for case in lesions}, lesions, n_folds=4)
    assert all(sum(lesions[case][0] for case in split.val) == 1 for split in splits)


@pytest.mark.parametrize(("n_folds", "expected"), [(2, 2), (5, 5), (10, 10), (20, 13)])
def test_subjects_stay_together_and_each_case_is_held_out_once(n_folds, expected):
    subjects = {f"case{i:02d}": f"s{i // 2}" for i in range(26)}
    splits = make_splits(subjects, dict.fromkeys(subjects, (1,)), n_folds=n_folds)
    assert len(splits) == expected
    assert Counter(case for split in splits for case in split.val) == Counter(list(subjects))
    for split in splits:
        assert sorted([*split.train, *split.val]) == sorted(subjects)
        assert not {subjects[c] for c in split.train} & {subjects[c] for c in split.val}


def test_each_held_out_part_has_a_like_share_of_lesions():
    rng = np.random.default_rng(0)
    lesions = {f"case{i:02d}": int(n) for i, n in enumerate(rng.permutation(np.arange(25) ** 2))}
    splits = make_splits({case: case for case in lesions}, each(lesions), n_folds=5)
    ranked = sorted(lesions, key=lambda case: -lesions[case])
    for start in range(0, 25, 5):  # of each five alike, every fold has one
        assert all(len({*split.val} & {*ranked[start : start + 5]}) == 1 for split in splits)


def test_a_subjects_lesions_are_those_of_all_its_cases():
    lesions = {"a1": 3, "a2": 3, "b": 5, "c": 1, "d": 0}
    subjects = {"a1": "a", "a2": "a", "b": "b", "c": "c", "d": "d"}
    for seed in range(10):
        splits = make_splits(subjects, each(lesions), n_folds=5, seed=seed)
        assert len(splits) == 4 and all(split.train and split.val for split in splits)


def test_the_seed_decides_and_the_order_of_cases_does_not():
    lesions = {f"case{i}": i % 4 for i in range(20)}
    subjects = {case: case for case in lesions}
    backwards = dict(reversed(subjects.items()))
    made = make_splits(subjects, each(lesions), n_folds=5)
    assert made == make_splits(backwards, each(lesions), n_folds=5)
    assert made != make_splits(subjects, each(lesions), n_folds=5, seed=1)


def test_one_subject_cannot_be_divided():
    with pytest.raises(PwmlError, match=r"one subject \(s\).*fold 'all'"):
        make_splits({"a": "s", "b": "s"}, {"a": (1,), "b": (1,)}, n_folds=5)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "splits.json"
    splits = [Split(("a", "b"), ("c",)), Split(("c",), ("a", "b"))]
    write_splits(path, splits)
    assert json.loads(path.read_text())[0] == {"train": ["a", "b"], "val": ["c"]}
    assert read_splits(path, {"a": "1", "b": "1", "c": "2"}) == splits


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "must be a list of folds"),
        ([], "must be a list of folds"),
        ([["a"]], 'fold 0 must have "train" and "val"'),
        ([{"train": ["a"]}], 'fold 0 must have "train" and "val"'),
        ([{"train": ["a"], "val": []}], 'fold 0 must have "train" and "val"'),
        ([{"train": "a", "val": ["c"]}], 'fold 0 must have "train" and "val"'),
        ([{"train": ["a"], "val": ["c"]}, {"train": ["x"], "val": ["c"]}], r"fold 1 names cases .*\(x\).*delete"),
        ([{"train": ["a"], "val": ["b"]}], "fold 0 leaks: subject 1"),
        ([{"train": ["a"], "val": ["a"]}], "fold 0 leaks: subject 1"),
    ],
)  # fmt: skip
def test_broken_splits_are_told(tmp_path, content, expected):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(content))
    with pytest.raises(PwmlError, match=expected) as caught:
        read_splits(path, {"a": "1", "b": "1", "c": "2"})
    assert str(path) in str(caught.value)


def test_each_case_has_the_fold_that_holds_it_out(tmp_path):
    splits = [Split(("a",), ("b", "c")), Split(("b", "c"), ("a",)), Split(("c",), ("a", "b"))]
    write_splits(tmp_path / "splits.json", splits)
    assert read_held_out(tmp_path / "splits.json") == {"a": "1", "b": "0", "c": "0"}
    (tmp_path / "splits.json").write_text("{}")
    with pytest.raises(PwmlError, match="must be a list of folds"):
        read_held_out(tmp_path / "splits.json")
