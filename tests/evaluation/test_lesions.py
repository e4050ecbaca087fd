import numpy as np
import pytest
from numpy.typing import NDArray

from pwmlunet.evaluation.lesions import (
    Detection,
    LesionScores,
    find_lesions,
    match_one_to_one,
    measure_lesions,
    score_lesions,
)


def drawn(*slices: str) -> NDArray[np.bool_]:
    """A mask (Z, Y, X) from one text per slice, rows apart by spaces, # inside."""
    return np.array([[[c == "#" for c in row] for row in text.split()] for text in slices])


def scored(
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    spacing: tuple[float, float, float] = (1, 1, 1),
    valid: NDArray[np.bool_] | None = None,
    probability: NDArray[np.float32] | None = None,
) -> LesionScores:
    return score_lesions(reference, prediction, spacing_zyx_mm=spacing, valid=valid, probability=probability)


def counts(detection: Detection) -> tuple[int, int, int, int]:
    return detection.n_reference, detection.n_predicted, detection.n_found, detection.n_true


def test_corners_connect_in_a_slice_and_across_slices() -> None:
    assert find_lesions(drawn("#... .#.. ...#"))[1] == 2
    assert find_lesions(drawn("#.. ...", "... .#."))[1] == 1
    assert find_lesions(drawn("#.. ...", "... ..#"))[1] == 2
    assert find_lesions(drawn("... ..."))[1] == 0


def test_numbers_run_from_one() -> None:
    components, n = find_lesions(drawn("#.#.#"))
    assert n == 3
    assert sorted(np.unique(components)) == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 9, 7), (5, 1, 7), (5, 5, 1), (4, 5, 7), (1, 1, 1)])
def test_as_many_lesions_as_fit_are_found_in_thin_volumes(shape: tuple[int, int, int]) -> None:
    mask = np.zeros(shape, bool)
    mask[::2, ::2, ::2] = True
    components, n = find_lesions(mask)
    assert n == mask.sum()
    assert components.shape == shape
    np.testing.assert_array_equal(components > 0, mask)


def test_a_two_by_two_lesion_moved_by_a_pixel_is_found_at_a_tenth_and_not_at_a_half() -> None:
    scores = scored(drawn("##.. ##.."), drawn(".##. .##."))
    assert [match.iou for match in scores.matches] == pytest.approx([1 / 3])
    assert counts(scores.main) == (1, 1, 1, 1)
    assert counts(scores.detections["iou_0.5"]) == (1, 1, 0, 0)
    assert scores.detections["iou_0.5"].f1 == 0


def test_one_component_over_everything_finds_at_most_one_lesion() -> None:
    reference = drawn("##..## ...... ##..##")
    everything = np.ones_like(reference)
    scores = scored(reference, everything)
    assert counts(scores.main) == (4, 1, 1, 1)  # IoU 2 / 18 with any of them
    assert scores.detections["any_overlap"].f1 == 1
    assert scores.n_merged == 1
    larger = np.pad(reference, ((0, 0), (0, 2), (0, 0)))
    assert counts(scored(larger, np.ones_like(larger)).main) == (4, 1, 0, 0)


def test_an_iou_of_exactly_a_tenth_counts() -> None:
    assert scored(drawn("#........."), drawn("##########")).main.n_found == 1
    assert scored(drawn("#.........."), drawn("###########")).main.n_found == 0


def test_the_total_iou_decides_not_the_best_pair_alone() -> None:
    # IoU 5/14 of the large two is the best pair; it would leave a missed and a false lesion
    reference = drawn("##########.###")
    prediction = drawn("###..#########")
    scores = scored(reference, prediction)
    assert {(m.reference, m.predicted): m.iou for m in scores.matches} == pytest.approx(
        {(0, 0): 3 / 10, (1, 1): 3 / 9}
    )
    assert counts(scores.main) == (2, 2, 2, 2)


def test_a_mirrored_image_scores_the_same() -> None:
    generator = np.random.default_rng(3)
    reference, prediction = generator.random((2, 3, 30, 30)) < 0.12
    scores = scored(reference, prediction)
    mirrored = scored(reference[:, ::-1, ::-1], prediction[:, ::-1, ::-1])
    assert {rule: counts(d) for rule, d in scores.detections.items()} == {
        rule: counts(d) for rule, d in mirrored.detections.items()
    }
    assert scores.main.n_found > 3


def test_matching_is_the_best_of_all_one_to_one_choices() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        gain = generator.integers(0, 10, (3, 4)) / 10
        first, second = np.nonzero(gain)
        chosen = match_one_to_one(first, second, gain=gain[first, second])
        assert len(set(first[chosen])) == len(set(second[chosen])) == len(chosen)
        assert gain[first, second][chosen].sum() == pytest.approx(best_total(gain))


def best_total(gain: NDArray[np.float64]) -> float:
    """The greatest sum of entries of which no two share a row or a column, by trying all."""
    if not len(gain):
        return 0.0
    used = [gain[0, j] + best_total(np.delete(gain[1:], j, axis=1)) for j in range(gain.shape[1])]
    return float(max([best_total(gain[1:]), *used]))


def test_merged_and_split_lesions_are_counted() -> None:
    merged = scored(drawn("##.##.#"), drawn("#####.#"))
    assert (merged.n_merged, merged.n_split) == (1, 0)
    assert counts(merged.main) == (3, 2, 2, 2)
    split = scored(drawn("#####.#"), drawn("##.##.#"))
    assert (split.n_merged, split.n_split) == (0, 1)
    assert counts(split.detections["any_overlap"]) == (2, 3, 2, 3)


def test_volumes_are_in_mm3() -> None:
    scores = scored(drawn("##..#"), drawn("..###"), spacing=(3, 0.5, 2))
    assert sorted(scores.reference_volumes_mm3) == pytest.approx([3, 6])
    assert scores.predicted_volumes_mm3 == pytest.approx((9,))


@pytest.mark.parametrize(
    ("spacing", "n_found"), [((1, 1, 1), 0), ((1, 1, 0.5), 1), ((1, 1, 0.4), 1), ((1, 1, 0.51), 0)]
)
def test_centroids_two_mm_apart_match_without_overlap(
    spacing: tuple[float, float, float], n_found: int
) -> None:
    scores = scored(drawn("#......"), drawn("....#.."), spacing=spacing)  # 4 voxels apart
    assert scores.detections["centroid_2mm"].n_found == n_found
    assert scores.main.n_found == 0


def test_centroids_match_one_to_one() -> None:
    scores = scored(drawn("#.#...."), drawn(".#....."))
    assert counts(scores.detections["centroid_2mm"]) == (2, 1, 1, 1)


def test_centroid_distance_minds_the_slice_thickness() -> None:
    reference, prediction = drawn("#", ".", "."), drawn(".", "#", ".")
    assert scored(reference, prediction, (3, 1, 1)).detections["centroid_2mm"].n_found == 0
    assert scored(reference, prediction, (2, 1, 1)).detections["centroid_2mm"].n_found == 1


def test_lesions_do_not_grow_together_across_ignored_voxels() -> None:
    reference, prediction, valid = drawn("##.##"), drawn("#####"), drawn("##.##")
    scores = scored(reference, prediction, valid=valid)
    assert counts(scores.main) == (2, 2, 2, 2)
    assert [match.iou for match in scores.matches] == [1, 1]
    slices = np.ones((3, 2, 2), bool)
    assert counts(scored(slices, slices, valid=drawn("## ##", ".. ..", "## ##")).main) == (2, 2, 2, 2)


def test_a_predicted_lesion_partly_ignored_keeps_its_valid_part() -> None:
    scores = scored(drawn("#....."), drawn("######"), valid=drawn("##...."))
    assert scores.predicted_volumes_mm3 == (2,)
    assert [match.iou for match in scores.matches] == [1 / 2]
    assert counts(scored(drawn("......"), drawn("..##.."), valid=drawn("##..##")).main) == (0, 0, 0, 0)


def test_empty_masks() -> None:
    nothing, something = drawn("....."), drawn("#.#..")
    both = scored(nothing, nothing).main
    assert (both.recall, both.precision, both.f1) == (None, None, None)
    missed = scored(something, nothing).main
    assert (missed.recall, missed.precision, missed.f1) == (0, None, 0)
    false = scored(nothing, something).main
    assert (false.recall, false.precision, false.f1, false.n_false_positives) == (None, 0, 0, 2)


def test_scores_of_a_detection() -> None:
    scores = scored(drawn("#.#.#.#"), drawn("#.#...."))
    assert (scores.main.recall, scores.main.precision) == (1 / 2, 1)
    assert scores.main.f1 == pytest.approx(2 / 3)


def test_scores_survive_json() -> None:
    scores = scored(drawn("##.##.#"), drawn("#####.#"), spacing=(1.5, 0.3, 0.3))
    assert LesionScores.from_dict(scores.to_dict(), "here") == scores


def test_each_lesion_is_described_in_voxels_slices_and_mm3() -> None:
    mask = drawn("#...... .......", "#...... ....##.", "....... ....##.")
    first, second = scored(mask, ~mask, spacing=(3, 0.5, 2)).reference
    assert (first.n_voxels, first.volume_mm3, first.centroid_zyx) == (2, 6, (0.5, 0, 0))
    assert (first.first_slice, first.last_slice) == (0, 1)
    assert (second.n_voxels, second.volume_mm3, second.centroid_zyx) == (4, 12, (1.5, 1, 4.5))
    assert (second.first_slice, second.last_slice) == (1, 2)
    assert (first.mean_probability, first.max_probability) == (None, None)


def test_the_probability_of_a_lesion_is_that_of_its_own_voxels() -> None:
    probability = np.array([[[0.2, 0.6, 0.9, 0.0, 0.3, 1.0]]], np.float32)
    valid = drawn("#####.")
    scores = scored(drawn("##..##"), drawn(".##..."), valid=valid, probability=probability)
    described = [
        (lesion.mean_probability, lesion.max_probability) for lesion in (*scores.reference, *scores.predicted)
    ]
    for found, expected in zip(described, [(0.4, 0.6), (0.3, 0.3), (0.75, 0.9)], strict=True):
        assert found == pytest.approx(expected)


def test_fates_are_told_by_number() -> None:
    scores = scored(drawn("##.##.#..."), drawn("...##....#"))
    assert (scores.missed, scores.false) == ((0, 2), (1,))
    assert scores.match_of[1].predicted == 0
    assert set(scores.match_of) == {1}
    nothing = scored(drawn("..."), drawn("..."))
    assert (nothing.missed, nothing.false, nothing.match_of) == ((), (), {})


def test_dice_of_a_match_follows_from_its_iou() -> None:
    (match,) = scored(drawn("##.."), drawn(".##.")).matches
    assert match.dice == pytest.approx(2 * 1 / (2 + 2))


def test_each_lesion_has_its_own_voxels_in_raster_order() -> None:
    lesions = measure_lesions(drawn("#.# #.#", "... #.."), (1, 1, 1))
    first, second = (voxels.tolist() for voxels in lesions.voxels())
    assert first == [[0, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert second == [[0, 0, 2], [0, 1, 2]]
    assert measure_lesions(drawn("..."), (1, 1, 1)).voxels() == []
