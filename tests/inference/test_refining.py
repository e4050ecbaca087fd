import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from pwmlunet.data.image import Geometry
from pwmlunet.data.store import Orientation, WayBack
from pwmlunet.evaluation.lesions import find_lesions
from pwmlunet.inference.candidates import THRESHOLDS
from pwmlunet.inference.refining import SeenImage
from pwmlunet.networks.dense_crf import DenseCrfConfig, mean_field
from pwmlunet.planning.cropping import foreground

SPACING_ZYX_MM = (3.0, 0.8, 0.5)
SHAPE_ZYX = (3, 40, 60)
PAPER = DenseCrfConfig.of_paper(SPACING_ZYX_MM[1:])
MILD = replace(PAPER, smooth_weight=1.0, alike_weight=3.0, alike_intensity=0.1)


def head(*lesions, brightness=100.0):
    """An image with lesions (z, rows, columns) in an ellipse, and probabilities that are right about them."""
    rng = np.random.default_rng(1)
    y, x = np.ogrid[:40, :60]
    inside = ((y - 21) / 17) ** 2 + ((x - 28) / 26) ** 2 < 1
    image = (inside * 100.0 + rng.normal(0, 3, SHAPE_ZYX)).astype(np.float32)[None]
    probability = np.full((1, *SHAPE_ZYX), 0.01, np.float32)
    for place in lesions:
        image[0][place] += brightness
        probability[0][place] = 0.8
    return image, probability


WAY_BACK = WayBack(
    Geometry(SHAPE_ZYX, SPACING_ZYX_MM), Orientation(), tuple((0, n) for n in SHAPE_ZYX), SHAPE_ZYX
)


def refine(probability, image, config, *thresholds):
    """For an image that is prepared on its own grid."""
    return SeenImage.of_prepared(image, WAY_BACK).refine(probability, config, *thresholds)


def n_lesions(probability, threshold=0.5):
    return find_lesions(probability[0] > threshold)[1]


PIXEL, STRIP = (1, 20, 30), (2, slice(10, 12), slice(40, 44))


@pytest.mark.parametrize("brightness", [0.0, 100.0])
def test_a_lesion_of_one_pixel_survives(brightness):
    """A pixel that looks like all around it is erased by the paper's kernels; one that looks like nothing else is not."""
    image, probability = head(PIXEL, brightness=brightness)
    kept = refine(probability, image, PAPER, 0.5)
    bare = refine(probability, image, replace(PAPER, may_delete=True), 0.5)
    assert n_lesions(kept) == 1
    assert n_lesions(bare) == (brightness > 0)
    if not brightness:
        assert kept[0][PIXEL] == probability[0][PIXEL]


def test_a_lesion_is_a_component_of_the_volume():
    """A lesion of two slices that touch by a corner is not lost where one of the two stays, nor where both go."""
    image, probability = head((0, 20, 30), (1, 21, 31), brightness=0.0)
    image[0, 0, 20, 30] += 100
    refined = refine(probability, image, PAPER, 0.5)
    assert refined[0, 0, 20, 30] > 0.5 > refined[0, 1, 21, 31]
    image[0, 0, 20, 30] -= 100
    refined = refine(probability, image, PAPER, 0.5)
    assert refined[0, 0, 20, 30] == refined[0, 1, 21, 31] == np.float32(0.8)


def test_nothing_is_lost_at_any_threshold_that_is_given():
    rng = np.random.default_rng(5)
    image, _ = head()
    noise = rng.normal(-5, 0.7, (1, *SHAPE_ZYX))
    for _ in range(25):
        z, y, x = rng.integers((0, 8, 10), (3, 32, 46))
        noise[0, z, y : y + rng.integers(1, 4), x : x + rng.integers(1, 4)] += rng.uniform(3, 9)
    probability = (1 / (1 + np.exp(-noise))).astype(np.float32)
    refined = refine(probability, image, PAPER, *THRESHOLDS)
    bare = refine(probability, image, replace(PAPER, may_delete=True), *THRESHOLDS)
    lost = 0
    for threshold in THRESHOLDS:
        components, n = find_lesions(probability[0] > threshold)
        for number in range(1, n + 1):
            assert refined[0][components == number].max() > threshold
            lost += bare[0][components == number].max() <= threshold
    assert lost > 10 and not np.array_equal(refined, probability)


def test_it_is_the_mean_field_around_a_lesion():
    """Margins of two standard deviations: the whole surroundings are seen, and nothing else is written."""
    image, probability = head(STRIP)
    refined = refine(probability, image, MILD, 0.5)
    rows, columns = (int(np.ceil(2 * MILD.alike_mm / step)) for step in SPACING_ZYX_MM[1:])
    box = (2, slice(10 - rows, 12 + rows), slice(40 - columns, 44 + columns))
    inside = SeenImage.of_prepared(image, WAY_BACK).intensities
    p, i = (torch.from_numpy(a.copy()) for a in (probability[0][box][None], inside[:, *box][None]))
    expected = mean_field(p, i, torch.ones_like(p, dtype=torch.bool), SPACING_ZYX_MM[1:], MILD)[0].numpy()
    assert np.allclose(refined[0][box], expected, atol=1e-6)
    assert np.abs(refined[0][box] - probability[0][box]).max() > 0.05
    refined[0][box] = probability[0][box]
    assert np.array_equal(refined, probability)


def test_lesions_at_the_border_and_of_unequal_size_are_refined_as_alone():
    corner, far = (2, slice(0, 1), slice(0, 2)), (2, slice(37, 40), slice(52, 60))
    image, probability = head(corner, STRIP, far)
    together = refine(probability, image, MILD, 0.5)
    for place in (corner, STRIP, far):
        alone = np.full_like(probability, 0.01)
        alone[0][place] = 0.8
        refined = refine(alone, image, MILD, 0.5)
        assert np.allclose(refined[0][place], together[0][place], atol=1e-6)
        assert not np.allclose(refined[0][place], 0.8, atol=0.01)


def test_each_pixel_is_written_for_the_lesion_nearest_to_it():
    """Two lesions in each other's surroundings: mirrored images give mirrored probabilities."""
    image, probability = head((1, slice(18, 20), slice(24, 26)), (1, slice(18, 20), slice(31, 33)))
    refined = refine(probability, image, MILD, 0.5)
    mirrored = refine(probability[..., ::-1], image[..., ::-1], MILD, 0.5)
    assert np.allclose(mirrored[..., ::-1], refined, atol=1e-5)
    assert (refined[0, 1, 18:20, 24:33] != probability[0, 1, 18:20, 24:33]).all()


def test_large_regions_are_left_alone(caplog):
    image, probability = head((1, slice(5, 35), slice(2, 58)), STRIP)
    with caplog.at_level(logging.DEBUG, "pwmlunet"):
        refined = refine(probability, image, PAPER, 0.5)
    assert np.array_equal(refined[0, 1], probability[0, 1])
    assert not np.array_equal(refined[0, 2], probability[0, 2])
    assert "slice 1: a region of 40 × 60 pixels is not refined" in caplog.text


def test_targets_are_refined_one_by_one():
    image, first = head(PIXEL)
    _, second = head(STRIP)
    both = refine(np.concatenate([first, second]), image, MILD, 0.5)
    for target, alone in zip(both, (first, second), strict=True):
        assert np.array_equal(target, refine(alone, image, MILD, 0.5)[0])


def test_another_target_does_not_take_the_place_of_a_lesion():
    """A pixel of one label in a larger lesion of another: the CRF likes the larger one everywhere."""
    large = (1, slice(18, 23), slice(28, 33))
    image, first = head(large)
    image[0][large] = 200
    first[0][large], first[0][PIXEL] = 0.9, 0.45
    _, second = head()
    second[0][PIXEL] = 0.6
    probability = np.concatenate([first, second])
    bare = refine(probability, image, replace(PAPER, may_delete=True), *THRESHOLDS)
    kept = refine(probability, image, PAPER, *THRESHOLDS)
    assert not (bare.argmax(0) == 1)[bare.max(0) > 0.5].any()
    assert np.array_equal(kept[:, *PIXEL], probability[:, *PIXEL])
    changed = (kept != probability).any(0)
    assert changed[large].sum() == 24  # all but that pixel
    again = refine(probability[::-1], image, PAPER, *THRESHOLDS)
    assert np.array_equal(again[::-1], kept)


@pytest.mark.parametrize("threshold", [0.03, 0.5])
def test_a_threshold_does_not_say_what_is_refined(threshold):
    """Where the whole head is a lesion at a low one, lesions are refined as at the others."""
    image, probability = head(STRIP)
    probability[probability < 0.04] = 0.04
    refined = refine(probability, image, MILD, *THRESHOLDS)
    assert np.abs(refined - probability).max() > 0.05
    assert np.array_equal(refine(probability, image, MILD, *THRESHOLDS, threshold), refined)


@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_small_numbers_are_an_image_too(scale):
    """A prepared image need not be normalised; the way back of probabilities passes over those near 0."""
    image, _ = head(STRIP)
    seen, expected = (
        SeenImage.of_prepared(image * unit, WAY_BACK).intensities for unit in (np.float32(scale), 1)
    )
    assert np.allclose(seen, expected, atol=1e-3) and expected.max() > 1


def test_intensities_are_shares_of_the_range_in_the_head():
    """Another scanner's scale changes nothing; nor does what lies outside of the head."""
    image, probability = head(STRIP)
    refined = refine(probability, image, MILD, 0.5)
    scaled = refine(probability, image * 7 - 300, MILD, 0.5)
    assert np.allclose(scaled, refined, atol=1e-4)
    seen = SeenImage.of_prepared(image, WAY_BACK).intensities
    low, high = np.percentile(image[0][foreground(image[0])], (0.5, 99.5))
    assert np.allclose(seen, (image - low) / (high - low), atol=1e-4)


def test_an_image_without_a_head_is_refined_too():
    _, probability = head(STRIP)
    refined = refine(probability, np.zeros((1, *SHAPE_ZYX), np.float32), MILD, 0.5)
    assert np.isfinite(refined).all() and n_lesions(refined) == 1


def test_slices_lie_as_the_case_was_prepared():
    """Coronal slices of a file whose axes run elsewhere: the same as slices that come first."""
    image, probability = head(PIXEL, STRIP)
    orientation = Orientation((1, 2, 0), (True, False, True))
    expected = refine(probability, image, MILD, 0.5)
    spacing = [0.0] * 3
    for axis, step in zip(orientation.order, SPACING_ZYX_MM, strict=True):
        spacing[axis] = step
    in_file = orientation.to_file(probability)
    geometry = Geometry(in_file.shape[1:], tuple(spacing))
    way_back = WayBack(geometry, orientation, tuple((0, n) for n in SHAPE_ZYX), SHAPE_ZYX)
    refined = SeenImage.of_prepared(image, way_back).refine(in_file, MILD, 0.5)
    assert refined.shape == in_file.shape
    assert np.allclose(orientation.to_grid(refined), expected, atol=1e-6)


def test_a_prepared_image_stays_as_it_is():
    image, _ = head(PIXEL)
    before = image.copy()
    SeenImage.of_prepared(image, WAY_BACK)
    assert np.array_equal(image, before)


def test_beyond_the_crop_it_is_dark():
    image, _ = head(PIXEL)
    box = ((0, 3), (-2, 38), (4, 64))
    way_back = WayBack(Geometry((3, 45, 70), SPACING_ZYX_MM), Orientation(), box, SHAPE_ZYX)
    seen = SeenImage.of_prepared(image - 100, way_back).intensities
    assert seen.shape == (1, 3, 45, 70)
    assert (seen[:, :, :, :4] == seen.min()).all() and seen[0, 1, 18, 34] == seen.max() > seen.min() + 1
