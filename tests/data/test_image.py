import gzip
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pwmlunet.data.image import Geometry, count_channels, read_channels, read_image, write_image
from pwmlunet.data.nifti import find_damage
from pwmlunet.errors import PwmlError

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")
PICTURE_ENDINGS = (".png", ".tif", ".tiff")


def turn(angle_x: float, angle_z: float) -> tuple[float, ...]:
    """Direction cosines of a grid turned about the scanner's x and then z axis."""
    c, s = math.cos(angle_x), math.sin(angle_x)
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    c, s = math.cos(angle_z), math.sin(angle_z)
    return tuple(np.ravel(np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ about_x).tolist())


OBLIQUE = Geometry((5, 7, 9), (3.0, 0.7, 0.5), (-31.5, 22.25, 40.0), turn(0.3, -0.2))  # type: ignore[arg-type]
PLAIN = Geometry((20, 30, 40), (3.0, 0.7, 0.5))


def noise(geometry: Geometry) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=geometry.shape_zyx).astype(np.float32)
    return values + np.float32(10)  # no voxel is 0


def complaint(path: Path) -> str:
    with pytest.raises(PwmlError) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", VOLUME_ENDINGS)
def test_an_oblique_anisotropic_volume_comes_back(tmp_path: Path, ending: str) -> None:
    array = noise(OBLIQUE)
    write_image(tmp_path / f"x{ending}", array, OBLIQUE)
    image = read_image(tmp_path / f"x{ending}")
    assert image.geometry.differences(OBLIQUE) == []
    assert image.array.dtype == np.float32
    np.testing.assert_array_equal(image.array, array)


@pytest.mark.parametrize("ending", VOLUME_ENDINGS)
def test_a_voxel_is_where_simpleitk_says(tmp_path: Path, ending: str) -> None:
    write_image(tmp_path / f"x{ending}", noise(OBLIQUE), OBLIQUE)
    place = sitk.ReadImage(str(tmp_path / f"x{ending}")).TransformIndexToPhysicalPoint((8, 2, 3))
    assert read_image(tmp_path / f"x{ending}").geometry.index_to_mm((3, 2, 8)) == pytest.approx(
        place, abs=1e-3
    )


@pytest.mark.parametrize("ending", PICTURE_ENDINGS)
def test_a_picture_is_one_slice_and_stays_2d(tmp_path: Path, ending: str) -> None:
    geometry = Geometry((1, 3, 4), (1.0, 0.7, 0.5), is_2d=True)
    array = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    write_image(tmp_path / f"x{ending}", array, geometry)
    image = read_image(tmp_path / f"x{ending}")
    np.testing.assert_array_equal(image.array, array)
    assert image.geometry.is_2d
    assert image.geometry.differences(geometry) == []
    assert sitk.ReadImage(str(tmp_path / f"x{ending}")).GetSize() == (4, 3)


def test_a_2d_nifti_keeps_its_place(tmp_path: Path) -> None:
    geometry = Geometry((1, 3, 4), (1.0, 0.7, 0.5), (5.0, -6.0, 0.0), is_2d=True)
    write_image(tmp_path / "x.nii.gz", np.ones((1, 3, 4), np.uint8), geometry)
    read = read_image(tmp_path / "x.nii.gz").geometry
    assert read.is_2d
    assert read.differences(geometry) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Geometry((5, 7, 8), (3.0, 0.7, 0.5)), "shape 5, 7, 9 against 5, 7, 8 (z, y, x)"),
        (Geometry((5, 7, 9), (3.0, 0.7, 0.6)), "spacing 3, 0.7, 0.5 against 3, 0.7, 0.6 mm"),
        (
            Geometry((5, 7, 9), (3.0, 0.7, 0.5), (0.0, 0.0, 1.0)),
            "origin 0, 0, 0 against 0, 0, 1 mm",
        ),
        (
            Geometry((5, 7, 9), (3.0, 0.7, 0.5), direction_xyz=turn(0.1, 0)),  # type: ignore[arg-type]
            "other directions of the axes",
        ),
        (Geometry((5, 7, 9), (3.0, 0.70001, 0.5), (0.001, 0.0, 0.0)), None),
    ],
)
def test_differences_of_grids_are_told_and_rounding_is_none(other: Geometry, words: str | None) -> None:
    assert Geometry((5, 7, 9), (3.0, 0.7, 0.5)).differences(other) == ([words] if words else [])


@pytest.mark.parametrize("ending", [*VOLUME_ENDINGS, ".png", ".tif"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_a_file_cut_short_is_told(tmp_path: Path, ending: str, kept: float) -> None:
    path, flat = tmp_path / f"x{ending}", ending in PICTURE_ENDINGS
    geometry = Geometry((1, 30, 40), (1.0, 0.7, 0.5), is_2d=True) if flat else PLAIN
    write_image(path, noise(geometry).astype(np.uint8 if flat else np.float32), geometry)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    words = complaint(path)
    assert words.startswith(f"{path} cannot be read: ")
    assert words.endswith("copy it again from its source")


@pytest.mark.parametrize("place", [0.5, 0.9])
def test_a_wrong_bit_in_a_compressed_nifti_is_told(tmp_path: Path, place: float) -> None:
    write_image(tmp_path / "x.nii.gz", noise(PLAIN), PLAIN)
    content = bytearray((tmp_path / "x.nii.gz").read_bytes())
    content[int(len(content) * place)] ^= 1
    (tmp_path / "x.nii.gz").write_bytes(content)
    assert "it is damaged or cut short" in complaint(tmp_path / "x.nii.gz")


def test_a_nifti_whose_last_bytes_are_missing_before_compression_is_told(tmp_path: Path) -> None:
    write_image(tmp_path / "x.nii", noise(PLAIN), PLAIN)
    with gzip.open(tmp_path / "y.nii.gz", "wb") as file:
        file.write((tmp_path / "x.nii").read_bytes()[:-5])
    assert "5 bytes are missing at its end" in complaint(tmp_path / "y.nii.gz")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".png"])
def test_a_file_that_is_no_image_is_told(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"x{ending}").write_text("these are not voxels " * 50)
    assert "its content is not what its ending says" in complaint(tmp_path / f"x{ending}")


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    (tmp_path / "folder.nii.gz").mkdir()
    assert complaint(tmp_path / "x.png").endswith("x.png: it does not exist: check the path")
    assert complaint(tmp_path / "folder.nii.gz").endswith("it is a folder, not a file: check the path")


def change_header(path: Path, offset: int, *values: float) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into(f"<{len(values)}f", content, offset, *values)
    path.write_bytes(content)


@pytest.mark.parametrize("spacing", [math.nan, math.inf, 0.0, -0.7])
def test_an_impossible_spacing_in_a_header_is_told(tmp_path: Path, spacing: float) -> None:
    write_image(tmp_path / "x.nii", noise(OBLIQUE), OBLIQUE)
    change_header(tmp_path / "x.nii", 84, spacing)  # pixdim[2]
    assert "impossible spacing (0.5, " in complaint(tmp_path / "x.nii")


@pytest.mark.parametrize("offset", [256, 280])  # of the quaternion, of the affine matrix
def test_a_place_that_is_no_number_is_told(tmp_path: Path, offset: int) -> None:
    write_image(tmp_path / "x.nii", noise(OBLIQUE), OBLIQUE)
    change_header(tmp_path / "x.nii", offset, math.nan)
    if offset == 256:  # the quaternion counts where there is no affine matrix
        change_codes(tmp_path / "x.nii", 1, 0)
    assert "no numbers where the place of the grid should be" in complaint(tmp_path / "x.nii")


def change_codes(path: Path, quaternion: int, affine: int) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into("<2h", content, 252, quaternion, affine)
    path.write_bytes(content)


def test_sheared_axes_are_told(tmp_path: Path) -> None:
    write_image(tmp_path / "x.nii", noise(PLAIN), PLAIN)
    change_codes(tmp_path / "x.nii", 0, 1)
    change_header(tmp_path / "x.nii", 280, -0.5, 0.3, 0.0, 0.0)
    assert complaint(tmp_path / "x.nii").endswith("resample it onto a regular grid")


def test_a_single_slice_may_have_no_distance_to_the_next(tmp_path: Path) -> None:
    geometry = Geometry((1, 3, 4), (2.0, 0.7, 0.5))
    write_image(tmp_path / "x.nii", noise(geometry), geometry)
    change_header(tmp_path / "x.nii", 88, 0.0)  # pixdim[3]
    assert read_image(tmp_path / "x.nii").array.shape == (1, 3, 4)


def write_colours(path: Path, *channels: list[int]) -> Path:
    pixels = np.stack([np.array(c, np.uint8).reshape(2, 2) for c in channels], axis=-1)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(path))
    return path


def test_a_grey_colour_picture_is_read_and_its_opacity_ignored(tmp_path: Path) -> None:
    grey, opacity = [0, 90, 180, 255], [255, 255, 0, 9]
    for name, channels in (("rgb.png", [grey] * 3), ("rgba.png", [grey] * 3 + [opacity])):
        array = read_image(write_colours(tmp_path / name, *channels)).array
        np.testing.assert_array_equal(array, np.array(grey).reshape(1, 2, 2))


@pytest.mark.parametrize("different", [1, 2])
def test_a_colourful_picture_is_told(tmp_path: Path, different: int) -> None:
    channels = [[0, 90, 180, 255] for _ in range(3)]
    channels[different][3] = 254
    path = write_colours(tmp_path / "x.png", *channels)
    assert complaint(path) == f"{path} has 3 values per pixel: write one file per channel"


def test_a_vector_image_with_many_values_is_told(tmp_path: Path) -> None:
    path = write_colours(tmp_path / "x.nii.gz", *[[1, 2, 3, 4]] * 4, [5, 6, 7, 8])
    assert complaint(path) == f"{path} has 5 values per pixel: write one file per channel"


def test_a_4d_file_is_told_and_can_be_read_by_channel(tmp_path: Path) -> None:
    volumes = [sitk.GetImageFromArray(noise(OBLIQUE) + i) for i in range(2)]
    for volume in volumes:
        volume.SetSpacing((0.5, 0.7, 3.0))
        volume.SetOrigin(OBLIQUE.origin_xyz_mm)
        volume.SetDirection(OBLIQUE.direction_xyz)
    sitk.WriteImage(sitk.JoinSeries(volumes), str(tmp_path / "x.nii.gz"))
    assert complaint(tmp_path / "x.nii.gz").endswith("has 4 dimensions: only 2-D and 3-D images are read")
    assert count_channels(tmp_path / "x.nii.gz") == 2
    for index, channel in enumerate(read_channels(tmp_path / "x.nii.gz")):
        np.testing.assert_array_equal(channel.array, noise(OBLIQUE) + index)
        assert channel.geometry.differences(OBLIQUE) == []


def test_a_3d_file_has_one_channel(tmp_path: Path) -> None:
    write_image(tmp_path / "x.nrrd", noise(OBLIQUE), OBLIQUE)
    assert count_channels(tmp_path / "x.nrrd") == len(read_channels(tmp_path / "x.nrrd")) == 1


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("ending", VOLUME_ENDINGS)
def test_a_full_disk_leaves_no_half_written_image(tmp_path: Path, ending: str, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(PwmlError, match=r"cannot write .*: the disk is full: free some space"):
        write_image(tmp_path / f"x{ending}", noise(PLAIN), PLAIN)
    assert list(tmp_path.iterdir()) == []


def test_a_type_that_the_format_lacks_is_told(tmp_path: Path) -> None:
    geometry = Geometry((1, 3, 4), (1.0, 1.0, 1.0), is_2d=True)
    with pytest.raises(PwmlError, match=r"cannot write .*x\.png: .* float64"):
        write_image(tmp_path / "x.png", np.zeros((1, 3, 4)), geometry)
    assert list(tmp_path.iterdir()) == []


def test_a_volume_is_not_written_as_one_picture(tmp_path: Path) -> None:
    with pytest.raises(PwmlError, match=r"x\.png: a PNG file holds one slice: choose \.nii\.gz"):
        write_image(tmp_path / "x.png", np.zeros(PLAIN.shape_zyx, np.uint8), PLAIN)


@pytest.mark.parametrize("version", ["big-endian NIfTI-1", "NIfTI-2"])
def test_other_nifti_headers_are_measured(tmp_path: Path, version: str) -> None:
    header = bytearray(544)
    if version == "NIfTI-2":
        struct.pack_into("<i", header, 0, 540)
        struct.pack_into("<h", header, 14, 16)
        struct.pack_into("<8q", header, 16, 3, 4, 3, 2, 1, 1, 1, 1)
        struct.pack_into("<3d", header, 112, 1, 1, 1)
        struct.pack_into("<q", header, 168, 544)
    else:
        struct.pack_into(">i", header, 0, 348)
        struct.pack_into(">8h", header, 40, 3, 4, 3, 2, 1, 1, 1, 1)
        struct.pack_into(">h", header, 72, 16)
        struct.pack_into(">3f", header, 80, 1, 1, 1)
        struct.pack_into(">f", header, 108, 544)
    path = tmp_path / "x.nii"
    path.write_bytes(header + bytes(2 * 3 * 4 * 2))
    assert find_damage(path) == ""
    path.write_bytes(header + bytes(2 * 3 * 4 * 2 - 1))
    assert find_damage(path).startswith("1 bytes are missing")
