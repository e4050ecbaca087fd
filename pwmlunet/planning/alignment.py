"""Where a head lies beside a reference head: a rigid registration of small images."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pwmlunet.data.store import Rigid
from pwmlunet.errors import PwmlError
from pwmlunet.files import reading_arrays, replacing

if TYPE_CHECKING:
    import SimpleITK

logger = logging.getLogger(__name__)

REFERENCE = "reference.npz"
"""The reference, beside the cases that were registered to it and in a model's folder."""

COARSE_MM = 1.0
"""Voxels of the images that are registered: fine enough for a fraction of a millimetre, and small."""

MOST_SHIFT_MM = 15.0
MOST_TURN_DEGREES = 25.0
"""Heads cropped about the same landmark are not further apart: beyond, a registration went astray."""

SAME_PLACE = Rigid((1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0))
"""Middle on middle, without a turn."""

_LEVELS = (4, 2, 1)  # how much coarser the images are, one after the other
_LEVER_MM = 20.0  # what turns by a radian moves by so much: about the radius of a preterm head
_EDGE_VOXELS = 2  # left out along the edge of what is seen, where smoothing mixes it with nothing
_SAMPLED_SHARE = 0.3
_DECIMALS = 6  # ITK's sums differ in the last digits from call to call
_SEED = 1  # ITK takes 0 for "another one each time"


@dataclass(frozen=True, eq=False)
class CoarseImage:
    """An image small enough to be registered; that of one training case is the reference."""

    array: NDArray[np.float32]
    """(Z, Y, X)."""
    spacing_zyx_mm: tuple[float, float, float]
    """Between its voxels; its middle is that of the case's grid."""

    def write(self, path: Path) -> None:
        """Writes the image as .npz, whole or not at all."""
        with replacing(path) as temporary:
            np.savez_compressed(temporary, array=self.array, spacing_zyx_mm=np.array(self.spacing_zyx_mm))

    @classmethod
    def read(cls, path: Path) -> "CoarseImage":
        """The image in a file.

        Raises:
            PwmlError: the file is missing, damaged or holds something else.
        """
        with reading_arrays(path, "reference image: run pwml_plan_and_preprocess") as arrays:
            array, (z, y, x) = arrays["array"], arrays["spacing_zyx_mm"].tolist()
        if array.dtype != np.float32 or array.ndim != 3 or not np.isfinite(array).all() or min(z, y, x) <= 0:
            raise PwmlError(f"{path} is damaged (its values are no image's): run pwml_plan_and_preprocess")
        return cls(array, (z, y, x))


def coarse_image(image: NDArray[Any], spacing_zyx_mm: tuple[float, float, float]) -> CoarseImage:
    """An image (Z, Y, X) with voxels of about 1 mm, each the mean of what it covers; coarser axes stay."""
    import torch

    from pwmlunet.data.resampling import area_mean

    shape = [max(1, min(n, round(n * s / COARSE_MM))) for n, s in zip(image.shape, spacing_zyx_mm, strict=True)]  # fmt: skip
    plane = (shape[1], shape[2])
    slices = [area_mean(torch.from_numpy(np.array(piece, np.float32)), plane) for piece in image]
    columns = torch.stack(slices, -1)  # (Y, X, Z)
    array = area_mean(columns, (shape[2], shape[0])).permute(2, 0, 1).numpy()
    z, y, x = (s * n / m for s, n, m in zip(spacing_zyx_mm, image.shape, shape, strict=True))
    return CoarseImage(np.ascontiguousarray(array), (z, y, x))


def register(case: CoarseImage, reference: CoarseImage, *, name: str) -> Rigid:
    """The turn and shift from a case's grid to the reference's, in mm from their middles.

    Where that fails or goes astray, middle is laid on middle and the log says so. The same images always
    give the same answer.

    Args:
        case: the image to be placed.
        reference: the image that it is placed beside.
        name: the case's, for the log.
    """
    try:
        rigid = _register(case, reference)
    except RuntimeError as error:  # ITK found no overlap, or an image without contrast
        logger.debug("registration of %s: %s", name, error)
        problem = "it found no way"
    else:
        shift, turn = np.linalg.norm(rigid.translation_zyx_mm), _turn_degrees(rigid)
        if shift <= MOST_SHIFT_MM and turn <= MOST_TURN_DEGREES:
            return rigid
        problem = f"it would shift it by {shift:.0f} mm and turn it by {turn:.0f}°"
    logger.warning("case %s is not registered to the reference (%s): middle is laid on middle", name, problem)
    return SAME_PLACE


def _turn_degrees(rigid: Rigid) -> float:
    cosine = (np.trace(np.reshape(rigid.rotation_zyx, (3, 3))) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _register(case: CoarseImage, reference: CoarseImage) -> Rigid:
    """Mutual information inside both heads, coarse to fine."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    fixed, moving = _to_itk(case), _to_itk(reference)  # ITK's transform leads from fixed to moving
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)  # the more threads, the less alike are two calls
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(_SAMPLED_SHARE, _SEED)
    method.SetMetricFixedMask(_inside(fixed))
    method.SetMetricMovingMask(_inside(moving))
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-3, numberOfIterations=100, gradientMagnitudeTolerance=1e-8
    )
    method.SetOptimizerScales([_LEVER_MM**2] * 3 + [1.0] * 3)
    method.SetShrinkFactorsPerLevel(_LEVELS)
    method.SetSmoothingSigmasPerLevel([level // 2 for level in _LEVELS])
    transform = sitk.Euler3DTransform()  # about the middle, which is the origin
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(fixed, moving)
    matrix_xyz = np.round(np.reshape(transform.GetMatrix(), (3, 3)), _DECIMALS)
    a, b, c, d, e, f, g, h, i = matrix_xyz[::-1, ::-1].ravel().tolist()
    x, y, z = np.round(transform.GetTranslation(), _DECIMALS).tolist()
    return Rigid((a, b, c, d, e, f, g, h, i), (z, y, x))


def _to_itk(image: CoarseImage) -> "SimpleITK.Image":
    """The image with the middle of its grid at the origin."""
    import SimpleITK as sitk

    converted = sitk.GetImageFromArray(image.array)
    spacing_xyz = image.spacing_zyx_mm[::-1]
    converted.SetSpacing(spacing_xyz)
    converted.SetOrigin([(1 - n) / 2 * s for n, s in zip(image.array.shape[::-1], spacing_xyz, strict=True)])
    return converted


def _inside(image: "SimpleITK.Image") -> "SimpleITK.Image":
    """Where the image is not its background, less the edge: that of a field of view is no anatomy."""
    import SimpleITK as sitk

    statistics = sitk.MinimumMaximumImageFilter()
    statistics.Execute(image)
    seen = sitk.Cast(image > statistics.GetMinimum(), sitk.sitkUInt8)
    return sitk.BinaryErode(seen, [_EDGE_VOXELS] * 3, sitk.sitkBall, 0.0, 1.0, False)
