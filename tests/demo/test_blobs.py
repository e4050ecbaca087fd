from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from pwmlunet.demo.lesions import draw_blob, draw_number, draw_volume_mm3

TOUCHING = np.ones((3, 3, 3))


def grid(voxel_mm, n=(40, 44, 48)):
    return np.stack(np.meshgrid(*((np.arange(k) - k / 2) * voxel_mm for k in n), indexing="ij")).astype("f4")


def random_blob(seed, volume_mm3):
    rng = np.random.default_rng(seed)
    blob = draw_blob(rng, volume_mm3=volume_mm3, echo_db=-20.0)
    return replace(blob, centre_zyx_mm=rng.uniform(-0.5, 0.5, 3).astype("f4"))


def test_volumes_are_those_of_the_papers_lesions():
    rng = np.random.default_rng(0)
    volumes = np.sort([draw_volume_mm3(rng) for _ in range(4000)])
    assert 1.75 <= volumes[0] < 1.8 and 55 < volumes[-1] <= 61
    assert np.median(volumes) == pytest.approx(4, abs=0.25)
    assert volumes[3000:].sum() / volumes.sum() == pytest.approx(0.625, abs=0.02)


def test_one_subject_in_five_has_no_lesion():
    rng = np.random.default_rng(0)
    numbers = [draw_number(rng, 2, 10) for _ in range(2000)]
    assert set(numbers) == {0, *range(2, 11)}
    assert numbers.count(0) / 2000 == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("voxel_mm", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("volume_mm3", [1.75, 4.0, 20.0])
def test_a_drawn_blob_is_one_piece_of_its_volume(voxel_mm, volume_mm3):
    for seed in range(12):
        drawn = random_blob(seed, volume_mm3).draw(grid(voxel_mm), voxel_mm**3)
        assert ndimage.label(drawn, TOUCHING)[1] == 1
        assert drawn.sum() == max(round(volume_mm3 / voxel_mm**3), np.ceil(1.75 / voxel_mm**3))


def test_the_smallest_lesion_has_four_voxels_in_the_demo():
    assert all(random_blob(seed, 1.75).draw(grid(0.75), 0.75**3).sum() >= 4 for seed in range(20))


def test_depth_and_reach_agree_with_the_volume():
    for seed in range(6):
        blob, points = random_blob(seed, 12.0), grid(0.2)
        inside = blob.depth_mm(points) > 0
        assert inside.sum() * 0.2**3 == pytest.approx(12, rel=0.06)
        away = np.linalg.norm(points - blob.centre_zyx_mm.reshape(3, 1, 1, 1), axis=0)
        assert away[inside].max() <= blob.reach_mm


def test_blobs_are_lumpy():
    def symmetry(blob):  # 1 for an ellipsoid
        points, centre = grid(0.2), blob.centre_zyx_mm.reshape(3, 1, 1, 1)
        inside, opposite = (blob.depth_mm(p) > 0 for p in (points, 2 * centre - points))
        return (inside & opposite).sum() / inside.sum()

    assert np.median([symmetry(random_blob(seed, 12.0)) for seed in range(8)]) < 0.9
