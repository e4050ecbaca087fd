"""One HTML file that a doctor can read: scores, charts, and pictures of each lesion, worst cases first."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import pwmlunet
from pwmlunet.data.dataset import Labels, list_files
from pwmlunet.data.image import FILE_ENDINGS
from pwmlunet.data.parallel import default_workers, map_cases
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.detection import CANDIDATE_THRESHOLD
from pwmlunet.evaluation.evaluate import evaluate_folders
from pwmlunet.evaluation.lesion_table import LesionRow, read_lesion_tables
from pwmlunet.evaluation.masks import MaskPairs, pair_masks
from pwmlunet.evaluation.scores import CaseScores
from pwmlunet.evaluation.sizes import training_quartiles_mm3
from pwmlunet.evaluation.summary import summarise
from pwmlunet.report.case_pages import KINDS, Case, CasePage
from pwmlunet.report.figures import Curve, draw_curves
from pwmlunet.report.pages import data_uri, render_page, write_page
from pwmlunet.report.sections import section_of
from pwmlunet.report.views import in_turns

_MOST_BYTES = 18_000_000
"""What the strips may take of a page; with its tables and charts it shall stay under 20 MB."""

_MOST_STRIPS = 400
"""Places that are drawn for a page: more than anybody looks through."""


def write_report(
    path: Path,
    *,
    prediction: Path,
    reference: Path | None = None,
    images: Path | None = None,
    labels: Labels | Path | None = None,
    only_common: bool = False,
    size_edges_mm3: Sequence[float] | None = None,
    curves: Sequence[Curve] = (),
    title: str = "",
) -> int:
    """Writes the report of a folder of predicted masks; how many cases are in it.

    Args:
        path: The HTML file.
        prediction: Folder of predicted masks; CASE.npz (probabilities) and CASE_lesions.json (lesion tables)
            beside them are read too.
        reference: Folder of reference masks; without it the lesions are listed, not scored.
        images: Folder of images, of which the first channel is shown.
        labels: What the values mean, or the dataset.json that says so (see `pair_masks`).
        only_common: Whether masks without a counterpart are left out.
        size_edges_mm3: Volumes that separate the bins of size; else the quartiles of the training lesions.
        curves: Training curves of the model's folds.
        title: The heading.

    Raises:
        PwmlError: masks, images or tables are missing, damaged or do not belong together.
    """
    pairs = _pairs(reference, prediction, labels)
    scores = None
    if reference is not None:
        scores = evaluate_folders(reference, prediction, labels=labels, only_common=only_common)
    cases = _cases(pairs, scores, prediction, images)
    pages, problems = map_cases(Case.page, cases, workers=default_workers(), title="draw")
    if problems:
        raise PwmlError.listing("the report cannot be drawn", problems)
    pages = _within(_MOST_BYTES, sorted(pages, key=lambda page: page.rank))
    summary = None
    if scores is not None:
        summary = summarise(scores, size_edges_mm3=size_edges_mm3 or training_quartiles_mm3(prediction))
    text = render_page(
        "report.html.j2",
        title=title or ("How good the prediction is" if scores else "Predicted lesions"),
        made_on=f"{date.today():%Y-%m-%d}",
        version=pwmlunet.__version__,
        prediction=str(prediction),
        reference=str(reference) if reference else "",
        has_images=images is not None,
        summary=summary,
        targets=[section_of(name, summary) for name in summary.targets] if summary else [],
        candidate_threshold=CANDIDATE_THRESHOLD,
        curves=data_uri(draw_curves(curves)) if curves else "",
        n_curves=len(curves),
        cases=pages,
        kinds=_count_kinds(pages, is_scored=scores is not None),
        review=_review(pages),
        has_probabilities=any(row.mean_probability is not None for page in pages for row in page.rows),
        has_sides=any(row.side is not None for page in pages for row in page.rows),
    )  # fmt: skip
    write_page(path, text)
    return len(pages)


def _pairs(reference: Path | None, prediction: Path, labels: Labels | Path | None) -> MaskPairs:
    """The masks; those of the prediction on both sides where there is no reference."""
    if reference is not None:
        return pair_masks(reference, prediction, labels=labels)
    ending = next((ending for ending in FILE_ENDINGS if list_files(prediction, ending)), None)
    if ending is None:
        raise PwmlError(f"{prediction} holds no masks: give the folder that pwml_predict wrote")
    return pair_masks(prediction, prediction, labels=labels, file_ending=ending)


def _cases(
    pairs: MaskPairs, scores: Sequence[CaseScores] | None, prediction: Path, images: Path | None
) -> list[Case]:
    tables = {} if scores is not None else {table.case: table for table in read_lesion_tables(prediction)}
    score_of = {case.name: case for case in scores or ()}
    if scores is None:
        unknown = _MOST_STRIPS
        counts = [len(tables[name].lesions) if name in tables else unknown for name in pairs.files]
    else:
        counts = [_n_lesions(case) for case in scores]
    most = _fair_share(counts, _MOST_STRIPS)
    return [Case(n, pairs, images, score_of.get(n), tables.get(n), most) for n in pairs.files]


def _n_lesions(case: CaseScores) -> int:
    """Lesions to show: of each pair of a found lesion and the one that found it, one."""
    found = [target.lesions for target in case.targets.values()]
    return sum(len(lesions.reference) + len(lesions.false) for lesions in found)


def _fair_share(counts: Sequence[int], total: int) -> int:
    """The most that each may have so that together they have no more than the total; at least 1."""
    return max((n for n in range(1, total + 1) if sum(min(n, c) for c in counts) <= total), default=1)


def _within(most_bytes: int, pages: Sequence[CasePage]) -> list[CasePage]:
    """The pages with the strips that fit: the first of each page, then the second of each, and so on."""
    kept = dict.fromkeys((page.name for page in pages), 0)
    for name, n_bytes in in_turns([(page.name, shown.n_bytes) for shown in page.strips] for page in pages):
        most_bytes -= n_bytes
        if most_bytes < 0:
            break
        kept[name] += 1
    return [replace(page, strips=page.strips[: kept[page.name]]) for page in pages]


def _count_kinds(pages: Sequence[CasePage], *, is_scored: bool) -> dict[str, int]:
    """How many lesions of each kind are shown; nothing to choose from without a reference."""
    shown = [finding.kind for page in pages for strip in page.strips for finding in strip.findings]
    return {kind: shown.count(kind) for kind in KINDS} if is_scored else {}


def _review(pages: Sequence[CasePage]) -> list[tuple[CasePage, LesionRow]]:
    """The predicted lesions of all cases; the least sure first, those of unknown probability last."""
    rows = [(page, row) for page in pages for row in page.rows]
    return sorted(rows, key=lambda pair: _or_last(pair[1].mean_probability))


def _or_last(probability: float | None) -> float:
    return 2.0 if probability is None else probability
