"""Boxes in slices: anchors, coding, overlap, suppression, and regions of maps cut out and put back.

A box is (y0, x0, y1, x1) in pixels, half-open: pixel i covers [i, i + 1), its centre is i + ½. Arrays of boxes
are float32, (..., 4). What needs a number of boxes fixed in advance fills up with boxes of zeros: they have no
area, overlap nothing and paint nothing. Nothing here has learned weights, and no gradient reaches a box.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

RATIOS = (0.5, 1.0, 2.0)
"""Height / width of the anchors at each place (Lin et al. 2017, FPN, section 4.1)."""

_CODE_SCALE = (0.1, 0.1, 0.2, 0.2)  # typical spread of each code, as in the published Mask R-CNN code
_MAX_LOG_SIZE = math.log(1000 / 16)  # by how much a decoded box outgrows its anchor at most (there too)
_SMALLEST_SIDE = 1e-3  # pixels: what a box without area counts as where it is divided by
_CHANNELS_AT_ONCE = 16  # of a map that is sampled: a group stays in the cache, and each core takes groups


def anchors(
    shape_yx: tuple[int, int],
    stride: int,
    size: float,
    device: torch.device | None = None,
) -> Tensor:
    """Boxes (A, 4) of area size² in each of `RATIOS` at each cell of a map, by row, column and ratio; not clipped.

    Args:
        shape_yx: The map's cells.
        stride: Pixels from cell to cell; the centres are at (i + ½) · stride.
        size: Side of the square anchor in pixels.
        device: Where the boxes are made.
    """
    ys, xs = ((torch.arange(n, device=device) + 0.5) * stride for n in shape_yx)
    root = torch.tensor(RATIOS, device=device, dtype=torch.float32).sqrt()
    half = torch.stack((size * root, size / root), -1) / 2  # (ratios, 2)
    centres = torch.stack(torch.meshgrid(ys, xs, indexing="ij"), -1)[:, :, None]  # (rows, columns, 1, 2)
    return torch.cat((centres - half, centres + half), -1).flatten(0, 2)


def _from_centre(cy: Tensor, cx: Tensor, height: Tensor, width: Tensor) -> Tensor:
    return torch.stack((cy - height / 2, cx - width / 2, cy + height / 2, cx + width / 2), -1)


def _to_centre(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y0, x0, y1, x1 = boxes.float().unbind(-1)
    return (y0 + y1) / 2, (x0 + x1) / 2, y1 - y0, x1 - x0


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Codes (..., 4) of boxes relative to anchors: dy, dx in the anchor's sides, log ratios of the sides.

    Each is divided by its typical spread (Ren et al. 2015, eq. 2). Finite for boxes without area.
    """
    cy, cx, height, width = _to_centre(boxes)
    anchor_cy, anchor_cx, anchor_height, anchor_width = _to_centre(anchors)
    height, width, anchor_height, anchor_width = (
        side.clamp(min=_SMALLEST_SIDE) for side in (height, width, anchor_height, anchor_width)
    )
    shift = ((cy - anchor_cy) / anchor_height, (cx - anchor_cx) / anchor_width)
    growth = ((height / anchor_height).log(), (width / anchor_width).log())
    codes = (*shift, *growth)
    return torch.stack([code / scale for code, scale in zip(codes, _CODE_SCALE, strict=True)], -1)


def decode(codes: Tensor, anchors: Tensor) -> Tensor:
    """The boxes (..., 4) that codes stand for: the inverse of `encode`, with sizes that cannot overflow."""
    dy, dx, log_height, log_width = (
        code * scale for code, scale in zip(codes.float().unbind(-1), _CODE_SCALE, strict=True)
    )
    cy, cx, height, width = _to_centre(anchors)
    return _from_centre(
        cy + dy * height,
        cx + dx * width,
        height * log_height.clamp(max=_MAX_LOG_SIZE).exp(),
        width * log_width.clamp(max=_MAX_LOG_SIZE).exp(),
    )


def clip(boxes: Tensor, shape_yx: tuple[int, int]) -> Tensor:
    """The parts of the boxes (..., 4) inside a slice; a box wholly outside keeps no area."""
    y0, x0, y1, x1 = boxes.unbind(-1)
    y, x = shape_yx
    return torch.stack((y0.clamp(0, y), x0.clamp(0, x), y1.clamp(0, y), x1.clamp(0, x)), -1)


def enlarge(boxes: Tensor, factor: float, shape_yx: tuple[int, int]) -> Tensor:
    """The boxes (..., 4) with sides times `factor` about their centres, clipped to the slice."""
    grown = (boxes[..., 2:] - boxes[..., :2]) * ((factor - 1) / 2)
    return clip(torch.cat((boxes[..., :2] - grown, boxes[..., 2:] + grown), -1), shape_yx)


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union (..., N, M) of boxes (..., N, 4) and (..., M, 4); 0 for boxes without area."""
    first, second = (boxes.movedim(-1, 0).contiguous() for boxes in (first, second))  # twice as fast
    sides = []
    for axis in (0, 1):
        start = torch.maximum(first[axis, ..., :, None], second[axis, ..., None, :])
        stop = torch.minimum(first[axis + 2, ..., :, None], second[axis + 2, ..., None, :])
        sides.append((stop - start).clamp(min=0))
    shared = sides[0] * sides[1]
    union = _area(first)[..., :, None] + _area(second)[..., None, :] - shared
    return shared / union.clamp(min=_SMALLEST_SIDE**2)


def _area(sides: Tensor) -> Tensor:
    """Of boxes whose four places stand first, (4, ..., N)."""
    return (sides[2] - sides[0]) * (sides[3] - sides[1])


def suppress(boxes: Tensor, valid: Tensor, most_overlap: float) -> Tensor:
    """Which boxes (N, P) greedy suppression keeps: no kept box overlaps one kept before it by more than allowed.

    Args:
        boxes: (N, P, 4) by falling score.
        valid: (N, P), false where there is no box; those are not kept and suppress nothing.
        most_overlap: Intersection over union above which the later of two boxes goes.
    """
    return torch.stack([_greedy(*one, most_overlap) for one in zip(boxes, valid, strict=True)])


@torch.no_grad()
def _greedy(boxes: Tensor, valid: Tensor, most_overlap: float) -> Tensor:
    """The boxes (P,) of one slice to keep, found for all at once.

    A box stays unless a kept one before it suppresses it. A step applies this rule to the last step's answer
    and settles at least the first box not settled yet; the answer that no longer changes is the greedy one.
    There are as many steps as boxes in the longest chain in which each suppresses the next, and a few are usual.
    """
    suppresses = (overlap(boxes, boxes) > most_overlap).triu(1).float()  # (before, after)

    def settle(kept: Tensor) -> Tensor:
        return valid & (kept.float() @ suppresses == 0)

    kept = settle(valid)
    while not (boxes.is_meta or torch.equal(settled := settle(kept), kept)):
        kept = settled
    return kept


def align(features: Tensor, boxes: Tensor, size: int, stride: int) -> Tensor:
    """Regions (N, R, C, size, size) of a map, bilinear between cell centres (He et al. 2017, ROI align).

    Each of a region's size × size bins is sampled once, at its centre: lesions are small, so that a bin is
    mostly smaller than a cell, and more samples would read the same cells again. A sample beyond the outermost
    cell centres reads the border. Coordinates stay in float32, whatever the features are.

    Args:
        features: (N, C, H, W); the gradient reaches these alone.
        boxes: (N, R, 4) in pixels of the slice.
        size: Bins along each side of a region.
        stride: Pixels of the slice in a cell of the map; cell j is centred at (j + ½) · stride.
    """
    n_slices, n_channels, height, width = features.shape
    exact = torch.promote_types(features.dtype, torch.float32)
    places = _bin_centres(boxes.detach().to(exact), size, (stride * height, stride * width))
    n_groups = n_channels // math.gcd(n_channels, _CHANNELS_AT_ONCE)
    regions = F.grid_sample(
        features.to(exact).reshape(n_slices * n_groups, -1, height, width),
        places.flatten(1, 2).repeat_interleave(n_groups, 0),
        padding_mode="border",
        align_corners=False,
    )  # (N · groups, channels, R · size, size)
    return regions.to(features.dtype).reshape(n_slices, n_channels, *places.shape[1:4]).transpose(1, 2)


def _bin_centres(boxes: Tensor, size: int, extent_yx: tuple[int, int]) -> Tensor:
    """Where regions are sampled (N, R, size, size, 2): (x, y) from −1 to 1 between the map's outer edges."""
    bins = (torch.arange(size, dtype=boxes.dtype, device=boxes.device) + 0.5) / size
    y0, x0, y1, x1 = boxes[..., None].unbind(2)  # (N, R, 1)
    ys = (y0 + bins * (y1 - y0)) * (2 / extent_yx[0]) - 1
    xs = (x0 + bins * (x1 - x0)) * (2 / extent_yx[1]) - 1
    shape = (*ys.shape, size)
    return torch.stack((xs[:, :, None].expand(shape), ys[..., None].expand(shape)), -1)


def paste(values: Tensor, boxes: Tensor, shape_yx: tuple[int, int]) -> Tensor:
    """Regions put back in their slices (N, K, Y, X): at each pixel the maximum over regions, 0 outside all.

    Bilinear at pixel centres; between the outermost bin centres and the box's edges the outermost values hold.
    A box without area, or between two pixel centres, gives nothing.

    Args:
        values: (N, R, K, M, M), each at least 0, sampled as `align` does.
        boxes: (N, R, 4) in pixels of the slice.
        shape_yx: Size of the slices.
    """
    y0, x0, y1, x1 = boxes.detach().float().unbind(-1)
    rows = _spread(y0, y1, values.shape[-1], shape_yx[0])
    columns = _spread(x0, x1, values.shape[-1], shape_yx[1])
    with torch.autocast("cuda" if values.is_cuda else "cpu", enabled=False):  # products in float32
        slices = [
            torch.einsum("rym,rkmn,rxn->rkyx", *one).amax(0)
            for one in zip(rows, values.float(), columns, strict=True)
        ]
    return torch.stack(slices)


def _spread(start: Tensor, stop: Tensor, n_bins: int, n_pixels: int) -> Tensor:
    """Weights (N, R, n_pixels, n_bins) that turn the bins along one side of a box into pixels."""
    centres = torch.arange(n_pixels, device=start.device) + 0.5
    start, stop = start[..., None], stop[..., None]
    place = (centres - start) / (stop - start).clamp(min=_SMALLEST_SIDE) * n_bins - 0.5
    bins = torch.arange(n_bins, device=start.device)
    weights = (1 - (place.clamp(0, n_bins - 1)[..., None] - bins).abs()).clamp(min=0)
    return weights * ((centres >= start) & (centres < stop))[..., None]


def components(target: Tensor, most: int) -> Tensor:
    """Boxes (N, G, 4) of the 8-connected components of each slice (N, Y, X), largest first.

    G is the most components in any slice, at least 1 and at most `most`; rows without a component are zeros.
    """
    if target.is_meta:
        return target.new_zeros((len(target), most, 4), dtype=torch.float32)
    from scipy import ndimage

    in_slice = torch.zeros(3, 3, 3).numpy()
    in_slice[1] = 1  # neighbours of the same slice only
    labelled, _ = ndimage.label(target.cpu().numpy(), in_slice)
    sizes = torch.from_numpy(labelled).flatten().bincount()[1:]
    places = ndimage.find_objects(labelled)
    found: list[list[tuple[int, int, int, int]]] = [[] for _ in target]
    for index in sizes.argsort(descending=True, stable=True).tolist():
        z, y, x = places[index]
        found[z.start].append((y.start, x.start, y.stop, x.stop))
    n_boxes = min(most, max(1, *map(len, found)))
    boxes = torch.zeros(len(target), n_boxes, 4)
    for row, of_slice in zip(boxes, found, strict=True):
        for box, corners in zip(row, of_slice, strict=False):
            box[:] = torch.tensor(corners)
    return boxes.to(target.device)
