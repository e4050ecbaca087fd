import math

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from pwmlunet.evaluation.voxels import score_voxels, surface_points_mm

SPACING = (3.0, 0.5, 0.7)


def drawn(*slices: str) -> NDArray[np.bool_]:
    """A mask (Z, Y, X) from one text per slice, rows apart by spaces, # inside."""
    return np.array([[[c == "#" for c in row] for row in text.split()] for text in slices])


def test_counts_and_scores_follow_from_the_drawing() -> None:
    reference = drawn("##.. ##.. ....")
    prediction = drawn(".##. .... ....")
    scores = score_voxels(reference, prediction, spacing_zyx_mm=SPACING)
    counts = scores.true_positives, scores.false_positives, scores.false_negatives, scores.true_negatives
    assert counts == (1, 1, 3, 7)
    assert scores.dice == pytest.approx(2 / 6)
    assert scores.sensitivity == pytest.approx(1 / 4)
    assert scores.precision == pytest.approx(1 / 2)
    assert scores.specificity == pytest.approx(7 / 8)
    voxel_mm3 = 3 * 0.5 * 0.7
    assert scores.reference_volume_mm3 == pytest.approx(4 * voxel_mm3)
    assert scores.predicted_volume_mm3 == pytest.approx(2 * voxel_mm3)
    assert scores.volume_difference_mm3 == pytest.approx(-2 * voxel_mm3)
    assert scores.absolute_volume_difference_mm3 == pytest.approx(2 * voxel_mm3)
    assert scores.relative_volume_difference == pytest.approx(1 / 2)


@pytest.mark.parametrize(("axis", "step_mm"), list(enumerate(SPACING)))
def test_distance_along_each_axis_is_in_mm(axis: int, step_mm: float) -> None:
    reference, prediction = np.zeros((2, 4, 5, 6), bool)
    reference[1, 1, 1] = True
    place = [1, 1, 1]
    place[axis] += 2
    prediction[tuple(place)] = True
    scores = score_voxels(reference, prediction, spacing_zyx_mm=SPACING)
    assert [scores.hd_mm, scores.hd95_mm, scores.assd_mm] == pytest.approx([2 * step_mm] * 3)
    assert scores.surface_dice == (1 if 2 * step_mm <= 1 else 0)


def test_distances_of_one_voxel_too_many_by_hand() -> None:
    reference, prediction = drawn("#....."), drawn("#....#")
    scores = score_voxels(reference, prediction, spacing_zyx_mm=(1, 1, 0.5), tolerance_mm=2.4)
    assert scores.hd_mm == pytest.approx(2.5)
    assert scores.hd95_mm == pytest.approx(0.95 * 2.5)  # between 0 and 2.5, on the prediction's side
    assert scores.assd_mm == pytest.approx(2.5 / 3)
    assert scores.surface_dice == pytest.approx(2 / 3)


def test_a_surface_as_far_as_the_tolerance_agrees() -> None:
    scores = score_voxels(drawn("#..."), drawn("...#"), spacing_zyx_mm=(1, 1, 0.1), tolerance_mm=0.3)
    assert scores.surface_dice == 1


def test_hd95_is_the_greater_of_the_two_directions() -> None:
    # from the reference's surface, the ends of a run, 0 and 39; back from the single voxel 0
    reference, prediction = np.zeros((2, 1, 1, 60), bool)
    reference[0, 0, :40] = True
    prediction[0, 0, 0] = True
    for masks in ((reference, prediction), (prediction, reference)):
        assert score_voxels(*masks, spacing_zyx_mm=(1, 1, 1)).hd95_mm == pytest.approx(0.95 * 39)


def test_empty_masks_leave_scores_undefined() -> None:
    nothing, something = drawn("...."), drawn(".##.")
    both = score_voxels(nothing, nothing, spacing_zyx_mm=SPACING)
    assert (both.dice, both.sensitivity, both.precision, both.hd_mm) == (None, None, None, None)
    assert both.specificity == 1
    missed = score_voxels(something, nothing, spacing_zyx_mm=SPACING)
    assert (missed.dice, missed.sensitivity, missed.precision) == (0, 0, None)
    assert (missed.hd_mm, missed.hd95_mm, missed.assd_mm, missed.surface_dice) == (None,) * 4
    false = score_voxels(nothing, something, spacing_zyx_mm=SPACING)
    assert (false.dice, false.sensitivity, false.precision) == (0, None, 0)
    assert false.relative_volume_difference is None


def test_ignored_voxels_count_nowhere() -> None:
    reference, prediction, valid = drawn("##...#"), drawn("#..#.#"), drawn("###..#")
    scores = score_voxels(reference, prediction, spacing_zyx_mm=(1, 1, 1), valid=valid)
    counts = scores.true_positives, scores.false_positives, scores.false_negatives, scores.true_negatives
    assert counts == (2, 0, 1, 1)
    assert scores.hd_mm == 1


def test_surface_of_a_solid_block_leaves_out_its_core() -> None:
    block = np.zeros((5, 5, 5), bool)
    block[1:4, 1:4, 1:4] = True
    assert len(surface_points_mm(block, (1, 1, 1))) == 26
    assert len(surface_points_mm(np.ones((3, 3, 3), bool), (1, 1, 1))) == 26  # the edge of the image too


def test_surface_of_a_slice_is_its_rim() -> None:
    points = surface_points_mm(np.ones((1, 3, 3), bool), SPACING)
    assert len(points) == 8


def ball(centre: tuple[int, int, int], radius_mm: float) -> NDArray[np.bool_]:
    grid = np.indices((9, 40, 36))
    steps = [(g - c) * s for g, c, s in zip(grid, centre, SPACING, strict=True)]
    return np.asarray(sum(s * s for s in steps) <= radius_mm**2)


@pytest.fixture
def balls() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return ball((4, 18, 16), 6.2), ball((5, 23, 14), 5.1)


def test_simpleitk_agrees_on_overlap_and_hausdorff_distance(
    balls: tuple[NDArray[np.bool_], NDArray[np.bool_]],
) -> None:
    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in balls]
    for image in images:
        image.SetSpacing(SPACING[::-1])
    overlap, hausdorff = sitk.LabelOverlapMeasuresImageFilter(), sitk.HausdorffDistanceImageFilter()
    overlap.Execute(*images)
    hausdorff.Execute(*images)
    scores = score_voxels(*balls, spacing_zyx_mm=SPACING)
    assert scores.dice == pytest.approx(overlap.GetDiceCoefficient(1))
    assert scores.hd_mm == pytest.approx(hausdorff.GetHausdorffDistance(), rel=1e-5)


def test_a_distance_transform_gives_the_same_distances(
    balls: tuple[NDArray[np.bool_], NDArray[np.bool_]],
) -> None:
    surfaces = []
    for mask in balls:
        points = np.rint(surface_points_mm(mask, SPACING) / SPACING).astype(int) - 1
        surface = np.zeros_like(mask)
        surface[tuple(points.T)] = True
        surfaces.append(surface)
    assert not (surfaces[0] & ~balls[0]).any()
    there = distance_transform_edt(~surfaces[1], sampling=SPACING)[surfaces[0]]
    back = distance_transform_edt(~surfaces[0], sampling=SPACING)[surfaces[1]]
    scores = score_voxels(*balls, spacing_zyx_mm=SPACING)
    assert scores.assd_mm == pytest.approx(np.concatenate([there, back]).mean())
    assert scores.hd95_mm == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert scores.surface_dice == pytest.approx((np.concatenate([there, back]) <= 1).mean())
    assert scores.hd_mm is not None
    assert math.isfinite(scores.hd_mm)
