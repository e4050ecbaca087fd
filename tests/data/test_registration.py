import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Picture
from scipy.spatial.transform import Rotation

from pwmlunet.data.image import Geometry, Image, read_image, write_image
from pwmlunet.data.registration import Registered, find_obstacle, register
from pwmlunet.data.registration_files import register_files
from pwmlunet.errors import PwmlError

TURN = Rotation.from_euler("xyz", (4, -5, 6), degrees=True)
SHIFT_XYZ_MM = np.array((3.0, -2.0, 4.0))
MIDDLE_XYZ_MM = np.array((-11.0, 33.0, 62.0))
BLOBS = (
    # place beside the middle (x, y, z in mm), half widths, brightness in the fixed and in the moving volume
    ((7, -4, 5), (3, 3, 8), -35, 60),
    ((-7, -4, 3), (2.5, 3, 9), -35, 60),
    ((3, 5, -12), (4, 5, 4), 30, -25),
    ((-10, 8, 10), (5, 3, 3), 25, 35),
    ((2, -12, 0), (2, 2, 11), 20, -40),
)
MARKS_XYZ_MM = np.array(((10, 7, 3), (-9, -8, -8), (4, -9, 11)))
"""Beside the middle: glaring points that only the moving volume shows."""


def grid(shape_zyx: tuple[int, int, int], spacing: tuple[float, float, float], *euler: float) -> Geometry:
    """A grid around the head that is turned in the scanner."""
    direction = Rotation.from_euler("xyz", euler, degrees=True).as_matrix()
    reach = direction @ (np.subtract(shape_zyx, 1) / 2 * spacing)[::-1]
    x, y, z = MIDDLE_XYZ_MM - reach
    return Geometry(shape_zyx, spacing, (x, y, z), tuple(direction.ravel().tolist()))


FIXED = grid((26, 42, 38), (1.9, 1.1, 1.3), 8, -13, 21)
MOVING = grid((44, 36, 48), (1.1, 1.4, 1.0), -5, 3, 2)


def places(geometry: Geometry) -> np.ndarray:
    """Where the voxels lie beside the middle of the head, (Z, Y, X, 3) in mm along x, y, z."""
    index = np.stack(np.meshgrid(*map(np.arange, geometry.shape_zyx), indexing="ij"), -1)
    steps = (index * geometry.spacing_zyx_mm)[..., ::-1]
    return steps @ np.reshape(geometry.direction_xyz, (3, 3)).T + geometry.origin_xyz_mm - MIDDLE_XYZ_MM


def fixed_volume() -> Image:
    there = places(FIXED)
    image = 50 + sum(b * np.exp(-0.5 * (((there - c) / w) ** 2).sum(-1)) for c, w, b, _ in BLOBS)
    return Image((image * inside(there)).astype(np.float32), FIXED)


def moving_volume(geometry: Geometry = MOVING) -> Image:
    """The head in another contrast after it moved: what was at p is at TURN p + SHIFT."""
    there = (places(geometry) - SHIFT_XYZ_MM) @ TURN.as_matrix()
    image = 80 + sum(b * np.exp(-0.5 * (((there - c) / w) ** 2).sum(-1)) for c, w, _, b in BLOBS)
    image += sum(900 * np.exp(-0.5 * (((there - mark) / 1.2) ** 2).sum(-1)) for mark in MARKS_XYZ_MM)
    return Image((image * inside(there)).astype(np.int16), geometry)


def inside(there: np.ndarray) -> Any:
    return ((there / (18, 17, 19)) ** 2).sum(-1) < 1


@pytest.fixture(scope="module")
def found() -> Registered:
    return register(fixed_volume(), moving_volume())


def errors_mm(image: Image) -> list[float]:
    """How far from their places the marks are."""
    there = places(image.geometry)
    glare = np.maximum(image.array - 250.0, 0)
    errors = []
    for mark in MARKS_XYZ_MM:
        weight = glare * (np.linalg.norm(there - mark, axis=-1) < 8)
        errors.append(np.linalg.norm((there * weight[..., None]).sum((0, 1, 2)) / weight.sum() - mark))
    return errors


def test_a_known_movement_is_found_within_half_a_voxel(found: Registered) -> None:
    assert max(errors_mm(found.image)) < 0.5 < 2 < max(errors_mm(found.unmoved))
    assert found.image.geometry.differences(FIXED) == found.unmoved.geometry.differences(FIXED) == []
    assert found.image.array.dtype == np.int16 and found.image.array.shape == FIXED.shape_zyx
    assert found.turn_degrees == pytest.approx(np.degrees(TURN.magnitude()), abs=1)
    assert found.shift_mm == pytest.approx(np.linalg.norm(SHIFT_XYZ_MM), abs=0.5)
    assert found.information[1] > found.information[0] and found.warning == ""
    assert found.describe().startswith(f"turned by {found.turn_degrees:.1f}° and shifted by {found.shift_mm:.1f} mm")  # fmt: skip


def test_the_same_volumes_give_the_same_answer(found: Registered) -> None:
    again = register(fixed_volume(), moving_volume())
    assert np.array_equal(again.image.array, found.image.array) and again.information == found.information


def test_a_volume_that_its_file_puts_far_away_is_found_and_told() -> None:
    moving = moving_volume()
    x, y, z = MOVING.origin_xyz_mm
    far = register(fixed_volume(), replace(moving, geometry=replace(MOVING, origin_xyz_mm=(x, y - 300, z))))
    assert max(errors_mm(far.image)) < 0.5
    assert far.warning.startswith("it is far from where its file says (turned by") and not far.unmoved.array.any()  # fmt: skip


def test_a_volume_stays_where_no_place_is_better() -> None:
    fixed = fixed_volume()
    same = register(fixed, fixed)
    np.testing.assert_allclose(same.image.array, fixed.array, atol=1e-4)
    assert (same.turn_degrees, same.shift_mm) == (0, 0)
    assert same.warning == "no better place was found: it stays where its file says"


def test_a_thick_slice_is_the_mean_of_what_it_covers() -> None:
    fine = grid((24, 40, 44), (1.0, 1.1, 1.2), 8, -13, 21)
    rng = np.random.default_rng(0)
    head = rng.normal(100, 20, fine.shape_zyx) * inside(places(fine)) + 7
    z, y, x = fine.index_to_mm((2.5, 0, 0))
    thick = Geometry((4, 40, 44), (6.0, 1.1, 1.2), (z, y, x), fine.direction_xyz)
    means = head.reshape(4, 6, 40, 44).mean(1)
    unmoved = register(Image(means, thick), Image(head, fine)).unmoved
    np.testing.assert_allclose(unmoved.array, means, atol=1e-3)


def test_what_a_volume_does_not_reach_is_its_background(found: Registered) -> None:
    moving = moving_volume()
    slab = Image(moving.array[10:30] + np.int16(5), replace(MOVING, shape_zyx=(20, 36, 48)))
    assert register(fixed_volume(), slab).image.array.min() == 5
    ringing = Image(moving.array - np.int16(30) * (np.random.default_rng(1).random(moving.array.shape) < 0.01), MOVING)  # fmt: skip
    assert register(fixed_volume(), ringing).image.array[0, 0, 0] == 0
    assert found.image.array[0, 0, 0] == 0


def test_what_cannot_be_registered_is_told() -> None:
    volume = fixed_volume()
    assert find_obstacle(volume) == ""
    assert "a volume of 1 slice, and fewer than 4" in find_obstacle(replace(volume, array=volume.array[:1]))
    assert "a volume of 3 slices" in find_obstacle(replace(volume, array=volume.array[:, :3]))
    assert (
        find_obstacle(replace(volume, array=np.full((9, 9, 9), 7)))
        == "it holds hardly anything but the value 7"
    )


# --- files --------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Two subjects, of whom the second did not move, in folders of FLAIR and T1, and where to write."""
    flair, t1 = tmp_path / "flair", tmp_path / "t1"
    fixed, moving = fixed_volume(), moving_volume()
    write_image(flair / "sub-01_0000.nii.gz", fixed.array, FIXED)
    write_image(t1 / "sub-01_0001.nrrd", moving.array, MOVING)
    write_image(flair / "sub-02.mha", fixed.array, FIXED)
    write_image(t1 / "sub-02.mha", fixed.array, FIXED)
    (t1 / "notes.txt").touch()
    return flair, t1, tmp_path / "out"


def test_files_of_folders_are_registered_pair_by_pair(
    folders: tuple[Path, Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    flair, t1, out = folders
    with caplog.at_level(logging.WARNING):
        found = register_files(flair, t1, out)
    assert list(found) == [out / "sub-01_0001.nrrd", out / "sub-02.mha"]
    written = read_image(out / "sub-01_0001.nrrd")
    assert max(errors_mm(written)) < 0.5 and written.geometry.differences(FIXED) == []
    assert sorted(p.name for p in out.iterdir()) == [
        "sub-01_0001.nrrd", "sub-01_0001_check.png", "sub-02.mha", "sub-02_check.png",
    ]  # fmt: skip
    assert caplog.messages == [f"{t1}/sub-02.mha: no better place was found: it stays where its file says"]
    register_files(flair / "sub-01_0000.nii.gz", t1 / "sub-01_0001.nrrd", out / "new.nii.gz")
    assert np.array_equal(read_image(out / "new.nii.gz").array, written.array)
    pictures = [np.asarray(Picture.open(out / name)) for name in ("new_check.png", "sub-02_check.png")]
    assert (pictures[0] == np.asarray(Picture.open(out / "sub-01_0001_check.png"))).all()
    coloured = [np.ptp(p[..., :3].astype(int), axis=-1) > 60 for p in pictures]
    rows = [[int(part.sum()) for part in np.array_split(c, 4)] for c in coloured]
    assert all(fixed == moved == 0 < min(before, after) for fixed, moved, before, after in rows)


def test_files_without_a_partner_are_told_before_any_work(folders: tuple[Path, Path, Path]) -> None:
    flair, t1, out = folders
    (flair / "sub-01_0000.nii.gz").rename(flair / "sub-03.nii.gz")
    (t1 / "sub-02_0001.nii").write_text("another channel")
    with pytest.raises(PwmlError) as caught:
        register_files(flair, t1, out)
    assert str(caught.value).splitlines() == [
        "nothing was registered because of these problems (3):",
        f"  - {t1}/sub-02.mha and {t1}/sub-02_0001.nii have the same name: leave one channel in the folder",
        f"  - {t1}/sub-01_0001.nrrd has no partner of that name in {flair}: add it or remove the file",
        f"  - {flair}/sub-03.nii.gz has no partner of that name in {t1}: add it or remove the file",
    ]
    assert not out.exists()


def test_wrong_arguments_are_told(folders: tuple[Path, Path, Path]) -> None:
    flair, t1, out = folders
    one, other = flair / "sub-02.mha", t1 / "sub-02.mha"
    flat = t1 / "flat.png"
    write_image(flat, np.arange(30, dtype=np.uint8).reshape(1, 5, 6), Geometry((1, 5, 6), (1.0, 1.0, 1.0), is_2d=True))  # fmt: skip
    for arguments, words in (
        ((flair, other, out), f"{other} is a file: give files for the fixed image and the output too"),
        ((one, t1, out), f"{t1} is a folder and {one} is none: give three files or three folders"),
        ((flair, flair.parent, out), f"{flair.parent} holds no volumes"),
        ((one, other, out / "t1.png"), "t1.png is no name for a volume: end it in .nii.gz"),
        ((one, other, other), f"{other} would be overwritten"),
        ((flair, t1, t1), "would be overwritten"),
        ((one, flat, out / "t1.mha"), f"{flat} cannot be registered: it is a volume of 1 slice"),
        ((one, t1 / "none.mha", out / "t1.mha"), "cannot read"),
    ):
        with pytest.raises(PwmlError) as caught:
            register_files(*arguments)
        assert words in str(caught.value)
    assert not out.exists()


def test_one_damaged_image_does_not_keep_the_others_from_being_registered(
    folders: tuple[Path, Path, Path],
) -> None:
    flair, t1, out = folders
    (t1 / "sub-02.mha").write_bytes((t1 / "sub-02.mha").read_bytes()[:400])
    with pytest.raises(PwmlError) as caught:
        register_files(flair, t1, out)
    assert "t1/sub-02.mha cannot be read" in str(caught.value)
    assert str(caught.value).endswith("(the other pairs are done)")
    assert sorted(p.name for p in out.iterdir()) == ["sub-01_0001.nrrd", "sub-01_0001_check.png"]
