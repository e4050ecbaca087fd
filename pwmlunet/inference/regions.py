"""Where a two-stage network loses lesions: they are not proposed, not kept by the box head, or not segmented."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from tqdm import tqdm

from pwmlunet.config import Config, join
from pwmlunet.data.store import PreprocessedCase
from pwmlunet.data.workspace import Workspace
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.lesions import LEAST_IOU, Lesions, find_touching, measure_lesions
from pwmlunet.inference.device import autocast, choose_device, prediction_format
from pwmlunet.inference.model import TrainedModel
from pwmlunet.inference.runs import Run, gather_runs
from pwmlunet.networks.two_stage import N_LISTED, TwoStage, TwoStageConfig
from pwmlunet.planning.plan import see

logger = logging.getLogger(__name__)

RANKS = (10, 50, 100)
"""How many of the first proposals and regions are looked at."""

SURE = 0.5
"""The score from which the box head holds a region to be a lesion."""

_FILE = "regions.json"
_COVERED = 0.5  # share of a lesion's pixels in one region from which that region covers it
_NEVER = np.inf


@dataclass(frozen=True)
class LesionCounts(Config):
    """Lesions of one range of sizes, and how many of them are still there after each step of the network."""

    low_pixels: int
    """Pixels of the smallest of them in its slice, on the network's grid."""
    high_pixels: int
    """Pixels of the largest."""
    n_lesions: int
    """Lesions: connected components in a slice, whatever their target."""
    proposed: dict[str, int]
    """By a number of proposals, the lesions that one of the first so many covers."""
    kept: dict[str, int]
    """By a number of regions of the box head, the lesions that one of the first so many covers."""
    sure: int
    """Lesions that a region with a score of at least 0.5 covers."""
    segmented: int
    """Lesions that the mask finds, before it is refined: a component has an IoU of at least 0.1 with the lesion."""


@dataclass(frozen=True)
class MeasuredRegions(Config):
    """What became of the lesions of held-out cases, slice by slice; `regions.json` in the run's folder.

    A region covers a lesion where at least half of the lesion's pixels lie in it, enlarged as the network does.
    """

    folds: tuple[str, ...]
    """The folds whose held-out cases were looked at, each with its own network."""
    n_cases: int
    """Their cases."""
    n_slices: int
    """Slices of these cases that are labelled."""
    n_proposals: int
    """Proposals that the network makes of a slice."""
    n_regions: int
    """Regions of a slice that it segments."""
    threshold: float
    """Calibrated probability above which a pixel belongs to the mask."""
    false_regions_per_slice: float
    """Regions with a score of at least 0.5 in which, enlarged, no lesion lies."""
    lesions: LesionCounts
    """All lesions."""
    by_size: tuple[LesionCounts, ...]
    """The same between the quartiles of their pixels, the smallest first."""


@dataclass(frozen=True, eq=False)
class SliceRegions:
    """What a network says of a slice, each list by falling score; boxes (y0, x0, y1, x1) are enlarged."""

    proposals: NDArray[np.float32]
    """(P, 4)."""
    regions: NDArray[np.float32]
    """(R, 4)."""
    scores: NDArray[np.float32]
    """Of the regions (R,)."""
    mask: NDArray[np.bool_]
    """(Y, X)."""


@dataclass(frozen=True, eq=False)
class Fates:
    """What became of L lesions."""

    n_pixels: NDArray[np.int64]
    """(L,)."""
    proposal: NDArray[np.float64]
    """Rank, from 1, of the first proposal that covers each (L,); infinite where none does."""
    region: NDArray[np.float64]
    """The same of regions."""
    score: NDArray[np.float64]
    """The highest score of a region that covers it (L,); 0 where none does."""
    segmented: NDArray[np.bool_]
    """Whether the mask finds it (L,)."""


def measure_regions(
    workspace: Workspace, dataset: str, run: str, *, folds: Sequence[str] = (), device: str = "auto"
) -> MeasuredRegions:
    """What became of the lesions of a run's held-out cases, also written into the run's folder.

    Args:
        workspace: Where the run and the preprocessed cases are.
        dataset: Number or name.
        run: Name of the model folder.
        folds: Folds whose cases are looked at; all finished ones by default.
        device: What the networks compute on.

    Raises:
        PwmlError: there is no such run, its network proposes no regions, or no fold is finished.
    """
    prepared = workspace.find_preprocessed(dataset)
    (opened,) = gather_runs(workspace.results / prepared.name, prepared, [run])
    config = opened.model.configuration.network
    if not isinstance(config, TwoStageConfig):
        raise PwmlError(f"{opened.model.folder} proposes no regions: name a run of a network of type two_stage with -c")  # fmt: skip
    cases = _held_out(opened, folds)
    slices = list(_follow_cases(opened, cases, choose_device(device)))
    if not sum(len(fates.n_pixels) for fates, _ in slices):
        raise PwmlError(f"the cases held out by fold {join(cases)} of {opened.model.folder} have no lesion: there is nothing to measure")  # fmt: skip
    lesions, by_size = count_by_size([fates for fates, _ in slices], config)
    measured = MeasuredRegions(
        folds=tuple(cases),
        n_cases=sum(map(len, cases.values())),
        n_slices=len(slices),
        n_proposals=config.n_proposals,
        n_regions=config.n_regions,
        threshold=opened.model.postprocessing.threshold,
        false_regions_per_slice=float(np.mean([n_false for _, n_false in slices])),
        lesions=lesions,
        by_size=by_size,
    )
    measured.write(opened.model.folder / _FILE)
    return measured


def _held_out(run: Run, folds: Sequence[str]) -> dict[str, list[str]]:
    """The cases that each finished fold holds out, of the folds that are wanted."""
    cases: dict[str, list[str]] = {}
    for name, (fold, _) in sorted(run.files.items()):
        cases.setdefault(fold, []).append(name)
    unfinished = sorted(set(folds) - set(cases))
    kept = {fold: cases[fold] for fold in sorted(cases) if not folds or fold in folds}
    if not kept:
        raise PwmlError(f"{run.model.folder} has no finished fold {join(unfinished)} (finished: {join(sorted(cases))}): run pwml_train")  # fmt: skip
    if unfinished:
        logger.warning("not finished and left out: fold %s", join(unfinished))
    return kept


def _follow_cases(
    run: Run, cases: Mapping[str, Sequence[str]], device: torch.device
) -> Iterator[tuple[Fates, int]]:
    """The fates of each labelled slice's lesions, and its false regions."""
    with tqdm(desc="held-out cases", total=sum(map(len, cases.values())), leave=False) as progress:
        for fold, names in cases.items():
            network = run.model.load([fold])[0].network.to(device)
            assert isinstance(network, TwoStage)
            for name in names:
                yield from _follow_case(run.model, network, run.store.read(name))
                progress.update()


def _follow_case(
    model: TrainedModel, network: TwoStage, case: PreprocessedCase
) -> Iterator[tuple[Fates, int]]:
    assert case.mask is not None
    for z, labels in enumerate(case.mask):
        valid = model.labels.valid(labels)
        if valid.any():
            inside = np.any(model.labels.encode(labels), 0, keepdims=True)
            lesions = measure_lesions(inside, case.facts.way_back.spacing_zyx_mm)
            image = see(case.image, model.configuration)[:, [z]]
            seen = _look(model, network, np.asarray(image, np.float32))
            yield follow(lesions, valid, seen), count_false(lesions, valid, seen)


@torch.inference_mode()
def _look(model: TrainedModel, network: TwoStage, image: NDArray[np.float32]) -> SliceRegions:
    """What a network says of one slice (C, 1, Y, X), which it sees whole and once, as a prediction of whole slices without flips does."""
    rows, columns = image.shape[-2:]
    stride, device = network.config.stride, next(network.parameters()).device
    padding = (0, -columns % stride, 0, -rows % stride)
    shown = pad(torch.from_numpy(image).to(device), padding, mode="replicate")[None]
    shape_yx = (shown.shape[-2], shown.shape[-1])
    with autocast(device, prediction_format(device)):
        found = network.find_regions(shown)
        probability = network.paint(found, shape_yx)[0, :, None, :rows, :columns]
    calibrated = model.postprocessing.calibrate(probability.float().cpu().numpy())

    def enlarged(boxes: Tensor, scores: Tensor) -> NDArray[np.float32]:
        kept = boxes[0, scores[0] > 0]  # a slice with fewer is filled up
        return np.asarray(network.enlarge(kept, shape_yx).cpu().numpy())

    return SliceRegions(
        enlarged(found.proposals, found.proposal_scores),
        enlarged(found.boxes, found.scores),
        found.scores[0][found.scores[0] > 0].float().cpu().numpy(),
        np.any(calibrated > model.postprocessing.threshold, axis=(0, 1)),
    )


def follow(lesions: Lesions, valid: NDArray[np.bool_], seen: SliceRegions) -> Fates:
    """What became of the lesions (1, Y, X) of a slice; what is not valid (Y, X) is taken out of the mask."""
    in_regions = _covers(seen.regions, lesions)
    touching = find_touching(lesions, measure_lesions((seen.mask & valid)[None], lesions.spacing_zyx_mm))
    found = touching.reference[touching.iou >= LEAST_IOU]
    return Fates(
        n_pixels=lesions.n_voxels,
        proposal=_first(_covers(seen.proposals, lesions)),
        region=_first(in_regions),
        score=(in_regions * seen.scores[:, None]).max(0, initial=0.0),
        segmented=np.isin(np.arange(len(lesions)), found),
    )


def count_false(lesions: Lesions, valid: NDArray[np.bool_], seen: SliceRegions) -> int:
    """How many sure regions hold no lesion, nor a pixel whose label is not known."""
    told = (lesions.components[0] > 0) | ~valid
    return int((~_holds(seen.regions[seen.scores >= SURE], np.argwhere(told)).any(1)).sum())


def _holds(boxes: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which boxes (B, 4) hold the centres of which pixels (V, 2): (B, V)."""
    centres = places + 0.5
    after = (centres >= boxes[:, None, :2]).all(-1)
    return np.asarray(after & (centres < boxes[:, None, 2:]).all(-1))


def _covers(boxes: NDArray[np.float32], lesions: Lesions) -> NDArray[np.bool_]:
    """Which boxes (B, 4) cover which lesions: (B, L)."""
    places = np.stack(np.unravel_index(lesions.places, lesions.components.shape)[1:], axis=-1)
    of_lesion = lesions.numbers[:, None] == np.arange(len(lesions))  # (V, L)
    held = _holds(boxes, places).astype(np.float32) @ of_lesion.astype(np.float32)
    return np.asarray(held >= _COVERED * lesions.n_voxels)


def _first(covers: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The rank, from 1, of the first box (B, L) that covers each lesion; infinite where none does."""
    ranks = np.where(covers, np.arange(1, len(covers) + 1)[:, None], _NEVER)
    return np.asarray(ranks.min(0, initial=_NEVER))


def count_by_size(
    slices: Sequence[Fates], config: TwoStageConfig
) -> tuple[LesionCounts, tuple[LesionCounts, ...]]:
    """All lesions of some slices, of which there is one at least, and the same between the quartiles of size."""
    names = [field.name for field in fields(Fates)]
    everything = Fates(*(np.concatenate([getattr(one, name) for one in slices]) for name in names))
    edges = np.unique(np.percentile(everything.n_pixels, (25, 50, 75)))
    bins = np.searchsorted(edges, everything.n_pixels, side="right")
    by_size = [_count(everything, bins == number, config) for number in np.unique(bins)]
    return _count(everything, bins >= 0, config), tuple(by_size)


def _count(fates: Fates, chosen: NDArray[np.bool_], config: TwoStageConfig) -> LesionCounts:
    def within(ranks: NDArray[np.float64], n: int) -> dict[str, int]:
        looked_at = sorted({min(rank, n) for rank in RANKS})
        return {str(rank): int((ranks[chosen] <= rank).sum()) for rank in looked_at}

    return LesionCounts(
        low_pixels=int(fates.n_pixels[chosen].min()),
        high_pixels=int(fates.n_pixels[chosen].max()),
        n_lesions=int(chosen.sum()),
        proposed=within(fates.proposal, max(config.n_proposals, N_LISTED)),
        kept=within(fates.region, config.n_regions),
        sure=int((fates.score[chosen] >= SURE).sum()),
        segmented=int(fates.segmented[chosen].sum()),
    )


def text(measured: MeasuredRegions) -> str:
    """A table with a line for each range of sizes, what it is about, and what else was counted."""
    everything = measured.lesions
    heads = [
        "pixels",
        "lesions",
        *(f"proposals {rank}" for rank in everything.proposed),
        *(f"regions {rank}" for rank in everything.kept),
        f"score {SURE}",
        "mask",
    ]
    table = [heads, ["all", *_cells(everything)]]
    table += [[_span(row.low_pixels, row.high_pixels), *_cells(row)] for row in measured.by_size]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join(
        [
            f"{measured.n_slices} labelled slices of {measured.n_cases} cases held out by fold {join(measured.folds)}: lesions that are covered by",
            "the first proposals, by the first regions, by a region of such a score, and found by the mask",
            *lines,
            f"the network judges the first {measured.n_proposals} proposals of a slice and segments {measured.n_regions} regions",
            f"false regions with a score of {SURE} or more: {measured.false_regions_per_slice:.2f} a slice",
        ]
    )


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _cells(row: LesionCounts) -> list[str]:
    counts = [*row.proposed.values(), *row.kept.values(), row.sure, row.segmented]
    return [str(row.n_lesions), *(f"{n / row.n_lesions:.0%}" for n in counts)]
