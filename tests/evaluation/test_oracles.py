"""Other people's libraries, where they define the same thing."""

from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from drawing import drawn
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pwmlunet.evaluation.lesions import score_lesions
from pwmlunet.evaluation.voxels import score_voxels

SPACING = (3.0, 0.5, 0.7)
Masks = tuple[NDArray[np.bool_], NDArray[np.bool_]]


def blobs(seed: int, shape: tuple[int, int, int]) -> Masks:
    """Many lesions of several sizes, and a prediction that misses, merges, splits and invents some."""
    rng = np.random.default_rng(seed)
    truth = gaussian_filter(rng.normal(size=shape), (0.5, 1.5, 1.5))
    return truth > 0.15, truth + 0.5 * gaussian_filter(rng.normal(size=shape), (0.5, 1, 1)) > 0.17


DRAWN = (
    drawn("11..1.1 .1..1.. 1......", "1...... ...11.. ......."),
    drawn("11..... .1.11.. ....1..", "1...... 1..11.. ......1"),
)
PAIRS: list[Masks] = [
    *(blobs(seed, shape) for seed, shape in enumerate([(6, 40, 50), (1, 60, 50), (9, 25, 30)])),
    (DRAWN[0] == 1, DRAWN[1] == 1),
]


def image_of(mask: NDArray[np.bool_]) -> Any:
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(SPACING[::-1])
    return image


@pytest.fixture(scope="module")
def panoptica() -> Any:
    import panoptica

    panoptica.disable_citation_reminder()
    iou = panoptica.Metric.IOU
    return panoptica.Panoptica_Evaluator(
        expected_input=panoptica.InputType.SEMANTIC,
        instance_approximator=panoptica.ConnectedComponentsInstanceApproximator(
            cca_backend=panoptica.CCABackend.cc3d
        ),
        instance_matcher=panoptica.MaxBipartiteMatching(matching_metric=iou, matching_threshold=0.1),
        instance_metrics=[iou, panoptica.Metric.DSC],
        global_metrics=[panoptica.Metric.DSC],
        decision_metric=iou,
        decision_threshold=0.1,
    )


@pytest.mark.parametrize("masks", PAIRS)
def test_panoptica_finds_misses_and_invents_the_same_lesions(panoptica: Any, masks: Masks) -> None:
    reference, prediction = masks
    ours = score_lesions(reference, prediction, spacing_zyx_mm=SPACING)
    theirs = panoptica.evaluate(prediction.astype(np.uint8), reference.astype(np.uint8))["ungrouped"]
    assert (theirs.tp, theirs.fn, theirs.fp) == (len(ours.matches), len(ours.missed), len(ours.false))
    assert ours.matches and ours.missed and ours.false
    assert theirs.rq == pytest.approx(ours.main.f1)
    assert theirs.sq == pytest.approx(np.mean([match.iou for match in ours.matches]))
    assert theirs.sq_dsc == pytest.approx(np.mean([match.dice for match in ours.matches]))
    voxels = score_voxels(reference, prediction, spacing_zyx_mm=SPACING)
    assert theirs.global_bin_dsc == pytest.approx(voxels.dice)


@pytest.mark.parametrize("masks", PAIRS)
def test_simpleitk_agrees_on_overlap(masks: Masks) -> None:
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*map(image_of, masks[::-1]))
    ours = score_voxels(*masks, spacing_zyx_mm=SPACING)
    assert ours.dice == pytest.approx(overlap.GetDiceCoefficient(1))
    assert ours.sensitivity == pytest.approx(1 - overlap.GetFalseNegativeError(1))
    assert ours.precision == pytest.approx(1 - overlap.GetFalseDiscoveryRate(1))
    assert ours.specificity == pytest.approx(1 - overlap.GetFalsePositiveError(1))


@pytest.mark.parametrize("masks", PAIRS)
def test_simpleitk_agrees_on_the_hausdorff_distance(masks: Masks) -> None:
    hausdorff = sitk.HausdorffDistanceImageFilter()
    hausdorff.Execute(*map(image_of, masks))
    ours = score_voxels(*masks, spacing_zyx_mm=SPACING)
    assert ours.hd_mm == pytest.approx(hausdorff.GetHausdorffDistance(), rel=1e-5)


@pytest.mark.parametrize("masks", PAIRS)
def test_simpleitk_finds_components_of_the_same_size_and_place(masks: Masks) -> None:
    shapes = sitk.LabelShapeStatisticsImageFilter()
    shapes.Execute(sitk.ConnectedComponent(image_of(masks[0]), True))  # True: corners connect
    theirs = [(shapes.GetNumberOfPixels(n), shapes.GetPhysicalSize(n), *shapes.GetCentroid(n)[::-1]) for n in shapes.GetLabels()]  # fmt: skip
    lesions = score_lesions(*masks, spacing_zyx_mm=SPACING).reference
    ours = [
        (lesion.n_voxels, lesion.volume_mm3, *np.multiply(lesion.centroid_zyx, SPACING)) for lesion in lesions
    ]
    np.testing.assert_allclose(sorted(ours), sorted(theirs), atol=1e-6)
    boxes = sorted((shapes.GetBoundingBox(n)[2], shapes.GetBoundingBox(n)[5]) for n in shapes.GetLabels())
    assert sorted((s.first_slice, s.last_slice - s.first_slice + 1) for s in lesions) == boxes
