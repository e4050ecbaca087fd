import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from pwmlunet.data.image import Geometry
from pwmlunet.data.store import Orientation, Rigid, WayBack
from pwmlunet.errors import PwmlError
from pwmlunet.planning.density import (
    Density,
    DensityConfig,
    fit_densities_of_others,
    fit_density,
)
from pwmlunet.planning.density_picture import draw_density

SHAPE = (41, 50, 44)
SPACING = (0.5, 0.4, 0.3)
CONFIG = DensityConfig(slab_slices=10, bandwidth_mm=1.0)


def way_back(shape=SHAPE, spacing=SPACING, rigid=None):
    """A grid whose file has other axes and a crop."""
    geometry = Geometry((shape[1], shape[0], shape[2] + 9), (spacing[1], spacing[0], spacing[2]))
    box = ((0, shape[0]), (0, shape[1]), (3, 3 + shape[2]))
    return WayBack(geometry, Orientation((1, 0, 2)), box, shape, rigid)


def mask_at(*places, shape=SHAPE, size=2):
    """Lesions of `size` voxels a side whose first voxels are at the places (z, y, x)."""
    mask = np.zeros(shape, bool)
    for z, y, x in places:
        mask[z : z + size, y : y + size, x : x + size] = True
    return mask


def cases_of(seed=0, n=5):
    rng = np.random.default_rng(seed)
    return [
        (f"s{i}", mask_at(*rng.integers((8, 12, 12), (33, 36, 30), (3, 3))), way_back()) for i in range(n)
    ]


def whole(density, grid=None):
    grid = grid or way_back()
    _, n_y, n_x = grid.grid_shape_zyx
    return density.place(grid).region(range(grid.grid_shape_zyx[0]), (0, n_y), (0, n_x))


def same(first, second):
    np.testing.assert_allclose(first.values, second.values, atol=1e-6)
    return first.facts == second.facts


def test_it_is_greatest_where_most_lesions_are():
    cases = [
        ("a", mask_at((20, 15, 30)), way_back()),
        ("b", mask_at((21, 15, 31), (8, 40, 10)), way_back()),
        ("c", mask_at(), way_back()),
    ]
    density = fit_density(iter(cases), CONFIG)
    values = whole(density)
    assert values.dtype == np.float32 and values.shape == SHAPE and 0.9 < values.max() <= 1
    assert np.unravel_index(values.argmax(), SHAPE)[1:] in {(15, 31), (16, 31)}
    assert 0.25 < values[10, 40, 10] < 0.55  # one of three lesions, in a slab of its own
    facts = density.facts
    assert facts.subjects == ("a", "b", "c") and (facts.n_subjects_with_lesions, facts.n_lesion_voxels) == (2, 24)  # fmt: skip
    assert density.values.max() == 1


def test_a_lesion_tells_of_all_slices_of_its_slab():
    values = whole(fit_density([("a", mask_at((17, 20, 20)), way_back())], CONFIG))
    profile = values[:, 20, 20]
    assert (
        profile[20] == profile.max()
    )  # the slab's centre is the middle of the grid, whose slices are 0 to 40
    np.testing.assert_allclose(profile[10:31], profile[20] * (1 - np.abs(np.arange(-10, 11)) / 10), atol=1e-5)
    assert profile[:10].max() == profile[31:].max() == 0


def test_no_seam_shows_between_slabs():
    rng = np.random.default_rng(5)
    cases = [("a", rng.uniform(size=SHAPE) < 0.02, way_back())]
    steps = np.abs(np.diff(whole(fit_density(cases, CONFIG)), axis=0))
    assert 0 < steps.max() <= 1 / CONFIG.slab_slices + 1e-5


def test_it_depends_on_the_given_cases_and_not_on_their_order():
    cases = cases_of()
    density = fit_density(cases, DensityConfig())
    backwards = fit_density(cases[::-1], DensityConfig())
    assert backwards.facts == density.facts and np.array_equal(backwards.values, density.values)
    fewer = fit_density(cases[:-1], DensityConfig())
    assert fewer.facts.subjects == ("s0", "s1", "s2", "s3")
    assert np.abs(whole(fewer) - whole(density)).max() > 0.1


def test_two_sessions_are_one_subject():
    (_, first, grid), (_, second, _), *others = cases_of()
    density = fit_density([("s0", first, grid), ("s0", second, grid), *others], DensityConfig())
    assert same(density, fit_density([("s0", first | second, grid), *others], DensityConfig()))
    assert density.facts.n_subjects_with_lesions == 4


def test_subjects_without_lesions_change_nothing_but_the_list_of_names():
    cases = cases_of()
    with_clean = fit_density([*cases, ("clean", mask_at(), way_back())], DensityConfig())
    without = fit_density(cases, DensityConfig())
    assert with_clean.facts == replace(without.facts, subjects=(*("clean",), *without.facts.subjects))
    assert np.array_equal(with_clean.values, without.values)


def test_the_bandwidth_is_chosen_where_none_is_given():
    cases = [(f"s{i}", mask_at((20, 14 + 3 * (i % 3), 20 + 3 * (i // 3))), way_back()) for i in range(9)]
    chosen = fit_density(cases, DensityConfig(10)).facts
    assert chosen.bandwidth_mm in (0.75, 1.0, 1.25)  # neighbours lie 1.2 and 0.9 mm apart
    given = fit_density(cases, DensityConfig(10, 4.0)).facts
    assert given.bandwidth_mm == 4 and given.gain < chosen.gain
    assert fit_density(cases[:1], DensityConfig(10)).facts.gain is None


def test_masks_may_be_read_only_files(tmp_path):
    cases = cases_of()
    for name, mask, _ in cases:
        np.save(tmp_path / f"{name}.npy", mask)
    files = ((name, np.load(tmp_path / f"{name}.npy", mmap_mode="r"), grid) for name, _, grid in cases)
    assert same(fit_density(files, CONFIG), fit_density(cases, CONFIG))


@pytest.mark.parametrize("cases", [[], [("a", mask_at(), way_back())]])
def test_without_any_lesion_there_is_no_prior(cases):
    with pytest.raises(PwmlError, match=r"^no training subject has a lesion: .*; change splits.json$"):
        fit_density(cases, CONFIG)


def test_middles_of_different_grids_lie_on_each_other():
    # the lesion is 2.5 mm above and 1.5 mm right of the middle in both
    small = ("a", mask_at((20, 18, 26), size=1), way_back())  # middle: 20, 24.5, 21.5
    large_grid = way_back((61, 101, 84), (0.5, 0.41, 0.31))
    large = whole(fit_density([small], CONFIG), large_grid)
    z, y, x = np.unravel_index(large.argmax(), large.shape)
    assert z == 30 and (y - 50) * 0.41 == pytest.approx(-2.6, abs=0.25)
    assert (x - 41.5) * 0.31 == pytest.approx(1.35, abs=0.2)


def test_middles_of_heads_lie_on_each_other_wherever_they_are_in_the_grid():
    off = {move: replace(way_back(), head_middle_zyx=(20 + move, 24.5, 21.5 - move)) for move in (-9, 0, 12)}
    cases = [(str(move), mask_at((20 + move, 18, 26 - move), size=1), grid) for move, grid in off.items()]
    density = fit_density(cases, CONFIG)
    for move, grid in off.items():
        values = whole(density, grid)
        assert np.unravel_index(values.argmax(), SHAPE) == (20 + move, 18, 26 - move) and values.max() > 0.95
    assert np.array_equal(whole(density, off[0]), whole(density))  # null is the middle of the grid


def test_heads_enlarged_to_one_size_are_compared_in_pixels():
    places = (20, 5, 40)
    grids = [way_back(spacing=(0.5, 0.4 * s, 0.3 * s)) for s in (0.7, 1.0, 1.6)]
    cases = [(f"s{i}", mask_at(places, size=1), grid) for i, grid in enumerate(grids)]
    density = fit_density(cases, CONFIG, enlarged=True)
    assert density.facts.unit_yx_mm == pytest.approx((0.4, 0.3)) and density.facts.slice_shape_yx == SHAPE[1:]
    for grid in [*grids, way_back(spacing=(0.5, 0.9, 0.9))]:
        values = whole(density, grid)
        assert np.unravel_index(values.argmax(), SHAPE) == places and values.max() > 0.95
    assert density.facts.gain > fit_density(cases, CONFIG).facts.gain + 5  # in mm they lie 4 mm apart
    with pytest.raises(PwmlError, match="slices of 50, 44 pixels, this case's have 50, 43: train the fold again"):  # fmt: skip
        density.place(way_back((41, 50, 43)))
    with pytest.raises(ValueError, match="of one size"):
        fit_density([*cases, ("b", mask_at(), way_back((41, 50, 43)))], CONFIG, enlarged=True)


def test_a_case_of_another_spacing_is_refused():
    wide = way_back(spacing=(0.5, 0.5, 0.3))
    density = fit_density([*cases_of(n=2), *[("wide", mask_at(), wide)] * 3], CONFIG)
    for spacing in ((0.5, 0.45, 0.3), (0.52, 0.52, 0.29)):
        density.place(way_back(spacing=spacing))
    for spacing in ((0.53, 0.4, 0.3), (0.5, 0.37, 0.3), (0.5, 0.54, 0.3), (0.5, 0.4, 0.28)):
        with pytest.raises(PwmlError, match=r"made for a grid of 0.5 × 0.4 × 0.3 to 0.5 × 0.5 × 0.3 mm"):
            density.place(way_back(spacing=spacing))
    only = fit_density(cases_of(), CONFIG)
    with pytest.raises(
        PwmlError, match=r"grid of 0.5 × 0.4 × 0.3 mm \(.*grid has 1 × 0.4 × 0.3 mm: give images"
    ):
        only.place(way_back(spacing=(1.0, 0.4, 0.3)))


def test_a_region_is_a_cut_of_the_whole_and_may_hang_over_it():
    density = fit_density(cases_of(), CONFIG)
    values, placed = whole(density), density.place(way_back())
    np.testing.assert_allclose(placed.region([7, 30, 7], (3, 20), (11, 40)), values[[7, 30, 7], 3:20, 11:40], atol=1e-6)  # fmt: skip
    over = placed.region([-3, 40, 41], (-5, 60), (-200, 44))
    assert over.shape == (3, 65, 244) and not over[..., :100].any()
    np.testing.assert_allclose(over[1, 5:55, 200:], values[40], atol=1e-6)


def test_the_values_are_interpolated_in_all_three_directions():
    density = fit_density(cases_of(), CONFIG)
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"))
    mm = (index - (np.reshape(SHAPE, (3, 1, 1, 1)) - 1) / 2) * np.reshape(SPACING, (3, 1, 1, 1))
    lattice = density.facts.lattice
    coarse = (mm - np.reshape(lattice.origin_zyx_mm, (3, 1, 1, 1))) / np.reshape(lattice.step_zyx_mm, (3, 1, 1, 1))  # fmt: skip
    expected = map_coordinates(density.values, coarse, order=1, mode="grid-constant")
    np.testing.assert_allclose(whole(density), expected, atol=1e-5)


def test_the_floor_lifts_what_is_read():
    cases = cases_of()
    low, high = (fit_density(cases, replace(CONFIG, floor=floor)) for floor in (0, 0.2))
    np.testing.assert_allclose(whole(high), 0.2 + 0.8 * whole(low), atol=1e-6)
    assert whole(low).min() == 0 and np.array_equal(low.values, high.values)


TURN = Rotation.from_euler("xyz", (8, -12, 17), degrees=True).as_matrix()
SHIFT = np.array((1.5, -0.8, 2.1))


def rigid_of(turn, shift):
    return Rigid(tuple(turn.ravel().tolist()), tuple(shift.tolist()))


def test_a_turned_case_is_read_where_it_lies():
    density = fit_density([("a", mask_at((20, 14, 33), size=1), way_back())], CONFIG)
    there = (np.array((20, 14, 33)) - (np.array(SHAPE) - 1) / 2) * SPACING  # the centre of a slab
    turned = whole(density, way_back(rigid=rigid_of(TURN, SHIFT)))
    peak = np.array(np.unravel_index(turned.argmax(), SHAPE))
    here = (peak - (np.array(SHAPE) - 1) / 2) * SPACING
    assert np.abs(TURN @ here + SHIFT - there).max() < 0.5 < np.linalg.norm(here - there)
    assert turned.max() > 0.8


def test_a_turned_training_case_counts_where_it_lies():
    grid = way_back(rigid=rigid_of(TURN, SHIFT))
    index = (28, 17, 30)
    density = fit_density([("a", mask_at(index, size=1), grid)], CONFIG)
    place = TURN @ ((np.array(index) - (np.array(SHAPE) - 1) / 2) * SPACING) + SHIFT
    lattice = density.facts.lattice
    peak = np.array(np.unravel_index(density.values.argmax(), density.values.shape))
    found = lattice.origin_zyx_mm + peak * lattice.step_zyx_mm
    assert np.all(np.abs(found - place) <= np.array(lattice.step_zyx_mm) / 2 + 1e-6)


def test_turning_by_nothing_reads_the_same_as_not_turning():
    density = fit_density(cases_of(), CONFIG)
    shifted = rigid_of(np.eye(3), np.array((0.3, -0.7, 1.1)))
    nearly = rigid_of(Rotation.from_euler("x", 1e-7).as_matrix(), np.array((0.3, -0.7, 1.1)))
    region = ([-4, 12, 13, 50], (-6, 60), (-7, 55))
    straight, turned = (density.place(way_back(rigid=r)).region(*region) for r in (shifted, nearly))
    assert straight.max() > 0.3
    np.testing.assert_allclose(turned, straight, atol=1e-4)


def test_a_single_slice_has_a_density():
    grid = way_back((1, 50, 44), (1.0, 0.4, 0.3))
    density = fit_density([("a", mask_at((0, 20, 30), shape=(1, 50, 44)), grid)], CONFIG)
    assert whole(density, grid).max() > 0.9
    turned = replace(
        grid, to_reference=rigid_of(Rotation.from_euler("x", 5, degrees=True).as_matrix(), SHIFT)
    )
    assert whole(density, turned).max() > 0.5


def test_a_density_comes_back_from_its_file(tmp_path):
    density = fit_density(cases_of(), replace(CONFIG, floor=0.1))
    density.write(tmp_path / "fold_0" / "density.npz")
    read = Density.read(tmp_path / "fold_0" / "density.npz")
    assert read.facts == density.facts and np.array_equal(read.values, density.values)
    assert [p.name for p in (tmp_path / "fold_0").iterdir()] == ["density.npz"]
    assert np.array_equal(whole(read), whole(density))


def test_a_file_that_is_no_density_is_told(tmp_path):
    path = tmp_path / "density.npz"
    with pytest.raises(PwmlError, match=r"density\.npz does not exist, and should be a prior density"):
        Density.read(path)
    density = fit_density(cases_of(), CONFIG)
    density.write(path)
    with np.load(path) as arrays:
        whole_file = path.read_bytes()
        values, facts = arrays["values"], arrays["facts"]
    path.write_bytes(whole_file[: len(whole_file) // 2])
    complain(path, "is damaged or no prior density: train the fold again")
    path.write_text("{}")
    complain(path, "is damaged or no prior density")
    np.savez(path, values=values)
    complain(path, "is damaged or no prior density")
    np.savez(path, values=values, facts=np.array(density.facts.to_dict(), object))  # a pickle
    complain(path, "is damaged or no prior density")
    np.savez(path, values=values, facts=np.array("{}"))
    complain(path, "the key 'bandwidth_mm' is missing")
    for wrong in (values[:-1], values * 2, np.where(values > 0.5, np.nan, values), values.astype(float)):
        np.savez(path, values=wrong, facts=facts)
        complain(path, "is damaged .its values are not a density's")


def complain(path, message):
    with pytest.raises(PwmlError, match=message):
        Density.read(path)


def test_a_picture_is_drawn(tmp_path):
    draw_density(tmp_path / "density.png", fit_density(cases_of(), CONFIG))
    assert (tmp_path / "density.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "wrong", [{"slab_slices": 0}, {"bandwidth_mm": 0.0}, {"floor": 1.0}, {"floor": -0.1}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(PwmlError, match=next(iter(wrong))):
        DensityConfig.from_dict(wrong, "prior")


def test_it_needs_no_simpleitk():
    code = "import sys; sys.modules['SimpleITK'] = None; import pwmlunet.planning.density"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def turned(axis):
    """The grid of the same head stored the other way along one of its axes."""
    flipped = tuple(i == axis for i in range(3))
    return replace(way_back(), orientation=Orientation((1, 0, 2), flipped))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_heads_stored_the_other_way_are_turned(axis):
    place = mask_at((12, 15, 30))
    density = fit_density([("a", place, way_back())], CONFIG)
    expected = whole(density)
    assert np.allclose(whole(density, turned(axis)), np.flip(expected, axis), atol=1e-6)
    mixed = fit_density([("a", place, way_back()), ("b", np.flip(place, axis), turned(axis))], CONFIG)
    assert np.allclose(whole(mixed), expected, atol=1e-5)


def test_slices_along_another_axis_are_refused():
    other = replace(way_back(), orientation=Orientation((0, 1, 2)))
    assert way_back().directions == ("back", "up", "left") and other.directions == ("up", "back", "left")
    with pytest.raises(PwmlError, match=r"run back, up, left in some training cases and up, back, left in"):
        fit_density([("a", mask_at((9, 9, 9)), way_back()), ("b", mask_at(), other)], CONFIG)
    density = fit_density([("a", mask_at((9, 9, 9)), way_back())], CONFIG)
    with pytest.raises(
        PwmlError, match=r"that run back, up, left \(or against it\), this case's run up, back"
    ):
        density.place(other)


def test_a_subject_learns_from_the_density_of_the_others():
    cases = [*cases_of(n=4), ("none", mask_at(), way_back())]
    density = fit_density(cases, replace(CONFIG, bandwidth_mm=None))
    others = fit_densities_of_others(iter(cases), density, replace(CONFIG, bandwidth_mm=None))
    assert set(others) == {"s0", "s1", "s2", "s3", "none"}
    fixed = replace(CONFIG, bandwidth_mm=density.facts.bandwidth_mm)
    assert same(others["s1"], fit_density([case for case in cases if case[0] != "s1"], fixed))
    assert np.allclose(whole(others["none"]), whole(density), atol=1e-5)
    at_its_lesion = cases[1][1]
    assert whole(others["s1"])[at_its_lesion].max() < whole(density)[at_its_lesion].max()


def test_the_only_subject_with_lesions_keeps_its_density():
    cases = [("a", mask_at((9, 9, 9)), way_back()), ("b", mask_at(), way_back())]
    density = fit_density(cases, CONFIG)
    others = fit_densities_of_others(cases, density, CONFIG)
    assert others["a"] is density and same(others["b"], replace_subjects(density, ("a",)))


def replace_subjects(density, subjects):
    return Density(density.values, replace(density.facts, subjects=subjects))
