import threading
import time
from dataclasses import dataclass

import pytest

from pwmlunet.data.parallel import default_workers, map_cases, name_case
from pwmlunet.errors import PwmlError


@dataclass(frozen=True)
class Case:
    name: str
    seconds: float = 0.0


CASES = [Case("slow", 0.05), Case("bad"), Case("quick"), Case("worse")]


def work(case: Case) -> str:
    time.sleep(case.seconds)
    if case.name == "bad":
        raise PwmlError("it is empty")
    if case.name == "worse":
        raise PwmlError("/data/worse.nii.gz cannot be read")
    return case.name.upper()


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_results_keep_the_order_and_errors_name_their_case(workers):
    results, problems = map_cases(work, CASES, workers=workers, title="work")
    assert results == ["SLOW", "QUICK"]
    assert problems == ["case bad: it is empty", "/data/worse.nii.gz cannot be read"]


def test_cases_are_worked_on_at_the_same_time():
    both = threading.Barrier(2, timeout=5)
    results, _ = map_cases(lambda case: both.wait() >= 0, CASES[:2], workers=2, title="work")
    assert results == [True, True]


def test_a_mistake_of_ours_is_not_hidden_and_ends_the_rest():
    begun = []

    def fail(case):
        begun.append(case.name)
        time.sleep(0.05)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        map_cases(fail, [Case(str(i)) for i in range(20)], workers=1, title="work")
    assert len(begun) < 5


def test_no_cases_are_no_work():
    assert map_cases(work, [], workers=3, title="work") == ([], [])


def test_workers_are_few():
    assert 1 <= default_workers() <= 8


@pytest.mark.parametrize(
    ("name", "sentence", "named"),
    [
        ("c", "it shows no fan", "case c: it shows no fan"),
        ("1", "its voxels are 0.1 mm", "case 1: its voxels are 0.1 mm"),
        ("sub-1", "case sub-10: odd", "case sub-1: case sub-10: odd"),
        ("sub-1", "/raw/sub-1_0000.nii.gz is damaged", "/raw/sub-1_0000.nii.gz is damaged"),
        ("sub-1", "case sub-1: odd", "case sub-1: odd"),
    ],
)
def test_a_case_is_named_where_its_sentence_does_not_say_it(name, sentence, named):
    assert name_case(PwmlError(sentence), name) == named
