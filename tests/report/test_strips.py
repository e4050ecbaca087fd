import base64
import io
from itertools import islice

import numpy as np
import pytest
from matplotlib.path import Path as Outline
from numpy.typing import NDArray
from PIL import Image
from turning import DIRECTIONS, turned

from pwmlunet.data.image import Geometry
from pwmlunet.report.strips import Panel, Scene, Strip, draw_strips
from pwmlunet.report.views import Fates


def lesions(geometry: Geometry, *corners: tuple[int, int, int]) -> Scene:
    """A scene in which lesions of 2 x 3 x 4 voxels are missed, and bright."""
    reference = np.zeros(geometry.shape_zyx, bool)
    for z, y, x in corners:
        reference[z : z + 2, y : y + 3, x : x + 4] = True
    around = np.random.default_rng(0).choice([0, 100], geometry.shape_zyx)  # both shown black beside 500
    image = np.where(reference, 500, around)
    return Scene(geometry, reference, np.zeros_like(reference), image, np.zeros_like(reference))


def strips_of(scene: Scene, most: int = 9) -> tuple[list[Strip], int]:
    fates = Fates.of(scene.reference, scene.prediction, scene.geometry.spacing_zyx_mm)
    n, strips = draw_strips(scene, fates, fates.by_interest())
    drawn = list(islice(strips, most))
    return drawn, n - len(drawn)


def pixels(panel: Panel) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(panel.picture.split(",")[1]))))


def inside(panel: Panel, name: str) -> NDArray[np.bool_]:
    """Which pixels an outline goes around."""
    rows, columns = pixels(panel).shape
    y, x = np.mgrid[:rows, :columns] + 0.5
    found = np.zeros((rows, columns), bool)
    for part in panel.outlines.get(name, "").split("Z")[:-1]:
        line = [tuple(map(float, corner.split(","))) for corner in part[1:].split(" ")]
        found ^= Outline(line).contains_points(np.stack([x.ravel(), y.ravel()], -1)).reshape(rows, columns)
    return found


@pytest.mark.parametrize(("order", "signs"), DIRECTIONS)
def test_outlines_lie_on_the_lesion_in_every_panel(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    scene = lesions(turned(order, signs, (1.0, 0.9, 1.1)), (10, 25, 30), (30, 5, 2), (38, 60, 50))
    strips, n_left_out = strips_of(scene)
    assert n_left_out == 0
    for strip in strips:
        assert [panel.title.split()[0] for panel in strip.panels][-2:] == ["coronal", "sagittal"]
        for panel in strip.panels[1:]:
            if panel.outlines:
                np.testing.assert_array_equal(pixels(panel) > 128, inside(panel, "reference"))
        for panel in strip.panels[-2:]:
            assert "reference" in panel.outlines
    assert len({tuple(panel.size_mm for panel in strip.panels[-2:]) for strip in strips}) == 1


def test_slices_before_at_and_after_are_named_by_the_file() -> None:
    flipped = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    scene = lesions(Geometry((6, 70, 55), (4.0, 0.5, 0.6), (0, 0, 0), flipped), (1, 25, 30))
    ((strip,), _) = strips_of(scene)
    titles = [panel.title for panel in strip.panels]
    assert titles == ["axial 1", "axial 0 (before)", "axial 1, no outlines", "axial 1", "axial 2 (after)"]
    np.testing.assert_array_equal(pixels(strip.panels[2]), pixels(strip.panels[3]))
    assert not strip.panels[2].outlines
    assert strip.panels[3].size_mm == pytest.approx((48 * 0.6, 48 * 0.5))
    assert "reference" not in strip.panels[1].outlines
    assert strip.bar_mm == 5


def test_there_is_no_slice_beyond_the_ends() -> None:
    scene = lesions(Geometry((2, 70, 55), (4.0, 0.5, 0.6)), (0, 25, 30))
    ((strip,), _) = strips_of(scene)
    assert [p.title for p in strip.panels] == [
        "axial 0",
        "axial 0, no outlines",
        "axial 0",
        "axial 1 (after)",
    ]


def test_lesions_near_each_other_are_numbered_and_told_once() -> None:
    grid = Geometry((12, 70, 55), (4.0, 0.5, 0.6))
    scene = lesions(grid, (1, 25, 30), (1, 35, 30), (1, 60, 5), (6, 25, 30))
    strips, _ = strips_of(scene)
    told = [finding for strip in strips for finding in strip.findings]
    assert sorted(told) == [((False, n),) for n in range(4)]
    marks = [panel.marks for strip in strips for panel in strip.panels if panel.marks]
    assert [[text for *_, text in of_panel] for of_panel in marks] == [["1", "2"]]


def test_numbers_stand_beside_their_lesions_and_inside_the_panel() -> None:
    scene = lesions(Geometry((12, 70, 55), (4.0, 0.5, 0.6)), (1, 25, 30), (1, 30, 51), (1, 40, 30))
    ((strip,), _) = strips_of(scene)
    columns = 48
    for panel in strip.panels:
        for x, y, _ in panel.marks:
            assert 0 < x < columns - 2
            assert not inside(panel, "reference")[int(y), int(x)]


def test_what_is_left_out_is_counted() -> None:
    scene = lesions(Geometry((12, 70, 55), (4.0, 0.5, 0.6)), (1, 25, 30), (4, 25, 30), (8, 25, 30))
    strips, n_left_out = strips_of(scene, most=2)
    assert (len(strips), n_left_out) == (2, 1)


def test_a_huge_lesion_is_shown_in_few_pixels_and_whole() -> None:
    grid = Geometry((3, 400, 300), (4.0, 0.5, 0.5))
    reference = np.zeros(grid.shape_zyx, bool)
    reference[1, 40:340, 100:140] = True
    around = np.random.default_rng(0).choice([0, 100], grid.shape_zyx)
    scene = Scene(grid, reference, reference & False, np.where(reference, 500, around), reference & False)
    ((strip,), _) = strips_of(scene)
    for panel in strip.panels[1:]:
        assert pixels(panel).shape == (160, round(160 * 300 / 308))
        assert panel.size_mm == (150, 154)
    shown = pixels(strip.panels[2]) > 128
    assert shown.mean() == pytest.approx(300 * 40 / (308 * 300), rel=0.05)
    assert "100,304" in strip.panels[3].outlines["reference"]


def test_the_frame_is_where_the_zoom_is() -> None:
    scene = lesions(Geometry((3, 120, 100), (4.0, 0.5, 0.5)), (0, 60, 20))
    assert scene.image is not None
    scene.image[:, :30] = 0  # nothing there: left out of the whole slice
    ((strip,), _) = strips_of(scene)
    overview = strip.panels[0]
    assert overview.is_overview
    assert overview.box is not None
    top, bottom, left, right = overview.box
    crop = pixels(overview)[top:bottom, left:right]
    assert np.argwhere(crop > 240).mean(0) == pytest.approx(np.argwhere(inside(strip.panels[2], "reference")).mean(0), abs=1.5)  # fmt: skip


def test_without_an_image_the_whole_slice_has_outlines() -> None:
    scene = lesions(Geometry((3, 70, 55), (4.0, 0.5, 0.5)), (0, 25, 30))
    blind = Scene(scene.geometry, scene.reference, scene.prediction, None, scene.unknown)
    ((strip,), _) = strips_of(blind)
    assert not any(panel.picture for panel in strip.panels)
    assert strip.panels[0].outlines.keys() == {"reference"}


def test_a_clean_case_is_one_whole_slice() -> None:
    scene = lesions(Geometry((5, 70, 55), (4.0, 0.5, 0.5)))
    ((strip,), _) = strips_of(scene)
    assert strip.findings == ()
    assert [panel.title for panel in strip.panels] == ["axial 2"]
