import gc
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pwmlunet.data.image import Geometry
from pwmlunet.data.store import (
    CaseFacts,
    CaseStore,
    Orientation,
    PreprocessedCase,
    Rigid,
    WayBack,
    orientation_of,
)
from pwmlunet.errors import PwmlError


@pytest.fixture
def case(tiny):
    way_back = WayBack(
        tiny.oblique((6, 2, 5)), Orientation((1, 0, 2)), ((0, 2), (-1, 7), (1, 4)), (2, 16, 12)
    )
    facts = CaseFacts("sub-01", "sub-01", way_back, {"preparation": {"margin": 0.02}, "files": {"a": [1, 2]}})
    image = np.arange(2 * 2 * 16 * 12, dtype=np.float32).reshape(2, 2, 16, 12)
    mask = (image[0] % 7 == 0).astype(np.uint8)
    return PreprocessedCase(facts, image, mask, np.arange(60, dtype=np.uint8).reshape(6, 2, 5))


@pytest.fixture
def store(tmp_path, case):
    store = CaseStore(tmp_path / "slices")
    store.write(case)
    return store


def test_a_case_comes_back_as_it_was(store, case):
    read = store.read("sub-01")
    assert store.names() == ["sub-01"] and read.facts == case.facts == store.facts("sub-01")
    assert np.array_equal(read.image, case.image) and np.array_equal(read.mask, case.mask)
    assert np.array_equal(store.reference("sub-01"), case.reference)


def test_arrays_are_read_by_region(store, case):
    read = store.read("sub-01")
    assert isinstance(read.image, np.memmap) and isinstance(read.mask, np.memmap)
    assert np.array_equal(read.image[:, 1:, 3:5, 2:9], case.image[:, 1:, 3:5, 2:9])


def test_a_case_to_predict_has_no_mask(tmp_path, case):
    store = CaseStore(tmp_path / "slices")
    store.write(PreprocessedCase(case.facts, case.image))
    assert store.read("sub-01").mask is None


def test_the_grid_of_other_slices_has_the_spacing_of_its_axes(case):
    # file: 3.0 x 0.7 x 0.5 mm; slices along y; rows are z, columns are x; 8 rows became 16, 3 columns 12
    assert case.facts.way_back.spacing_zyx_mm == pytest.approx((0.7, 1.5, 0.125))
    assert case.facts.way_back.slice_shape_yx == (16, 12)


@pytest.mark.parametrize("flipped", [(False, False, False), (True, False, True)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1)])
def test_an_orientation_and_its_way_back(order, flipped):
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    orientation = Orientation(order, flipped)
    grid = orientation.to_grid(array)
    assert grid.shape == (2, *(array.shape[1 + axis] for axis in order)) and np.shares_memory(grid, array)
    first = [0, 0, 0]
    for axis, flip in zip(order, flipped, strict=True):
        first[axis] = array.shape[1 + axis] - 1 if flip else 0
    assert grid[1, 0, 0, 0] == array[1, *first]
    assert np.array_equal(orientation.to_file(grid), array)


LPS = (1.0, 0, 0, 0, 1, 0, 0, 0, 1)  # the file's x runs to the left, y to the back, z upwards
RAS = (-1.0, 0, 0, 0, -1, 0, 0, 0, 1)
SAGITTAL_FILE = (0.0, 0, -1, 1, 0, 0, 0, -1, 0)  # x to the back, y downwards, z to the right


@pytest.mark.parametrize(
    ("direction", "slice_axis", "order", "flipped"),
    [
        (LPS, "axial", (0, 1, 2), (False, False, False)),
        (LPS, "coronal", (1, 0, 2), (False, True, False)),
        (LPS, "sagittal", (2, 0, 1), (False, True, False)),
        (RAS, "axial", (0, 1, 2), (False, True, True)),
        (RAS, "coronal", (1, 0, 2), (True, True, True)),
        (SAGITTAL_FILE, "sagittal", (0, 1, 2), (True, False, False)),
        (SAGITTAL_FILE, "coronal", (2, 1, 0), (False, False, True)),
        (SAGITTAL_FILE, "z", (0, 1, 2), (False, False, False)),
        (RAS, "y", (1, 0, 2), (False, False, False)),
        (RAS, "x", (2, 0, 1), (False, False, False)),
    ],
)
def test_the_affine_decides_how_slices_rows_and_columns_run(direction, slice_axis, order, flipped):
    geometry = Geometry((4, 5, 6), (1.0, 2.0, 3.0), direction_xyz=direction)
    assert orientation_of(geometry, slice_axis) == Orientation(order, flipped)


@pytest.mark.parametrize("seed", range(20))
def test_any_turn_of_the_head_has_an_orientation(seed):
    turn = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    geometry = Geometry((4, 5, 6), (1.0, 2.0, 3.0), direction_xyz=tuple(turn.ravel().tolist()))
    found = orientation_of(geometry, "coronal")
    assert sorted(found.order) == [0, 1, 2]
    # the middle of the last slice, row and column lies behind, below and to the left of the first one's
    cosines = turn[:, ::-1][:, found.order] * np.where(found.flipped, -1, 1)
    assert cosines[1, 0] - cosines[2, 1] + cosines[0, 2] == pytest.approx(
        max(np.abs(turn[[0, 1, 2], axes]).sum() for axes in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]))
    )  # fmt: skip


@pytest.mark.parametrize("degrees", [41, 45, 49])
def test_axes_that_fight_for_a_name_each_get_one(degrees):
    turn = Rotation.from_euler("xyz", (degrees, 0, degrees), degrees=True).as_matrix()
    geometry = Geometry((4, 5, 6), (1.0, 2.0, 3.0), direction_xyz=tuple(turn.ravel().tolist()))
    for slice_axis in ("axial", "coronal", "sagittal"):
        assert sorted(orientation_of(geometry, slice_axis).order) == [0, 1, 2]


def test_a_case_of_half_the_precision_beside_a_reference(tmp_path, case):
    place = Rigid((1.0, 0, 0, 0, 1, 0, 0, 0, 1), (0.5, -2.0, 3.25))
    facts = replace(case.facts, way_back=replace(case.facts.way_back, to_reference=place))
    store = CaseStore(tmp_path / "slices")
    store.write(replace(case, facts=facts, image=case.image.astype(np.float16)))
    read = store.read("sub-01")
    assert read.image.dtype == np.float16 and np.array_equal(read.image, case.image)
    assert read.facts.way_back.to_reference == place


def test_a_case_is_there_only_when_its_last_file_is(store, case, monkeypatch):
    (store.folder / "other").mkdir()
    np.save(store.folder / "other" / "image.npy", case.image)
    assert store.names() == ["sub-01"] and store.facts("other") is None
    with pytest.raises(PwmlError, match="case other is not preprocessed"):
        store.read("other")
    monkeypatch.setattr(np, "savez_compressed", _disk_full)
    with pytest.raises(PwmlError, match="the disk is full"):
        store.write(case)  # writing again begins with taking the old one away
    assert store.names() == []


@pytest.mark.parametrize("text", ["{}", '{"name": "sub-01", "slice_axis": "z"}', "{"])
def test_a_case_of_another_version_is_as_one_that_is_not_there(store, text):
    (store.folder / "sub-01" / "case.json").write_text(text)
    assert store.facts("sub-01") is None
    with pytest.raises(PwmlError, match=r"sub-01 is not preprocessed .* run pwml_plan_and_preprocess"):
        store.read("sub-01")


def _disk_full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("n_bytes", [0, 50, 300])
@pytest.mark.parametrize("name", ["image.npy", "mask.npy"])
def test_cut_arrays_are_told(store, name, n_bytes):
    path = store.folder / "sub-01" / name
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(PwmlError, match=r"slices/sub-01 is damaged .*delete it and run"):
        store.read("sub-01")


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no archive", b"\x93NUMPY"])
def test_a_broken_reference_is_told(store, content):
    path = store.folder / "sub-01" / "reference.npz"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(PwmlError, match=r"sub-01.reference.npz (is damaged|does not exist).* run pwml_plan"):
        store.reference("sub-01")


def test_a_case_is_read_in_several_threads_at_once(store):
    # Python 3.11.7 fails where one thread is stopped within a parse by the garbage collector, and another,
    # called from another depth, parses meanwhile
    def read(depth):
        return (
            read(depth - 1) if depth else (store.read("sub-01").image.shape, store.reference("sub-01").shape)
        )

    threshold = gc.get_threshold()
    gc.callbacks.append(_rest_within_a_parse)
    gc.set_threshold(7)
    try:
        with ThreadPoolExecutor(2) as pool:
            shapes = set(pool.map(read, [0, 3] * 5))
    finally:
        gc.callbacks.remove(_rest_within_a_parse)
        gc.set_threshold(*threshold)
    assert shapes == {((2, 2, 16, 12), (6, 2, 5))}


def _rest_within_a_parse(*_):
    if sys._getframe(1).f_code.co_name == "parse":
        time.sleep(0.01)


def test_code_in_an_array_is_not_run(store):
    np.save(store.folder / "sub-01" / "image.npy", np.array([{"not": "numbers"}], object))
    with pytest.raises(PwmlError, match="damaged"):
        store.read("sub-01")


def test_removing_a_case_leaves_the_others(store, case):
    store.remove("nobody")
    store.remove("sub-01")
    assert store.names() == []
