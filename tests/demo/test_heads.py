import numpy as np
import pytest
from scipy import ndimage

from pwmlunet.demo.heads import make_case, make_head, scan

SMALL = (6, 64, 64)
IN_SLICE = np.ones((1, 3, 3))


def lesions_by_slice(mask):
    connected = np.zeros((3, 3, 3))
    connected[1] = 1
    labelled, n = ndimage.label(mask, connected)
    return [labelled == i for i in range(1, n + 1)]


def ring_around(lesion, head):
    ring = ndimage.binary_dilation(lesion, IN_SLICE, 4) & ~ndimage.binary_dilation(lesion, IN_SLICE)
    return head.signal[ring & (head.mask == 0)]


@pytest.fixture(scope="module")
def heads():
    return [make_head(np.random.default_rng(i), shape_zyx=(8, 128, 128), n_lesions=5) for i in range(6)]


def test_lesions_are_as_small_and_as_bright_as_real_ones(heads):
    sizes, ratios = [], []
    for head in heads:
        lesions = lesions_by_slice(head.mask)
        assert 5 <= len(lesions) <= 10
        for lesion in lesions:
            sizes.append(lesion.sum())
            ratios.append(head.signal[lesion].mean() / ring_around(lesion, head).mean())
            assert head.signal[lesion].max() < head.signal.max()
    assert min(sizes) >= 1 and max(sizes) <= 12 and 3 <= np.median(sizes) <= 5
    assert min(ratios) > 1.15 and max(ratios) < 2.4 and 1.3 < np.median(ratios) < 1.6


def test_lesions_lie_in_white_matter_at_every_level(heads):
    for head in heads:
        for lesion in lesions_by_slice(head.mask):
            assert 42 < np.median(ring_around(lesion, head)) < 62  # white matter is 50, all else is not
    assert np.any([head.mask.any(axis=(1, 2)) for head in heads], axis=0).all()


@pytest.mark.parametrize("shape_zyx", [(1, 48, 48), (3, 50, 64), SMALL])
def test_small_heads_have_room_for_lesions(shape_zyx):
    for seed in range(5):
        image, mask, geometry = make_case(np.random.default_rng(seed), shape_zyx=shape_zyx, n_lesions=6)
        assert image.shape == mask.shape == geometry.shape_zyx == shape_zyx
        assert len(lesions_by_slice(mask)) >= shape_zyx[0]
        assert set(np.unique(mask)) == {0, 1}


def test_a_lesion_stays_where_it_was_when_the_head_is_scanned_again():
    head = make_head(np.random.default_rng(3), shape_zyx=(4, 128, 128), n_lesions=3)
    for session in range(2):
        image, mask, _ = scan(head, np.random.default_rng(session))
        lesion = mask > 0
        ring = ndimage.binary_dilation(lesion, IN_SLICE, 3) & ~ndimage.binary_dilation(lesion, IN_SLICE)
        assert mask.sum() == head.mask.sum()
        assert image[lesion].mean() > 1.2 * image[ring].mean()


def test_thick_slices_are_oblique_and_off_centre():
    _, _, geometry = make_case(np.random.default_rng(4), shape_zyx=SMALL, n_lesions=1)
    axes = np.reshape(geometry.direction_xyz, (3, 3))
    assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert np.abs(axes - np.diag(np.diag(axes))).max() > np.sin(np.radians(5))
    assert np.linalg.norm(geometry.origin_xyz_mm) > 1
    dz, dy, dx = geometry.spacing_zyx_mm
    assert dz > 3 * dy and dy == pytest.approx(dx)


def test_too_small_a_head_is_refused():
    with pytest.raises(ValueError, match="a head needs at least 48 pixels"):
        make_case(np.random.default_rng(0), shape_zyx=(6, 47, 64))
