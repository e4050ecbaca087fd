import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pwmlunet.networks import boxes


def random_boxes(*shape: int, seed: int = 0, room_yx: tuple[float, float] = (30, 44)) -> Tensor:
    """Boxes with sides from 2 to 12, some of them partly outside the room."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(*shape, 2, generator=generator) * torch.tensor(room_yx) - 3
    return torch.cat((start, start + 2 + 10 * torch.rand(*shape, 2, generator=generator)), -1)


def random_map(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# anchors and codes


def test_anchors_stand_at_the_cells_of_a_map_by_row_column_and_ratio() -> None:
    found = boxes.anchors((2, 3), 4, 8)
    centres = [(2, 2), (2, 6), (2, 10), (6, 2), (6, 6), (6, 10)]
    wanted = [
        (y - height / 2, x - width / 2, y + height / 2, x + width / 2)
        for y, x in centres
        for height, width in ((32**0.5, 128**0.5), (8, 8), (128**0.5, 32**0.5))
    ]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_codes_are_shifts_and_growth_relative_to_the_anchor() -> None:
    anchor, box = torch.tensor([10.0, 20, 14, 30]), torch.tensor([9.0, 18, 17, 28])
    wanted = [0.25 / 0.1, -0.2 / 0.1, math.log(2) / 0.2, 0.0]
    torch.testing.assert_close(boxes.encode(box, anchor), torch.tensor(wanted))


def test_decoding_inverts_encoding() -> None:
    wanted, anchors = random_boxes(3, 50), random_boxes(3, 50, seed=1)
    torch.testing.assert_close(
        boxes.decode(boxes.encode(wanted, anchors), anchors), wanted, atol=1e-4, rtol=0
    )


def test_codes_in_half_precision_are_decoded_in_float32() -> None:
    anchors = random_boxes(5) + 400
    codes = torch.ones(5, 4, dtype=torch.bfloat16)
    assert torch.equal(boxes.decode(codes, anchors), boxes.decode(codes.float(), anchors))


def test_sizes_do_not_overflow() -> None:
    grown = boxes.decode(torch.full((4,), 1e4), torch.tensor([0.0, 0, 8, 4]))
    torch.testing.assert_close(grown[2:] - grown[:2], torch.tensor([500.0, 250]))


def test_boxes_without_area_have_finite_codes_and_stay_without_area() -> None:
    empty, box = torch.tensor([5.0, 5, 5, 5]), torch.tensor([1.0, 2, 3, 4])
    for first, second in ((empty, box), (box, empty), (empty, empty)):
        assert boxes.encode(first, second).isfinite().all()
    assert torch.equal(boxes.decode(torch.ones(4), empty), empty)


# clipping and enlarging


def test_boxes_are_clipped_to_the_slice() -> None:
    given = torch.tensor([[-1.5, 2, 3, 50], [1, 2, 3, 4], [-9, 60, -5, 70]])
    wanted = torch.tensor([[0.0, 2, 3, 40], [1, 2, 3, 4], [0, 40, 0, 40]])
    assert torch.equal(boxes.clip(given, (30, 40)), wanted)


def test_boxes_grow_about_their_centres_and_are_clipped() -> None:
    given = torch.tensor([[10.0, 10, 20, 14], [1, 36, 5, 40]])
    wanted = torch.tensor([[8.5, 9.4, 21.5, 14.6], [0.4, 35.4, 5.6, 40]])
    torch.testing.assert_close(boxes.enlarge(given, 1.3, (30, 40)), wanted)


def test_a_factor_of_one_changes_nothing() -> None:
    given = random_boxes(40)
    assert torch.equal(boxes.enlarge(given, 1, (30, 40)), boxes.clip(given, (30, 40)))


# overlap and suppression


def painted(box: Tensor) -> NDArray[np.bool_]:
    """The pixels of a box with whole corners."""
    y0, x0, y1, x1 = (int(corner) for corner in box)
    mask = np.zeros((60, 60), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_overlap_is_that_of_counted_pixels() -> None:
    first = boxes.clip(random_boxes(2, 12), (60, 60)).round()
    second = boxes.clip(random_boxes(2, 9, seed=1), (60, 60)).round()
    wanted = [
        [[(painted(a) & painted(b)).sum() / (painted(a) | painted(b)).sum() for b in row_b] for a in row_a]
        for row_a, row_b in zip(first, second, strict=True)
    ]
    torch.testing.assert_close(boxes.overlap(first, second), torch.tensor(wanted, dtype=torch.float32))
    assert np.count_nonzero(wanted) > 10


def test_boxes_without_area_overlap_nothing() -> None:
    given = torch.tensor([[0.0, 0, 4, 4], [2, 2, 2, 2], [1, 1, 3, 1], [3, 3, 1, 1]])
    wanted = torch.zeros(4, 4)
    wanted[0, 0] = 1
    assert torch.equal(boxes.overlap(given, given), wanted)


def greedily_kept(given: Tensor, valid: Tensor, most_overlap: float) -> list[bool]:
    """The boxes that one pass from the best to the worst keeps."""
    overlaps = boxes.overlap(given, given)
    kept: list[int] = []
    for index in range(len(given)):
        if valid[index] and all(overlaps[before, index] <= most_overlap for before in kept):
            kept.append(index)
    return [index in kept for index in range(len(given))]


@pytest.mark.parametrize("most_overlap", [0.0, 1 / 3, 0.5, 0.7])
def test_suppression_is_greedy(most_overlap: float) -> None:
    given = random_boxes(3, 150)
    given[1] = given[1].round()  # overlaps that are equal, some of them to the limit
    given[2, 50:100] = given[2, :50]  # the same boxes twice
    valid = torch.rand(3, 150, generator=torch.Generator().manual_seed(2)) > 0.2
    wanted = [greedily_kept(*one, most_overlap) for one in zip(given, valid, strict=True)]
    kept = boxes.suppress(given, valid, most_overlap)
    assert kept.tolist() == wanted
    assert 0 < kept.sum() < valid.sum()


def test_an_overlap_of_the_limit_is_allowed() -> None:
    given = torch.tensor([[[0.0, 0, 4, 4], [0, 0, 4, 2]]])
    valid = torch.ones(1, 2, dtype=torch.bool)
    assert boxes.suppress(given, valid, 0.5).tolist() == [[True, True]]
    assert boxes.suppress(given, valid, 0.49).tolist() == [[True, False]]


def test_in_a_chain_every_other_box_is_kept() -> None:
    start = torch.arange(40.0)
    chain = torch.stack((start, 0 * start, start + 2, 0 * start + 1), -1)[None]
    kept = boxes.suppress(chain, torch.ones(1, 40, dtype=torch.bool), 0.1)
    assert kept[0].tolist() == [index % 2 == 0 for index in range(40)]


def test_what_is_no_box_suppresses_nothing() -> None:
    same = torch.tensor([0.0, 0, 4, 4]).expand(2, 3, 4)
    valid = torch.tensor([[False, True, True], [False, False, False]])
    assert boxes.suppress(same, valid, 0.5).tolist() == [[False, True, False], [False, False, False]]


# regions of maps


def bilinear(plane: NDArray[np.float64], y: float, x: float) -> float:
    """A map's value at (y, x) in cells, whose centres are at i + ½; the border holds beyond."""
    height, width = plane.shape
    y, x = min(max(y - 0.5, 0), height - 1), min(max(x - 0.5, 0), width - 1)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    low, right = y - top, x - left
    upper = (1 - right) * plane[top, left] + right * plane[top, left + 1]
    lower = (1 - right) * plane[top + 1, left] + right * plane[top + 1, left + 1]
    return float((1 - low) * upper + low * lower)


def aligned(features: Tensor, given: Tensor, size: int, stride: int) -> Tensor:
    """`boxes.align` one sample at a time, in float64."""
    found = np.zeros((*given.shape[:2], features.shape[1], size, size))
    for n, r, c, i, j in np.ndindex(*found.shape):
        y0, x0, y1, x1 = given[n, r].tolist()
        y, x = y0 + (i + 0.5) / size * (y1 - y0), x0 + (j + 0.5) / size * (x1 - x0)
        found[n, r, c, i, j] = bilinear(features[n, c].double().numpy(), y / stride, x / stride)
    return torch.from_numpy(found)


@pytest.mark.parametrize(("n_channels", "size", "stride"), [(3, 5, 4), (48, 2, 1), (24, 3, 2)])
def test_regions_are_sampled_at_the_centres_of_their_bins(n_channels: int, size: int, stride: int) -> None:
    features = random_map(2, n_channels, 8, 11)
    given = random_boxes(2, 7, room_yx=(8 * stride, 11 * stride))
    found = boxes.align(features, given, size, stride)
    torch.testing.assert_close(found, aligned(features, given, size, stride).float(), atol=1e-4, rtol=0)


def test_a_ramp_gives_the_places_of_the_bins() -> None:
    ramp = (torch.arange(12.0) + 0.5).mul(2).expand(1, 1, 8, 12)  # each cell of stride 2 holds its place
    found = boxes.align(ramp, torch.tensor([[[4.0, 6, 9, 16]]]), 5, 2)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([7.0, 9, 11, 13, 15]).expand(5, 5))


def test_gradients_reach_the_features_and_not_the_boxes() -> None:
    features = random_map(2, 3, 4, 5).double().requires_grad_()
    given = random_boxes(2, 3, room_yx=(8, 10)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda maps: boxes.align(maps, given.detach(), 3, 2), features)
    boxes.align(features, given, 3, 2).sum().backward()  # type: ignore[no-untyped-call]
    assert given.grad is None


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_features_in_half_precision_are_sampled_at_the_same_places(half: torch.dtype) -> None:
    features = random_map(1, 4, 90, 120).to(half)
    given = random_boxes(1, 9, room_yx=(350, 470))
    with torch.autocast("cpu", half):
        found = boxes.align(features, given, 7, 4)
    assert found.dtype == half
    assert torch.equal(found, boxes.align(features.float(), given, 7, 4).to(half))


def test_a_region_without_area_is_one_sample() -> None:
    features = random_map(1, 2, 6, 7)
    found = boxes.align(features, torch.tensor([[[2.5, 3.5, 2.5, 3.5]]]), 4, 1)
    torch.testing.assert_close(found[0, 0], features[0, :, 2, 3, None, None].expand(2, 4, 4))


# regions put back


def pasted(values: Tensor, given: Tensor, shape_yx: tuple[int, int]) -> Tensor:
    """`boxes.paste` one pixel at a time, in float64."""
    n_slices, n_regions, n_targets, side, _ = values.shape
    found = np.zeros((n_slices, n_targets, *shape_yx))
    for n, r, k, y, x in np.ndindex(n_slices, n_regions, n_targets, *shape_yx):
        y0, x0, y1, x1 = given[n, r].tolist()
        if y0 <= y + 0.5 < y1 and x0 <= x + 0.5 < x1:
            place = (y + 0.5 - y0) / (y1 - y0) * side, (x + 0.5 - x0) / (x1 - x0) * side
            value = bilinear(values[n, r, k].double().numpy(), *place)
            found[n, k, y, x] = max(found[n, k, y, x], value)
    return torch.from_numpy(found)


def test_each_pixel_is_the_most_that_a_region_has_there() -> None:
    values, given = random_map(2, 5, 3, 6, 6).sigmoid(), random_boxes(2, 5, room_yx=(12, 17))
    wanted = pasted(values, given, (12, 17)).float()
    torch.testing.assert_close(boxes.paste(values, given, (12, 17)), wanted)
    assert 0.1 < (wanted > 0).float().mean() < 0.9


def test_what_is_cut_out_is_put_back() -> None:
    ys, xs = torch.meshgrid(torch.arange(40.0), torch.arange(52.0), indexing="ij")
    smooth = (2 + torch.sin(ys / 7) + torch.cos(xs / 9))[None, None]
    given = torch.tensor([[[3.2, 5.7, 19.4, 30.1], [15, 20, 38, 49]]])
    back = boxes.paste(boxes.align(smooth, given, 18, 1), given, (40, 52))
    error = (back - smooth).abs()
    assert (back > 0).sum() > 600
    assert error[back > 0].max() < 0.1  # at the edges, where a value is held
    assert error[0, 0, 21:36, 32:47].max() < 0.02


def test_the_outermost_values_hold_up_to_the_edge() -> None:
    back = boxes.paste(torch.full((1, 1, 1, 2, 2), 0.75), torch.tensor([[[1.0, 2, 5, 8]]]), (6, 9))
    wanted = torch.zeros(6, 9)
    wanted[1:5, 2:8] = 0.75
    torch.testing.assert_close(back[0, 0], wanted)


def test_boxes_without_area_paint_nothing() -> None:
    given = torch.tensor([[[0.0, 0, 0, 0], [2.5, 2.5, 2.5, 2.5], [2, 3, 2, 9], [1.6, 1.6, 2.4, 2.4]]])
    assert torch.equal(boxes.paste(torch.ones(1, 4, 2, 3, 3), given, (6, 7)), torch.zeros(1, 2, 6, 7))


def test_mixed_precision_changes_no_pixel() -> None:
    values, given = random_map(2, 5, 3, 6, 6).sigmoid(), random_boxes(2, 5)
    wanted = boxes.paste(values, given, (30, 44))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(boxes.paste(values, given, (30, 44)), wanted)


# components


def drawn(*slices: str) -> Tensor:
    return torch.tensor([[[c == "#" for c in line] for line in rows.split()] for rows in slices])


def test_components_touch_at_corners_and_never_across_slices() -> None:
    target = drawn(
        """
        .#.....
        #......
        ....###
        ....#.#
        """,
        """
        ....###
        .......
        .......
        ##.....
        """,
        """
        .......
        .......
        .......
        .......
        """,
    )
    wanted = [
        [[2, 4, 4, 7], [0, 0, 2, 2]],
        [[0, 4, 1, 7], [3, 0, 4, 2]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    assert torch.equal(boxes.components(target, 10), torch.tensor(wanted, dtype=torch.float32))


def test_the_largest_components_are_kept() -> None:
    target = drawn("#.##.#", "###..#")
    wanted = [[[0, 2, 1, 4]], [[0, 0, 1, 3]]]
    assert torch.equal(boxes.components(target, 1), torch.tensor(wanted, dtype=torch.float32))


def test_without_a_component_there_is_one_row_of_zeros() -> None:
    assert torch.equal(boxes.components(torch.zeros(2, 3, 4, dtype=torch.bool), 5), torch.zeros(2, 1, 4))


# all of them


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "encode": lambda _, given: boxes.encode(given, given),
    "decode": lambda _, given: boxes.decode(given, given),
    "enlarge": lambda _, given: boxes.enlarge(given, 1.3, (30, 44)),
    "overlap": lambda _, given: boxes.overlap(given, given),
    "suppress": lambda _, given: boxes.suppress(given, given[..., 0] > 5, 0.3),
    "align": lambda maps, given: boxes.align(maps, given, 3, 2),
    "paste": lambda maps, given: boxes.paste(maps.abs()[:, None, :, :9, :9].expand(-1, 6, -1, -1, -1), given, (30, 44)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slices_do_not_meet(name: str) -> None:
    maps, given = random_map(3, 5, 15, 22), random_boxes(3, 6)
    alone = [FUNCTIONS[name](maps[n : n + 1], given[n : n + 1]) for n in range(3)]
    torch.testing.assert_close(FUNCTIONS[name](maps, given), torch.cat(alone))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_shapes_are_known_without_computing(name: str) -> None:
    maps, given = random_map(3, 5, 15, 22), random_boxes(3, 6)
    found, empty = FUNCTIONS[name](maps, given), FUNCTIONS[name](maps.to("meta"), given.to("meta"))
    assert empty.is_meta
    assert (empty.shape, empty.dtype) == (found.shape, found.dtype)


def test_as_many_components_as_can_be_are_planned_for() -> None:
    found = boxes.components(torch.empty(2, 30, 44, dtype=torch.bool, device="meta"), 7)
    assert (found.shape, found.dtype, found.is_meta) == ((2, 7, 4), torch.float32, True)
    assert boxes.anchors((2, 3), 4, 8, device=torch.device("meta")).shape == (18, 4)
