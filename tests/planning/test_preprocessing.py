from dataclasses import replace

import numpy as np
import pytest
import torch

from pwmlunet.config import join
from pwmlunet.data.dataset import CaseFiles, Labels, Target
from pwmlunet.data.image import read_image, write_image
from pwmlunet.data.store import slice_order
from pwmlunet.errors import PwmlError
from pwmlunet.planning.preprocessing import (
    NORMALISATIONS,
    Preparation,
    made_from,
    prepare,
    prepare_mask,
    preprocess_case,
    read_case,
    restore,
)

LABELS = Labels((Target("lesion", (1,), 1),), ignore=2)
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
    order = slice_order(axis)
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
    order = slice_order(axis)
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
        ({"spacing_yx_mm": [0, 1]}, "must be positive"),
        ({"margin": -0.1}, "margin must lie between"),
    ],
)
def test_contradicting_preparations_are_told(values, expected):
    with pytest.raises(PwmlError, match=expected):
        Preparation.from_dict({**PREPARATIONS["square, native"].to_dict(), **values}, "plan.json")


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
        "channel 3 lies on another grid than channel 0", "mask lies on another grid", "does not name (9)",
    ):  # fmt: skip
        assert words in str(caught.value)


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
