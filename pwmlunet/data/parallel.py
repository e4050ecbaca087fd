"""The same work for many cases: in threads, with progress, and no failure that hides the others."""

import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from tqdm import tqdm

from pwmlunet.errors import PwmlError


class Named(Protocol):
    """Anything with a case's name."""

    @property
    def name(self) -> str:
        """The case's name."""


Case = TypeVar("Case", bound=Named)
Result = TypeVar("Result")


def default_workers() -> int:
    """One worker for each core that this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def map_cases(
    function: Callable[[Case], Result], cases: Sequence[Case], *, workers: int, title: str
) -> tuple[list[Result], list[str]]:
    """Results in the order of the cases, and a sentence for each case that failed.

    Reading, decompressing and resampling release Python's lock, so threads are enough and nothing is
    copied between processes.
    """
    results: list[Result] = []
    problems: list[str] = []
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        futures = [pool.submit(function, case) for case in cases]
        rows = zip(cases, futures, strict=True)
        for case, future in tqdm(rows, title, len(cases), leave=False, disable=len(cases) < 2):
            try:
                results.append(future.result())
            except PwmlError as error:
                problems.append(name_case(error, case.name))
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C the cases in the queue need not be done
    return results, problems


def name_case(error: PwmlError, name: str) -> str:
    """The error's sentence, with the case's name in front where it names neither the case nor its file."""
    is_named = re.search(rf"(case |[/\\]){re.escape(name)}(_\d{{4}})?(?![\w-])", str(error))
    return str(error) if is_named else f"case {name}: {error}"
