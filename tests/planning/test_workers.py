import logging

import pytest

from pwmlunet.data.dataset import open_dataset
from pwmlunet.planning import workers
from pwmlunet.planning.workers import affordable_workers, free_bytes


@pytest.fixture
def cases(tiny, raw_home):
    return open_dataset(raw_home / "raw" / "Dataset001_Tiny").cases


@pytest.mark.parametrize(
    ("free_cases", "expected"), [(100, 4), (8.1, 4), (7.9, 3), (4.1, 2), (1.9, 1), (0.1, 1)]
)
def test_half_of_the_free_memory_is_shared(cases, tiny, monkeypatch, free_cases, expected):
    z, y, x = tiny.shape_zyx
    one = z * y * x * workers._BYTES_OF_VOXEL
    monkeypatch.setattr(workers, "free_bytes", lambda: int(free_cases * one))
    assert affordable_workers(cases, 4) == expected


def test_large_cases_stay_below_what_a_small_machine_has(cases, monkeypatch, caplog):
    monkeypatch.setattr(workers, "free_bytes", lambda: 10**12)
    monkeypatch.setattr(workers, "_count_voxels", lambda path: 360 * 400 * 380)
    with caplog.at_level(logging.INFO):
        assert affordable_workers(cases, 8) == 2
    assert "2 instead of 8 cases at a time: the largest holds 55 million voxels" in caplog.text


def test_a_file_that_cannot_be_read_is_left_to_reading(cases, tmp_path):
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"nothing")
    assert workers._count_voxels(broken) == 0
    assert workers._count_voxels(cases[0].images[0]) == 4 * 56 * 48


def test_what_is_free_is_less_than_everything():
    assert 10**7 < free_bytes() < 10**14
