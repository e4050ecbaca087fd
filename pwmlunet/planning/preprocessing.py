"""Both directions of geometry: a case onto the network's grid, and a prediction back onto its own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from numpy.typing import NDArray
from torch import Tensor

from pwmlunet.config import Config, join
from pwmlunet.data.dataset import CaseFiles, Labels
from pwmlunet.data.image import Geometry, Image, read_image
from pwmlunet.data.resampling import area_mean, resize_images, resize_mask
from pwmlunet.data.store import (
    CaseFacts,
    Orientation,
    PreprocessedCase,
    Rigid,
    SliceAxis,
    WayBack,
    orientation_of,
)
from pwmlunet.errors import PwmlError
from pwmlunet.planning.alignment import CoarseImage, coarse_image, register
from pwmlunet.planning.cropping import Box, box_of, find_fan, foreground, square_box
from pwmlunet.planning.normalisation import NORMALISATIONS

Mask = NDArray[np.bool_]

_SAME_SPACING = 0.05  # of a spacing
_NEGLIGIBLE = 1e-3  # a probability


@dataclass(frozen=True)
class Preparation(Config):
    """How a case is brought onto the network's grid. Slices are never resampled along their axis."""

    slice_axis: SliceAxis
    """Along which slices are stacked: the file's axis z, y or x as it runs, or axial, coronal or sagittal slices,
    for which each file's own directions decide."""
    crop: Literal["head_square", "nonzero", "fan", "none"]
    """A square box around the head or body, the box of what is not background, the box of the fan that an ultrasound
    probe saw (slices that it did not see are left out), or the whole image."""
    normalisation: tuple[str, ...]
    """One for each channel: zscore_head, percentiles_head, mean_subtracted or none."""
    margin: float = 0.02
    """Added on each side of the square box, as a share of its side."""
    long_side: int | None = None
    """The square box is resized to this many pixels a side; null keeps the case's own pixels."""
    spacing_yx_mm: tuple[float, float] | None = None
    """In-plane spacing that all cases are resampled to; null keeps each case's own."""
    expected_spacing_zyx_mm: tuple[float, float, float] | None = None
    """Spacing (slices, rows, columns) that every case must have within 5 %, as none is resampled; null accepts any."""
    stored_as: Literal["float32", "float16"] = "float32"
    """Numbers in which images are kept; float16 takes half the disk and is exact enough for values from 0 to 1."""
    align: Literal["middle", "rigid"] = "middle"
    """How cases are laid on each other for a prior density: by the middle of the head (or fan), or registered rigidly
    to a reference case."""

    def problems(self) -> Any:
        """Sentences about values that contradict each other."""
        for name in self.normalisation:
            if name not in NORMALISATIONS:
                yield f"normalisation {name!r} is unknown (known: {join(NORMALISATIONS)})"
        if self.long_side is not None and (self.long_side < 16 or self.crop != "head_square"):
            yield "long_side must be at least 16 and needs crop head_square"
        if self.spacing_yx_mm is not None and (self.long_side or min(self.spacing_yx_mm) <= 0):
            yield "spacing_yx_mm must be positive and cannot be combined with long_side"
        if self.align == "rigid" and self.long_side is not None:
            yield "align rigid is in mm and cannot be combined with long_side, which enlarges each head to one size"
        if self.expected_spacing_zyx_mm is not None and min(self.expected_spacing_zyx_mm) <= 0:
            yield "expected_spacing_zyx_mm must be positive"
        if not 0 <= self.margin <= 1:
            yield "margin must lie between 0 and 1"


def read_case(
    files: CaseFiles, labels: Labels | None, *, may_lack: bool = False
) -> tuple[list[Image], Image | None]:
    """A case's channels and mask, verified; channels whose files a case may lack are zeros on the grid of the others.

    Raises:
        PwmlError: what is wrong with the case's files, all findings at once.
    """
    paths = dict(enumerate(files.images))
    read = {i: read_image(path) for i, path in paths.items() if path.is_file() or not may_lack}
    if not read:
        raise PwmlError(f"case {files.name} has no image: one channel at least must be there")
    mask = read_image(files.label) if files.label is not None and labels is not None else None
    number, first = next(iter(read.items()))
    problems = [p for i, c in read.items() for p in _image_problems(c, i, first, number)]
    if mask is not None and labels is not None:
        problems += _mask_problems(mask, first, labels)
    if problems:
        raise PwmlError(f"case {files.name}: " + "; ".join(problems))
    lacking = Image(np.zeros(first.array.shape, np.uint8), first.geometry)
    return [read.get(i, lacking) for i in paths], mask


def find_first_present(channels: Sequence[NDArray[Any]]) -> int:
    """The number of the first channel that is not constant, as one that a case lacks is; 0 where all are."""
    return next((i for i, channel in enumerate(channels) if channel.min() < channel.max()), 0)


def _image_problems(image: Image, number: int, first: Image, first_number: int) -> list[str]:
    what = f"channel {number}"
    if differences := image.geometry.differences(first.geometry):
        return [f"{what} lies on another grid than channel {first_number} ({differences[0]}): bring it onto channel {first_number}'s grid with pwml_convert register"]  # fmt: skip
    if image.array.dtype.kind == "f" and not np.isfinite(image.array).all():
        return [f"{what} holds values that are not finite (NaN): replace them"]
    if image.array.min() == image.array.max():
        return [f"{what} is constant ({image.array.flat[0]} everywhere): is it the right file?"]
    return []


def _mask_problems(mask: Image, image: Image, labels: Labels) -> list[str]:
    problems = []
    if differences := mask.geometry.differences(image.geometry):
        problems.append(f"its mask lies on another grid than its image ({differences[0]}): resample it")
    values = np.unique(mask.array[mask.array != 0])  # few are left to sort
    if mask.array.dtype.kind == "f" and not (np.isfinite(values) & (values == np.rint(values))).all():
        problems.append("its mask holds fractions or NaN: write whole label values")
    elif unknown := sorted({int(v) for v in values} - labels.known_values):
        problems.append(f"its mask holds labels that dataset.json does not name ({join(unknown)}): name or remove them")  # fmt: skip
    return problems


def prepare(
    channels: Sequence[NDArray[Any]],
    geometry: Geometry,
    preparation: Preparation,
    mask: NDArray[Any] | None = None,
    reference: CoarseImage | None = None,
    name: str = "to predict",
) -> tuple[NDArray[Any], NDArray[np.uint8] | None, WayBack]:
    """The image (C, Z, Y, X) and mask (Z, Y, X) on the network's grid, and the way back.

    `channels` and `mask` are in the file's axis order. The crop depends on the image alone, on the first channel
    that is not constant, so that a case to predict is treated as a training case is. A reference is needed where
    cases are aligned to one; the case's name is for the log.

    Raises:
        PwmlError: another number of channels or another spacing than planned, or no fan to crop to.
    """
    if len(channels) != len(preparation.normalisation):
        raise PwmlError(
            f"{len(channels)} channels were given, the plan expects {len(preparation.normalisation)}"
        )
    orientation = orientation_of(geometry, preparation.slice_axis)
    _check_spacing(geometry, orientation, preparation)
    volumes = [orientation.to_grid(channel) for channel in channels]
    first = find_first_present(volumes)
    head = find_head(volumes[first], preparation)
    head_box = box_of(head)
    box = crop_box(volumes[first], head_box, preparation)
    shape_yx = _grid_shape(box, geometry, orientation, preparation)
    shape_zyx = (box[0][1] - box[0][0], *shape_yx)
    way_back = WayBack(
        geometry, orientation, box, shape_zyx, head_middle_zyx=_middle(head_box, box, shape_zyx)
    )
    image = np.empty((len(channels), *way_back.grid_shape_zyx), preparation.stored_as)
    for index, normalisation in enumerate(preparation.normalisation):
        normalised = NORMALISATIONS[normalisation](np.ascontiguousarray(volumes[index], np.float32), head)
        image[index] = resize_images(_crop(normalised, box, float(normalised.min())), shape_yx)
    if preparation.align == "rigid":
        way_back = replace(way_back, to_reference=_register(image[first], way_back, reference, name))
    return image, None if mask is None else prepare_mask(mask, way_back), way_back


def prepare_mask(mask: NDArray[Any], way_back: WayBack) -> NDArray[np.uint8]:
    """A mask in the file's axis order on the network's grid."""
    cropped = _crop(way_back.orientation.to_grid(mask), way_back.box_zyx, 0)
    return resize_mask(np.ascontiguousarray(cropped, np.uint8), way_back.slice_shape_yx)


def _register(image: NDArray[Any], way_back: WayBack, reference: CoarseImage | None, name: str) -> Rigid:
    if reference is None:
        raise ValueError("cases that are aligned rigidly need a reference")
    return register(coarse_image(image, way_back.spacing_zyx_mm), reference, name=name)


def _check_spacing(geometry: Geometry, orientation: Orientation, preparation: Preparation) -> None:
    expected = preparation.expected_spacing_zyx_mm
    found = [geometry.spacing_zyx_mm[axis] for axis in orientation.order]
    if expected is not None and not np.allclose(found, expected, rtol=_SAME_SPACING, atol=0):
        shown, planned = (" × ".join(f"{s:.3g}" for s in spacing) for spacing in (found, expected))
        raise PwmlError(f"its voxels are {shown} mm (slices, rows, columns), the plan was made for {planned}: resample it")  # fmt: skip


def find_head(volume: NDArray[Any], preparation: Preparation) -> Mask:
    """Where the head or body lies in a volume (Z, Y, X), or the fan of ultrasound where that is cropped to.

    Raises:
        PwmlError: there is no fan.
    """
    if preparation.crop != "fan":
        return foreground(volume)
    fan = find_fan(volume)
    if fan is None:
        raise PwmlError("it shows no fan of ultrasound in a field of zeros: is it the right kind of image?")
    return fan


def crop_box(volume: NDArray[Any], head_box: Box, preparation: Preparation) -> Box:
    """The box that the preparation keeps of a volume (Z, Y, X); all slices stay but those beside a fan."""
    whole = ((0, volume.shape[0]), (0, volume.shape[1]), (0, volume.shape[2]))
    if preparation.crop == "none":
        return whole
    if preparation.crop == "fan":
        return head_box
    if preparation.crop == "nonzero":
        return whole[0], *box_of(volume != volume.flat[0])[1:]
    return whole[0], *square_box(head_box, preparation.margin)[1:]


def _middle(head_box: Box, box: Box, shape_zyx: Sequence[int]) -> tuple[float, float, float]:
    """The middle of the head's box on the grid of a shape that a box was brought to, in voxels."""
    z, y, x = (
        ((first + last) / 2 - start) * n / (stop - start) - 0.5
        for (first, last), (start, stop), n in zip(head_box, box, shape_zyx, strict=True)
    )
    return z, y, x


def _grid_shape(
    box: Box, geometry: Geometry, orientation: Orientation, preparation: Preparation
) -> tuple[int, int]:
    if preparation.long_side is not None:
        return preparation.long_side, preparation.long_side
    native_y, native_x = (stop - start for start, stop in box[1:])
    if preparation.spacing_yx_mm is None:
        return native_y, native_x
    _, row, column = orientation.order
    wanted_y, wanted_x = preparation.spacing_yx_mm
    spacing = geometry.spacing_zyx_mm
    return max(1, round(native_y * spacing[row] / wanted_y)), max(
        1, round(native_x * spacing[column] / wanted_x)
    )


def _crop(array: NDArray[Any], box: Box, pad_value: float) -> NDArray[Any]:
    return np.asarray(crop_and_pad_nd(array, [list(interval) for interval in box], pad_value))


def restore(probability: Tensor, way_back: WayBack) -> Tensor:
    """Probabilities (K, Z, Y, X) on the network's grid, on the grid of the case's own files.

    Each pixel gets the mean over its area (interpolated where the file's grid is the finer one);
    outside of the crop it is 0. The axes are the file's again. Probabilities of at most 0.001 may come
    back as 0: a slice without any higher one is left out.
    """
    whole = torch.zeros(len(probability), *way_back.geometry.shape_zyx)
    grid = way_back.orientation.to_grid(whole.numpy())  # a view: what is written to it is in `whole`
    (z0, _), *box_yx = way_back.box_zyx
    there, here = _overlap(way_back.box_zyx, grid.shape[1:])
    holds_any = probability.amax((0, 2, 3)) > _NEGLIGIBLE
    for z in range(there[0].start, there[0].stop):
        if holds_any[z - z0]:
            rows, columns = (stop - start for start, stop in box_yx)
            resized = _resize_back(probability[:, z - z0].float(), (rows, columns))
            grid[:, z, there[1], there[2]] = resized[:, here[1], here[2]].numpy()
    return whole


def _overlap(box: Box, shape: Sequence[int]) -> tuple[list[slice], list[slice]]:
    """Where a box and an image of a shape overlap, along each axis: in the image and in the box."""
    ends = [(max(start, 0), min(stop, size)) for (start, stop), size in zip(box, shape, strict=True)]
    in_box = [slice(a - start, b - start) for (a, b), (start, _) in zip(ends, box, strict=True)]
    return [slice(*interval) for interval in ends], in_box


def _resize_back(probability: Tensor, shape_yx: tuple[int, int]) -> Tensor:
    """A slice (K, Y, X) in the pixels of the case's own file."""
    size = tuple(probability.shape[-2:])
    if size == shape_yx:
        return probability
    if shape_yx[0] <= size[0] and shape_yx[1] <= size[1]:
        return area_mean(probability, shape_yx)
    images = probability[:, None]
    return torch.nn.functional.interpolate(images, shape_yx, mode="bilinear", align_corners=False)[:, 0]


def preprocess_case(
    files: CaseFiles, labels: Labels | None, preparation: Preparation, reference: CoarseImage | None = None
) -> PreprocessedCase:
    """A case read from its files, on the network's grid."""
    channels, mask = read_case(files, labels)
    geometry = channels[0].geometry
    arrays = [channel.array for channel in channels]
    truth = None if mask is None else mask.array.astype(np.uint8, copy=False)
    image, prepared, way_back = prepare(arrays, geometry, preparation, truth, reference, files.name)
    facts = CaseFacts(files.name, files.subject, way_back, made_from(files, preparation))
    return PreprocessedCase(facts, image, prepared, truth)


def made_from(files: CaseFiles, preparation: Preparation) -> dict[str, Any]:
    """What a preprocessed case depends on: compared to see whether it must be made again."""
    paths: list[Path] = [*files.images, *([files.label] if files.label else [])]
    return {"preparation": preparation.to_dict(), "files": {p.name: _stamp(p) for p in paths}}


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
