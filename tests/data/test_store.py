import numpy as np
import pytest

from pwmlunet.data.store import CaseFacts, CaseStore, PreprocessedCase, WayBack, slice_order
from pwmlunet.errors import PwmlError


@pytest.fixture
def case(tiny):
    way_back = WayBack(tiny.oblique((6, 2, 5)), "y", ((0, 2), (-1, 7), (1, 4)), (2, 16, 12))
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
    assert slice_order("z") == (0, 1, 2)
    # file: 3.0 x 0.7 x 0.5 mm; slices along y; rows are z, columns are x; 8 rows became 16, 3 columns 12
    assert case.facts.way_back.spacing_zyx_mm == pytest.approx((0.7, 1.5, 0.125))
    assert case.facts.way_back.slice_shape_yx == (16, 12)


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
    with pytest.raises(PwmlError, match="sub-01 is damaged"):
        store.reference("sub-01")


def test_code_in_an_array_is_not_run(store):
    np.save(store.folder / "sub-01" / "image.npy", np.array([{"not": "numbers"}], object))
    with pytest.raises(PwmlError, match="damaged"):
        store.read("sub-01")


def test_removing_a_case_leaves_the_others(store, case):
    store.remove("nobody")
    store.remove("sub-01")
    assert store.names() == []
