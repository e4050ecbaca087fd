from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from pwmlunet.demo.adult import WHITE
from pwmlunet.demo.dataset import MODALITIES, _is_healthy
from pwmlunet.demo.flair import _draw_lesion, make_case, make_patient, scan
from pwmlunet.demo.spots import FCI, LACI, Spot

TOUCHING = np.ones((3, 3, 3))
IN_SLICE = np.ones((1, 3, 3))


@cache
def patients():
    """Two with both kinds of lesions."""
    return [make_patient(np.random.default_rng(seed), n_slices=16, n_lesions=18) for seed in (6, 19)]


@cache
def scans():
    return [scan(patient, np.random.default_rng(seed)) for seed, patient in enumerate(patients())]


def without(patient, *, t1=False, t2=False):
    """The patient without the look-alikes that are seen on one channel."""
    kept = [s for s in patient.lookalikes if not ((t1 and s.t1 is not None) or (t2 and s.t2 is not None))]
    assert len(kept) < len(patient.lookalikes)
    return replace(patient, lookalikes=tuple(kept))


def contrasts(image, mask, kind):
    """Of each lesion of a kind, to what is around it in its slices."""
    pieces, n = ndimage.label(mask == kind, TOUCHING)
    found = []
    for piece in (pieces == i for i in range(1, n + 1)):
        near = ndimage.binary_dilation(piece, IN_SLICE)
        ring = ndimage.binary_dilation(near, IN_SLICE, 2) & ~near & (mask == 0)
        found.append(image[piece].mean() / np.median(image[ring]))
    return np.array(found)


def of_all(channel, kind):
    return np.concatenate([contrasts(images[channel], mask, kind) for images, mask, _ in scans()])


def test_both_kinds_are_alike_on_t2_flair_and_only_lacunes_are_dark_on_t1_flair():
    for kind in (FCI, LACI):
        assert np.median(of_all(0, kind)) > 1.3 and of_all(0, kind).min() > 1.1
    assert np.median(of_all(0, FCI)) == pytest.approx(np.median(of_all(0, LACI)), abs=0.25)
    assert 0.94 < np.median(of_all(1, FCI)) < 1.06
    assert np.median(of_all(1, LACI)) < 0.84
    assert np.percentile(of_all(1, LACI), 75) < np.percentile(of_all(1, FCI), 25)


def test_t2_flair_alone_says_nothing_about_the_kind():
    drawn = [[_draw_lesion(np.random.default_rng(seed), share) for seed in range(50)] for share in (1.0, 0.0)]
    assert [{spot.kind for spot in spots} for spots in drawn] == [{FCI}, {LACI}]
    for fci, laci in zip(*drawn, strict=True):
        assert asdict(replace(laci, kind=FCI, t1=None, core=1.0)) == asdict(fci)


def test_a_cavity_is_a_little_smaller_than_what_is_bright():
    spots = [_draw_lesion(np.random.default_rng(seed), 0.0) for seed in range(20)]
    plane = np.stack(np.meshgrid(0.0, np.arange(-8, 8, 0.2), np.arange(-8, 8, 0.2), indexing="ij"))
    for spot in spots:
        cavity, bright = (spot.cover(plane, 0.2, share).sum() for share in (spot.core, 1.0))
        assert 0.4 * bright < cavity < 0.9 * bright


def test_what_only_looks_like_a_lesion_is_as_bright_and_is_not_labelled():
    lesions, others = (
        [spot.t2 for patient in patients() for spot in getattr(patient, name) if spot.t2 is not None]
        for name in ("lesions", "lookalikes")
    )
    assert np.percentile(others, 10) < np.median(lesions) < np.percentile(others, 90)
    patient, ((shown, _), mask, _) = patients()[0], scans()[0]
    (hidden, _), without_them, _ = scan(without(patient, t2=True), np.random.default_rng(0))
    assert np.array_equal(mask, without_them)
    white = np.median(shown[ndimage.binary_dilation(mask, IN_SLICE, 3) & (mask == 0)])
    bright, n = ndimage.label(shown.astype(int) - hidden > 0.2 * white, TOUCHING)
    assert n > len(patient.lesions)
    assert not np.any(mask[bright > 0])


def test_perivascular_spaces_are_dark_on_t1_flair_and_not_bright_on_t2_flair():
    patient, (images, mask, _) = patients()[1], scans()[1]
    changed, without_them, _ = scan(without(patient, t1=True), np.random.default_rng(1))
    assert np.array_equal(images[0], changed[0]) and np.array_equal(mask, without_them)
    difference = images[1].astype(int) - changed[1]
    white = np.median(images[1][ndimage.binary_dilation(mask, IN_SLICE, 3) & (mask == 0)])
    assert difference.max() <= 0.02 * white and (difference < -0.2 * white).sum() >= 4
    assert not np.any(mask[difference < -0.1 * white])


def test_normal_white_matter_before_the_horns_is_as_bright_as_some_lesions_and_unseen_on_t1_flair():
    for patient in patients():
        head = replace(patient.head, caps=(70.0, 60.0, 30.0))
        z, y, x = np.meshgrid(np.arange(0, 16.0), np.arange(-48, -36.0), np.arange(6, 14.0), indexing="ij")
        points = np.stack([z, y, x]).astype(np.float32).reshape(3, -1)
        t2, t1 = head.paint(points, 0.7)
        is_white = t1 > 0.93 * WHITE[1]
        assert t2[is_white].max() > WHITE[0] + 35
        dull, same = replace(head, caps=(0.0, 0.0, 0.0)).paint(points, 0.7)
        assert np.array_equal(t1, same) and dull[is_white].max() < WHITE[0] + 22


def test_lesions_are_tiny_single_pieces_that_do_not_touch():
    sizes = []
    for patient, (_, mask, _) in zip(patients(), scans(), strict=True):
        pieces, n = ndimage.label(mask, TOUCHING)
        assert n == len(patient.lesions) > 12
        assert all(len(np.unique(mask[pieces == i])) == 1 for i in range(1, n + 1))
        sizes.extend(np.bincount(pieces.ravel())[1:])
    assert min(sizes) >= 3 and 4 <= np.median(sizes) <= 9 and max(sizes) <= 45
    widths = [2 * r for patient in patients() for spot in patient.lesions for r in spot.radii_mm[1:]]
    assert min(widths) > 2 and max(widths) < 10


def test_lesions_lie_in_white_or_deep_grey_matter_away_from_ventricles_and_bright_places():
    for patient in patients():
        centres = np.array([spot.centre_zyx_mm for spot in patient.lesions], np.float32).T
        head, bent = patient.head, patient.head.bend(centres)
        t2, t1 = head.paint(centres, 0.7)
        assert t1.min() > 70 and t2.max() < 95
        assert head.to_ventricle(bent).min() > 3 and head.to_fluid(centres, bent).min() > 5


def test_some_slices_hold_more_than_five_lesions():
    most = [max(ndimage.label(part, np.ones((3, 3)))[1] for part in mask) for _, mask, _ in scans()]
    assert max(most) > 5


def test_healthy_subjects_have_look_alikes_only():
    patient = make_patient(np.random.default_rng(1), n_slices=6, n_lesions=0)
    assert not patient.lesions and len(patient.lookalikes) > 10
    assert not scan(patient, np.random.default_rng(1), shape_zyx=(6, 64, 64))[1].any()


def test_as_many_subjects_are_healthy_as_in_the_paper():
    healthy = sum(_is_healthy(subject, MODALITIES["flair"]) for subject in range(1, 114))
    assert healthy == 37


def test_both_channels_lie_on_one_slightly_oblique_grid_of_slices_of_6_mm():
    (t2, t1), mask, geometry = scans()[0]
    assert t2.shape == t1.shape == mask.shape == geometry.shape_zyx == (16, 128, 128)
    assert geometry.spacing_zyx_mm == pytest.approx((6, 1.68, 1.68), abs=0.01)
    axes = np.reshape(geometry.direction_xyz, (3, 3))
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert np.diag(axes).min() > 0.95 and abs(axes - np.diag(np.diag(axes))).max() > 0.05


def test_channels_and_subjects_have_their_own_units():
    scalp = np.array([[np.percentile(image, 99) for image in images] for images, _, _ in scans()])
    gains = scalp / (120, 170)  # what the skin has on each channel
    assert np.ptp(np.log(gains), axis=0).max() > 0.3 and np.ptp(np.log(gains), axis=1).max() > 0.3


def test_a_second_session_shows_the_same_lesions_elsewhere():
    first, (_, mask, geometry) = scans()[0], scan(patients()[0], np.random.default_rng(9))
    assert ndimage.label(mask, TOUCHING)[1] == ndimage.label(first[1], TOUCHING)[1]
    assert not np.array_equal(mask, first[1]) and geometry.differences(first[2])


def test_a_spot_lies_where_its_centre_is_and_as_wide_as_its_radii_say():
    spot = Spot((3.0, 4.0, 2.0), angle=0.0, centre_zyx_mm=(1.0, -6.0, 9.0))
    axes = (np.arange(-5, 8, 0.5), np.arange(-12, 0, 0.25), np.arange(0, 18, 0.25))
    points = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    inside = points[:, spot.cover(points, 0.1) > 0.5]
    assert np.allclose(inside.mean(1), spot.centre_zyx_mm, atol=0.3)
    assert np.ptp(inside, axis=1) == pytest.approx((6, 4, 8), rel=0.2)
    assert spot.is_seen(6.0, 3.0) and not spot.is_seen(8.0, 3.0)


def test_rows_and_columns_may_differ_and_too_few_are_refused():
    images, mask, geometry = make_case(np.random.default_rng(2), shape_zyx=(3, 64, 50), n_lesions=2)
    assert [image.shape for image in images] == [mask.shape] * 2 == [(3, 64, 50)] * 2 and mask.any()
    assert geometry.spacing_zyx_mm == (6.0, 4.3, 4.3)
    with pytest.raises(ValueError, match=r"\(64, 47\) pixels are too few .* 48 or more"):
        make_case(np.random.default_rng(2), shape_zyx=(3, 64, 47), n_lesions=2)
