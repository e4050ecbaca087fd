"""What a profile makes of two folders of masks, with the honest figures beside it."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pwmlunet.config import Config, did_you_mean
from pwmlunet.data.parallel import default_workers, map_cases
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.lesions import MAIN_RULE
from pwmlunet.evaluation.masks import MaskPairs
from pwmlunet.evaluation.probabilities import read_probability
from pwmlunet.evaluation.profiles import PROFILES
from pwmlunet.evaluation.profiles.counting import Profile, ProfileCase, Row, profile_case
from pwmlunet.evaluation.summary import Summary


@dataclass(frozen=True)
class Figure(Config):
    """A number as a paper prints it."""

    value: float | None
    """The number; None where it is undefined."""
    n: int
    """How many of `over` it is of."""
    over: str
    """What n counts: cases, slices, lesions."""
    unit: str
    """Of the value; empty for a share."""
    honest: str
    """The name of the honest score beside it; empty where there is none."""


@dataclass(frozen=True)
class ProfileResult(Config):
    """What a profile makes of the cases; never shown without the honest figures."""

    name: str
    """Of the profile."""
    source: str
    """Who counted so."""
    counts: str
    """How, in words."""
    differs: str
    """How the honest figure differs, and what is left out here."""
    targets: dict[str, dict[str, Figure]]
    """Figures by target and name."""
    remarks: tuple[str, ...]
    """What could not be done as the paper did it."""

    def text(self, summary: Summary) -> str:
        """The figures with the honest ones beside them, for a screen."""
        parts = [f"profile {self.name}", *(_wrap(s) for s in (f"{self.source}.", self.counts, self.differs))]
        for target, figures in self.targets.items():
            rows = [_cells(name, figure, summary, target) for name, figure in figures.items()]
            parts += ["", *_columns([[target, "as there", "n", "honest score", "here", "n"], *rows])]
        return "\n".join([*parts, *(_wrap(remark) for remark in self.remarks)])


def get_profile(name: str) -> Profile:
    """The profile of that name; PwmlError where there is none."""
    if name not in PROFILES:
        raise PwmlError(f"there is no profile {name!r}{did_you_mean(name, PROFILES)}")
    return PROFILES[name]


def profile_folders(
    pairs: MaskPairs, name: str, *, folds: Mapping[str, str] | None = None, workers: int | None = None
) -> ProfileResult:
    """What a profile makes of two folders of masks.

    Args:
        pairs: The masks; probabilities are looked for beside the predicted ones, as CASE.npz.
        name: Of the profile.
        folds: The fold of each case, for a profile with a median over folds; else all cases are one fold.
        workers: Cases at a time.

    Raises:
        PwmlError: there is no such profile, or files cannot be read; all of them at once.
    """
    profile = get_profile(name)
    tasks = [_Task(case, pairs, profile, (folds or {}).get(case, "")) for case in pairs.files]
    done, problems = map_cases(
        lambda task: task.run(), tasks, workers=workers or default_workers(), title=f"profile {name}"
    )
    if problems:
        raise PwmlError.listing(f"the profile {name} cannot be computed", problems)
    targets = [target.name for target in pairs.labels.targets]
    return ProfileResult(
        profile.name,
        profile.source,
        profile.counts,
        profile.differs,
        _figures(profile, targets, [rows for _, rows in done]),
        tuple(_remarks(profile, pairs, n_cut=sum(is_cut for is_cut, _ in done), folds=folds)),
    )


@dataclass(frozen=True)
class _Task:
    """One case of a profile, still to be read."""

    name: str
    pairs: MaskPairs
    profile: Profile
    fold: str

    def run(self) -> tuple[bool, list[list[Row]]]:
        """Whether its probabilities were cut at the profile's threshold, and its rows by target."""
        labels = self.pairs.labels
        reference, prediction, spacing = self.pairs.read(self.name)
        path, threshold = self.pairs.probability(self.name), self.profile.threshold
        is_cut = path is not None and threshold is not None
        if path is not None and threshold is not None:
            probability = read_probability(path, reference.shape, len(labels.targets))
            prediction = labels.decode(probability, threshold)
        case = profile_case(reference, prediction, labels, spacing, self.pairs.subject(self.name), self.fold)
        return is_cut, score_profile(self.profile, case)


def score_profile(profile: Profile, case: ProfileCase) -> list[list[Row]]:
    """The rows of a case: one list for each target, or one for all of them together."""
    if not case.valid.any():
        return [[] for _ in range(1 if profile.is_joint else len(case.reference))]
    parts = [case] if profile.is_joint else [case.only(target) for target in range(len(case.reference))]
    return [[Row(case.subject, case.fold, numbers) for numbers in profile.score(part)] for part in parts]


def _figures(
    profile: Profile, targets: Sequence[str], rows_by_case: Sequence[list[list[Row]]]
) -> dict[str, dict[str, Figure]]:
    names = [" + ".join(targets)] if profile.is_joint else targets
    result = {}
    for index, target in enumerate(names):
        values = profile.summarise([row for rows in rows_by_case for row in rows[index]])
        result[target] = {
            name: Figure(*values[name], line.over, line.unit, line.honest)
            for name, line in profile.lines.items()
        }
    return result


def _remarks(
    profile: Profile, pairs: MaskPairs, *, n_cut: int, folds: Mapping[str, str] | None
) -> Iterator[str]:
    n_cases = len(pairs.files)
    if pairs.labels.ignore is not None:
        yield 'voxels labelled "ignore" are taken out of both masks first, as for the honest score'
    if profile.threshold is not None and n_cut < n_cases:
        yield (
            f"{n_cases - n_cut} of {n_cases} cases have no probabilities beside their mask, so the mask was taken "
            f"instead of the threshold {profile.threshold:g}: predict with --save-probabilities"
        )
    if profile.has_folds and not folds:
        yield "no folds are known here: all cases are one, and its mean stands for the median over folds"


def _wrap(text: str) -> str:
    return textwrap.fill(text, 108, initial_indent="  ", subsequent_indent="  ")


def _cells(name: str, figure: Figure, summary: Summary, target: str) -> list[str]:
    honest = _honest(figure.honest, summary, target)
    unit = f" {figure.unit}" if figure.unit else ""
    mine = [f"{_number(figure.value)}{unit}", f"{figure.n} {figure.over}"]
    return [name, *mine, *((figure.honest, _number(honest[0]), honest[1]) if honest else ("", "", ""))]


def _honest(name: str, summary: Summary, target: str) -> tuple[float | None, str] | None:
    """Value and n of an honest score; None where there is none, or none for these targets together."""
    scores = summary.targets.get(target)
    if not name or scores is None:
        return None
    if name.startswith("pooled_"):
        pooled = scores.pooled[MAIN_RULE]
        n = pooled.n_predicted if name.endswith("precision") else pooled.n_reference
        return getattr(pooled, name.removeprefix("pooled_")), f"{n} lesions"
    mean = scores.means[name]
    return mean.value, f"{mean.n} cases"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
