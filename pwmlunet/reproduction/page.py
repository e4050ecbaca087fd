"""A reproduction to look at: as text for a screen, as a page, and its figures as JSON."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from pwmlunet.config import join
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.profiles.folders import get_profile
from pwmlunet.files import make_folder
from pwmlunet.report.pages import columns, count, interval, number, render_page, write_page
from pwmlunet.reproduction.figures import HonestScore, PaperFigure, Reproduction, RowFigures, TargetFigures
from pwmlunet.reproduction.scoring import ASKED
from pwmlunet.reproduction.studies import get_study
from pwmlunet.reproduction.study import Study, Table

HONEST = {
    name: ASKED.get(name, "lesion precision")
    for name in ("lesion_f1", "lesion_recall", "lesion_precision", "dice")
}
"""The honest scores with their headings."""

_SENTENCES = {
    "made smaller by --quick": "shrunk",
    "different from the paper": "different",
    "note": "remarks",
}


def text(found: Reproduction) -> str:
    """The tables and what must be known to read them, for a screen."""
    study = get_study(found.study)
    parts = [study.source, *_wrapped(in_words(found)), *_wrapped(warning(study))]
    for name, target in found.targets.items():
        title = [f"target {name}", ""] if len(found.targets) > 1 else []
        parts += ["", *title, *_papers_tables(study, target), *_honest_table(target)]
        for answer in target.answers:
            parts += [answer.question, *_wrapped(answer.words)]
    for heading, sentences in _SENTENCES.items():
        if told := getattr(found, sentences):
            parts += ["", f"{heading}:", *(line for sentence in told for line in _wrapped(sentence))]
    return "\n".join(parts)


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, 108, initial_indent="  ", subsequent_indent="    ")


def in_words(found: Reproduction) -> str:
    """On what the figures were measured."""
    lesions = " and ".join(
        f"{count(target.n_lesions, 'lesion')} ({name})" for name, target in found.targets.items()
    )
    folds = f"held-out folds: {join(found.folds)} (of {found.n_folds})"
    seeds = f"seeds: {join(found.seeds)}"
    return f"Here: {found.dataset}, {count(found.n_subjects, 'subject')}, {count(found.n_cases, 'case')}, {lesions}; {folds}; {seeds}."


def warning(study: Study) -> str:
    """Why the paper's figures and ours cannot be expected to agree."""
    return f"The paper's figures are of other data ({study.data}): on another dataset the figures differ, and only the order of the rows can be compared."


def figure(value: float | None) -> str:
    """A figure with as many digits as the papers print."""
    return number(value, 4 if value is None or abs(value) < 10 else 2)


def ours(value: PaperFigure, *, counts: bool = False) -> str:
    """Our figure; with several seeds their mean, and from where to where they reach. A count has of how many it is."""

    def shown(x: float | None) -> str:
        return f"{round(x, 1):g}" if counts and x is not None else figure(x)

    spread = "" if value.lowest == value.highest else f" ({shown(value.lowest)} to {shown(value.highest)})"
    return f"{shown(value.value)}{f' of {value.n}' if counts else ''}{spread}"


def honest(score: HonestScore) -> str:
    """A score with its interval."""
    return f"{number(score.value)} ({interval(score.interval)})" if score.interval else number(score.value)


def rows_of(table: Table, target: TargetFigures) -> list[RowFigures]:
    """The rows of a table that were asked for, in the paper's order; none where the paper does not count the target."""
    found = {row.name: row for row in target.rows if table.has(row.name) and row.figures}
    return [found[name] for name in table.rows or found if name in found]


def is_count(study: Study, name: str) -> bool:
    """Whether a figure is a count of what its n is of: slices of slices."""
    line = get_profile(study.profile).lines.get(name)
    return line is not None and line.unit == line.over


def _papers_tables(study: Study, target: TargetFigures) -> Iterator[str]:
    for table in study.tables:
        if rows := rows_of(table, target):
            yield from columns([_heading(table), *(_cells(study, table, row) for row in rows)])
            yield ""


def _heading(table: Table) -> list[str]:
    pairs = (cell for words in table.columns.values() for cell in (f"{words}: paper", "here"))
    return [table.title, *pairs, *table.beside.values()]


def _cells(study: Study, table: Table, row: RowFigures) -> list[str]:
    pairs = (row.figures[name] for name in table.columns)
    beside = (ours(row.figures[name], counts=is_count(study, name)) for name in table.beside)
    return [row.words, *(cell for f in pairs for cell in (figure(f.printed), ours(f))), *beside]


def _honest_table(target: TargetFigures) -> Iterator[str]:
    header = ["Honest scores", *(cell for words in HONEST.values() for cell in (words, "n"))]
    rows = [
        [
            row.words,
            *(cell for name in HONEST for cell in (honest(row.honest[name]), str(row.honest[name].n))),
        ]
        for row in target.rows
    ]
    yield from columns([header, *rows])
    yield ""


def write_reproduction(path: Path, found: Reproduction) -> None:
    """Writes the page as one HTML file that needs no other, and the figures as JSON beside it.

    Raises:
        PwmlError: a file would replace something else (see `check_place`).
    """
    check_place(path)
    study = get_study(found.study)
    page = render_page(
        "reproduction.html.j2",
        found=found,
        study=study,
        profile=get_profile(study.profile),
        in_words=in_words(found),
        warning=warning(study),
        honest_columns=HONEST,
        figure=figure,
        ours=ours,
        rows_of=rows_of,
        is_count=is_count,
    )
    write_page(path, page)
    found.write(path.with_suffix(".json"))


def check_place(path: Path) -> None:
    """Makes the page's folder; PwmlError where it is no page, or its figures would replace something else."""
    if path.suffix != ".html":
        raise PwmlError(f"-o {path}: name a file, such as {path.with_suffix('.html')}")
    make_folder(path.parent)
    numbers = path.with_suffix(".json")
    if numbers.exists() and not _is_reproduction(numbers):
        raise PwmlError(
            f"{numbers} was not written by pwml_reproduce: choose another place with -o, or move it"
        )


def _is_reproduction(path: Path) -> bool:
    try:
        Reproduction.read(path)
    except PwmlError:
        return False
    return True
