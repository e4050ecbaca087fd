from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from pwmlunet.data.image import Geometry
from pwmlunet.data.store import Orientation, WayBack
from pwmlunet.inference.candidate_regions import cut_regions, find_candidates
from pwmlunet.networks.correction import CorrectionConfig
from pwmlunet.planning.cropping import foreground
from pwmlunet.planning.preprocessing import Preparation, prepare

VIEWS = ("slice", "slices", "planes")
CONFIG = CorrectionConfig(region_mm=16, region_pixels=32)
PIXEL_MM = 0.5

SHAPE = (30, 70, 44)  # of the file: columns, slices, rows
FILE_SPACING = (1.25, 2.5, 0.5)
FLIPPED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
PREPARATIONS = [
    Preparation("y", "none", ("none",)),
    Preparation("coronal", "head_square", ("none",), long_side=160),
    Preparation("sagittal", "head_square", ("none",), margin=0.1, long_side=100),
    Preparation("axial", "nonzero", ("none",), spacing_yx_mm=(0.4, 0.9)),
]


def head():
    """A head in the file's order, of 600 with a block of 1000 that sets the range, in the dark."""
    volume = np.zeros(SHAPE, np.float32)
    volume[3:28, 4:66, 2:40] = 600
    volume[4:9, 5:60, 3:12] = 1000
    return volume


def prepared(volume, preparation):
    geometry = Geometry(SHAPE, FILE_SPACING, (5.0, -7.0, 11.0), FLIPPED)
    image, _, way_back = prepare([volume], geometry, preparation)
    return image, way_back


def candidate_of(*places, shape=SHAPE):
    """Probabilities (1, Z, Y, X) and components whose candidates are these places."""
    probability = np.zeros((1, *shape), np.float32)
    for place in places:
        probability[0][place] = 0.75
    return probability, *find_candidates(probability, 0.5)


def cut_plain(image, spacing, probability, config, **options):
    """For an image that is prepared on its own grid."""
    shape = image.shape[1:]
    way_back = WayBack(Geometry(shape, spacing), Orientation(), tuple((0, n) for n in shape), shape)
    return cut_regions(image, way_back, probability, *find_candidates(probability, 0.5), config, **options)


def place_of_spot(picture):
    """Row and column of what is brighter than the head around it."""
    return np.array(ndimage.center_of_mass(picture > (picture.max() + np.median(picture)) / 2))


def test_candidates_are_components_of_any_target():
    probability = np.zeros((2, 3, 6, 7), np.float32)
    probability[0, 0, 1, 1] = probability[1, 1, 2, 2] = 0.4  # meet at a corner, in two targets
    probability[1, 2, 5, 6] = 0.31
    probability[0, 0, 5, 0] = 0.3
    components, n = find_candidates(probability, 0.3)
    assert n == 2 and components.dtype == np.int32 and components.shape == (3, 6, 7)
    assert components[0, 1, 1] == components[1, 2, 2] != components[2, 5, 6] > 0
    assert np.count_nonzero(components) == 3
    assert find_candidates(probability, 0.4)[1] == 0


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("preparation", PREPARATIONS)
def test_a_bright_voxel_is_in_the_middle_of_its_region(preparation, views):
    place = (20, 40, 29)
    volume = head()
    volume[place] = 1000
    image, way_back = prepared(volume, preparation)
    probability, components, n = candidate_of(place)
    config = replace(CONFIG, views=views)
    (region,) = cut_regions(image, way_back, probability, components, n, config).numpy()
    for number, (picture, mask, likely) in enumerate(region):
        if views == "slices" and number != 1:
            assert np.ptp(picture[12:20, 12:20]) < 0.01 and not mask.any() and not likely.any()
            continue
        assert np.abs(place_of_spot(picture) - 15.5).max() < 0.5
        assert np.allclose(ndimage.center_of_mass(mask), 15.5, atol=1e-4) and mask.max() > 0.2
        assert np.allclose(likely, 0.75 * mask)


@pytest.mark.parametrize("views", ["slice", "planes"])
@pytest.mark.parametrize("preparation", PREPARATIONS)
@pytest.mark.parametrize("axis", range(3))
def test_a_region_is_in_mm(preparation, views, axis):
    """A spot 5 mm from the candidate lies so many pixels from the middle, in image and probability, on the same side."""
    place, beside = [18, 40, 26], [18, 40, 26]
    beside[axis] += round(5 / FILE_SPACING[axis])
    volume = head()
    volume[tuple(beside)] = 1000
    image, way_back = prepared(volume, preparation)
    probability, components, n = candidate_of(tuple(place))
    probability[0][tuple(beside)] = 0.45  # no candidate
    (region,) = cut_regions(image, way_back, probability, components, n, replace(CONFIG, views=views)).numpy()
    runs = way_back.orientation.order.index(axis)
    sign = -1 if way_back.orientation.flipped[runs] else 1
    axes = [(1, 2), (0, 2), (0, 1)]  # of rows and columns in the views
    for (rows, columns), (picture, mask, likely) in zip(axes, region, strict=False):
        if runs in (rows, columns):
            expected = 15.5 + sign * 5 / PIXEL_MM * np.array([runs == rows, runs == columns])
            far = np.where(mask > 0, 0, likely)
            assert np.allclose(ndimage.center_of_mass(far), expected, atol=1e-3)
            assert np.abs(place_of_spot(picture) - expected).max() < 0.6


@pytest.mark.parametrize("preparation", PREPARATIONS[:2])
def test_mask_and_probability_line_up_with_the_image(preparation):
    """A candidate of no symmetry, as bright as it is probable: the channels look alike."""
    shape = np.zeros(SHAPE, bool)
    shape[16:24, 38:43, 18:30] = True
    shape[20:24, :, 24:30] = shape[:, 41:43, 25:30] = shape[22:24, 41:43] = False
    probability = 0.9 * shape[None].astype(np.float32)
    image, way_back = prepared(np.where(shape, 1000, head()), preparation)
    found = find_candidates(probability, 0.5)
    (region,) = cut_regions(image, way_back, probability, *found, replace(CONFIG, views="planes")).numpy()
    for picture, mask, likely in region:
        assert mask.sum() > 10 and np.allclose(likely, 0.9 * mask, atol=1e-6)
        alike = [
            np.corrcoef(p.ravel(), mask.ravel())[0, 1] for p in (picture, picture[::-1], picture[:, ::-1])
        ]
        assert alike[0] > 0.75 and alike[0] > max(alike[1:]) + 0.1


def test_each_candidate_is_alone_in_its_mask():
    image = np.random.default_rng(0).random((1, 3, 30, 40), np.float32)
    probability = np.zeros((1, 3, 30, 40), np.float32)
    probability[0, 1, 15, 20:22], probability[0, 1, 15, 23] = 0.8, 0.8
    regions = cut_plain(image, (3.0, 0.5, 0.5), probability, CONFIG).numpy()
    assert regions.shape == (2, 1, 3, 32, 32)
    assert regions[:, 0, 1].sum((1, 2)) == pytest.approx([2, 1])
    assert regions[:, 0, 2].sum((1, 2)) == pytest.approx([2.4, 2.4])
    places = [ndimage.center_of_mass(region) for region in regions[:, 0, 2]]
    assert places[0][1] > 15.8 and places[1][1] < 14.6  # the other lies to the right, to the left


def test_the_centre_is_weighted_by_probability():
    image = np.random.default_rng(0).random((1, 3, 30, 40), np.float32)
    probability = np.zeros((1, 3, 30, 40), np.float32)
    probability[0, 1, 15, 20], probability[0, 1, 15, 21] = 0.9, 0.6
    (region,) = cut_plain(image, (3.0, 0.5, 0.5), probability, CONFIG).numpy()
    assert ndimage.center_of_mass(region[0, 1]) == pytest.approx((15.5, 15.5 + 0.5 - 0.4), abs=1e-4)


@pytest.mark.parametrize("place", [(0, 0, 0), (4, 29, 39), (2, 14, 0)])
@pytest.mark.parametrize("views", VIEWS)
def test_it_is_trilinear_interpolation(views, place):
    """Beside another implementation; at the edges the image's border goes on, mask and probability end."""
    spacing = (2.0, 0.6, 0.8)
    rng = np.random.default_rng(1)
    image = rng.random((2, 5, 30, 40), np.float32) + 1
    probability = 0.4 * rng.random((2, 5, 30, 40), np.float32)
    probability[1][place] = 0.9
    regions = cut_plain(image, spacing, probability, replace(CONFIG, views=views)).numpy()
    steps = (np.arange(32) - 15.5) * PIXEL_MM
    here, beside = np.zeros(32), np.ones(32)
    z, y, x = (p + steps / s for p, s in zip(place, spacing, strict=True))
    planes = {
        "slice": [(here + place[0], y, x)],
        "slices": [(here + place[0] + d, y, x) for d in (-1, 0, 1)],
        "planes": [(here + place[0], y, x), (z, beside * place[1], x), (z, y, beside * place[2])],
    }[views]
    for number, (at, picture) in enumerate(zip(planes, regions[0], strict=True)):
        rows = 0 if views == "planes" and number else 1
        columns = 1 if views == "planes" and number == 2 else 2
        coordinates = [np.full((32, 32), a[0]) for a in at]
        coordinates[rows] = np.repeat(at[rows][:, None], 32, 1)
        coordinates[columns] = np.repeat(at[columns][None], 32, 0)
        for channel in range(2):
            low, high = np.percentile(image[channel][foreground(image[0])], (0.5, 99.5))
            scaled = ((image[channel] - low) / (high - low)).clip(0, 1)
            expected = ndimage.map_coordinates(scaled, coordinates, order=1, mode="nearest")
            assert np.allclose(picture[channel], expected, atol=1e-5)
        maps = (
            np.arange(6000).reshape(5, 30, 40) == np.ravel_multi_index(place, (5, 30, 40)),
            probability.max(0),
        )
        for channel, own in enumerate(maps, start=2):
            expected = ndimage.map_coordinates(
                own.astype(np.float32), coordinates, order=1, mode="grid-constant"
            )
            assert np.allclose(picture[channel], expected, atol=1e-5)


@pytest.mark.parametrize("views", ["slices", "planes"])
def test_an_image_of_a_single_slice(views):
    image = np.random.default_rng(0).random((1, 1, 30, 40), np.float32)
    probability = np.zeros((1, 1, 30, 40), np.float32)
    probability[0, 0, 12, 9] = 0.8
    (region,) = cut_plain(image, (1.0, 0.5, 0.5), probability, replace(CONFIG, views=views)).numpy()
    if views == "slices":
        assert np.array_equal(region[0, 0], region[1, 0]) and np.array_equal(region[2, 0], region[1, 0])
        assert [mask.any() for mask in region[:, 1]] == [False, True, False]
    else:
        assert region[0, 0].std(0).max() > 0.1 and (region[1:, 0] == region[1:, 0, :1]).all()
        assert np.flatnonzero(region[1, 1].any(1)).tolist() == [
            14,
            15,
            16,
            17,
        ]  # less than 1 mm to either side


def test_intensities_are_shares_of_the_range_in_the_head():
    """Neither a scanner's scale nor the field around the head changes them."""
    image = np.zeros((1, 3, 60, 80), np.float32)
    image[0, :, 10:40, 20:60] = np.linspace(1000, 2000, 40)
    probability = np.zeros(image.shape, np.float32)
    probability[0, 1, 25, 40] = 0.8
    region = cut_plain(image, (3.0, 0.5, 0.5), probability, CONFIG)[0, 0, 0]
    assert 0.5 < region[:, 1].mean() < region[:, -1].mean() < 0.95
    other = cut_plain(7 * image - 300, (3.0, 0.5, 0.5), probability, CONFIG)[0, 0, 0]
    assert torch.allclose(other, region, atol=1e-4)
    wide = [np.pad(array, ((0, 0), (0, 0), (90, 0), (0, 90))) for array in (image, probability)]
    assert torch.allclose(cut_plain(wide[0], (3.0, 0.5, 0.5), wide[1], CONFIG)[0, 0, 0], region, atol=1e-4)


def test_a_large_image_is_looked_at_coarsely():
    rng = np.random.default_rng(3)
    image = np.zeros((1, 12, 300, 310), np.float32)
    image[0, :, 40:250, 30:290] = rng.normal(100, 10, (12, 210, 260))
    probability = np.zeros(image.shape, np.float32)
    probability[0, 5, 150, 150] = 0.8
    config = replace(CONFIG, region_pixels=33, region_mm=16.5)  # a pixel is a voxel
    (region,) = cut_plain(image, (3.0, 0.5, 0.5), probability, config).numpy()
    low, high = np.percentile(image[0, :, 40:250, 30:290], (0.5, 99.5))
    expected = ((image[0, 5, 134:167, 134:167] - low) / (high - low)).clip(0, 1)
    assert np.corrcoef(region[0, 0].ravel(), expected.ravel())[0, 1] > 0.99
    assert region[0, 0].mean() > 0.5


def test_a_channel_of_one_value_is_0_and_does_not_show_the_head():
    rng = np.random.default_rng(0)
    image = np.zeros((1, 3, 60, 80), np.float32)
    image[0, :, 10:40, 20:60] = 1000 + rng.random((3, 30, 40))
    probability = np.zeros(image.shape, np.float32)
    probability[0, 1, 25, 40] = 0.8
    missing = np.full_like(image, 3)
    only = cut_plain(image, (3.0, 0.5, 0.5), probability, CONFIG)[:, :, 0]
    second = cut_plain(np.concatenate((missing, image)), (3.0, 0.5, 0.5), probability, CONFIG)
    assert not second[:, :, 0].any() and torch.equal(second[:, :, 1], only) and only.std() > 0.1
    assert not cut_plain(missing, (3.0, 0.5, 0.5), probability, CONFIG)[:, :, 0].any()


def test_channels_and_maps_are_chosen():
    rng = np.random.default_rng(0)
    image = rng.random((3, 3, 30, 40), np.float32)
    probability = np.zeros((1, 3, 30, 40), np.float32)
    probability[0, 1, 15, 20] = 0.8
    whole = cut_plain(image, (3.0, 0.5, 0.5), probability, CONFIG)

    def chosen(**settings):
        return cut_plain(image, (3.0, 0.5, 0.5), probability, replace(CONFIG, **settings))

    assert whole.shape[2] == 5
    assert torch.equal(chosen(channels=(2, 0)), whole[:, :, [2, 0, 3, 4]])
    assert torch.equal(chosen(sees_mask=False), whole[:, :, [0, 1, 2, 4]])
    assert torch.equal(chosen(sees_probability=False), whole[:, :, :4])
    assert torch.equal(chosen(sees_probability=False, sees_mask=False), whole[:, :, :3])


def test_a_wider_region_has_the_network_s_in_its_middle():
    rng = np.random.default_rng(0)
    image = rng.random((1, 3, 60, 80), np.float32)
    probability = np.zeros((1, 3, 60, 80), np.float32)
    probability[0, 1, 25, 40] = probability[0, 0, 3, 70] = 0.8
    usual = cut_plain(image, (3.0, 0.5, 0.7), probability, CONFIG)
    wide = cut_plain(image, (3.0, 0.5, 0.7), probability, CONFIG, reach=1.5)
    assert wide.shape == (2, 1, 3, 48, 48)
    assert torch.allclose(wide[..., 8:-8, 8:-8], usual, atol=1e-6)


def test_half_precision_and_files_are_read_and_nothing_is_changed(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.random((2, 3, 60, 80), np.float32)
    np.save(tmp_path / "image.npy", image.astype(np.float16))
    stored = np.load(tmp_path / "image.npy", mmap_mode="r")
    probability = np.zeros((1, 3, 60, 80), np.float32)
    probability[0, 1, 25, 40] = 0.8
    before = image.copy(), probability.copy()
    regions = cut_plain(image, (3.0, 0.5, 0.7), probability, CONFIG)
    halves = cut_plain(stored, (3.0, 0.5, 0.7), probability, CONFIG)
    assert regions.dtype == halves.dtype == torch.float32 and torch.allclose(halves, regions, atol=2e-3)
    assert np.array_equal(image, before[0]) and np.array_equal(probability, before[1])


def test_without_a_candidate_there_is_no_region():
    empty = np.zeros((1, 3, 60, 80), np.float32)
    assert cut_plain(empty + 1, (3.0, 0.5, 0.7), empty, CONFIG).shape == (0, 1, 3, 32, 32)
