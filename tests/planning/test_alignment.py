import logging

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pwmlunet.data.image import Geometry
from pwmlunet.data.store import Orientation, WayBack
from pwmlunet.errors import PwmlError
from pwmlunet.planning.alignment import SAME_PLACE, CoarseImage, coarse_image, register
from pwmlunet.planning.density import DensityConfig, fit_density

TURN = Rotation.from_euler("xyz", (5, -9, 7), degrees=True).as_matrix()
SHIFT = np.array((2.5, -1.5, 4.0))
SHAPE, SPACING = (48, 44, 52), (1.05, 1.1, 0.95)
BLOBS = (
    # centre, half widths (slices, rows, columns) and brightness: unlike on all sides
    ((5, -4, 7), (8, 3, 3), -35),
    ((3, -4, -7), (9, 3, 2.5), -35),
    ((-12, 5, 3), (4, 5, 4), 30),
    ((10, 8, -10), (3, 3, 5), 25),
    ((0, -12, 2), (11, 2, 2), 20),
)


def head(shape, spacing, turn, shift, fan=False):
    """A head whose place p shows what the reference shows at turn @ p + shift, seen through a fan that stays."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    here = (index - (np.array(shape) - 1) / 2) * spacing
    there = here @ turn.T + shift
    image = np.zeros(shape)
    for centre, widths, brightness in BLOBS:
        image += brightness * np.exp(-0.5 * (((there - centre) / widths) ** 2).sum(-1))
    image = (image + 50) * (((there / (23, 20, 22)) ** 2).sum(-1) < 1)
    if fan:
        depth = here[..., 1] + 30
        image = np.where(np.hypot(here[..., 0], here[..., 2]) < 0.9 * depth, image + 5, 0)
    return CoarseImage(image.astype(np.float32), tuple(spacing))


@pytest.fixture(scope="module")
def reference():
    return head((50, 46, 48), (1.0, 1.0, 1.0), np.eye(3), np.zeros(3))


@pytest.fixture(scope="module")
def turned():
    return head(SHAPE, SPACING, TURN, SHIFT)


@pytest.fixture(scope="module")
def found(turned, reference):
    return register(turned, reference, name="sub-01")


def errors(rigid, turn, shift):
    left = Rotation.from_matrix(np.reshape(rigid.rotation_zyx, (3, 3)) @ turn.T)
    return np.degrees(left.magnitude()), np.linalg.norm(np.array(rigid.translation_zyx_mm) - shift)


def test_a_turned_and_shifted_head_is_found(found):
    degrees, mm = errors(found, TURN, SHIFT)
    assert degrees < 1 and mm < 0.5


def test_the_same_images_give_the_same_answer(turned, reference, found):
    assert register(turned, reference, name="sub-01") == found


def test_the_edge_of_the_field_of_view_does_not_hold_the_head_back():
    reference = head((50, 46, 48), (1.0, 1.0, 1.0), np.eye(3), np.zeros(3), fan=True)
    degrees, mm = errors(register(head(SHAPE, SPACING, TURN, SHIFT, fan=True), reference, name=""), TURN, SHIFT)  # fmt: skip
    assert degrees < 2 and mm < 0.5


def test_a_density_lands_on_the_lesion_of_a_registered_case(found):
    lesion = np.zeros((50, 46, 48), bool)
    lesion[35, 12, 33] = True
    grid = WayBack(Geometry(lesion.shape, (1.0, 1.0, 1.0)), Orientation(), ((0, 50), (0, 46), (0, 48)), lesion.shape)  # fmt: skip
    density = fit_density([("reference", lesion, grid)], DensityConfig(1, 1.5))
    there = np.array((35, 12, 33)) - (np.array(lesion.shape) - 1) / 2
    index = (TURN.T @ (there - SHIFT)) / SPACING + (np.array(SHAPE) - 1) / 2
    case = WayBack(Geometry(SHAPE, SPACING), Orientation(), ((0, 48), (0, 44), (0, 52)), SHAPE, found)
    z, y, x = (round(i) for i in index)
    with pytest.raises(PwmlError, match="was made for a grid"):
        density.place(case)
    spacings = {"spacing_low_zyx_mm": (0.9, 0.9, 0.9), "spacing_high_zyx_mm": (1.2, 1.2, 1.2)}
    like_both = type(density)(density.values, type(density.facts)(**{**vars(density.facts), **spacings}))
    values = like_both.place(case).region(range(SHAPE[0]), (0, SHAPE[1]), (0, SHAPE[2]))
    peak = np.array(np.unravel_index(values.argmax(), SHAPE))
    assert np.abs((peak - (z, y, x)) * SPACING).max() < 1.2 and values[z, y, x] > 0.4


def test_what_goes_astray_is_laid_middle_on_middle_and_told(reference, caplog):
    askew = head(SHAPE, SPACING, Rotation.from_euler("x", 30, degrees=True).as_matrix(), np.zeros(3))
    far = head(SHAPE, SPACING, np.eye(3), np.array((17.0, 0, 0)))
    empty = CoarseImage(np.zeros(SHAPE, np.float32), SPACING)
    for case, reason in ((askew, "turn it by 30°"), (far, "shift it by 17 mm"), (empty, "found no way")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert register(case, reference, name="sub-07") == SAME_PLACE
        assert "case sub-07 is not registered to the reference" in caplog.text and reason in caplog.text


def test_coarse_voxels_are_means_of_what_they_cover(tmp_path):
    image = np.random.default_rng(0).normal(size=(12, 10, 8)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    coarse = coarse_image(np.load(tmp_path / "image.npy", mmap_mode="r"), (0.25, 3.0, 0.5))
    np.testing.assert_allclose(coarse.array, image.reshape(3, 4, 10, 4, 2).mean((1, 4)), atol=1e-6)
    assert coarse.spacing_zyx_mm == (1.0, 3.0, 1.0) and coarse.array.dtype == np.float32
    odd = coarse_image(image, (0.3, 1.0, 1.0))  # 3.6 mm: four voxels
    assert odd.array.shape == (4, 10, 8) and odd.spacing_zyx_mm == pytest.approx((0.9, 1.0, 1.0))
    assert odd.array.mean() == pytest.approx(image.mean(), abs=1e-6)


def test_a_reference_comes_back_from_its_file(tmp_path, turned):
    path = tmp_path / "reference.npz"
    turned.write(path)
    read = CoarseImage.read(path)
    assert np.array_equal(read.array, turned.array) and read.spacing_zyx_mm == turned.spacing_zyx_mm
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PwmlError, match="is damaged or no reference image: run pwml_plan_and_preprocess"):
        CoarseImage.read(path)
    np.savez(path, array=np.full((2, 2, 2), np.nan, np.float32), spacing_zyx_mm=np.ones(3))
    with pytest.raises(PwmlError, match=r"is damaged \(its values are no image's"):
        CoarseImage.read(path)
    with pytest.raises(PwmlError, match="does not exist"):
        CoarseImage.read(tmp_path / "gone.npz")
