import numpy as np
import pytest
from numpy.typing import NDArray
from turning import DIRECTIONS, SHAPE, turned

from pwmlunet.data.image import Geometry
from pwmlunet.report.planes import Plane, planes_of


def places_mm(geometry: Geometry) -> NDArray[np.float64]:
    """Where each voxel is: x, y, z along the first axis."""
    index = np.stack(np.mgrid[tuple(slice(n) for n in SHAPE)][::-1]).reshape(3, -1)
    steps = index * np.array(geometry.spacing_zyx_mm[::-1])[:, None]
    return (np.reshape(geometry.direction_xyz, (3, 3)) @ steps).reshape(3, *SHAPE)


@pytest.mark.parametrize(("order", "signs"), DIRECTIONS)
def test_planes_are_turned_as_a_radiologist_reads_them(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    geometry = turned(order, signs, (1.0, 0.9, 1.1))
    to_the_left, to_the_back, to_the_head = places_mm(geometry)
    axial, coronal, sagittal = planes_of(geometry)
    assert (axial.name, coronal.name, sagittal.name) == ("axial", "coronal", "sagittal")
    expected = {axial: (to_the_back, to_the_left), coronal: (-to_the_head, to_the_left), sagittal: (-to_the_head, to_the_back)}  # fmt: skip
    for plane, (downwards, rightwards) in expected.items():
        assert np.diff(plane.view(downwards), axis=1).min() > 0
        assert np.diff(plane.view(rightwards), axis=2).min() > 0


@pytest.mark.parametrize(("order", "signs"), DIRECTIONS)
def test_places_come_back_from_a_plane(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    geometry = turned(order, signs, (1.0, 1.0, 1.0))
    number = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    for plane in planes_of(geometry):
        value = plane.view(number)[3, 20, 11]
        index = plane.to_file((3, 20, 11), SHAPE)
        assert number[index] == value
        assert plane.from_file(index, SHAPE) == (3, 20, 11)


def names(geometry: Geometry) -> list[str]:
    return [plane.name for plane in planes_of(geometry)]


def test_thick_slices_are_seen_in_their_own_plane() -> None:
    axial = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    assert names(Geometry(SHAPE, (3.0, 0.7, 0.7), (0, 0, 0), axial)) == ["axial"]
    assert names(Geometry(SHAPE, (1.0, 2.5, 1.0), (0, 0, 0), axial)) == ["coronal"]
    assert names(Geometry(SHAPE, (1.5, 1.0, 1.0), (0, 0, 0), axial)) == ["axial", "coronal", "sagittal"]
    assert names(Geometry((5, 70, 55), (1.5, 1.0, 1.0), (0, 0, 0), axial)) == ["axial"]


def test_a_grid_of_defaults_tells_no_sides() -> None:
    plain = Geometry((5, 70, 55), (1.0, 1.0, 1.0), (0.0, 0.0, 42.0))
    assert planes_of(plain) == (Plane("slice", (0, 1, 2), (False, False, False), ""),)
    picture = Geometry((1, 70, 55), (1.0, 0.5, 0.5), is_2d=True)
    assert planes_of(picture)[0].sides == ""
