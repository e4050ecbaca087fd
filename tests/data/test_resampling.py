import numpy as np
import pytest
import torch

from pwmlunet.data.resampling import area_mean, resize_images, resize_mask


def test_the_mean_over_areas_is_exact():
    image = torch.tensor([[0.0, 3, 6], [3, 6, 9]])
    # three columns to two: each new one covers one and a half old ones
    assert area_mean(image, (2, 2)).tolist() == [[pytest.approx(1.0), pytest.approx(5.0)], [4.0, 8.0]]
    assert area_mean(image, (1, 1)).item() == pytest.approx(4.5)
    assert area_mean(image, (1, 3))[0].tolist() == pytest.approx([1.5, 4.5, 7.5])


@pytest.mark.parametrize("shape_yx", [(5, 7), (11, 13), (3, 20), (16, 16)])
def test_the_mean_of_the_whole_stays(shape_yx):
    image = torch.rand(2, 3, 11, 13, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(area_mean(image, shape_yx).mean((-2, -1)), image.mean((-2, -1)), atol=1e-6)


def test_images_keep_their_leading_axes_and_their_ramps():
    y, x = np.mgrid[:20, :30]
    ramp = np.stack([y + 0.0 * x, 0.5 * x])[:, None]  # (2, 1, 20, 30)
    finer, coarser = resize_images(ramp, (40, 60)), resize_images(ramp, (10, 15))
    assert finer.shape == (2, 1, 40, 60) and finer.dtype == np.float32
    inside = (slice(None), 0, slice(6, -6), slice(6, -6))
    rows, columns = (np.mgrid[:40, :60] + 0.5) / 2 - 0.5
    assert np.allclose(
        finer[inside], np.stack([rows, 0.5 * columns])[:, 6:-6, 6:-6], atol=0.06
    )  # cubic with a = -0.75
    assert np.allclose(coarser[0, 0, :, 0], np.arange(10) * 2 + 0.5)
    assert np.array_equal(resize_images(ramp, (20, 30)), ramp)


def test_a_lesion_of_one_pixel_keeps_its_area_on_a_finer_grid():
    mask = np.zeros((2, 5, 7), np.uint8)
    mask[1, 3, 2] = 4
    finer = resize_mask(mask, (15, 14))
    assert finer.dtype == np.uint8 and sorted(np.unique(finer)) == [0, 4]
    assert np.argwhere(finer).min(0).tolist() == [1, 9, 4] and np.argwhere(finer).max(0).tolist() == [
        1,
        11,
        5,
    ]
    assert resize_mask(mask, (5, 7)) is mask


def test_on_a_coarser_grid_half_of_a_pixel_decides():
    mask = np.zeros((1, 4, 4), np.uint8)
    mask[0, 0, :2] = 1  # half of a new pixel
    mask[0, 2, 2] = 1  # a quarter of one
    assert resize_mask(mask, (2, 2)).tolist() == [[[1, 0], [0, 0]]]


@pytest.mark.parametrize("shape_yx", [(23, 31), (46, 62), (64, 64), (50, 90)])
def test_enlarging_twice_or_more_and_going_back_loses_no_single_pixel(shape_yx):
    rng = np.random.default_rng(1)
    mask = (rng.random((2, 23, 31)) < 0.02).astype(np.uint8)
    there = torch.from_numpy(resize_mask(mask, shape_yx)).float()
    assert np.array_equal(area_mean(there, (23, 31)).numpy() > 0.5, mask > 0)
