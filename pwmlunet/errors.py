"""The one exception that a user can do something about."""

from collections.abc import Sequence


class PwmlError(Exception):
    """Says what is wrong, where (file, case) and what to do; shown without a traceback, exit code 2."""

    @classmethod
    def listing(cls, headline: str, problems: Sequence[str]) -> "PwmlError":
        """One error for several problems, so that a user mends them all before the next try.

        A single problem is its own sentence; more than one are listed under the headline.
        """
        if len(problems) == 1:
            return cls(problems[0])
        return cls("\n".join([f"{headline} ({len(problems)}):", *(f"  - {p}" for p in problems)]))

    @classmethod
    def of_some(cls, problems: Sequence[str], n_all: int, what: str) -> "PwmlError":
        """One error for the cases that failed among all, which says that the work on the others is not lost."""
        if len(problems) == n_all:
            return cls.listing(f"all {what} failed", problems)
        if len(problems) == 1:
            return cls(f"{problems[0]} (the other {what} are done)")
        return cls.listing(f"{len(problems)} of {n_all} {what} failed, the others are done", problems)
