import csv

import numpy as np
import pytest

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.data.image import Geometry
from pwmlunet.evaluation import lesion_table
from pwmlunet.evaluation.lesion_table import (
    LesionTable,
    read_lesion_tables,
    tabulate,
    write_lesion_table,
    write_review,
)
from pwmlunet.evaluation.masks import LESION

SPACING = (3.0, 0.5, 0.25)
SHAPE = (4, 6, 9)
GRID = Geometry(SHAPE, SPACING, origin_xyz_mm=(-1.0, 10.0, 100.0))


def one_lesion(*voxels, value=1):
    mask = np.zeros(SHAPE, np.uint8)
    for voxel in voxels:
        mask[voxel] = value
    return mask


def row_of(mask, geometry=GRID, **maps):
    (row,) = tabulate("a", mask, geometry, LESION, **maps).lesions
    return row


def test_a_lesion_is_measured_in_mm_and_in_voxels():
    row = row_of(one_lesion((1, 2, 3), (1, 2, 4), (2, 3, 5)))
    assert row.n_voxels == 3 and row.volume_mm3 == pytest.approx(3 * 3 * 0.5 * 0.25)
    # farthest centres: one slice, one row and two columns apart; plus the smallest spacing
    assert row.largest_diameter_mm == pytest.approx(np.hypot(np.hypot(3, 0.5), 0.5) + 0.25)
    assert (row.first_slice, row.last_slice) == (1, 2)
    assert (row.centroid_z_voxel, row.centroid_y_voxel, row.centroid_x_voxel) == pytest.approx(
        (4 / 3, 7 / 3, 4)
    )
    place = row.centroid_x_mm, row.centroid_y_mm, row.centroid_z_mm
    assert place == pytest.approx((-1 + 4 * 0.25, 10 + 7 / 3 * 0.5, 100 + 4 / 3 * 3))
    assert row.mean_probability is row.max_probability is row.spread_over_folds is None


def test_a_lesion_of_one_voxel_is_one_voxel_wide():
    assert row_of(one_lesion((0, 0, 0))).largest_diameter_mm == 0.25


def test_the_diameter_of_a_large_lesion_is_that_of_all_its_voxels(monkeypatch):
    shape = (5, 30, 40)  # more rows than are compared at a time
    z, y, x = np.indices(shape)
    mask = (((z - 2) / 2.5) ** 2 + ((y - 15) / 14) ** 2 + ((x - 20 - (y - 15)) / 9) ** 2 <= 1).astype(
        np.uint8
    )
    places = np.argwhere(mask) * SPACING
    farthest = max(np.linalg.norm(places - place, axis=1).max() for place in places)
    row = row_of(mask, Geometry(shape, SPACING))
    monkeypatch.setattr(lesion_table, "_MANY_POINTS", 50)  # as for a lesion of many more voxels
    assert row_of(mask, Geometry(shape, SPACING)) == row
    assert row.n_voxels == len(places) > 800
    assert row.largest_diameter_mm == pytest.approx(farthest + 0.25)


def test_the_diameter_is_found_between_the_ends_of_rows():
    assert (
        row_of(one_lesion((1, 2, 3), (1, 2, 4), (1, 2, 7), (1, 2, 5), (1, 2, 6))).largest_diameter_mm == 1.25
    )
    wide = [(1, 2, x) for x in range(9)]  # the widest row lies in the middle of its slice
    row = row_of(one_lesion((1, 1, 4), *wide, (1, 3, 4)))
    assert row.largest_diameter_mm == pytest.approx(8 * 0.25 + 0.25)


@pytest.mark.parametrize("flat", ["z", "y", "x", "oblique", "line"])
def test_a_large_flat_lesion_has_a_diameter(flat, monkeypatch):
    z, y, x = np.indices((9, 9, 9))
    inside = {"z": z == 4, "y": y == 4, "x": x == 4, "oblique": y == x, "line": (y == 4) & (x == 4)}[flat]
    geometry = Geometry(inside.shape, SPACING)
    expected = row_of(inside.astype(np.uint8), geometry)
    monkeypatch.setattr(lesion_table, "_MANY_POINTS", 4)
    found = row_of(inside.astype(np.uint8), geometry)
    assert found.largest_diameter_mm == pytest.approx(expected.largest_diameter_mm)


def test_a_picture_does_not_say_where_the_patient_was():
    row = row_of(one_lesion((0, 0, 8)), Geometry(SHAPE, (1.0, 1.0, 1.0)), head_centre_zyx=(1, 3, 4))
    assert row.side is row.centroid_x_mm is row.centroid_y_mm is row.centroid_z_mm is None
    assert row.centroid_x_voxel == 8


def test_the_midline_is_a_voxel_wide_across_thick_sagittal_slices_too():
    sagittal = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # slices follow each other from right to left
    mask = one_lesion((2, 3, 4))
    geometry = Geometry(SHAPE, SPACING, direction_xyz=sagittal)
    assert row_of(mask, geometry, head_centre_zyx=(1.1, 0, 0)).side == "midline"
    assert row_of(mask, geometry, head_centre_zyx=(0.9, 0, 0)).side == "left"


def test_lesions_side_by_side_are_not_mixed():
    left, right = [(1, y, 1) for y in range(4)], [(1, y, 6) for y in range(1, 6)]
    table = tabulate("a", one_lesion(*left, *right), GRID, LESION)
    found = {(row.n_voxels, row.centroid_y_voxel, row.centroid_x_voxel) for row in table.lesions}
    assert found == {(4, 1.5, 1), (5, 3, 6)}


@pytest.mark.parametrize(("direction", "side"), [(1.0, "left"), (-1.0, "right")])
def test_the_side_follows_the_affine(direction, side):
    turned = (direction, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    geometry = Geometry(SHAPE, SPACING, (0.0, 0.0, 0.0), turned)
    mask = one_lesion((0, 0, 8))
    assert row_of(mask, geometry, head_centre_zyx=(0, 0, 4.5)).side == side
    assert row_of(mask, geometry, head_centre_zyx=(0, 0, 7.1)).side == "midline"
    assert row_of(mask, geometry, head_centre_zyx=(0, 0, 9.5)).side not in (side, "midline")
    assert row_of(mask, geometry).side is None


def test_the_side_follows_the_head_where_slices_are_angled_to_it():
    angle = np.deg2rad(25)  # turned in the plane: far back, places on one side of the head have the other's x
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    turned = Geometry(
        (3, 60, 40), (3.0, 1.0, 1.0), direction_xyz=(cosine, -sine, 0, sine, cosine, 0, 0, 0, 1)
    )
    mask = np.zeros((3, 60, 40), np.uint8)
    mask[1, 55, 23] = 1
    row = row_of(mask, turned, head_centre_zyx=(1, 30, 20))
    assert row.centroid_x_mm < turned.index_to_mm((1, 30, 20))[0]
    assert row.side == "left"


def test_the_least_sure_lesion_comes_first_and_each_has_its_own_spread():
    mask = one_lesion((0, 0, 0), (1, 3, 4), (3, 5, 8))
    probability = np.zeros((1, *SHAPE), np.float32)
    spread = np.zeros_like(probability)
    for voxel, p, s in (((0, 0, 0), 0.9, 0.1), ((1, 3, 4), 0.7, 0.2), ((3, 5, 8), 0.6, 0.3)):
        probability[(0, *voxel)], spread[(0, *voxel)] = p, s
    table = tabulate("a", mask, GRID, LESION, probability=probability, spread=spread)
    assert [row.first_slice for row in table.lesions] == [3, 1, 0]
    assert [row.number for row in table.lesions] == [1, 2, 3]
    assert [row.spread_over_folds for row in table.lesions] == pytest.approx([0.3, 0.2, 0.1])


def test_probabilities_are_of_the_lesions_own_voxels_and_target():
    labels = Labels((Target("wmh", (1,), 1), Target("lacune", (2,), 2)), ignore=None)
    mask = one_lesion((0, 0, 0), (0, 0, 1)) + one_lesion((2, 4, 4), value=2)
    probability = np.full((2, *SHAPE), 0.01, np.float32)
    probability[0, 0, 0, :2] = 0.6, 0.8
    probability[1, 2, 4, 4] = 0.9
    table = tabulate("a", mask, GRID, labels, probability=probability)
    wmh, lacune = table.lesions
    assert (wmh.target, wmh.mean_probability, wmh.max_probability) == (
        "wmh",
        pytest.approx(0.7),
        pytest.approx(0.8),
    )
    assert (lacune.target, lacune.mean_probability) == ("lacune", pytest.approx(0.9))
    assert {name: totals.n_lesions for name, totals in table.totals.items()} == {"wmh": 1, "lacune": 1}
    assert table.totals["wmh"].volume_mm3 == pytest.approx(2 * 0.375)


def test_a_case_without_lesions_has_an_empty_table(tmp_path):
    table = tabulate("a", np.zeros(SHAPE, np.uint8), GRID, LESION)
    assert not table.lesions and table.totals["lesion"].n_lesions == 0
    write_lesion_table(tmp_path, table)
    assert LesionTable.read(tmp_path / "a_lesions.json") == table


def test_json_comes_back_and_csv_has_totals_last(tmp_path):
    table = tabulate("a", one_lesion((0, 0, 0), (3, 5, 8)), GRID, LESION)
    write_lesion_table(tmp_path, table)
    assert LesionTable.read(tmp_path / "a_lesions.json") == table
    with (tmp_path / "a_lesions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["number"]) for row in rows] == [("lesion", "1"), ("lesion", "2"), ("total", "")]
    assert rows[-1]["n_voxels"] == "2" and float(rows[-1]["volume_mm3"]) == pytest.approx(0.75)
    assert rows[0]["case"] == "a" and rows[0]["mean_probability"] == ""


def test_the_review_runs_over_all_cases(tmp_path):
    tables = []
    for case, p in (("sure", 0.95), ("unsure", 0.55), ("fair", 0.7)):
        probability = np.full((1, *SHAPE), p, np.float32)
        tables.append(tabulate(case, one_lesion((0, 0, 0)), GRID, LESION, probability=probability))
        write_lesion_table(tmp_path, tables[-1])
    found = write_review(tmp_path / "review.csv", read_lesion_tables(tmp_path))
    assert [(case, row.mean_probability) for case, row in found] == [
        ("unsure", pytest.approx(0.55)),
        ("fair", pytest.approx(0.7)),
        ("sure", pytest.approx(0.95)),
    ]
    with (tmp_path / "review.csv").open(newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["unsure", "fair", "sure"]
