import os
from pathlib import Path

import numpy as np
import pytest

from pwmlunet.data.image import read_image
from pwmlunet.planning.cropping import box_of, find_fan, foreground, square_box

REAL = Path(os.environ.get("PWML_TEST_DATA") or Path(__file__).parents[2] / "../shared/data")
REAL = REAL / "pwml_t1" if (REAL / "pwml_t1").is_dir() else REAL


def test_real_slices_are_cropped_as_their_authors_did():
    paths = sorted(REAL.glob("inputs/*/*.png"))
    if not paths:
        pytest.skip(f"no public slices in {REAL}: set PWML_TEST_DATA")
    for path in paths:
        slices = read_image(path).array.astype(np.int64)
        rows, columns = (np.flatnonzero(slices[0].sum(axis) > 1024) for axis in (1, 0))
        box = box_of(foreground(slices))
        found = np.array([box[1][0], box[1][1] - 1, box[2][0], box[2][1] - 1])
        outwards = (found - [rows[0], rows[-1], columns[0], columns[-1]]) * [-1, 1, -1, 1]
        assert outwards.min() >= 0 and outwards.max() <= 4, path  # 4 in one of 35 slices and its neighbour


def test_the_largest_bright_piece_is_found_and_its_holes_filled():
    rng = np.random.default_rng(0)
    volume = np.abs(rng.normal(0, 3, (3, 40, 50)))
    volume[:, 8:30, 12:35] += 100
    volume[:, 15:20, 18:25] = 0  # a ventricle
    volume[0, 35:38, 45:49] += 100  # a marker beside the head
    head = foreground(volume)
    assert head[:, 15:20, 18:25].all() and not head[0, 34:].any()
    (z0, z1), (y0, y1), (x0, x1) = box_of(head)
    assert (z0, z1) == (0, 3)
    assert np.abs(np.array([y0 - 8, y1 - 30, x0 - 12, x1 - 35])).max() <= 1


def test_dim_tissue_beside_bright_tissue_belongs_to_the_head():
    volume = np.random.default_rng(0).normal(5, 2, (2, 40, 50))
    volume[:, 10:30, 10:25] = 200
    volume[:, 10:30, 25:40] = 70
    (y, x) = box_of(foreground(volume))[1:]
    assert np.abs(np.array([*y, *x]) - [10, 30, 10, 40]).max() <= 1


@pytest.mark.parametrize("offset", [0, -500, 1e6])
def test_an_offset_of_the_intensities_changes_nothing(offset, tiny):
    image = tiny.head_with_lesions(0).image
    assert np.array_equal(foreground(image.astype(np.float64) + offset), foreground(image))


def test_the_box_of_nothing_is_everything():
    assert box_of(np.zeros((2, 3, 4), bool)) == ((0, 2), (0, 3), (0, 4))
    assert foreground(np.full((1, 4, 5), 7)).all()


def fan_of_speckle(shape_zyx, background=0, seed=0):
    """A cone that opens downwards from above the first row, a third of its speckle as dark as what is around it."""
    z, y, x = np.ogrid[tuple(slice(n) for n in shape_zyx)]
    depth = y + 0.2 * shape_zyx[1]
    aside = np.hypot((z - 0.45 * shape_zyx[0]) / shape_zyx[0], (x - 0.55 * shape_zyx[2]) / shape_zyx[2])
    inside = (aside < 0.33 * depth / shape_zyx[1]) & (y > 0.1 * shape_zyx[1]) & (y < 0.9 * shape_zyx[1])
    speckle = np.random.default_rng(seed).integers(-60, 120, shape_zyx).clip(0)
    return np.where(inside, background + speckle, background).astype(np.int16), inside


@pytest.mark.parametrize("block", [1, 3, 4])
@pytest.mark.parametrize("background", [0, 7])
@pytest.mark.parametrize("shape_zyx", [(34, 47, 41), (61, 50, 63)])
def test_the_fan_is_found_whole_and_little_else(shape_zyx, background, block, monkeypatch):
    monkeypatch.setattr("pwmlunet.planning.cropping._MANY_BLOCKS", np.prod(shape_zyx) / block**3)
    volume, inside = fan_of_speckle(shape_zyx, background)
    volume[: shape_zyx[0] // 2, shape_zyx[1] // 2 :, 20:24] = background  # the shadow of a bone
    seen = inside & (volume != background)
    fan = find_fan(volume)
    assert fan.shape == volume.shape and fan[seen].all() and not fan[0, 0, 0]
    assert fan[inside].mean() > 0.84 and fan[~inside].mean() < 0.02 + 0.07 * (block - 1)
    for (start, stop), (first, end) in zip(box_of(fan), box_of(seen), strict=True):
        assert first - block < start <= first and end <= stop < end + block


def test_a_mark_beside_the_fan_does_not_widen_the_box():
    volume, _ = fan_of_speckle((96, 60, 100))
    box = box_of(find_fan(volume))
    volume[0, 57:, 97:] = 100
    assert box_of(find_fan(volume)) == box


def test_a_fan_at_the_edge_of_the_field_is_not_cut():
    volume, _ = fan_of_speckle((40, 50, 44))
    lower = volume[:, 20:42]
    assert box_of(find_fan(lower))[1] == (0, 22)


def test_where_nothing_or_everything_is_seen_there_is_no_fan(tiny):
    assert find_fan(np.full((9, 10, 11), 3)) is None
    assert find_fan(tiny.head_with_lesions(0).image) is None  # noise all around
    speckle = np.random.default_rng(0).integers(0, 9, (30, 32, 34))
    assert find_fan(speckle) is None


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        (((1, 3), (10, 20), (30, 50)), 0.0, ((1, 3), (5, 25), (30, 50))),
        (((1, 3), (10, 20), (30, 50)), 0.1, ((1, 3), (3, 27), (28, 52))),
        (((0, 1), (0, 4), (0, 9)), 0.0, ((0, 1), (-3, 6), (0, 9))),
    ],
)
def test_the_box_is_made_square_about_its_centre(box, margin, expected):
    assert square_box(box, margin) == expected
