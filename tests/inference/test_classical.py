from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pwmlunet.data.dataset import CaseFiles, Labels, Target
from pwmlunet.data.image import Geometry, write_image
from pwmlunet.errors import PwmlError
from pwmlunet.inference.anatomy import AnatomyConfig, find_anatomy, fit_gaussian
from pwmlunet.inference.classical import ClassicalConfig, ClassicalPredictor
from pwmlunet.inference.postprocessing import Postprocessing
from pwmlunet.planning.fingerprint import CaseFingerprint, ChannelFacts, Fingerprint, LesionFacts

SHAPE_YX = (110, 130)
SPACING_YX = (0.8, 0.6)
CENTRE_MM = (46.0, 37.0)  # off the middle of the field
RADII_MM = (36.0, 27.0)
GRID = Geometry((3, *SHAPE_YX), (3.0, *SPACING_YX))
CONFIG = ClassicalConfig(least_score=6)  # the tissue here is noise alone, which exceeds itself more often
LESION = (60, 33)  # row and column, midway between the ventricles and the brain's edge


def distance(y_mm, x_mm, shape_yx=SHAPE_YX):
    """Of each pixel from a place in mm."""
    y, x = np.mgrid[: shape_yx[0], : shape_yx[1]]
    return np.hypot(y * SPACING_YX[0] - y_mm, x * SPACING_YX[1] - x_mm)


def head_slice(seed=0) -> NDArray[np.float32]:
    """A bright rim, a dark ring, grey tissue that is brighter in the middle, and two dark ventricles."""
    y, x = np.mgrid[: SHAPE_YX[0], : SHAPE_YX[1]]
    part = np.hypot(
        (y * SPACING_YX[0] - CENTRE_MM[0]) / RADII_MM[0], (x * SPACING_YX[1] - CENTRE_MM[1]) / RADII_MM[1]
    )
    image = np.where(part <= 1, 250.0, 2.0)
    image[part < 0.94] = 40
    image[part < 0.89] = 100
    image += np.where(part < 0.89, 30 * np.exp(-((distance(*CENTRE_MM) / 12) ** 2)), 0)
    for x_mm in (-5, 5):
        ventricle = np.abs(y * SPACING_YX[0] - CENTRE_MM[0]) < 8
        image[ventricle & (np.abs(x * SPACING_YX[1] - CENTRE_MM[1] - x_mm) < 1.5)] = 45
    return (image + np.random.default_rng(seed).normal(0, 2, SHAPE_YX)).astype(np.float32)


def head(*spots, seed=0) -> NDArray[np.float32]:
    """Three slices; each spot (z, rows, columns, excess) is brighter by its excess."""
    volume = np.stack([head_slice(seed + z) for z in range(3)])
    for z, rows, columns, excess in spots:
        volume[z, rows, columns] += excess
    return volume


def square(y, x, side=2):
    return slice(y, y + side), slice(x, x + side)


SPOT = (1, *square(*LESION), 40)


def find(volume, geometry=GRID, config=CONFIG, **options):
    return ClassicalPredictor(config=config, **options).find([volume], geometry, "baby")


def test_a_spot_in_the_white_matter_is_found_and_nothing_else():
    prediction = find(head(SPOT))
    expected = np.zeros(GRID.shape_zyx, bool)
    expected[SPOT[:3]] = True
    assert np.array_equal(prediction.mask == 1, expected)
    assert prediction.probability.shape == (1, *GRID.shape_zyx)
    z, y, x = prediction.head_centre_zyx
    assert abs(z - 1) < 0.1 and abs(y * 0.8 - CENTRE_MM[0]) < 1 and abs(x * 0.6 - CENTRE_MM[1]) < 1


def test_probabilities_rank_candidates_and_are_above_half_where_the_mask_is():
    excesses = (16, 24, 40)
    prediction = find(head(*((z, *square(*LESION), e) for z, e in enumerate(excesses))))
    p = prediction.probability[0]
    values = [np.unique(p[z, *square(*LESION)]) for z in range(3)]
    assert all(len(v) == 1 for v in values) and np.all(np.diff(np.ravel(values)) > 0)
    assert np.array_equal(prediction.mask != 0, p > 0.5) and prediction.mask.any()
    assert ((p > 0) & (p < 0.5)).any() and (p == 0).mean() > 0.99


PRUNED = {
    "too near to the edge": ((1, *square(57, 27), 60), {"least_depth_share": 0.2}),
    "too large": ((1, *square(58, 33, 8), 40), {"most_area_mm2": 40.0}),
    "too small": ((1, slice(60, 61), slice(33, 34), 60), {"least_area_mm2": 0.0}),
    "too long": ((1, slice(50, 66), slice(34, 35), 60), {"most_elongation": 30.0}),
    "beside the ventricles": ((1, *square(57, 48), 35), {"anatomy": AnatomyConfig(ventricle_deviations=99)}),
    "too faint": ((1, *square(*LESION), 10), {"least_score": 1.5}),
}


@pytest.mark.parametrize("name", PRUNED)
def test_what_is_no_lesion(name):
    (z, rows, columns, excess), lifted = PRUNED[name]
    strict = replace(CONFIG, least_area_mm2=0.6)
    volume = head((z, rows, columns, excess))
    assert not find(volume, config=strict).mask[z, rows, columns].any()
    assert find(volume, config=replace(strict, **lifted)).mask[z, rows, columns].any()


def test_the_shoulder_of_a_brighter_spot_is_no_candidate():
    """It is a peak of its own, but the pixels around it lead up to a higher one."""
    bridge, shoulder = (1, slice(62, 64), slice(33, 34), 19), (1, *square(64, 33), 25)
    mask = find(head((1, *square(*LESION), 80), bridge, shoulder)).mask[1]
    assert mask[square(*LESION)].all() and not mask[square(64, 33)].any()
    assert find(head(shoulder)).mask[1, 64, 33]


def test_a_long_lesion_is_found_whole_from_a_peak_at_its_end():
    bar, end = (1, slice(54, 62), slice(32, 35), 40), (1, slice(54, 56), slice(32, 35), 15)
    assert find(head(bar, end)).mask[bar[:3]].all()


def test_pixels_that_meet_at_a_corner_are_one_candidate():
    corners = ((1, *square(60, 33, 1), 60), (1, *square(61, 34, 1), 50))
    mask = find(head(*corners), config=replace(CONFIG, smooth_mm=0)).mask[1]
    assert mask[60, 33] and mask[61, 34] and mask.sum() == 2


def test_a_slice_with_little_of_the_head_is_passed_over():
    small = head()
    small[0] = 2
    small[0, 40:77, 40:84] = head_slice()[::3, ::3]
    small[0, 60, 52] += 120
    assert not find(small).probability[0, 0].any()
    assert find(small, config=replace(CONFIG, least_slice_share=0.0)).mask[0, 60, 52]


def test_scale_and_offset_do_not_matter_nor_does_the_number_format():
    volume = head(SPOT)
    expected = find(volume)
    for other in (volume * 7 - 300, np.rint(volume * 100).astype(np.int32), volume.astype(np.float64)):
        assert np.array_equal(find(other).mask, expected.mask)


def test_a_mirrored_head_has_mirrored_lesions():
    volume = head(SPOT)
    mirrored = find(volume[:, ::-1, ::-1].copy()).probability[0]
    assert np.allclose(mirrored[:, ::-1, ::-1], find(volume).probability[0], atol=1e-3)


def test_slices_lie_along_the_coarsest_axis():
    volume = head(SPOT)
    for order in ((1, 0, 2), (2, 1, 0)):
        spacing = tuple(GRID.spacing_zyx_mm[axis] for axis in order)
        turned = volume.transpose(order)
        geometry = Geometry(turned.shape, spacing)
        prediction = find(turned, geometry)
        assert np.array_equal(prediction.mask, find(volume).mask.transpose(order))
        assert prediction.head_centre_zyx == pytest.approx(
            [find(volume).head_centre_zyx[axis] for axis in order]
        )


def test_lengths_are_in_mm():
    """The same image with pixels half as wide: the spot is a quarter as large, and too small."""
    config = replace(CONFIG, least_area_mm2=1.5)
    fine = replace(GRID, spacing_zyx_mm=(3.0, 0.4, 0.3))
    assert find(head(SPOT), config=config).mask.any()
    assert not find(head(SPOT), fine, config=config).mask.any()


def test_other_channels_and_targets_are_left_alone():
    labels = Labels((Target("acute", (2,), 2), Target("old", (3,), 3)), ignore=4)
    predictor = ClassicalPredictor(labels, CONFIG)
    prediction = predictor.find([head(SPOT), head()], GRID, "baby")
    assert set(np.unique(prediction.mask)) == {0, 2}
    assert prediction.probability.shape[0] == 2 and not prediction.probability[1].any()


def test_postprocessing_is_that_of_any_predictor():
    volume = head((0, *square(*LESION), 18), (2, *square(*LESION), 40))
    plain = find(volume).probability
    assert find(volume, postprocessing=Postprocessing(0.9)).mask.sum() == (plain > 0.9).sum() > 0
    calibrated = find(volume, postprocessing=Postprocessing(temperature=2.0))
    assert calibrated.probability.max() < plain.max()
    assert np.array_equal(calibrated.mask, find(volume).mask)


# Anatomy


def test_ventricles_and_the_way_between_them_and_the_edge():
    inside = distance(*CENTRE_MM) < 60
    image = head_slice()
    whole = image > 20
    anatomy = find_anatomy(image, whole & inside, SPACING_YX, AnatomyConfig())
    y, x = (round(mm / s) for mm, s in zip(CENTRE_MM, SPACING_YX, strict=True))
    left, right = x - round(5 / 0.6), x + round(5 / 0.6)
    assert anatomy.ventricles[y, left] and anatomy.ventricles[y, right]
    assert not anatomy.ventricles[y, x] and anatomy.ventricles.sum() * 0.48 < 1.5 * 2 * 16 * 3
    assert anatomy.radius_mm == pytest.approx(np.sqrt(RADII_MM[0] * RADII_MM[1]), rel=0.02)
    edge = anatomy.brain[y].argmax()
    row = anatomy.midway[y]
    ventricle = anatomy.ventricles[y].argmax()
    assert abs(row[:left].argmax() - (edge + ventricle) / 2) <= 1 and row[:left].max() > 0.95
    assert row[edge] < 0.1 and row[ventricle] == 0 and not anatomy.midway[~anatomy.brain].any()


def test_without_ventricles_the_middle_stands_for_them():
    flat = np.where(head_slice() > 20, 100, 0).astype(np.float32)
    anatomy = find_anatomy(flat, flat > 0, SPACING_YX, AnatomyConfig())
    deepest = np.unravel_index(anatomy.depth_mm.argmax(), SHAPE_YX)
    assert not anatomy.ventricles.any() and anatomy.midway[deepest] == 0 and anatomy.midway.max() > 0.95


def test_outliers_do_not_move_the_gaussian():
    values = np.random.default_rng(0).normal(50, 4, 2000)
    values[:300] = 1000
    mean, deviation = fit_gaussian(values)
    assert mean == pytest.approx(50.8, abs=0.5) and deviation == pytest.approx(4.8, abs=0.5)
    assert fit_gaussian(np.empty(0)) == (0, 0)


# Odd images


def test_slices_without_a_head_stay_empty():
    volume = head(SPOT)
    volume[0] = 2
    volume[2] = 2
    volume[2, 50:54, 60:64] = 100
    mask = find(volume).mask
    assert mask[1].any() and not mask[[0, 2]].any()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (1, 12, 9)])
def test_no_head(shape):
    volume = np.zeros(shape, np.float32)
    volume[0, 0, 0] = 1
    with pytest.raises(PwmlError, match=r"^case baby: no head is found.*: is it the right kind of image\?$"):
        find(volume, Geometry(shape, (3.0, 0.8, 0.6)))


def test_a_head_without_any_contrast_has_no_lesions():
    flat = np.where(head() > 20, 100, 0).astype(np.uint8)
    assert not find(flat).probability.any()


def test_a_fan_of_ultrasound_does_no_harm():
    rng = np.random.default_rng(1)
    fan = rng.rayleigh(40, (4, *SHAPE_YX)) * (distance(0, 39) < 70) * (distance(0, 39) > 10)
    prediction = find(fan.astype(np.uint8), Geometry(fan.shape, (0.6, 0.6, 0.6)))
    assert np.isfinite(prediction.probability).all()


def test_files_are_read(tmp_path):
    path = tmp_path / "baby_0000.png"
    flat = Geometry((1, *SHAPE_YX), (1.0, *SPACING_YX), is_2d=True)
    write_image(path, np.clip(head(SPOT)[1:2], 0, 255).astype(np.uint8), flat)
    prediction = ClassicalPredictor(config=CONFIG).predict_files(CaseFiles("baby", "baby", (path,)))
    assert prediction.geometry.is_2d and prediction.mask[0, LESION[0], LESION[1]] == 1


# Settings


def lesion(target, diameter_zyx):
    return LesionFacts(target, 4, 1.0, (1, 2, 2), diameter_zyx, 1.5, (1.0, 5.0, 5.0))


def fingerprint_of(*lesions, spacing_zyx_mm=(0.7, 3.0, 0.5)):
    geometry = Geometry((40, 8, 50), spacing_zyx_mm)
    facts = (ChannelFacts(1.0, 1.0, (0.0, 1.0, 2.0)),)
    case = CaseFingerprint(
        "a", "a", geometry, ((0, 40), (0, 8), (0, 50)), 99, False, facts, tuple(lesions), 8, 2
    )
    return Fingerprint("Dataset001_A", ("T1",), (case,))


def test_sizes_come_from_the_training_lesions():
    """Slices lie along y here: the area is that of the disc across y, in pixels of 0.7 × 0.5 mm."""
    lesions = [lesion("old", (9.0, d, 9.0)) for d in (2.0, 4.0)] + [lesion("acute", (50.0, 50.0, 50.0))]
    config = ClassicalConfig.of_fingerprint(fingerprint_of(*lesions), "old")
    small, large = (np.pi / 4 * d**2 * 0.35 for d in (2, 4))
    assert config.least_area_mm2 == pytest.approx(small / 2)
    assert config.most_area_mm2 == pytest.approx(1.5 * (0.05 * small + 0.95 * large))
    assert config.surroundings_mm == ClassicalConfig().surroundings_mm
    wide = ClassicalConfig.of_fingerprint(fingerprint_of(*lesions), "acute")
    assert wide.surroundings_mm == pytest.approx(50 * np.sqrt(0.35))
    assert ClassicalConfig.of_fingerprint(fingerprint_of(*lesions), "none") == ClassicalConfig()


def test_settings_survive_json(tmp_path):
    config = ClassicalConfig(most_area_mm2=9.0, anatomy=AnatomyConfig(edge_share=0.2))
    config.write(tmp_path / "classical.json")
    assert ClassicalConfig.read(tmp_path / "classical.json") == config
