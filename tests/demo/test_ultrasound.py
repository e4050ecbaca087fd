from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from pwmlunet.demo.fan import Fan
from pwmlunet.demo.ultrasound import DEMO_SHAPE_ZYX, FIELD_ZYX_MM, _draw_pose, make_brain, make_case, scan

TOUCHING = np.ones((3, 3, 3))
SMALL = (54, 57, 60)


def to_wall(brain, blobs):
    """From the centres of blobs to the lateral ventricles, in mm."""
    places = np.stack([blob.centre_zyx_mm for blob in blobs], axis=1)
    return brain.anatomy.to_ventricle(brain.anatomy.bend(places / brain.size)) * brain.size


def places_mm(shape_zyx, spacing_mm):
    """The places (3, Z, Y, X) of voxels about the middle of the volume."""
    axes = ((np.arange(n) - (n - 1) / 2) * spacing_mm for n in shape_zyx)
    return np.stack(np.meshgrid(*axes, indexing="ij"))


@pytest.fixture(scope="module")
def brains():
    return [make_brain(np.random.default_rng(seed), n_lesions=8) for seed in (3, 4)]


@pytest.fixture(scope="module")
def scans(brains):
    return [scan(brain, np.random.default_rng(seed)) for seed, brain in enumerate(brains)]


def test_nothing_is_seen_outside_the_fan(scans):
    z, y, x = places_mm(DEMO_SHAPE_ZYX, 0.75)
    below, behind = 30 - z, y + 5
    level = np.hypot(below, behind)
    sweep, angle, away = np.arctan2(behind, below), np.arctan2(x, level), np.hypot(x, level)
    inside = (sweep > -0.82) & (sweep < 0.9) & (abs(angle) < 0.76) & (away > 5.5) & (away < 58)
    for image, _, _ in scans:
        assert np.array_equal(image > 0, inside)
        assert image.dtype == np.uint8 and image.max() > 200


def test_the_fan_is_narrow_above_and_wide_below_in_both_planes(scans):
    for image, _, _ in scans:
        coronal, sagittal = image[:, 31] > 0, image[:, :, 40] > 0
        for plane in (coronal, sagittal):
            width = plane.sum(axis=1)
            assert width[-3] < 15 and width[36] > 60
            assert np.all(np.diff(width[36:69]) <= 0)


def test_lesions_are_bright_single_pieces_that_do_not_touch(brains, scans):
    for brain, (image, mask, _) in zip(brains, scans, strict=True):
        labelled, n = ndimage.label(mask, TOUCHING)
        assert n == len(brain.lesions) == 8
        assert np.bincount(labelled.ravel())[1:].min() >= 4
        assert image[mask > 0].min() > 0
        ring = ndimage.binary_dilation(mask, TOUCHING, 3) & ~ndimage.binary_dilation(mask, TOUCHING)
        assert image[mask > 0].mean() > image[ring].mean() + 15
        assert mask.sum() * 0.75**3 == pytest.approx(sum(b.volume_mm3 for b in brain.lesions), rel=0.1)


def test_lesions_gather_around_the_ventricles_and_their_like_does_not(brains):
    lesions = np.concatenate([to_wall(brain, brain.lesions) for brain in brains])
    others = np.concatenate([to_wall(brain, brain.lookalikes) for brain in brains])
    assert lesions.min() > 0.3 and np.median(lesions) < 2.8 and lesions.max() < 6.5
    assert others.min() > 8.5 and len(others) >= len(lesions)


def test_what_looks_like_a_lesion_is_as_bright_and_as_large_as_one(brains):
    for kind in ("volume_mm3", "echo_db"):
        lesions, others = (
            [getattr(blob, kind) for brain in brains for blob in blobs(brain)]
            for blobs in (lambda brain: brain.lesions, lambda brain: brain.lookalikes)
        )
        assert np.percentile(lesions, 25) < np.median(others) < np.percentile(lesions, 75)


def test_lookalikes_show_in_the_scan(brains):
    brain = brains[0]
    without = replace(brain, lookalikes=())
    (shown, mask, _), (hidden, _, _) = (
        scan(b, np.random.default_rng(0), shape_zyx=SMALL) for b in (brain, without)
    )
    brighter, n = ndimage.label(shown.astype(int) - hidden > 25, TOUCHING)
    assert n >= len(brain.lookalikes) // 2
    assert not np.any((brighter > 0) & ndimage.binary_dilation(mask))


def test_bone_casts_a_shadow_and_tissue_behind_fluid_is_brighter():
    fan = Fan(voxel_mm=1.0)
    echo, loss = np.full(fan.shape, -35.0, np.float32), np.zeros(fan.shape, np.float32)
    bone, nothing, fluid = np.array_split(np.arange(len(fan.angles)), 3)
    loss[:, bone, 40:50], loss[:, fluid, 40:50] = 5.0, -0.3
    with_both, without = (fan.listen(np.random.default_rng(0), echo, some) for some in (loss, 0 * loss))
    behind = (with_both - without)[:, :, 60:]
    assert behind[:, bone[:-4]].mean() < -40
    assert abs(behind[:, nothing[4:-4]]).max() < 1e-3
    assert 3 < behind[:, fluid[4:]].mean() < 9


def test_resolution_across_beams_worsens_with_depth():
    fan = Fan(sweep_radians=(-0.1, 0.1), voxel_mm=0.3)
    flat = np.full(fan.shape, -35.0, np.float32)
    heard = fan.listen(np.random.default_rng(0), flat, np.zeros_like(flat))
    y, x = np.array([-5], np.float32), np.arange(-8, 8, 0.1, np.float32)

    def likeness(bottom_mm, top_mm):  # of places 0.8 mm apart
        rows = fan.convert(heard, (np.arange(bottom_mm, top_mm, 0.3, np.float32), y, x))[:, 0].astype(float)
        return np.corrcoef(rows[:, :-8].ravel(), rows[:, 8:].ravel())[0, 1]

    assert likeness(-20, -5) > likeness(5, 20) + 0.1


def test_subjects_are_roughly_but_not_exactly_aligned():
    poses = [_draw_pose(np.random.default_rng(seed)) for seed in range(40)]
    shifts = np.stack([pose.shift_zyx_mm for pose in poses])
    degrees = np.degrees([np.linalg.norm(Rotation.from_matrix(pose.turn).as_rotvec()) for pose in poses])
    assert 0.8 < shifts.std() < 1.6 and abs(shifts).max() <= 3
    assert 2 < np.median(degrees) < 6 and degrees.max() < 9


def test_a_pose_leads_to_the_scanner_and_back():
    pose, place = _draw_pose(np.random.default_rng(1)), np.array([7, -12, 20], np.float32)
    assert np.allclose(pose.to_subject(pose.to_scanner(place)[:, None])[:, 0], place, atol=1e-4)


def test_neighbouring_lesions_are_all_drawn(brains):
    first, second = (
        replace(blob, volume_mm3=8.0, centre_zyx_mm=np.array([2, 0, x], np.float32))
        for blob, x in zip(brains[0].lesions, (10, 14.5), strict=False)
    )
    both = replace(brains[0], lesions=(first, second), lookalikes=())
    _, mask, _ = scan(both, np.random.default_rng(0), shape_zyx=SMALL)
    assert mask.sum() == 16


def test_a_second_session_shows_the_same_lesions_elsewhere(brains):
    first, second = (scan(brains[1], np.random.default_rng(seed), shape_zyx=SMALL) for seed in (1, 2))
    assert first[1].sum() == second[1].sum() > 0
    assert not np.array_equal(first[1], second[1])
    assert first[2].differences(second[2])


def test_any_size_shows_the_whole_field_in_cubes():
    shape_zyx = (70, 57, 64)
    image, mask, geometry = make_case(np.random.default_rng(1), shape_zyx=shape_zyx, n_lesions=3)
    assert image.shape == mask.shape == geometry.shape_zyx == shape_zyx
    assert geometry.spacing_zyx_mm == (1.0, 1.0, 1.0)
    assert all(n >= length for n, length in zip(shape_zyx, FIELD_ZYX_MM, strict=True))
    assert mask.any()


def test_the_grid_says_where_the_patients_left_back_and_top_are(scans):
    _, _, geometry = scans[0]
    axes = np.reshape(geometry.direction_xyz, (3, 3))
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert np.diag(axes).min() > 0.95 and abs(axes - np.diag(np.diag(axes))).max() > 0.05
    top, bottom = (geometry.index_to_mm((z, 38, 40))[2] for z in (71, 0))
    assert top > bottom + 50


def test_without_a_number_some_cases_have_no_lesion():
    numbers = (np.random.default_rng(seed).random() for seed in range(99))
    healthy = next(seed for seed, number in enumerate(numbers) if number < 0.2)
    masks = [make_case(np.random.default_rng(seed), shape_zyx=SMALL)[1] for seed in (healthy, 0)]
    assert [bool(mask.any()) for mask in masks] == [False, True]


def test_too_small_a_volume_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"\(53, 57, 60\) voxels are too few .* at least \(54, 57, 60\)"):
        make_case(np.random.default_rng(0), shape_zyx=(53, 57, 60))
