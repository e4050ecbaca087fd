import numpy as np
import pytest

from pwmlunet.planning.kernel_density import (
    CANDIDATES_MM,
    UNIFORM_SHARE,
    Lattice,
    choose_bandwidth,
    interpolate,
    parzen,
)

SLAB_MM = 4.0
SPACING_YX_MM = (0.3, 0.2)
VOLUME_MM3 = 60.0**3


def plain_sum(points, places, bandwidth_mm, slab_mm=SLAB_MM):
    """Kernels of the points in a place's slab, per mm³; places are on slab centres."""
    same_slab = np.floor(points[:, 0] / slab_mm + 0.5) == np.round(places[:, :1] / slab_mm)
    squared = ((places[:, None, 1:] - points[None, :, 1:]) ** 2).sum(2)
    kernels = np.exp(-squared / 2 / bandwidth_mm**2) / (2 * np.pi * bandwidth_mm**2)
    return (kernels * same_slab).sum(1) / slab_mm


@pytest.fixture
def points():
    rng = np.random.default_rng(0)
    return rng.normal((1, -5, 7), (4, 3, 2), (300, 3))


@pytest.mark.parametrize("bandwidth_mm", [1.0, 2.5])
def test_the_estimate_is_a_sum_of_gaussians_in_each_slab(points, bandwidth_mm):
    lattice = Lattice.around(points, bandwidth_mm, SLAB_MM, SPACING_YX_MM)
    rng = np.random.default_rng(1)
    slabs = rng.choice([-4.0, 0.0, 4.0, 8.0], 200)
    places = np.column_stack([slabs, points[:200, 1:] + rng.normal(0, 1, (200, 2))])
    found = interpolate(parzen(points, lattice, bandwidth_mm), lattice, places)
    expected = plain_sum(points, places, bandwidth_mm)
    assert np.abs(found - expected).max() < 0.03 * expected.max()


def test_no_point_is_lost(points):
    lattice = Lattice.around(points, 1.0, SLAB_MM, SPACING_YX_MM)
    per_slab = parzen(points, lattice, 1.0).sum((1, 2)) * np.prod(lattice.step_zyx_mm)
    numbers = np.floor(points[:, 0] / SLAB_MM + 0.5)
    counts = [np.sum(numbers == round(lattice.origin_zyx_mm[0] / SLAB_MM) + i) for i in range(len(per_slab))]
    assert per_slab == pytest.approx(counts, rel=1e-3)


def test_a_kernel_is_as_wide_along_rows_as_along_columns():
    point = np.array([[0.0, 2.0, -3.0]])
    lattice = Lattice.around(point, 1.5, SLAB_MM, (1.0, 0.2))  # steps of 1 and 0.5 mm
    values = parzen(point, lattice, 1.5)[0]
    for axis in (0, 1):
        places = np.arange(values.shape[axis]) * lattice.step_zyx_mm[1 + axis]
        weights = values.sum(1 - axis) / values.sum()
        assert np.sqrt(weights @ places**2 - (weights @ places) ** 2) == pytest.approx(1.5, rel=0.02)


def test_pixels_that_are_nearly_steps_leave_no_stripes():
    rows = np.arange(-12, 12, 0.47)  # with steps of 0.5 mm every 17th place is nearest to two of them
    points = np.array([(0.0, y, x) for y in rows for x in rows])
    lattice = Lattice.around(points, 1.5, SLAB_MM, (0.47, 0.47))
    places = np.array([(0.0, y, 0.0) for y in np.linspace(-5, 5, 41)])
    values = interpolate(parzen(points, lattice, 1.5), lattice, places)
    assert np.ptp(values) < 0.01 * values.mean()


def test_the_lattice_is_not_finer_than_the_pixels(points):
    assert Lattice.around(points, 0.6, 5.0, (3.0, 0.1)).step_zyx_mm == pytest.approx((5.0, 3.0, 0.2))


def test_the_gain_is_that_of_a_plain_sum_over_the_other_subjects():
    rng = np.random.default_rng(2)
    subjects = [rng.normal(0, (0.5, 3, 3), (n, 3)) * (0, 1, 1) for n in (40, 5, 90)]
    found = choose_bandwidth(subjects, (2.0,), slab_mm=SLAB_MM, spacing_yx_mm=(0.1, 0.1), volume_mm3=VOLUME_MM3)  # fmt: skip
    means = []
    for left_out, own in enumerate(subjects):
        others = np.concatenate([points for i, points in enumerate(subjects) if i != left_out])
        density = plain_sum(others, own, 2.0) / len(others)
        means.append(np.log((1 - UNIFORM_SHARE) * density * VOLUME_MM3 + UNIFORM_SHARE).mean())
    assert found.width_mm == 2.0 and found.gain == pytest.approx(np.mean(means), abs=0.02)


def planted(spread_mm, n_subjects=12):
    """Subjects with a lesion of some voxels near each of four places."""
    rng = np.random.default_rng(3)
    places = np.array([(0, -12, -12), (0, 12, -12), (0, -12, 12), (0, 12, 12)])
    lesion = np.array([(0, y, x) for y in (-0.2, 0, 0.2) for x in (-0.2, 0, 0.2)])
    return [
        np.concatenate([p + rng.normal(0, (0, spread_mm, spread_mm)) + lesion for p in places])
        for _ in range(n_subjects)
    ]


@pytest.mark.parametrize("spread_mm", [0.8, 2.0, 5.0])
def test_the_chosen_bandwidth_follows_the_spread_of_lesions(spread_mm):
    chosen = choose_bandwidth(planted(spread_mm), CANDIDATES_MM, slab_mm=SLAB_MM, spacing_yx_mm=(0.2, 0.2), volume_mm3=VOLUME_MM3)  # fmt: skip
    # twelve kernels a place: Silverman's rule for two dimensions is 12 ** (-1 / 6) = 0.66 spreads
    assert 0.4 * spread_mm < chosen.width_mm < 1.1 * spread_mm
    assert chosen.gain > 2


def test_where_all_are_alike_the_default_is_taken():
    far = [np.array([[0.0, 300.0 * i, 0.0]]) for i in range(3)]
    chosen = choose_bandwidth(far, CANDIDATES_MM, slab_mm=SLAB_MM, spacing_yx_mm=(1, 1), volume_mm3=1e6)
    assert chosen.width_mm == 1.5 and chosen.gain == pytest.approx(np.log(UNIFORM_SHARE))
    alone = choose_bandwidth(far[:1], CANDIDATES_MM, slab_mm=SLAB_MM, spacing_yx_mm=(1, 1), volume_mm3=1e6)
    assert alone.width_mm == 1.5 and alone.gain is None
