"""What the scores of many cases come to, each with its n, its rule for empty cases and its interval."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from pwmlunet.config import Config, join
from pwmlunet.evaluation.bootstrap import Interval, ratio_interval
from pwmlunet.evaluation.detection import Froc, froc
from pwmlunet.evaluation.lesions import RULES, Detection, detection
from pwmlunet.evaluation.reliability import Reliability, ReliabilityCounts, reliability
from pwmlunet.evaluation.scores import CaseScores, TargetScores
from pwmlunet.evaluation.sizes import SizeBin, by_size, quartiles_mm3
from pwmlunet.evaluation.voxels import ratio

_OF_VOXELS = (
    "dice", "sensitivity", "precision", "specificity", "volume_difference_mm3", "absolute_volume_difference_mm3",
    "relative_volume_difference", "hd_mm", "hd95_mm", "assd_mm", "surface_dice",
)  # fmt: skip
_OF_LESIONS = ("recall", "precision", "f1")

SizeEdges = Sequence[float] | Mapping[str, Sequence[float]] | None
"""Edges in mm³ as a user gives them, or by target (quartiles of the training lesions), or quartiles of the scored."""


Groups = Sequence[Sequence[TargetScores]]
"""One target's scores in the cases of each subject."""


@dataclass(frozen=True)
class Mean(Config):
    """A mean and over how many cases; the value is None where n is 0."""

    value: float | None
    """The mean."""
    n: int
    """Cases in which the score is defined."""
    interval: Interval | None = None
    """By bootstrap over subjects; None with fewer than two subjects in whom it is defined."""


@dataclass(frozen=True)
class TargetSummary(Config):
    """One target over all labelled cases."""

    means: dict[str, Mean]
    """By score, over the cases with reference lesions."""
    pooled: dict[str, Detection]
    """By matching rule, over the lesions of all cases together."""
    pooled_intervals: dict[str, Interval | None]
    """Of recall, precision and f1 under the main rule, over the lesions of all cases together."""
    false_positives_per_case: float
    """Over all cases, under the main rule as everything below."""
    false_positives_per_labelled_slice: float
    """Over all slices that have a label."""
    false_positives_per_subject: float
    """Over all subjects."""
    false_positives_per_subject_interval: Interval | None
    """By bootstrap over subjects, as all intervals; None with one subject."""
    n_cases_with_lesions: int
    """Cases whose reference is not empty."""
    n_without_distances: int
    """Those of them with an empty prediction: Dice 0, recall 0, distances undefined."""
    n_clean_cases: int
    """Cases whose reference is empty."""
    n_clean_subjects: int
    """Subjects all of whose cases are clean."""
    n_clean_subjects_with_false_positives: int
    """Clean subjects in whom a lesion was predicted."""
    false_positives_per_clean_subject: float | None
    """Predicted lesions in clean subjects / clean subjects; None where there are none."""
    n_merged: int
    """Predicted lesions that touch several reference lesions."""
    n_split: int
    """Reference lesions that several predicted lesions touch."""
    by_size: tuple[SizeBin, ...]
    """By volume in mm³, smallest first; empty without reference lesions and edges."""
    froc: dict[str, Froc] | None
    """By the score that ranks candidates, mean_probability or max_probability; None without lesions or probabilities."""
    reliability: Reliability | None
    """Promised against observed probability; None without probabilities."""


@dataclass(frozen=True)
class Summary(Config):
    """All cases together."""

    n_cases: int
    """Cases with labels; all numbers are over these."""
    n_subjects: int
    """Whose cases they are."""
    n_labelled_slices: int
    """Slices with labels."""
    n_unlabelled_cases: int
    """Cases in which every voxel is "ignore": left out."""
    targets: dict[str, TargetSummary]
    """By the target's name."""
    remarks: tuple[str, ...]
    """What a reader must know to judge the numbers, a sentence each."""


def summarise(cases: Sequence[CaseScores], *, size_edges_mm3: SizeEdges = None) -> Summary:
    """What the cases come to (the rules for empty cases stand in `summary.json`).

    Sizes are binned by one list of edges, as a user gives it; by edges for each target, the quartiles of the
    training lesions; or else by the quartiles of the reference lesions themselves.
    """
    if not cases:
        raise ValueError("there is nothing to summarise")
    labelled = [case for case in cases if case.n_labelled_slices]
    names = list(cases[0].targets)
    edges = {name: _edges(labelled, name, size_edges_mm3) for name in names}
    return Summary(
        n_cases=len(labelled),
        n_subjects=len({case.subject for case in labelled}),
        n_labelled_slices=sum(case.n_labelled_slices for case in labelled),
        n_unlabelled_cases=len(cases) - len(labelled),
        targets={name: _summarise_target(labelled, name, edges[name][0]) for name in names},
        remarks=(*_remarks(cases, labelled), *_remarks_on_sizes(edges)),
    )


def _summarise_target(cases: Sequence[CaseScores], name: str, edges_mm3: Sequence[float]) -> TargetSummary:
    groups = _by_subject(cases, name)
    scores = [s for group in groups for s in group]
    with_lesions = [s for s in scores if not s.is_clean]
    false = [_n_false(group) for group in groups]
    clean = [_n_false(group) for group in groups if all(s.is_clean for s in group)]
    return TargetSummary(
        means=_means(groups),
        pooled={rule: _pool([s.lesions.detections[rule] for s in scores]) for rule in RULES},
        pooled_intervals=_pooled_intervals(groups),
        false_positives_per_case=ratio(sum(false), len(cases)) or 0.0,
        false_positives_per_labelled_slice=ratio(sum(false), sum(c.n_labelled_slices for c in cases)) or 0.0,
        false_positives_per_subject=ratio(sum(false), len(groups)) or 0.0,
        false_positives_per_subject_interval=ratio_interval(false, [1] * len(groups)),
        n_cases_with_lesions=len(with_lesions),
        n_without_distances=sum(s.voxels.hd_mm is None for s in with_lesions),
        n_clean_cases=len(scores) - len(with_lesions),
        n_clean_subjects=len(clean),
        n_clean_subjects_with_false_positives=sum(n > 0 for n in clean),
        false_positives_per_clean_subject=ratio(sum(clean), len(clean)),
        n_merged=sum(s.lesions.n_merged for s in scores),
        n_split=sum(s.lesions.n_split for s in scores),
        by_size=by_size(cases, name, edges_mm3) if edges_mm3 else (),
        froc=_froc(scores, len(groups)),
        reliability=_reliability(scores),
    )


def _by_subject(cases: Sequence[CaseScores], target: str) -> Groups:
    groups: dict[str, list[TargetScores]] = {}
    for case in cases:
        groups.setdefault(case.subject, []).append(case.targets[target])
    return [groups[subject] for subject in sorted(groups)]  # one order everywhere: the resamples go by it


def _n_false(scores: Sequence[TargetScores]) -> int:
    return sum(s.lesions.main.n_false_positives for s in scores)


def _means(groups: Groups) -> dict[str, Mean]:
    """By name: the voxel scores, then lesion_recall, lesion_precision and lesion_f1 under the main rule."""
    with_lesions = [[s for s in group if not s.is_clean] for group in groups]
    scores = {name: f"voxels.{name}" for name in _OF_VOXELS}
    scores |= {f"lesion_{name}": f"lesions.main.{name}" for name in _OF_LESIONS}
    means = {name: _mean(with_lesions, attrgetter(path)) for name, path in scores.items()}
    return {**means, "false_positives": _mean(groups, attrgetter("lesions.main.n_false_positives"))}


def _mean(groups: Groups, value: Callable[[TargetScores], float | None]) -> Mean:
    defined = [[v for s in group if (v := value(s)) is not None] for group in groups]
    sums, sizes = [float(sum(values)) for values in defined], [len(values) for values in defined]
    return Mean(ratio(sum(sums), sum(sizes)), sum(sizes), ratio_interval(sums, sizes))


def _pool(parts: Sequence[Detection]) -> Detection:
    return detection(
        sum(part.n_reference for part in parts),
        sum(part.n_predicted for part in parts),
        n_found=sum(part.n_found for part in parts),
        n_true=sum(part.n_true for part in parts),
    )


def _pooled_intervals(groups: Groups) -> dict[str, Interval | None]:
    """Under the main rule lesions are matched one to one: F1 is 2 found / (reference + predicted)."""
    pooled = [_pool([s.lesions.main for s in group]) for group in groups]
    found = np.array([subject.n_found for subject in pooled])
    reference = np.array([subject.n_reference for subject in pooled])
    predicted = np.array([subject.n_predicted for subject in pooled])
    return {
        "recall": ratio_interval(found, reference),
        "precision": ratio_interval(found, predicted),
        "f1": ratio_interval(2 * found, reference + predicted),
    }


def _froc(scores: Sequence[TargetScores], n_subjects: int) -> dict[str, Froc] | None:
    parts = [s.candidates for s in scores if s.candidates is not None]
    n_reference = sum(len(s.lesions.reference) for s in scores)
    if len(parts) < len(scores) or not n_reference:
        return None
    candidates = [candidate for part in parts for candidate in part]
    counts = {"n_reference": n_reference, "n_subjects": n_subjects}
    return {
        "mean_probability": froc(candidates, **counts, by="mean"),
        "max_probability": froc(candidates, **counts, by="max"),
    }


def _reliability(scores: Sequence[TargetScores]) -> Reliability | None:
    counts = [s.reliability for s in scores if s.reliability is not None]
    return reliability(ReliabilityCounts.pool(counts)) if scores and len(counts) == len(scores) else None


def _edges(cases: Sequence[CaseScores], target: str, edges: SizeEdges) -> tuple[Sequence[float], str]:
    """The edges of one target's bins, and where they come from in words."""
    if isinstance(edges, Mapping):
        if edges.get(target):
            return edges[target], "quartiles of the training lesions"
    elif edges:
        return edges, "as given"
    volumes = [v for case in cases for v in case.targets[target].lesions.reference_volumes_mm3]
    return quartiles_mm3(volumes) if volumes else (), "quartiles of the reference lesions scored here"


def _remarks_on_sizes(edges: Mapping[str, tuple[Sequence[float], str]]) -> Iterator[str]:
    for target, (values, source) in edges.items():
        of = f" of {target}" if len(edges) > 1 else ""
        rule = f"edges at {join(dict.fromkeys(f'{v:.3g}' for v in values))} mm³, {source}"
        yield f"size bins{of}: {rule if values else 'none, there is no reference lesion'}"


def _remarks(cases: Sequence[CaseScores], labelled: Sequence[CaseScores]) -> Iterator[str]:
    if n := len(cases) - len(labelled):
        yield f"{n} of {len(cases)} cases have no labelled voxel: left out"
    if len({case.subject for case in labelled}) == 1:
        yield "one subject only: no intervals, which need several"
    n = sum(any(s.candidates is None for s in case.targets.values()) for case in labelled)
    if n:
        yield f"{n} of {len(labelled)} cases have no probabilities: no FROC and no reliability"
    if labelled and all(set(case.spacing_zyx_mm) == {1.0} for case in labelled):
        yield "every spacing is 1, as it is where a file gives none: mm may be pixels"
