from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from pwmlunet.data.dataset import Labels, Target
from pwmlunet.data.image import Geometry, write_image
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.evaluate import evaluate_folders
from pwmlunet.evaluation.scores import CaseScores, score_case
from pwmlunet.report.overlay import choose_cases, choose_views, draw_overlay, overlay_cases

LABELS = Labels((Target("lesion", (1,), 1),), ignore=2)
IMAGE = np.random.default_rng(0).normal(100, 10, (3, 70, 90)).astype(np.float32)


def squares(*places: tuple[int, int, int]) -> NDArray[np.bool_]:
    """A mask with 2 x 2 squares whose first pixels lie at (z, y, x)."""
    mask = np.zeros(IMAGE.shape, bool)
    for z, y, x in places:
        mask[z, y : y + 2, x : x + 2] = True
    return mask


REFERENCE = squares((0, 10, 10), (1, 40, 80), (2, 60, 5))
PREDICTION = squares((0, 10, 10), (0, 12, 30), (2, 5, 80))


def test_views_go_from_missed_to_false_to_found_and_show_each_lesion_once() -> None:
    views = list(choose_views(IMAGE, REFERENCE, PREDICTION, title="a"))
    assert [view.title for view in views] == [
        "a · slice 1 · 1 missed",
        "a · slice 2 · 1 missed",
        "a · slice 0 · 1 found, 1 false",
        "a · slice 2 · 1 false",
    ]


def test_views_of_a_typical_case_begin_with_what_was_found() -> None:
    first = next(iter(choose_views(IMAGE, REFERENCE, PREDICTION, failures_first=False)))
    assert first.title == "slice 0 · 1 found, 1 false"


def test_zooms_lie_around_their_lesion_and_inside_the_slice() -> None:
    for view in choose_views(IMAGE, REFERENCE, PREDICTION):
        top, bottom, left, right = view.box
        assert (bottom - top, right - left) == (48, 48)
        assert 0 <= top < bottom <= 70
        assert 0 <= left < right <= 90
    (view,) = choose_views(IMAGE, squares((1, 34, 44)), squares())
    assert view.box == (11, 59, 21, 69)
    np.testing.assert_array_equal(view.image, IMAGE[1])
    np.testing.assert_array_equal(view.reference, squares((1, 34, 44))[1])


def test_a_large_lesion_fits_into_its_zoom() -> None:
    large = squares()
    large[1, 5:65, 10:40] = True
    (view,) = choose_views(IMAGE, large, squares())
    assert view.box == (1, 69, 0, 68)


def test_a_small_slice_is_its_own_zoom() -> None:
    (view,) = choose_views(IMAGE[:, :20, :30], REFERENCE[:, :20, :30], squares()[:, :20, :30])
    assert view.box == (0, 20, 0, 30)


def test_pixels_keep_their_shape() -> None:
    (view,) = choose_views(IMAGE, REFERENCE & False, squares((1, 1, 1)), spacing_zyx_mm=(3, 1.0, 0.5))
    assert view.aspect == 2


def test_a_case_without_lesions_gives_its_middle_slice() -> None:
    (view,) = choose_views(IMAGE, squares(), squares())
    assert view.title == "slice 1 · no lesion, none predicted"


def test_lesions_under_ignored_voxels_are_not_shown() -> None:
    valid = np.ones(IMAGE.shape, bool)
    valid[1] = False
    views = list(choose_views(IMAGE, REFERENCE, PREDICTION, valid=valid))
    assert not any("slice 1" in view.title for view in views)
    assert all(view.ignore is not None and not view.ignore.any() for view in views)


def case(name: str, n_found: int, n_missed: int) -> CaseScores:
    reference = np.zeros((1, 1, 40), np.uint8)
    reference[..., : 2 * (n_found + n_missed) : 2] = 1
    prediction = reference.copy()
    prediction[..., 2 * n_found :] = 0
    return score_case(reference, prediction, spacing_zyx_mm=(1, 1, 1), labels=LABELS, name=name, subject=name)


def test_the_worst_cases_and_those_in_the_middle_are_chosen() -> None:
    cases = [case(f"f{n}", n, 9 - n) for n in (9, 3, 7, 0, 5, 1, 8)] + [case("clean", 0, 0)]
    assert choose_cases(cases, 4) == {"f0": "worst", "f1": "worst", "f3": "typical", "f5": "typical"}
    assert choose_cases(cases, 2) == {"f0": "worst", "f5": "typical"}
    assert choose_cases(cases, 1) == {"f0": "worst"}
    assert choose_cases(cases[-1:], 4) == {"clean": "clean"}
    assert set(choose_cases(cases[:2], 8)) == {"f9", "f3"}


def colours(path: Path) -> tuple[int, int, int]:
    """How many pixels of a picture are yellow (reference), pink (prediction) and blue (unknown)."""
    red, green, blue = np.moveaxis(imread(path)[..., :3].astype(float), -1, 0)
    yellow = (red > 0.9) & (green > 0.8) & (blue < 0.5)
    pink = (red > 0.9) & (green < 0.3) & (blue > 0.4)
    bluish = (blue > red + 0.1) & (blue > green + 0.05)
    return int(yellow.sum()), int(pink.sum()), int(bluish.sum())


def test_picture_shows_both_outlines_in_their_colours(tmp_path: Path) -> None:
    nothing, something = squares(), squares((1, 30, 30), (1, 36, 40))
    valid = np.ones(IMAGE.shape, bool)
    valid[1, 40:] = False
    pairs = {"empty": (nothing, nothing), "missed": (something, nothing), "false": (nothing, something)}
    found = {}
    for name, masks in pairs.items():
        draw_overlay(tmp_path / f"{name}.png", list(choose_views(IMAGE, *masks)))
        found[name] = colours(tmp_path / f"{name}.png")
    assert found["missed"][0] > found["empty"][0] + 50  # the legend has both
    assert found["missed"][1] == found["empty"][1]
    assert found["false"][1] > found["empty"][1] + 30
    assert found["false"][0] == found["empty"][0]
    draw_overlay(tmp_path / "ignore.png", list(choose_views(IMAGE, nothing, nothing, valid=valid)))
    assert colours(tmp_path / "ignore.png")[2] > found["empty"][2] + 1000


def test_no_view_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing"):
        draw_overlay(tmp_path / "a.png", [])


def test_flat_images_can_be_drawn(tmp_path: Path) -> None:
    draw_overlay(tmp_path / "a.png", list(choose_views(np.zeros(IMAGE.shape), REFERENCE, PREDICTION)))
    assert (tmp_path / "a.png").is_file()


def test_cases_in_folders_become_one_picture(tmp_path: Path) -> None:
    grid = Geometry((3, 70, 90), (3.0, 0.5, 0.4), (1.0, 2.0, 3.0))
    for name in ("a", "b"):
        write_image(tmp_path / "labelsTr" / f"{name}.nii.gz", REFERENCE.astype(np.uint8), grid)
        write_image(tmp_path / "predicted" / f"{name}.nii.gz", PREDICTION.astype(np.uint8), grid)
    folders = tmp_path / "labelsTr", tmp_path / "predicted", tmp_path / "imagesTr"
    write_image(tmp_path / "imagesTr" / "a_0000.nii.gz", IMAGE, grid)
    cases = evaluate_folders(*folders[:2])
    with pytest.raises(PwmlError, match="no image of case b"):
        overlay_cases(*folders, tmp_path / "overlay.png", cases=cases, n_views=3)
    overlay_cases(*folders, tmp_path / "a.png", cases=cases[:1], n_views=3)  # only what was scored is shown
    write_image(tmp_path / "imagesTr" / "b.nii.gz", IMAGE[:, :50], Geometry((3, 50, 90), (3.0, 0.5, 0.4)))
    with pytest.raises(PwmlError, match="not on the grid of its mask: shape 3, 50, 90 against 3, 70, 90"):
        overlay_cases(*folders, tmp_path / "overlay.png", cases=cases, n_views=3)
    write_image(tmp_path / "imagesTr" / "b.nii.gz", IMAGE, grid)
    overlay_cases(*folders, tmp_path / "overlay.png", cases=cases, n_views=3)
    height, width = imread(tmp_path / "overlay.png").shape[:2]
    assert height > width  # three views below each other
