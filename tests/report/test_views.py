from pathlib import Path

import numpy as np
import pytest
from drawing import FALSE, HIT, MISS, drawn
from numpy.typing import NDArray

from pwmlunet.data.image import Geometry, write_image
from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.scores import CaseScores
from pwmlunet.report.views import Fates, content_box, grey_range, in_turns, lesion_f1, outlines, read_channel


def enclosed_area(line: list[tuple[int, int]]) -> float:
    """By the shoelace formula; positive for clockwise lines on the screen, negative for holes."""
    y, x = np.array(line).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def mask(*rows: str) -> NDArray[np.bool_]:
    return np.asarray(drawn(" ".join(rows))[0] > 0)


def test_the_outline_of_a_pixel_is_its_four_corners() -> None:
    assert outlines(mask("...", "..1")) == [[(1, 2), (1, 3), (2, 3), (2, 2), (1, 2)]]


def test_outlines_have_only_corners() -> None:
    (line,) = outlines(mask("111.", "1111"))
    assert len(line) - 1 == 6
    assert enclosed_area(line) == 7


def test_holes_and_parts_have_lines_of_their_own() -> None:
    areas = sorted(enclosed_area(line) for line in outlines(mask("1111..", "1..1.1", "1111..")))
    assert areas == [-2, 1, 12]


def test_pixels_that_meet_at_a_corner_are_outlined() -> None:
    lines = outlines(mask("1.", ".1"))
    assert sum(enclosed_area(line) for line in lines) == 2
    assert all(line[0] == line[-1] for line in lines)


def test_an_empty_mask_has_no_outline() -> None:
    assert outlines(mask("..")) == []


def test_outlines_enclose_what_is_inside_whatever_the_mask() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        noise = rng.random((9, 13)) < 0.5
        assert sum(enclosed_area(line) for line in outlines(noise)) == noise.sum()


def test_fates_follow_the_main_rule() -> None:
    # one found, one missed, one that is touched by too little of a large one
    reference = drawn("11.1...1" + "." * 20)
    prediction = drawn("1......" + "1" * 12 + ".........")
    fates = Fates.of(reference > 0, prediction > 0, (1, 1, 1))
    assert [fates.fate((False, n)) for n in range(3)] == ["found", "missed", "missed"]
    assert [fates.fate((True, n)) for n in range(2)] == ["found", "false"]
    assert fates.findings([(True, 1), (False, 0), (True, 0)]) == [((True, 1),), ((False, 0), (True, 0))]


def far(*places: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Lesions of 3 pixels in a column, which begin at (z, y, x)."""
    volume = np.zeros((4, 60, 70), bool)
    for z, y, x in places:
        volume[z, y : y + 3, x] = True
    return volume


def test_each_lesion_is_looked_at_once_and_pairs_stay_together() -> None:
    reference, prediction = far((0, 5, 5), (2, 5, 5)), far((1, 50, 60), (2, 5, 5))
    prediction[3, 5:8, 4:7] = True  # the found one is largest in another slice than its reference
    fates = Fates.of(reference, prediction, (3, 1, 1))
    assert fates.pairs == ((1, 1),)
    places = list(fates.places(fates.by_interest()))
    assert [(place.z, fates.words(place.lesions)) for place in places] == [
        (0, "1 missed"),
        (1, "1 false"),
        (2, "1 found"),
    ]
    assert places[0].centre == (6, 5)


def test_a_case_has_one_lesion_f1_over_its_targets() -> None:
    targets = {case.name: case.targets["lesion"] for case in (HIT, MISS, FALSE)}
    together = CaseScores("all", "all", (3.0, 1.0, 1.0), 2, targets)
    assert lesion_f1(together) == 2 / 5  # one lesion found by one, one missed, two false
    assert lesion_f1(MISS) == 0


def test_all_have_their_turn() -> None:
    assert list(in_turns(["abc", "", "de"])) == ["a", "d", "b", "e", "c"]


def test_a_lesion_is_seen_only_where_half_of_it_is() -> None:
    wide = far((1, 10, 10))
    wide[2, 10:14, 10:14] = True  # 16 pixels in slice 2, of which 3 reach into slice 1
    wide[1, 14:18, 20] = True
    fates = Fates.of(wide, wide & False, (3, 1, 1))
    seen = [place.z for place in fates.places([(False, 1), (False, 0)])]
    assert sorted(seen) == [1, 2]


def test_a_large_lesion_gets_a_large_box() -> None:
    large = np.zeros((1, 200, 200), bool)
    large[0, 20:120, 30:40] = True
    (place,) = Fates.of(large, large, (1, 1, 1)).places([(False, 0)])
    assert place.box == (16, 124, 0, 108)


def test_grey_values_leave_out_the_black_and_the_brightest() -> None:
    pixels = np.concatenate([np.zeros(5000), np.arange(1, 1001)])
    low, high = grey_range(pixels)
    assert 5 < low < 15
    assert 975 < high < 985
    assert grey_range(np.zeros(4))[1] > 0


def test_content_is_the_head_and_the_box() -> None:
    pixels = np.zeros((50, 40))
    pixels[10:20, 5:30] = 100
    assert content_box(pixels, (12, 15, 8, 9)) == (10, 20, 5, 30)
    assert content_box(pixels, (12, 45, 8, 9)) == (10, 45, 5, 30)


def test_images_are_found_by_case_and_must_be_on_the_grid(tmp_path: Path) -> None:
    grid = Geometry((2, 5, 4), (3.0, 0.5, 0.4), (1.0, 2.0, 3.0))
    image = np.arange(40, dtype=np.float32).reshape(2, 5, 4)
    write_image(tmp_path / "a_0000.nii.gz", image, grid)
    write_image(tmp_path / "b.mha", image, grid)
    np.testing.assert_array_equal(read_channel(tmp_path, "a", grid), image)
    np.testing.assert_array_equal(read_channel(tmp_path, "b", grid), image)
    with pytest.raises(PwmlError, match="no image of case c"):
        read_channel(tmp_path, "c", grid)
    with pytest.raises(PwmlError, match="not on the grid of its mask: origin"):
        read_channel(tmp_path, "a", Geometry((2, 5, 4), (3.0, 0.5, 0.4)))
