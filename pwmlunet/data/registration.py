"""A volume brought onto the grid of another one of the same head: rigid, by mutual information."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.image import Geometry, Image

if TYPE_CHECKING:
    import SimpleITK

MOST_SHIFT_MM = 40.0
MOST_TURN_DEGREES = 25.0
"""Two scans of one head are seldom further apart: beyond, a person should look."""

_LEVELS_MM = (8.0, 4.0, 2.0, 1.0)  # voxels of the images that are compared, one after the other
_FEWEST_VOXELS = 16  # along an axis, where the image has so many: a coarser one shows nothing
_FEWEST_SLICES = 4  # fewer do not say how a head is tilted
_SAMPLES = 100_000  # voxels that are compared, at most: four times as many move a head by less than .1 mm
_BINS = 32
_CLIPPED_PERCENT = (0.5, 99.5)  # a vessel's glare would leave the brain few bins
_DECIMALS = 6  # ITK's sums differ in the last digits from call to call
_SEED = 1  # ITK takes 0 for "another one each time"


@dataclass(frozen=True, eq=False)
class Registered:
    """A volume on another one's grid, and how it came there."""

    image: Image
    """The moved volume."""
    unmoved: Image
    """The same where the two files say that it lies."""
    turn_degrees: float
    shift_mm: float
    """By how much it was turned, and shifted in the middle of the fixed grid."""
    information: tuple[float, float]
    """Mutual information with the fixed volume before and after, in bits."""

    @property
    def warning(self) -> str:
        """What a person should know; empty where the volume was moved as expected."""
        before, after = self.information
        if after <= before:
            return "no better place was found: it stays where its file says"
        if self.shift_mm > MOST_SHIFT_MM or self.turn_degrees > MOST_TURN_DEGREES:
            return f"it is far from where its file says ({self.describe()}): look at the picture"
        return ""

    def describe(self) -> str:
        """The movement in words."""
        before, after = self.information
        return (
            f"turned by {self.turn_degrees:.1f}° and shifted by {self.shift_mm:.1f} mm, "
            f"mutual information {before:.2f} → {after:.2f} bits"
        )


def register(fixed: Image, moving: Image) -> Registered:
    """The moving volume on the fixed one's grid, turned and shifted to where the two say most of each other.

    The same volumes always give the same answer. Where no place is better than the one that the files give,
    the volume stays there. Both must be free of what `find_obstacle` finds.
    """
    levels = [(_coarse(fixed, mm), _coarse(moving, mm), mm) for mm in _LEVELS_MM]
    stay = _still(fixed.geometry)
    starts = [stay, *(_shifted(stay, a, b) for a, b in zip(_middles(fixed), _middles(moving), strict=True))]
    found = max(
        (_refine(start, *levels[0]) for start in starts), key=lambda t: _information(t, *levels[0][:2])
    )
    for level in levels[1:]:
        found = _refine(found, *level)
    before, after = (_information(transform, *levels[2][:2]) for transform in (stay, found))
    if after <= before:
        found, after = stay, before
    unmoved = _resample(moving, fixed.geometry, stay)
    cosine = (np.trace(np.reshape(found.GetMatrix(), (3, 3))) - 1) / 2
    return Registered(
        image=unmoved if found is stay else _resample(moving, fixed.geometry, found),
        unmoved=unmoved,
        turn_degrees=float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
        shift_mm=float(np.linalg.norm(found.GetTranslation())),
        information=(before, after),
    )


def find_obstacle(image: Image) -> str:
    """In words, why an image cannot be registered; empty where it can."""
    if (n := min(image.array.shape)) < _FEWEST_SLICES:
        return f"it is a volume of {n} slice{'s'[: n != 1]}, and fewer than {_FEWEST_SLICES} do not say how a head is tilted"
    clipped = _clipped(image.array)
    if clipped.min() == clipped.max():
        return f"it holds hardly anything but the value {clipped.min():g}"
    return ""


def _still(geometry: Geometry) -> "SimpleITK.Euler3DTransform":
    """No movement; turns are about the middle of the grid."""
    import SimpleITK as sitk

    transform = sitk.Euler3DTransform()
    transform.SetCenter(_grid_middle_mm(geometry))
    return transform


def _shifted(
    transform: "SimpleITK.Euler3DTransform", here: NDArray[np.float64], there: NDArray[np.float64]
) -> "SimpleITK.Euler3DTransform":
    import SimpleITK as sitk

    shifted = sitk.Euler3DTransform(transform)
    shifted.SetTranslation((there - here).tolist())
    return shifted


def _grid_middle_mm(geometry: Geometry) -> tuple[float, float, float]:
    z, y, x = ((n - 1) / 2 for n in geometry.shape_zyx)
    return geometry.index_to_mm((z, y, x))


def _middles(image: Image) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The middle of the grid and that of what is bright, in mm."""
    bright = _clipped(image.array) - np.float32(_outside(image.array))
    np.maximum(bright, 0, out=bright)
    sums = [bright.sum((1, 2), np.float64), bright.sum((0, 2), np.float64), bright.sum((0, 1), np.float64)]
    z, y, x = (float(along @ np.arange(len(along)) / along.sum()) for along in sums)
    geometry = image.geometry
    return np.array(_grid_middle_mm(geometry)), np.array(geometry.index_to_mm((z, y, x)))


def _clipped(array: NDArray[Any]) -> NDArray[np.float32]:
    low, high = np.percentile(array, _CLIPPED_PERCENT)
    return np.asarray(np.clip(array, low, high), np.float32)


def _outside(array: NDArray[Any]) -> float:
    """What an image shows where nothing is: 0, or the value nearest to it."""
    return float(np.clip(0, array.min(), array.max()))


def _coarse(image: Image, mm: float) -> "SimpleITK.Image":
    """The image with voxels of about so many mm, each the mean of what it covers; coarser axes stay."""
    import SimpleITK as sitk

    pairs = zip(image.array.shape, image.geometry.spacing_zyx_mm, strict=True)
    factors = [max(1, min(round(mm / spacing), n // _FEWEST_VOXELS)) for n, spacing in pairs]
    return sitk.BinShrink(_to_itk(_clipped(image.array), image.geometry), factors[::-1])


def _to_itk(array: NDArray[Any], geometry: Geometry) -> "SimpleITK.Image":
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing_zyx_mm[::-1])
    image.SetOrigin(geometry.origin_xyz_mm)
    image.SetDirection(geometry.direction_xyz)
    return image


def _refine(
    start: "SimpleITK.Euler3DTransform", fixed: "SimpleITK.Image", moving: "SimpleITK.Image", mm: float
) -> "SimpleITK.Euler3DTransform":
    """A place near `start` where two images of such voxels agree most; `start` where they do not meet."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    transform = sitk.Euler3DTransform(start)
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # the more threads, the less alike are two calls
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(min(1.0, _SAMPLES / fixed.GetNumberOfPixels()), _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=mm, minStep=mm / 500, numberOfIterations=100, gradientMagnitudeTolerance=1e-8
    )
    # what turns by a radian moves by so much: about the radius of what the image shows
    lever_mm = np.linalg.norm(np.multiply(fixed.GetSize(), fixed.GetSpacing())) / 4
    method.SetOptimizerScales([lever_mm**2] * 3 + [1.0] * 3)
    method.SetInitialTransform(transform, inPlace=True)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:
        return start
    transform.SetParameters(np.round(transform.GetParameters(), _DECIMALS).tolist())
    return transform


def _information(
    transform: "SimpleITK.Transform", fixed: "SimpleITK.Image", moving: "SimpleITK.Image"
) -> float:
    """Mutual information in bits over the whole of the fixed image, so that nothing is won by leaving it."""
    import SimpleITK as sitk

    outside = _outside(sitk.GetArrayViewFromImage(moving))
    moved = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, outside)
    here, there = (sitk.GetArrayFromImage(image).ravel() for image in (fixed, moved))
    joint = np.histogram2d(here, there, _BINS)[0] / len(here)
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    some = joint > 0
    return float((joint[some] * np.log2(joint[some] / apart[some])).sum())


def _resample(moving: Image, geometry: Geometry, transform: "SimpleITK.Transform") -> Image:
    """The moving image on a grid, in its own type; a voxel that covers several of its own is their mean."""
    import SimpleITK as sitk

    n_per_voxel = _voxels_in_one(geometry, moving.geometry)
    grid = _finer(geometry, n_per_voxel)
    image = _to_itk(moving.array.astype(np.float32), moving.geometry)
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.shape_zyx[::-1])
    resampler.SetOutputSpacing(grid.spacing_zyx_mm[::-1])
    resampler.SetOutputOrigin(grid.origin_xyz_mm)
    resampler.SetOutputDirection(grid.direction_xyz)
    resampler.SetDefaultPixelValue(_outside(moving.array))
    resampler.SetTransform(transform)
    array = sitk.GetArrayFromImage(sitk.BinShrink(resampler.Execute(image), n_per_voxel[::-1]))
    kind = moving.array.dtype
    return Image((np.rint(array) if kind.kind in "iu" else array).astype(kind), geometry)


def _voxels_in_one(coarse: Geometry, fine: Geometry) -> tuple[int, int, int]:
    """How many voxels of a fine grid lie behind each other in one of a coarse grid, along its axes."""
    cosines = np.reshape(coarse.direction_xyz, (3, 3)).T @ np.reshape(fine.direction_xyz, (3, 3))
    steps_zyx_mm = np.linalg.norm(cosines * fine.spacing_zyx_mm[::-1], axis=1)[::-1]
    z, y, x = (max(1, round(s / mm)) for s, mm in zip(coarse.spacing_zyx_mm, steps_zyx_mm, strict=True))
    return z, y, x


def _finer(geometry: Geometry, n_zyx: tuple[int, int, int]) -> Geometry:
    """The grid with each voxel cut into so many along its axes."""
    z, y, x = (size * n for size, n in zip(geometry.shape_zyx, n_zyx, strict=True))
    dz, dy, dx = (mm / n for mm, n in zip(geometry.spacing_zyx_mm, n_zyx, strict=True))
    first_z, first_y, first_x = ((1 / n - 1) / 2 for n in n_zyx)
    origin = geometry.index_to_mm((first_z, first_y, first_x))
    return Geometry((z, y, x), (dz, dy, dx), origin, geometry.direction_xyz)
