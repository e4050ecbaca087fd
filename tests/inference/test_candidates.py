import math

import numpy as np
import pytest
from scipy import ndimage

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.evaluation.lesions import score_lesions
from pwmlunet.inference.candidates import LOGITS, THRESHOLDS, OutOfFold, tabulate_case
from pwmlunet.inference.counting import LEAST_PEAKS, count, leave_out, make_grid
from pwmlunet.inference.postprocessing import Postprocessing

SPACING = (3.0, 0.7, 0.5)
ONE = Labels((Target("lesion", (1,), 1),), None)
IGNORE = Labels((Target("lesion", (1,), 1),), 2)
TWO = Labels((Target("a", (1,), 1), Target("b", (2,), 2)), 3)
REGIONS = Labels((Target("whole", (1, 2), 1), Target("core", (2,), 2)), None, True)
CROSSED = Labels((Target("left", (1, 2), 1), Target("right", (2, 3), 3)), None, True)


def noisy(labels, seed, name="case", subject="s"):
    """Blurred noise as reference and probability, which share some of it: lesions touch in every way."""
    rng = np.random.default_rng(seed)
    shape = (5, 44, 37)
    n = len(labels.targets)
    common = ndimage.gaussian_filter(rng.normal(size=(n, *shape)), (0, 0.4, 1.2, 1.2))
    own = ndimage.gaussian_filter(rng.normal(size=(n, *shape)), (0, 0.4, 1.0, 1.0))
    if labels.are_regions:
        common[1] = (
            common[0] - 0.1
        )  # the core lies within, and is here and there more probable than the whole
        own[1] -= 0.3
    reference = labels.decode(common / common.std(), 1.8)
    if labels.ignore is not None:
        reference[rng.random(shape) < 0.05] = labels.ignore
        reference[0, :, 20:] = labels.ignore
    probability = 1 / (1 + np.exp(-4 * (common / common.std() + 0.6 * own / own.std() - 1.9)))
    return OutOfFold(name, subject, "0", SPACING, reference, probability.astype(np.float32))


def scored(case, labels, point):
    """Found, predicted, twice the overlap and both sizes, by the mask that a user gets and the scores' own code."""
    mask = point.apply(case.probability, labels, SPACING)
    valid = labels.valid(case.reference)
    pairs = list(zip(labels.encode(case.reference), labels.encode(mask), strict=True))
    scores = [score_lesions(r, m, spacing_zyx_mm=SPACING, valid=valid).main for r, m in pairs]
    overlap = sum(2 * (r & m & valid).sum() for r, m in pairs)
    sizes = sum((r & valid).sum() + (m & valid).sum() for r, m in pairs)
    return sum(s.n_found for s in scores), sum(s.n_predicted for s in scores), overlap, sizes


@pytest.mark.parametrize("labels", [ONE, IGNORE, TWO, REGIONS, CROSSED], ids=["one", "ignore", "two", "regions", "crossed"])  # fmt: skip
def test_the_counts_of_a_point_are_those_of_its_mask(labels):
    """Whatever is cut away, and wherever labels are unknown, whatever the matching does then."""
    cases = [noisy(labels, seed, f"case{seed}", f"subject{seed}") for seed in (1, 2)]
    tables = [tabulate_case(case, labels) for case in cases]
    grid = make_grid(tables)
    counts = count(tables, grid)
    some = range(0, len(grid.points), 1 if labels is ONE else 7)
    for s, case in enumerate(cases):
        for p in some:
            found = tuple(
                a[p, s] for a in (counts.n_found, counts.n_predicted, counts.overlap, counts.both_sizes)
            )
            assert found == scored(case, labels, grid.points[p]), (case.name, grid.points[p])
    assert counts.n_reference.min() > 10 and np.ptp(counts.n_found) > 5  # there is something to count
    assert any(len({*c.pairs[:, 0]}) < len(c.pairs) for t in tables for c in t.candidates)


def test_what_is_far_from_everything_does_not_matter():
    case = noisy(ONE, 3)
    wide = ((7, 2), (30, 5), (1, 40))
    padded = OutOfFold(
        case.name, case.subject, case.fold, SPACING, np.pad(case.reference, wide), np.pad(case.probability, ((0, 0), *wide))
    )  # fmt: skip
    here, there = tabulate_case(case, ONE), tabulate_case(padded, ONE)
    assert np.array_equal(here.candidates[4].iou, there.candidates[4].iou)
    assert np.array_equal(here.logits, there.logits)  # a probability of exactly 0 is none that a network gave


def test_logits_near_lesions_are_counted_by_what_they_are(synthetic):
    table = synthetic.tables([synthetic.out_of_fold("a", lesions=(2.0,), false=(-0.5,))])[0]
    at = {float(LOGITS[i]): n for i, n in enumerate(table.logits[1]) if n}
    assert at == {2.0: 6}
    assert table.logits[0][np.searchsorted(LOGITS, -0.5)] == 6
    # boxes of 3 voxels around both, cut at the image's border: z 0-2, y 0-6, x 0-7 and x 5-13
    assert table.logits.sum() == 3 * 7 * 14


def test_an_empty_case_has_nothing(synthetic):
    case = synthetic.out_of_fold("a")
    table = synthetic.tables([case])[0]
    grid = make_grid([table])
    counts = count([table], grid)
    assert not counts.n_found.any() and not counts.n_predicted.any() and not counts.n_reference.any()
    assert {p.smallest_lesion_mm3 for p in grid.points} == {0}
    assert not table.logits.sum(1)[1]


def test_a_core_that_is_surer_than_its_whole_is_written_as_both():
    """Four voxels: the mask has the core, whose value is one of the whole's."""
    reference = np.zeros((1, 6, 6), np.uint8)
    reference[0, 2:4, 2:4] = 2
    probability = np.where(reference > 0, np.reshape([0.4, 0.8], (2, 1, 1, 1)), 0).astype(np.float32)
    case = OutOfFold("a", "a", "0", SPACING, reference, probability)
    table = tabulate_case(case, REGIONS)
    at = table.candidates[THRESHOLDS.index(0.5)]
    assert at.n_voxels.tolist() == [4, 4] and at.iou.tolist() == [1, 1]
    assert at.peaks.tolist() == pytest.approx([0.8, 0.8])
    assert REGIONS.encode(Postprocessing().apply(probability, REGIONS, SPACING)).sum() == 8


def test_the_grid_holds_the_default_and_only_points_that_differ(synthetic):
    grid = make_grid(synthetic.tables([synthetic.out_of_fold("a", lesions=(3, 3))]))
    assert grid.points[grid.default] == Postprocessing() and grid.distances[grid.default] == 0
    assert len(set(grid.points)) == len(grid.points)
    assert sorted({p.smallest_lesion_mm3 for p in grid.points}) == pytest.approx([0, 6 * 3 * 0.7 * 0.5])
    n_peaks = sum(1 + sum(peak > t for peak in LEAST_PEAKS) for t in THRESHOLDS)
    assert len(grid.points) == 2 * n_peaks
    point = grid.points.index(Postprocessing(0.7, 0, 0.8))
    assert grid.distances[point] == pytest.approx(math.log(7 / 3) + 2)


def test_cases_of_a_subject_are_added(synthetic):
    make = synthetic.out_of_fold
    tables = synthetic.tables(
        [make("a", (3,), (1,), subject="s"), make("b", (3, -3), subject="s"), make("c", subject="t")]
    )
    grid = make_grid(tables)
    counts = count(tables, grid)
    assert counts.subjects == ("s", "t") and counts.n_cases.tolist() == [2, 1]
    assert counts.n_reference.tolist() == [3, 0]
    assert counts.n_found[grid.default].tolist() == [2, 0]
    assert counts.n_predicted[grid.default].tolist() == [3, 0]


@pytest.mark.parametrize("n", [1, 5, 20, 47])
def test_nobody_chooses_for_themselves(n):
    asked = []

    def choose(others):
        asked.append(set(others.tolist()))
        return len(asked) - 1

    chosen = leave_out(n, choose)
    assert len(chosen) == n and len(asked) == min(n, 20)
    assert all(i not in asked[chosen[i]] for i in range(n))
    if n == 5:
        assert asked[0] == {1, 2, 3, 4}
