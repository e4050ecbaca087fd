"""Two folders of masks, scored, and summary.json: what the commands call."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pwmlunet.config import Config
from pwmlunet.data.dataset import Labels
from pwmlunet.data.parallel import default_workers, map_cases
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.bootstrap import COVERAGE, N_RESAMPLES, SEED
from pwmlunet.evaluation.detection import CANDIDATE_THRESHOLD
from pwmlunet.evaluation.lesions import CONNECTIVITY, MAIN_RULE, RULES
from pwmlunet.evaluation.masks import MaskPairs, pair_masks
from pwmlunet.evaluation.probabilities import read_probability
from pwmlunet.evaluation.reliability import N_BINS, REACH_VOXELS
from pwmlunet.evaluation.scores import CaseScores, score_case
from pwmlunet.evaluation.summary import Summary, summarise
from pwmlunet.evaluation.voxels import TOLERANCE_MM
from pwmlunet.files import read_json, write_json

VERSION = 2
"""Of summary.json."""

_WORKERS = 2  # each holds a whole volume, and reading does not run in several threads

_RULES_IN_WORDS = {
    "space": "the image's own grid; distances and volumes in mm from its spacing (pixels, where a picture has none and 1 is assumed)",
    "ignore": 'voxels labelled "ignore" are taken out of both masks before anything is counted',
    "connectivity": CONNECTIVITY,
    "main_matching": MAIN_RULE,
    "matching": RULES,
    "distances": f"between surface voxels; hd95 is the greater directed 95th percentile; surface Dice at {TOLERANCE_MM:g} mm",
    "means": "over the cases with reference lesions, each with its n; undefined values are left out of that n",
    "missed": "reference lesions and an empty prediction: Dice 0, recall 0, F1 0; precision and distances undefined, counted as n_without_distances",
    "clean": "a case without reference lesions is in no mean but that of false positives; a subject is clean if all its cases are",
    "pooled": "over the lesions of all cases together, clean ones included",
    "unlabelled": "a case in which no voxel has a label is counted and left out",
    "intervals": f"{COVERAGE:.0%} by bootstrap over subjects ({N_RESAMPLES} resamples, seed {SEED}): the cases of a subject stay together",
    "sizes": "low <= volume < high in mm³; a reference lesion's Dice is that with the lesion that found it, 0 where missed; volume bias is predicted minus reference, over the found",
    "candidates": f"for FROC: the components of the probability above {CANDIDATE_THRESHOLD:g}, each cut at half of its highest value, matched under the main rule, ranked by the mean or the greatest logit of their voxels; equal scores enter together",
    "froc": "sensitivity_at is the greatest sensitivity with at most so many false candidates per subject, clean subjects included",
    "reliability": f"{N_BINS} equal bins over the voxels within {REACH_VOXELS} voxels of a reference lesion or candidate",
}


def evaluate_folders(
    reference: Path,
    prediction: Path,
    *,
    labels: Labels | Path | None = None,
    file_ending: str | None = None,
    only_common: bool = False,
) -> list[CaseScores]:
    """The scores of each predicted mask in a folder, by name (for the arguments see `pair_masks`).

    Where the prediction's folder holds CASE.npz, ours or nnU-Net's, its probabilities are scored too.

    Raises:
        PwmlError: files are missing on one side (unless `only_common`), unreadable, on other grids or of
            unknown values; all of them at once.
    """
    pairs = pair_masks(reference, prediction, labels=labels, file_ending=file_ending)
    missing = [] if only_common else list(pairs.problems)
    files = [_Files(name, pairs) for name in pairs.files]
    cases, damaged = map_cases(_Files.score, files, workers=min(_WORKERS, default_workers()), title="score")
    if problems := [*missing, *damaged]:
        raise PwmlError.listing("the masks cannot be compared", problems)
    return cases


@dataclass(frozen=True)
class _Files:
    """The files of one case, to be read and scored."""

    name: str
    pairs: MaskPairs

    def score(self) -> CaseScores:
        """The scores; with probabilities where there are some beside the predicted mask."""
        reference, prediction, spacing = self.pairs.read(self.name)
        labels, path = self.pairs.labels, self.pairs.probability(self.name)
        return score_case(
            reference,
            prediction,
            spacing_zyx_mm=spacing,
            labels=labels,
            name=self.name,
            subject=self.pairs.subject(self.name),
            probability=read_probability(path, reference.shape, len(labels.targets)) if path else None,
        )


def write_summary(
    path: Path,
    cases: Sequence[CaseScores],
    *,
    summary: Summary | None = None,
    profiles: Sequence[Config] = (),
) -> None:
    """Writes summary.json: the rules in words, all cases together, how others count, and each case.

    Args:
        path: Where to; an earlier summary of ours is replaced.
        cases: The scored cases.
        summary: What they come to, where that is known already.
        profiles: What the profiles make of them.

    Raises:
        PwmlError: the path holds something else, such as nnU-Net's summary.
    """
    check_place(path)
    content = {
        "version": VERSION,
        "rules": _RULES_IN_WORDS,
        "summary": (summary or summarise(cases)).to_dict(),
        "profiles": [profile.to_dict() for profile in profiles],
        "cases": [case.to_dict() for case in cases],
    }
    write_json(path, content)


def check_place(path: Path) -> None:
    """Raises PwmlError where a summary would replace something else."""
    if path.exists() and _version_of(_content(path)) is None:
        raise PwmlError(f"{path} was not written by pwml_evaluate: choose another place with -o, or move it")


def read_summary(path: Path) -> tuple[Summary, list[CaseScores]]:
    """The summary and the cases in a summary.json of this version.

    Raises:
        PwmlError: it is missing, damaged, of another version or another program's.
    """
    content = read_json(path)
    version = _version_of(content)
    if version is None:
        raise PwmlError(f"{path} was not written by pwml_evaluate (nnU-Net writes a file of that name too): score the masks with pwml_evaluate -o elsewhere, or give pwml_compare the references with -r")  # fmt: skip
    if version != VERSION:
        advice = "score again with pwml_evaluate" if version < VERSION else "read it with a newer pwmlunet"
        raise PwmlError(f"{path} is of version {version}, not {VERSION}: {advice}")
    cases = [CaseScores.from_dict(case, f"{path}: cases[{i}]") for i, case in enumerate(content["cases"])]
    return Summary.from_dict(content["summary"], f"{path}: summary"), cases


def _content(path: Path) -> Any:
    """What is in a JSON file; None where it is none."""
    try:
        return read_json(path)
    except PwmlError:
        return None


def _version_of(content: Any) -> int | None:
    """The version of a summary of ours; None for anything else."""
    is_ours = isinstance(content, dict) and {"version", "rules", "summary", "cases"} <= content.keys()
    version = content["version"] if is_ours else None
    return version if type(version) is int and isinstance(content["cases"], list) else None
