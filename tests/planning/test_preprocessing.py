from dataclasses import replace
from itertools import permutations, product

import numpy as np
import pytest
import torch

from pwmlunet.config import join
from pwmlunet.data.dataset import CaseFiles, Labels, Target
from pwmlunet.data.image import Geometry, read_image, write_image
from pwmlunet.data.store import CaseStore
from pwmlunet.errors import PwmlError
from pwmlunet.planning.alignment import coarse_image
from pwmlunet.planning.normalisation import NORMALISATIONS
from pwmlunet.planning.preprocessing import (
    Preparation,
    find_first_present,
    find_head,
    made_from,
    prepare,
    prepare_mask,
    preprocess_case,
    read_case,
    restore,
)

LABELS = Labels((Target("lesion", (1,), 1),), ignore=2)
ORDERS = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}
SHAPES = {"z": (5, 40, 34), "y": (40, 5, 34), "x": (40, 34, 5)}
PREPARATIONS = {
    "square": Preparation("z", "head_square", ("zscore_head",), long_side=64),
    "square, native": Preparation("z", "head_square", ("zscore_head",), margin=0.5),
    "nonzero": Preparation("z", "nonzero", ("none",)),
    "finer": Preparation("z", "nonzero", ("none",), spacing_yx_mm=(0.31, 0.17)),
    "none": Preparation("z", "none", ("none",)),
}


def head_in_file_axes(tiny, axis):
    """A head whose slices are stacked along a file axis, on an oblique grid: image, geometry."""
    order = ORDERS[axis]
    shape = tuple(SHAPES[axis][i] for i in order)
    image = np.transpose(
        tiny.head_with_lesions(3, shape, n_lesions=0).image, [order.index(i) for i in range(3)]
    )
    image = image - image.min()
    image[image < 30] = 0
    spacing = tuple({True: 3.0, False: 0.7 if i == order[1] else 0.5}[i == order[0]] for i in range(3))
    return np.ascontiguousarray(image), tiny.oblique(image.shape, spacing)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize("kind", PREPARATIONS)
def test_a_lesion_at_a_point_in_mm_is_found_there_again(tiny, tmp_path, axis, kind):
    image, geometry = head_in_file_axes(tiny, axis)
    order = ORDERS[axis]
    index = [0, 0, 0]
    for i, place in zip(order, (3, 19, 13), strict=True):
        index[i] = place
    place_mm = geometry.index_to_mm(tuple(index))
    mask = np.zeros(image.shape, np.uint8)
    mask[tuple(index)] = 1
    preparation = replace(PREPARATIONS[kind], slice_axis=axis)
    prepared, prepared_mask, way_back = prepare([image], geometry, preparation, mask)
    assert prepared.shape == (1, *way_back.grid_shape_zyx) and prepared_mask.shape == way_back.grid_shape_zyx
    assert prepared.shape[1] == 5 and prepared_mask[3].any() and not prepared_mask[[0, 1, 2, 4]].any()
    restored = restore(torch.from_numpy(prepared_mask)[None].float(), way_back).numpy()[0]
    write_image(tmp_path / "found.nii.gz", (restored > 0.5).astype(np.uint8), way_back.geometry)
    read = read_image(tmp_path / "found.nii.gz")
    (found,) = np.argwhere(read.array)
    assert np.allclose(read.geometry.index_to_mm(tuple(found)), place_mm, atol=1e-3)
    assert not read.geometry.differences(geometry)


@pytest.mark.parametrize("kind", PREPARATIONS)
def test_image_and_mask_move_together(tiny, kind):
    raw = tiny.head_with_lesions(2)
    image = np.where(raw.mask > 0, 1000, 0) + (raw.image > 50) * 100
    preparation = replace(PREPARATIONS[kind], normalisation=("none",))
    prepared, mask, _ = prepare([image], raw.geometry, preparation, raw.mask)
    assert mask.any() and prepared[0][mask > 0].mean() > 500 > prepared[0][mask == 0].max() - 600


@pytest.mark.parametrize("kind", PREPARATIONS)
@pytest.mark.parametrize("seed", range(4))
def test_tiny_lesions_come_back_as_they_were(tiny, kind, seed):
    raw = tiny.head_with_lesions(seed)
    _, mask, way_back = prepare([raw.image], raw.geometry, PREPARATIONS[kind], raw.mask)
    assert np.array_equal(
        restore(torch.from_numpy(mask)[None].float(), way_back).numpy()[0] > 0.5, raw.mask > 0
    )
    assert np.array_equal(prepare_mask(raw.mask, way_back), mask)


@pytest.mark.parametrize("kind", PREPARATIONS)
def test_the_way_back_knows_the_middle_of_the_head_on_the_grid(tiny, kind):
    image = np.full((9, 50, 44), 2.0, np.float32)
    image[1:5, 4:33, 11:42] = 100  # middle: 2.5, 18, 26
    image[0, 0, 0] = 1
    preparation = replace(PREPARATIONS[kind], normalisation=("none",))
    prepared, _, way_back = prepare([image], tiny.oblique(image.shape), preparation)
    z, y, x = way_back.head_middle_zyx
    bright = np.argwhere(prepared[0] > 60)
    assert (z, y, x) == pytest.approx((bright.min(0) + bright.max(0)) / 2, abs=0.8)
    if kind == "none":
        assert (z, y, x) == (2.5, 18, 26)


def test_a_crop_may_reach_beyond_the_image(tiny):
    rng = np.random.default_rng(0)
    image = rng.integers(50, 55, (2, 30, 40))
    image[:, 2:28, 0:20] += 100  # touches an edge
    preparation = Preparation("z", "head_square", ("none",), margin=0.3)
    prepared, _, way_back = prepare([image], tiny.oblique(image.shape), preparation)
    (y0, y1), (x0, x1) = way_back.box_zyx[1:]
    assert y0 < 0 and x0 < 0 and y1 > 30 and prepared.shape[2] == prepared.shape[3] == y1 - y0
    assert prepared[0, 0, 0].max() == image.min()  # outside is as dark as the darkest
    back = restore(torch.from_numpy(prepared), way_back)[0].numpy()
    assert np.array_equal(back[:, :, : x1 - 1], image[:, :, : x1 - 1]) and not back[:, :, x1:].any()


def test_a_coarser_grid_gives_back_the_finer_ones_size(tiny):
    raw = tiny.head_with_lesions(0)
    preparation = Preparation("z", "nonzero", ("none",), spacing_yx_mm=(1.4, 1.0))
    prepared, _, way_back = prepare([raw.image], raw.geometry, preparation, raw.mask)
    assert prepared.shape == (1, 4, 28, 24)
    assert way_back.spacing_zyx_mm == pytest.approx((3.0, 1.4, 1.0))
    assert restore(torch.from_numpy(prepared), way_back).shape == (1, *raw.mask.shape)


def test_a_2d_image_is_one_slice(tiny, tmp_path):
    raw = tiny.head_with_lesions(1, (1, 56, 48))
    geometry = replace(raw.geometry, is_2d=True, direction_xyz=(1.0, 0, 0, 0, 1, 0, 0, 0, 1), spacing_zyx_mm=(1.0, 0.7, 0.5), origin_xyz_mm=(1.0, 2, 0))  # fmt: skip
    write_image(tmp_path / "a_0000.nrrd", raw.image, geometry)
    write_image(tmp_path / "a.nrrd", raw.mask, geometry)
    files = CaseFiles("a", "a", (tmp_path / "a_0000.nrrd",), tmp_path / "a.nrrd")
    case = preprocess_case(files, LABELS, PREPARATIONS["square"])
    assert case.image.shape == (1, 1, 64, 64) and case.facts.way_back.geometry == geometry
    assert np.array_equal(case.reference, raw.mask)


FAN = Preparation("coronal", "fan", ("percentiles_head",))
EVERY_ORDER = [
    pytest.param(order, flipped, id=f"{order}, {flipped}")
    for order in permutations((0, 1, 2))
    for flipped in product((False, True), repeat=3)
]


def fan_case(tiny, seed=0):
    """A cone of speckle that opens downwards (the file's z is up), with three lesions, off the middle."""
    rng = np.random.default_rng(seed)
    shape = (37, 30, 43)
    z, y, x = np.ogrid[tuple(slice(n) for n in shape)]
    depth = 42 - z
    inside = (np.hypot(y - 13, 0.8 * (x - 24)) < 0.4 * depth) & (z > 3) & (z < 35)
    image = np.where(inside, rng.integers(0, 90, shape) + 2 * z, 0).astype(np.uint8)
    mask = np.zeros(shape, np.uint8)
    for place in ((12, 10, 24), (20, 15, 20), (30, 13, 26)):
        mask[tuple(slice(p, p + n) for p, n in zip(place, (2, 1, 3), strict=True))] = 1
    return tiny.RawCase(image + 60 * mask, mask, tiny.oblique(shape, (0.3, 0.45, 0.35)))


def stored_otherwise(raw, order, flipped):
    """The same case from a scanner that writes its axes in another order and direction."""
    steps = tuple(slice(None, None, -1 if flip else 1) for flip in flipped)
    image, mask = (np.ascontiguousarray(array.transpose(order)[steps]) for array in (raw.image, raw.mask))
    first = [0, 0, 0]
    for axis, flip in zip(order, flipped, strict=True):
        first[axis] = raw.image.shape[axis] - 1 if flip else 0
    axes_zyx = np.reshape(raw.geometry.direction_xyz, (3, 3))[:, ::-1]
    turned = axes_zyx[:, order] * np.where(flipped, -1, 1)
    geometry = Geometry(
        image.shape,
        tuple(raw.geometry.spacing_zyx_mm[axis] for axis in order),
        raw.geometry.index_to_mm(tuple(first)),
        tuple(turned[:, ::-1].ravel().tolist()),
    )
    return type(raw)(image, mask, geometry)


@pytest.mark.parametrize(("order", "flipped"), EVERY_ORDER)
def test_the_affine_decides_and_not_the_order_of_the_file(tiny, order, flipped):
    raw = fan_case(tiny)
    other = stored_otherwise(raw, order, flipped)
    for slice_axis in ("axial", "coronal", "sagittal"):
        preparation = replace(FAN, slice_axis=slice_axis)
        expected, expected_mask, _ = prepare([raw.image], raw.geometry, preparation, raw.mask)
        image, mask, way_back = prepare([other.image], other.geometry, preparation, other.mask)
        assert np.array_equal(image, expected) and np.array_equal(mask, expected_mask)
        restored = restore(torch.from_numpy(mask)[None].float(), way_back).numpy()[0]
        assert np.array_equal(restored > 0.5, other.mask > 0)


@pytest.mark.parametrize("kind", ["head_square", "nonzero", "none"])
def test_other_crops_follow_the_affine_too(tiny, kind):
    raw = fan_case(tiny)
    raw = replace(raw, image=raw.image * np.float32(0.37))  # sums depend on the order of what is summed
    other = stored_otherwise(raw, (2, 0, 1), (True, False, True))
    for normalisation in NORMALISATIONS:
        preparation = Preparation("sagittal", kind, (normalisation,), spacing_yx_mm=(0.4, 0.2))
        expected, _, _ = prepare([raw.image], raw.geometry, preparation)
        found, _, _ = prepare([other.image], other.geometry, preparation)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("slice_axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize(("order", "flipped"), EVERY_ORDER[5::9])
def test_a_lesion_in_a_fan_is_found_at_its_place_in_mm(tiny, tmp_path, slice_axis, order, flipped):
    raw = fan_case(tiny)
    mask = np.zeros_like(raw.mask)
    mask[22, 14, 19] = 1
    place_mm = raw.geometry.index_to_mm((22, 14, 19))
    other = stored_otherwise(tiny.RawCase(raw.image, mask, raw.geometry), order, flipped)
    for name, array in (("a_0000", other.image), ("a", other.mask)):
        write_image(tmp_path / f"{name}.nii.gz", array, other.geometry)
    files = CaseFiles("a", "a", (tmp_path / "a_0000.nii.gz",), tmp_path / "a.nii.gz")
    case = preprocess_case(files, LABELS, replace(FAN, slice_axis=slice_axis, stored_as="float16"))
    assert case.image.size < 0.8 * raw.image.size
    CaseStore(tmp_path / "store").write(case)
    kept = CaseStore(tmp_path / "store").read("a")
    way_back = kept.facts.way_back
    restored = restore(torch.from_numpy(np.array(kept.mask))[None].float(), way_back).numpy()[0]
    write_image(tmp_path / "found.nii.gz", (restored > 0.5).astype(np.uint8), way_back.geometry)
    read = read_image(tmp_path / "found.nii.gz")
    (found,) = np.argwhere(read.array)
    assert np.allclose(read.geometry.index_to_mm(tuple(found)), place_mm, atol=1e-3)


def test_slices_rows_and_columns_run_as_radiologists_look(tiny):
    raw = fan_case(tiny)  # turned by 25 degrees at most from left, back and up
    coronal, axial, sagittal = (
        prepare([raw.image], raw.geometry, Preparation(slice_axis, "none", ("none",)))[0]
        for slice_axis in ("coronal", "axial", "sagittal")
    )
    assert np.array_equal(coronal[0], axial[0][::-1].transpose(1, 0, 2))
    assert np.array_equal(sagittal[0], axial[0][::-1].transpose(2, 0, 1))
    widths = (coronal[0] > 0).sum((0, 2))
    assert widths[5] < widths[25]  # the fan opens from the fontanel downwards


def test_only_what_the_probe_saw_is_kept(tiny):
    raw = fan_case(tiny)
    image, mask, way_back = prepare([raw.image], raw.geometry, FAN, raw.mask)
    seen = np.argwhere(way_back.orientation.to_grid(raw.image))
    for (start, stop), low, high in zip(way_back.box_zyx, seen.min(0), seen.max(0), strict=True):
        assert (start, stop) == (low, high + 1)
    assert way_back.grid_shape_zyx == image.shape[1:] and mask.sum() == raw.mask.sum()
    assert way_back.spacing_zyx_mm == pytest.approx((0.45, 0.3, 0.35))
    inside = raw.image[find_head(raw.image, FAN)]
    low, high = np.percentile(inside, (0.5, 99.5))
    assert high > np.percentile(raw.image, 99.5)  # of the fan, not of the field
    place = np.argwhere(mask)[0]
    grey = float(way_back.orientation.to_grid(raw.image)[tuple(place + seen.min(0))])
    assert 0 < image[0, *place] == pytest.approx(min(1, (grey - low) / (high - low)))
    back = restore(torch.ones(1, *mask.shape), way_back)[0].numpy()
    assert back[raw.image > 0].all() and back.sum() == mask.size


def test_a_volume_without_a_fan_is_told(tiny):
    raw = tiny.head_with_lesions(0)
    with pytest.raises(PwmlError, match="it shows no fan of ultrasound in a field of zeros"):
        prepare([raw.image], raw.geometry, FAN)


def test_another_spacing_than_planned_is_told(tiny):
    raw = fan_case(tiny)
    planned = replace(FAN, expected_spacing_zyx_mm=(0.46, 0.29, 0.35))  # slices run along the file's y
    prepare([raw.image], raw.geometry, planned)
    with pytest.raises(PwmlError) as caught:
        prepare([raw.image], raw.geometry, replace(planned, expected_spacing_zyx_mm=(0.15, 0.3, 0.35)))
    assert str(caught.value) == (
        "its voxels are 0.45 × 0.3 × 0.35 mm (slices, rows, columns), "
        "the plan was made for 0.15 × 0.3 × 0.35: resample it"
    )
    with pytest.raises(PwmlError, match="its voxels are"):
        prepare([raw.image], raw.geometry, replace(planned, expected_spacing_zyx_mm=(0.45, 0.3, 0.37)))


def test_half_the_precision_changes_no_grey(tiny):
    raw = fan_case(tiny)
    full, _, _ = prepare([raw.image], raw.geometry, FAN)
    half, _, _ = prepare([raw.image], raw.geometry, replace(FAN, stored_as="float16"))
    assert (full.dtype, half.dtype) == (np.float32, np.float16)
    assert 0 < np.abs(half - full).max() < 5e-4


def test_a_case_is_laid_beside_the_reference(tiny):
    z, y, x = np.mgrid[:48, :44, :52] - np.reshape((24, 21, 26), (3, 1, 1, 1))
    head = 50.0 * ((z / 19) ** 2 + (y / 18) ** 2 + (x / 22) ** 2 < 1)
    for place, width, brightness in (((5, -4, 9), 4, -35), ((-8, 5, -6), 5, 30), ((3, -9, -3), 3, 25)):
        away = [(axis - at) / width for axis, at in zip((z, y, x), place, strict=True)]
        head += brightness * np.exp(-0.5 * sum(a**2 for a in away)) * (head > 0)
    higher = np.roll(head, 3, axis=0)  # the file's z is up, rows of coronal slices lead downwards
    geometry = tiny.oblique(head.shape, (1.0, 1.1, 0.9))
    middle = Preparation("coronal", "none", ("none",))
    image, _, way_back = prepare([head], geometry, middle)
    assert way_back.to_reference is None
    reference = coarse_image(image[0], way_back.spacing_zyx_mm)
    _, _, placed = prepare([higher], geometry, replace(middle, align="rigid"), reference=reference)
    assert np.allclose(placed.to_reference.translation_zyx_mm, (0, 3, 0), atol=0.5)
    assert placed.head_middle_zyx == (21, 20, 26) and way_back.head_middle_zyx == (21, 23, 26)
    assert replace(placed, to_reference=None, head_middle_zyx=way_back.head_middle_zyx) == way_back
    with pytest.raises(ValueError, match="need a reference"):
        prepare([higher], geometry, replace(middle, align="rigid"))


def test_negligible_probabilities_need_not_come_back(tiny):
    raw = fan_case(tiny)
    _, mask, way_back = prepare([raw.image], raw.geometry, FAN, raw.mask)
    probability = torch.full((2, *mask.shape), 4e-4)
    probability[1, 6, 10, 12] = 0.9
    probability[0, 9, 1, 2] = 2e-3
    back = way_back.orientation.to_grid(restore(probability, way_back).numpy())
    z, y, x = (start for start, _ in way_back.box_zyx)
    assert back[1, z + 6, y + 10, x + 12] == pytest.approx(0.9)
    assert back[1, z + 6, y + 10, x + 13] == pytest.approx(4e-4)  # the slice is kept as it is
    assert np.flatnonzero(back.sum((0, 2, 3))).tolist() == [z + 6, z + 9]
    half = restore(probability.half(), way_back)
    assert half.dtype == torch.float32 and half.max() == pytest.approx(0.9, abs=1e-3)


def test_percentiles_of_many_voxels_come_from_some_of_them(monkeypatch):
    image = np.random.default_rng(0).normal(50, 10, (3, 40, 50)).astype(np.float32)
    head = np.ones(image.shape, bool)
    exact = NORMALISATIONS["percentiles_head"](image, head)
    monkeypatch.setattr("pwmlunet.planning.normalisation._ENOUGH_VOXELS", 2000)
    some = NORMALISATIONS["percentiles_head"](image, head)
    assert 0 < np.abs(some - exact).max() < 0.05


def test_normalisations_by_hand():
    image = np.array([[[0, 0, 2, 4, 6]]], np.float32)
    head = image > 0
    by_name = {name: function(image, head) for name, function in NORMALISATIONS.items()}
    assert np.allclose(by_name["zscore_head"], (image - 4) / np.sqrt(8 / 3))
    assert np.allclose(by_name["mean_subtracted"], image - 2.4)
    low, high = 2 + 0.01 * 2, 6 - 0.01 * 2  # 0.5 % of two steps of 2
    assert np.allclose(by_name["percentiles_head"], np.clip((image - low) / (high - low), 0, 1))
    assert by_name["none"] is image


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_normalisations_survive_a_flat_head_and_no_head(name):
    flat = np.full((1, 4, 4), 5, np.float32)
    for head in (np.ones(flat.shape, bool), np.zeros(flat.shape, bool)):
        assert np.isfinite(NORMALISATIONS[name](flat, head)).all()


def test_the_head_alone_sets_intensities(tiny):
    raw = tiny.head_with_lesions(0)
    wide = np.pad(raw.image, ((0, 0), (20, 30), (25, 10)), constant_values=5)
    narrow, _, _ = prepare([raw.image], raw.geometry, PREPARATIONS["square"])
    padded, _, _ = prepare([wide], tiny.oblique(wide.shape), PREPARATIONS["square"])
    assert np.allclose(narrow, padded, atol=0.05)


def test_channels_are_normalised_each_on_its_own(tiny):
    raw = tiny.head_with_lesions(0)
    preparation = replace(PREPARATIONS["square"], normalisation=("zscore_head", "zscore_head"))
    prepared, _, _ = prepare([raw.image, raw.image * 3 + 7], raw.geometry, preparation)
    assert np.allclose(prepared[0], prepared[1], atol=1e-3)
    with pytest.raises(PwmlError, match="2 channels were given, the plan expects 1"):
        prepare([raw.image, raw.image], raw.geometry, PREPARATIONS["square"])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"normalisation": ["zscore"]}, "normalisation 'zscore' is unknown"),
        ({"crop": "none", "long_side": 64}, "long_side must be at least 16 and needs crop head_square"),
        ({"long_side": 8}, "long_side must be at least 16"),
        ({"spacing_yx_mm": [1, 1], "long_side": 64}, "cannot be combined"),
        ({"align": "rigid", "long_side": 64}, "align rigid is in mm and cannot be combined"),
        ({"spacing_yx_mm": [0, 1]}, "must be positive"),
        ({"margin": -0.1}, "margin must lie between"),
        ({"expected_spacing_zyx_mm": [0.15, 0, 0.15]}, "expected_spacing_zyx_mm must be positive"),
        ({"slice_axis": "frontal"}, "slice_axis must be one of z, y, x, axial, coronal, sagittal"),
        ({"stored_as": "uint8"}, "stored_as must be one of float32, float16"),
    ],
)
def test_contradicting_preparations_are_told(values, expected):
    with pytest.raises(PwmlError, match=expected):
        Preparation.from_dict({**PREPARATIONS["square, native"].to_dict(), **values}, "plan.json")


def test_the_head_is_found_in_the_first_channel_that_is_there(tiny):
    raw = tiny.head_with_lesions(0)
    moved = np.roll(raw.image, (3, 4), (1, 2))  # its head lies elsewhere
    preparation = replace(PREPARATIONS["square"], normalisation=("zscore_head",) * 3)
    lacking = np.zeros(raw.image.shape, np.uint8)
    assert find_first_present([lacking, moved, raw.image]) == 1
    assert find_first_present([lacking, lacking]) == 0
    whole, _, way_back = prepare([moved, raw.image, moved], raw.geometry, preparation)
    image, _, without = prepare([lacking, moved, lacking], raw.geometry, preparation)
    assert without == way_back
    assert np.array_equal(image[1], whole[0]) and not image[[0, 2]].any()  # as a channel left out in training


@pytest.mark.parametrize("normalisation", ["zscore_head", "percentiles_head", "mean_subtracted", "none"])
def test_a_lacking_channel_is_zero_whatever_the_normalisation(tiny, normalisation):
    raw = tiny.head_with_lesions(0)
    preparation = replace(PREPARATIONS["square"], normalisation=(normalisation,) * 2)
    image, _, _ = prepare([np.zeros_like(raw.image), raw.image], raw.geometry, preparation)
    assert not image[0].any() and image[1].any()


def test_a_case_that_lacks_its_first_channel_is_laid_beside_the_reference(tiny):
    z, y, x = np.mgrid[:40, :36, :44] - np.reshape((20, 17, 23), (3, 1, 1, 1))
    head = 50.0 * ((z / 16) ** 2 + (y / 14) ** 2 + (x / 18) ** 2 < 1) + 20.0 * (z > 3) * (y < 2) * (x > 5)
    geometry = tiny.oblique(head.shape, (1.0, 1.0, 1.0))
    pair = Preparation("z", "none", ("none",) * 2)
    image, _, way_back = prepare([head, head], geometry, pair)
    reference = coarse_image(image[0], way_back.spacing_zyx_mm)
    rigid = replace(pair, align="rigid")
    higher = np.roll(head, 3, axis=0)
    placed, without = (
        prepare([first, higher], geometry, rigid, reference=reference)[2].to_reference
        for first in (higher, head * 0)
    )
    assert without == placed and abs(placed.translation_zyx_mm[0]) > 2


def write_files(tmp_path, tiny, mask=None, images=None):
    raw = tiny.head_with_lesions(0)
    paths = []
    for i, image in enumerate(images or [raw.image]):
        paths.append(tmp_path / f"a_{i:04d}.nrrd")
        write_image(paths[-1], image, tiny.oblique(image.shape))
    mask = raw.mask if mask is None else mask
    write_image(tmp_path / "a.nrrd", mask, tiny.oblique(mask.shape))
    return CaseFiles("a", "a", tuple(paths), tmp_path / "a.nrrd")


def test_all_findings_of_a_case_are_told_at_once(tiny, tmp_path):
    image = tiny.head_with_lesions(0).image
    hole = image.astype(np.float32)
    hole[1, 2, 3] = np.nan
    mask = np.full((4, 56, 47), 9, np.uint8)
    files = write_files(tmp_path, tiny, mask, [image, hole, np.full_like(image, 3), image[:3]])
    with pytest.raises(PwmlError) as caught:
        read_case(files, LABELS)
    for words in (
        "case a: ", "channel 1 holds values that are not finite", "channel 2 is constant (3 everywhere)",
        "channel 3 lies on another grid than channel 0 (", "bring it onto channel 0's grid with pwml_convert register", "mask lies on another grid", "does not name (9)",
    ):  # fmt: skip
        assert words in str(caught.value)


def test_channels_that_a_case_may_lack_are_zeros_on_the_grid_of_the_others(tiny, tmp_path):
    images = [tiny.head_with_lesions(i).image for i in range(3)]
    files = write_files(tmp_path, tiny, images=images)
    files.images[0].unlink()
    with pytest.raises(PwmlError, match=r"a_0000\.nrrd"):
        read_case(files, None)
    channels, mask = read_case(files, None, may_lack=True)
    assert mask is None and not channels[0].array.any()
    assert [np.array_equal(channels[i].array, images[i]) for i in (1, 2)] == [True, True]
    assert channels[0].geometry == channels[1].geometry and channels[0].array.shape == images[0].shape
    write_image(files.images[2], images[2][:3], tiny.oblique((3, 56, 48)))
    with pytest.raises(
        PwmlError, match=r"channel 2 lies on another grid than channel 1 .* onto channel 1's grid"
    ):
        read_case(files, None, may_lack=True)
    for path in files.images[1:]:
        path.unlink()
    with pytest.raises(PwmlError, match="case a has no image: one channel at least must be there"):
        read_case(files, None, may_lack=True)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_float_masks_must_hold_whole_numbers(tiny, tmp_path, value):
    mask = tiny.head_with_lesions(0).mask.astype(np.float32)
    files = write_files(tmp_path, tiny, mask)
    assert read_case(files, LABELS)[1].array.dtype.kind == "f"
    mask[0, 0, 0] = value
    write_image(files.label, mask, tiny.oblique(mask.shape))
    with pytest.raises(PwmlError, match="its mask holds fractions or NaN"):
        read_case(files, LABELS)


def test_a_case_is_made_again_when_files_or_preparation_change(tiny, tmp_path):
    files = write_files(tmp_path, tiny)
    first = made_from(files, PREPARATIONS["square"])
    assert made_from(files, PREPARATIONS["square"]) == first
    assert made_from(files, replace(PREPARATIONS["square"], margin=0.1)) != first
    write_image(files.label, np.zeros((4, 56, 48), np.uint8), tiny.oblique((4, 56, 48)))
    assert made_from(files, PREPARATIONS["square"]) != first, join(first)
