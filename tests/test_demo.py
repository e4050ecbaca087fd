from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pwmlunet.data.dataset import open_dataset
from pwmlunet.data.image import read_image
from pwmlunet.demo import make_case, make_head, scan, write_dataset
from pwmlunet.errors import PwmlError

SMALL = (6, 64, 64)
IN_SLICE = np.ones((1, 3, 3))


def lesions_by_slice(mask):
    connected = np.zeros((3, 3, 3))
    connected[1] = 1
    labelled, n = ndimage.label(mask, connected)
    return [labelled == i for i in range(1, n + 1)]


def ring_around(lesion, head):
    ring = ndimage.binary_dilation(lesion, IN_SLICE, 4) & ~ndimage.binary_dilation(lesion, IN_SLICE)
    return head.signal[ring & (head.mask == 0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "Dataset001_Demo"
    write_dataset(folder, n_train=5, n_test=1, shape_zyx=SMALL, seed=7)
    return folder


def test_the_same_seed_gives_the_same_files(folder, tmp_path):
    again, other = tmp_path / "Dataset001_Demo", tmp_path / "Dataset002_Demo"
    write_dataset(again, n_train=2, n_test=0, shape_zyx=SMALL, seed=7)
    write_dataset(other, n_train=2, n_test=0, shape_zyx=SMALL, seed=8)
    for path in sorted(again.glob("*/*.nii.gz")):
        first, second, third = (read_image(f / path.relative_to(again)) for f in (folder, again, other))
        assert np.array_equal(first.array, second.array)
        assert first.geometry == second.geometry != third.geometry


@pytest.fixture(scope="module")
def heads():
    return [make_head(np.random.default_rng(i), shape_zyx=(8, 128, 128), n_lesions=5) for i in range(6)]


def test_lesions_are_as_small_and_as_bright_as_real_ones(heads):
    sizes, ratios = [], []
    for head in heads:
        lesions = lesions_by_slice(head.mask)
        assert 5 <= len(lesions) <= 10
        for lesion in lesions:
            sizes.append(lesion.sum())
            ratios.append(head.signal[lesion].mean() / ring_around(lesion, head).mean())
            assert head.signal[lesion].max() < head.signal.max()
    assert min(sizes) >= 1 and max(sizes) <= 12 and 3 <= np.median(sizes) <= 5
    assert min(ratios) > 1.15 and max(ratios) < 2.4 and 1.3 < np.median(ratios) < 1.6


def test_lesions_lie_in_white_matter_at_every_level(heads):
    for head in heads:
        for lesion in lesions_by_slice(head.mask):
            assert 42 < np.median(ring_around(lesion, head)) < 62  # white matter is 50, all else is not
    assert np.any([head.mask.any(axis=(1, 2)) for head in heads], axis=0).all()


@pytest.mark.parametrize("shape_zyx", [(1, 48, 48), (3, 50, 64), SMALL])
def test_small_heads_have_room_for_lesions(shape_zyx):
    for seed in range(5):
        image, mask, geometry = make_case(np.random.default_rng(seed), shape_zyx=shape_zyx, n_lesions=6)
        assert image.shape == mask.shape == geometry.shape_zyx == shape_zyx
        assert len(lesions_by_slice(mask)) >= shape_zyx[0]
        assert set(np.unique(mask)) == {0, 1}


def test_a_lesion_stays_where_it_was_when_the_head_is_scanned_again():
    head = make_head(np.random.default_rng(3), shape_zyx=(4, 128, 128), n_lesions=3)
    for session in range(2):
        image, mask, _ = scan(head, np.random.default_rng(session))
        lesion = mask > 0
        ring = ndimage.binary_dilation(lesion, IN_SLICE, 3) & ~ndimage.binary_dilation(lesion, IN_SLICE)
        assert mask.sum() == head.mask.sum()
        assert image[lesion].mean() > 1.2 * image[ring].mean()


def test_oblique_thick_slices_are_written_and_read_back(folder):
    for case in open_dataset(folder).cases:
        image, label = read_image(case.images[0]), read_image(case.label)
        assert not image.geometry.differences(label.geometry)
        axes = np.reshape(image.geometry.direction_xyz, (3, 3))
        assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-6)
        assert np.abs(axes - np.diag(np.diag(axes))).max() > np.sin(np.radians(5))
        assert np.linalg.norm(image.geometry.origin_xyz_mm) > 1
        dz, dy, dx = image.geometry.spacing_zyx_mm
        assert dz > 3 * dy and dy == pytest.approx(dx)


def test_the_dataset_opens_with_two_sessions_of_a_subject_and_a_subject_without_lesions(folder):
    dataset = open_dataset(folder)
    assert [c.name for c in dataset.cases if c.subject == "sub-01"] == ["sub-01_ses-1", "sub-01_ses-2"]
    has_lesion = {c.subject: bool(read_image(c.label).array.any()) for c in dataset.cases}
    assert has_lesion == {"sub-01": True, "sub-02": True, "sub-03": False, "sub-04": True}
    first, second = (read_image(c.images[0]) for c in dataset.cases[:2])
    assert first.geometry.differences(second.geometry)
    assert [p.name for p in (folder / "imagesTs").iterdir()] == ["sub-05_ses-1_0000.nii.gz"]
    assert [p.name for p in (folder / "labelsTs").iterdir()] == ["sub-05_ses-1.nii.gz"]


def test_nothing_is_overwritten_and_the_name_must_be_a_datasets(folder, tmp_path):
    with pytest.raises(PwmlError, match="not empty"):
        write_dataset(folder, shape_zyx=SMALL)
    with pytest.raises(PwmlError, match="DatasetNNN_Name"):
        write_dataset(tmp_path / "demo", shape_zyx=SMALL)
    with pytest.raises(PwmlError, match="too few"):
        write_dataset(tmp_path / "Dataset003_Demo", n_train=1, shape_zyx=SMALL)
    assert not any(tmp_path.iterdir())
