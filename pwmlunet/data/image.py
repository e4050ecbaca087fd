"""Images and their geometry; the only file that knows SimpleITK's x-y-z order."""

import errno
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.config import Config, join
from pwmlunet.data.nifti import find_damage, is_nifti
from pwmlunet.errors import PwmlError
from pwmlunet.files import explain, replacing

if TYPE_CHECKING:
    import SimpleITK

FILE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".tif", ".tiff")

_SAME_PLACE_MM = 1e-2
_SAME_DIRECTION = 1e-3


@dataclass(frozen=True)
class Geometry(Config):
    """The voxel grid of an image in the scanner's space."""

    shape_zyx: tuple[int, int, int]
    """Voxels along each array axis; 1 along z for a 2-D image."""
    spacing_zyx_mm: tuple[float, float, float]
    """Distance between voxel centres; 1 along z for a 2-D image."""
    origin_xyz_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Centre of the first voxel."""
    direction_xyz: tuple[float, float, float, float, float, float, float, float, float] = (
        1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0,
    )  # fmt: skip
    """Direction cosines, row by row; columns are the axes x, y, z of the grid."""
    is_2d: bool = False
    """Whether the file is a 2-D image, written back as one."""

    def index_to_mm(self, index_zyx: tuple[float, float, float]) -> tuple[float, float, float]:
        """The place (x, y, z) in mm of a voxel index (z, y, x), which may be fractional."""
        step_xyz = np.asarray(index_zyx[::-1], float) * self.spacing_zyx_mm[::-1]
        place = np.reshape(self.direction_xyz, (3, 3)) @ step_xyz + self.origin_xyz_mm
        return (float(place[0]), float(place[1]), float(place[2]))

    @property
    def is_placed(self) -> bool:
        """Whether the file says how the patient lay: a grid of defaults, as a picture has, says nothing."""
        defaults = Geometry(self.shape_zyx, (1.0, 1.0, 1.0), self.origin_xyz_mm)
        return not self.is_2d and bool(self.differences(defaults))

    def differences(self, other: "Geometry") -> list[str]:
        """In words, where two grids differ by more than rounding; empty when they are the same."""
        found = []
        if self.shape_zyx != other.shape_zyx:
            found.append(f"shape {join(self.shape_zyx)} against {join(other.shape_zyx)} (z, y, x)")
        if not np.allclose(self.spacing_zyx_mm, other.spacing_zyx_mm, rtol=1e-3):
            found.append(
                f"spacing {_rounded(self.spacing_zyx_mm)} against {_rounded(other.spacing_zyx_mm)} mm"
            )
        if not np.allclose(self.origin_xyz_mm, other.origin_xyz_mm, atol=_SAME_PLACE_MM, rtol=0):
            found.append(f"origin {_rounded(self.origin_xyz_mm)} against {_rounded(other.origin_xyz_mm)} mm")
        if not np.allclose(self.direction_xyz, other.direction_xyz, atol=_SAME_DIRECTION, rtol=0):
            found.append("other directions of the axes")
        return found


def _rounded(values: tuple[float, ...]) -> str:
    return join(f"{value:.4g}" for value in values)


@dataclass(frozen=True, eq=False)
class Image:
    """An array (Z, Y, X) in the file's own type and the grid it lies on."""

    array: NDArray[Any]
    geometry: Geometry


def read_image(path: Path) -> Image:
    """The image in a file; a 2-D file becomes one slice.

    Raises:
        PwmlError: the file is missing, damaged, has several values per pixel or an impossible grid.
    """
    return _image(_read(path), path)


def read_channels(path: Path) -> list[Image]:
    """The images in a file of several channels along a fourth axis; a list of one for any other file."""
    read = _read(path)
    if read.GetDimension() != 4:
        return [_image(read, path)]
    return [_image(read[:, :, :, channel], path) for channel in range(read.GetSize()[3])]


def count_channels(path: Path) -> int:
    """How many images `read_channels` finds in a file, from its header alone."""
    import SimpleITK as sitk

    _check_readable(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise PwmlError(f"{path} cannot be read: {_cause(str(error))}") from error
    return int(reader.GetSize()[3]) if reader.GetDimension() == 4 else 1


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
        damage = find_damage(path) if is_nifti(path) else ""
    except OSError as error:
        raise explain(error, path, "read") from error
    if damage:
        raise PwmlError(f"{path} cannot be read: {damage}")


def _read(path: Path) -> "SimpleITK.Image":
    import SimpleITK as sitk

    _check_readable(path)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise PwmlError(f"{path} cannot be read: {_cause(str(error))}") from error


def _image(read: "SimpleITK.Image", path: Path) -> Image:
    import SimpleITK as sitk

    if read.GetNumberOfComponentsPerPixel() != 1:
        read = _grey(read, path)
    if read.GetDimension() not in (2, 3):
        raise PwmlError(f"{path} has {read.GetDimension()} dimensions: only 2-D and 3-D images are read")
    geometry = _geometry(read)
    _check_geometry(geometry, path)
    array = sitk.GetArrayFromImage(read)
    return Image(array.reshape(geometry.shape_zyx), geometry)


def _cause(message: str) -> str:
    """One sentence out of ITK's report of several lines."""
    if "orthonormal" in message:
        return "its axes are not at right angles to each other: resample it onto a regular grid"
    if "Unable to determine ImageIO" in message:
        return "its content is not what its ending says, or it is damaged: copy it again from its source"
    return "it is damaged or cut short: copy it again from its source"


def _grey(read: "SimpleITK.Image", path: Path) -> "SimpleITK.Image":
    """A colour picture whose colours are all grey, as one channel (screenshots are saved so)."""
    import SimpleITK as sitk

    channels = [sitk.VectorIndexSelectionCast(read, i) for i in range(read.GetNumberOfComponentsPerPixel())]
    first = sitk.GetArrayViewFromImage(channels[0])
    # a fourth channel is opacity
    if len(channels) > 4 or any(np.any(sitk.GetArrayViewFromImage(c) != first) for c in channels[1:3]):
        raise PwmlError(f"{path} has {len(channels)} values per pixel: write one file per channel")
    return channels[0]


def _geometry(read: "SimpleITK.Image") -> Geometry:
    if read.GetDimension() == 3:
        return Geometry(read.GetSize()[::-1], read.GetSpacing()[::-1], read.GetOrigin(), read.GetDirection())
    (width, height), (dx, dy), (ox, oy) = read.GetSize(), read.GetSpacing(), read.GetOrigin()
    a, b, c, d = read.GetDirection()
    direction = (a, b, 0.0, c, d, 0.0, 0.0, 0.0, 1.0)
    return Geometry((1, height, width), (1.0, dy, dx), (ox, oy, 0.0), direction, is_2d=True)


def _check_geometry(geometry: Geometry, path: Path) -> None:
    values = (*geometry.spacing_zyx_mm, *geometry.origin_xyz_mm, *geometry.direction_xyz)
    if not all(math.isfinite(v) for v in values) or min(geometry.spacing_zyx_mm) <= 0:
        raise PwmlError(f"{path} has an impossible grid (spacing {_rounded(geometry.spacing_zyx_mm)} mm): mend its header")  # fmt: skip
    axes = np.reshape(geometry.direction_xyz, (3, 3))
    if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-2):
        raise PwmlError(f"{path} has axes that are not at right angles: resample it onto a regular grid")


def write_image(path: Path, array: NDArray[Any], geometry: Geometry) -> None:
    """Writes an array (Z, Y, X) on its grid, whole or not at all; the path's ending is the format."""
    import SimpleITK as sitk

    assert array.shape == geometry.shape_zyx, (array.shape, geometry.shape_zyx)
    if path.suffix == ".png" and not geometry.is_2d:
        raise PwmlError(f"cannot write {path}: a PNG file holds one slice: choose .nii.gz")
    spacing_xyz = geometry.spacing_zyx_mm[::-1]
    if geometry.is_2d:
        image = sitk.GetImageFromArray(array[0])
        image.SetSpacing(spacing_xyz[:2])
        image.SetOrigin(geometry.origin_xyz_mm[:2])
        image.SetDirection([geometry.direction_xyz[i] for i in (0, 1, 3, 4)])
    else:
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(spacing_xyz)
        image.SetOrigin(geometry.origin_xyz_mm)
        image.SetDirection(geometry.direction_xyz)
    with replacing(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            if shutil.disk_usage(path.parent).free < array.nbytes:
                raise OSError(errno.ENOSPC, "") from error
            raise PwmlError(f"cannot write {path}: ITK fails to store values of type {array.dtype} there") from error  # fmt: skip
        # on a full disk SimpleITK cuts a NIfTI file short and says nothing
        if is_nifti(path) and find_damage(temporary, look_for_nan=False):
            raise OSError(errno.ENOSPC, "")
