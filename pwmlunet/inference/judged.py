"""What the correction networks say of the candidates of held-out cases, each judged by the network of its fold."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config, join
from pwmlunet.errors import PwmlError
from pwmlunet.inference.candidate_regions import find_candidates, find_centres
from pwmlunet.inference.candidates import OutOfFold
from pwmlunet.inference.correction import CORRECTION, DESCRIPTION, rewrite
from pwmlunet.inference.model import TrainedModel
from pwmlunet.inference.postprocessing import sizes_and_peaks
from pwmlunet.inference.runs import Run, out_of_fold

_FILE = "candidates.json"
_VERSION = 1
_SAME_PEAK = 1e-4


@dataclass(frozen=True)
class JudgedCandidate(Config):
    """A candidate of a held-out case."""

    n_voxels: int
    """Its voxels."""
    peak: float
    """The highest probability that stage one gives one of them."""
    centre_zyx: tuple[float, float, float]
    """The mean place of its voxels in the file, from 0."""
    class_by_reference: int
    """0 no lesion, 1 … the target; -1 where the reference does not tell."""
    probabilities: tuple[float, ...]
    """Of no lesion and of each class, by the correction network."""


@dataclass(frozen=True)
class JudgedCase(Config):
    """The candidates of a held-out case, in the order in which they are found."""

    fold: str
    """The fold that holds it out, whose correction network judged them."""
    candidates: tuple[JudgedCandidate, ...]
    """All of them."""


@dataclass(frozen=True)
class Judged(Config):
    """`correction/candidates.json` in a run's folder."""

    version: int
    """Of this file's layout."""
    classes: tuple[str, ...]
    """The names of the classes from 1 on."""
    thresholds: dict[str, float]
    """By fold, the probability above which voxels of stage one made candidates."""
    cases: dict[str, JudgedCase]
    """By name."""

    def problems(self) -> Iterator[str]:
        """What a hand or another version may have written."""
        if self.version != _VERSION:
            yield f"it is of version {self.version}, not {_VERSION}: run pwml_train_correction again"
        lengths = {len(row.probabilities) for case in self.cases.values() for row in case.candidates}
        if lengths - {1 + len(self.classes)}:
            yield f"a candidate needs a probability for no lesion and each of {join(self.classes)}: run pwml_train_correction again"

    @classmethod
    def of_run(cls, model: TrainedModel) -> "Judged":
        """What was judged for a run.

        Raises:
            PwmlError: nothing was, or the file is broken.
        """
        path = model.folder / CORRECTION / _FILE
        if not path.is_file():
            raise PwmlError(f"{path} is missing: run pwml_train_correction")
        return cls.read(path)

    def write_for(self, model: TrainedModel) -> None:
        """Writes it into a run's folder."""
        self.write(model.folder / CORRECTION / _FILE)

    @classmethod
    def of(
        cls, classes: tuple[str, ...], thresholds: dict[str, float], cases: dict[str, JudgedCase]
    ) -> "Judged":
        """Of this version."""
        return cls(_VERSION, classes, thresholds, dict(sorted(cases.items())))


def is_corrected(model: TrainedModel) -> bool:
    """Whether a run has a correction."""
    return (model.folder / CORRECTION / DESCRIPTION).is_file()


def describe_candidates(
    components: NDArray[np.int32],
    n: int,
    probability: NDArray[np.floating[Any]],
    classes: NDArray[np.int64],
    scores: NDArray[np.floating[Any]],
) -> tuple[JudgedCandidate, ...]:
    """The N candidates numbered in `components` (Z, Y, X), with their classes (N,) and the network's scores (N, 1 + n)."""
    if not n:
        return ()
    n_voxels, peaks = sizes_and_peaks(components, n, probability.max(0))
    centres = find_centres(components, n).tolist()
    return tuple(
        JudgedCandidate(int(size), float(f"{peak:.6g}"), tuple(round(c, 2) for c in centre), int(kind), tuple(round(float(p), 6) for p in row))
        for size, peak, centre, kind, row in zip(n_voxels, peaks, centres, classes, scores, strict=True)
    )  # fmt: skip


def corrected_out_of_fold(
    run: Run, name: str, judged: Judged | None = None, *, removes: bool = True
) -> OutOfFold:
    """A held-out case with the probabilities after the correction of its fold.

    Args:
        run: A run with a correction.
        name: The case.
        judged: What was judged; it is read where it is not given.
        removes: Whether candidates lose or gain probability; else only their kind is corrected.

    Raises:
        PwmlError: there is no correction of this case, or stage one was trained again since.
    """
    judged = judged or Judged.of_run(run.model)
    (case,) = out_of_fold(name, [run], [(run,)])
    return correct_case(run, case, judged, removes=removes)


def correct_case(run: Run, case: OutOfFold, judged: Judged, *, removes: bool = True) -> OutOfFold:
    """A held-out case that was read already after its correction, as `corrected_out_of_fold` has it."""
    known = judged.cases.get(case.name)
    again = "run pwml_train_correction again"
    if known is None or known.fold != case.fold:
        raise PwmlError(f"case {case.name} was not judged by the correction of {run.model.folder}: {again}")
    components, n = find_candidates(case.probability, judged.thresholds[case.fold])
    _, peaks = sizes_and_peaks(components, n, case.probability.max(0))
    judged_peaks = [candidate.peak for candidate in known.candidates]
    if n != len(judged_peaks) or not np.allclose(peaks, judged_peaks, atol=_SAME_PEAK):
        raise PwmlError(
            f"fold {case.fold} of {run.model.folder} was trained again since its correction: {again}"
        )
    scores = np.array([c.probabilities for c in known.candidates]).reshape(n, 1 + len(judged.classes))
    corrected = rewrite(case.probability, components, scores, run.model.labels, removes=removes)
    return replace(case, probability=corrected)
