"""Both directions of geometry: a case onto the network's grid, and a prediction back onto its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from pwmlunet.data.store import Axis, CaseFacts, PreprocessedCase, WayBack, slice_order
from pwmlunet.errors import PwmlError
from pwmlunet.planning.cropping import Box, box_of, foreground, square_box

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]


def _zscore_head(image: Array, head: Mask) -> Array:
    inside = image[head] if head.any() else image.ravel()
    return np.asarray((image - inside.mean()) / max(float(inside.std()), 1e-6))


def _percentiles_head(image: Array, head: Mask) -> Array:
    low, high = np.percentile(image[head] if head.any() else image, (0.5, 99.5))
    return np.asarray(np.clip((image - low) / max(float(high - low), 1e-6), 0, 1), np.float32)


def _mean_subtracted(image: Array, head: Mask) -> Array:
    return np.asarray(image - image.mean())


def _unchanged(image: Array, head: Mask) -> Array:
    return image


NORMALISATIONS: dict[str, Callable[[Array, Mask], Array]] = {
    "zscore_head": _zscore_head,
    "percentiles_head": _percentiles_head,
    "mean_subtracted": _mean_subtracted,
    "none": _unchanged,
}
"""By name: z-score inside the head; 0.5th to 99.5th percentile there to [0, 1]; Liu et al.'s; nothing."""


@dataclass(frozen=True)
class Preparation(Config):
    """How a case is brought onto the network's grid. Slices are never resampled along their axis."""

    slice_axis: Axis
    """The file's axis along which slices are stacked."""
    crop: Literal["head_square", "nonzero", "none"]
    """A square box around the head or body, the box of what is not background, or the whole image."""
    normalisation: tuple[str, ...]
    """One for each channel: zscore_head, percentiles_head, mean_subtracted or none."""
    margin: float = 0.02
    """Added on each side of the square box, as a share of its side."""
    long_side: int | None = None
    """The square box is resized to this many pixels a side; null keeps the case's own pixels."""
    spacing_yx_mm: tuple[float, float] | None = None
    """In-plane spacing that all cases are resampled to; null keeps each case's own."""

    def problems(self) -> Any:
        """Sentences about values that contradict each other."""
        for name in self.normalisation:
            if name not in NORMALISATIONS:
                yield f"normalisation {name!r} is unknown (known: {join(NORMALISATIONS)})"
        if self.long_side is not None and (self.long_side < 16 or self.crop != "head_square"):
            yield "long_side must be at least 16 and needs crop head_square"
        if self.spacing_yx_mm is not None and (self.long_side or min(self.spacing_yx_mm) <= 0):
            yield "spacing_yx_mm must be positive and cannot be combined with long_side"
        if not 0 <= self.margin <= 1:
            yield "margin must lie between 0 and 1"


def read_case(files: CaseFiles, labels: Labels | None) -> tuple[list[Image], Image | None]:
    """A case's channels and mask, verified.

    Raises:
        PwmlError: what is wrong with the case's files, all findings at once.
    """
    channels = [read_image(path) for path in files.images]
    mask = read_image(files.label) if files.label is not None and labels is not None else None
    problems = [p for i, c in enumerate(channels) for p in _image_problems(c, f"channel {i}", channels[0])]
    if mask is not None and labels is not None:
        problems += _mask_problems(mask, channels[0], labels)
    if problems:
        raise PwmlError(f"case {files.name}: " + "; ".join(problems))
    return channels, mask


def _image_problems(image: Image, what: str, first: Image) -> list[str]:
    if differences := image.geometry.differences(first.geometry):
        return [f"{what} lies on another grid than channel 0 ({differences[0]}): resample it"]
    if image.array.dtype.kind == "f" and not np.isfinite(image.array).all():
        return [f"{what} holds values that are not finite (NaN): replace them"]
    if image.array.min() == image.array.max():
        return [f"{what} is constant ({image.array.flat[0]} everywhere): is it the right file?"]
    return []


def _mask_problems(mask: Image, image: Image, labels: Labels) -> list[str]:
    problems = []
    if differences := mask.geometry.differences(image.geometry):
        problems.append(f"its mask lies on another grid than its image ({differences[0]}): resample it")
    values = np.unique(mask.array)
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
) -> tuple[Array, NDArray[np.uint8] | None, WayBack]:
    """The image (C, Z, Y, X) and mask (Z, Y, X) on the network's grid, and the way back.

    `channels` and `mask` are in the file's axis order. The crop depends on the image alone, so that a
    case to predict is treated as a training case is.
    """
    if len(channels) != len(preparation.normalisation):
        raise PwmlError(
            f"{len(channels)} channels were given, the plan expects {len(preparation.normalisation)}"
        )
    order = slice_order(preparation.slice_axis)
    volume = np.stack([c.astype(np.float32, copy=False) for c in channels]).transpose(
        0, *(1 + i for i in order)
    )
    head = foreground(volume[0])
    box = crop_box(volume[0], head, preparation)
    shape_yx = _grid_shape(box, geometry, preparation)
    way_back = WayBack(geometry, preparation.slice_axis, box, (volume.shape[1], *shape_yx))
    image = np.empty((len(channels), volume.shape[1], *shape_yx), np.float32)
    for index, name in enumerate(preparation.normalisation):
        normalised = NORMALISATIONS[name](volume[index], head)
        image[index] = resize_images(_crop(normalised, box, float(normalised.min())), shape_yx)
    if mask is None:
        return image, None, way_back
    return image, prepare_mask(mask, way_back), way_back


def prepare_mask(mask: NDArray[Any], way_back: WayBack) -> NDArray[np.uint8]:
    """A mask in the file's axis order on the network's grid."""
    ordered = mask.transpose(slice_order(way_back.slice_axis)).astype(np.uint8)
    return resize_mask(_crop(ordered, way_back.box_zyx, 0), way_back.slice_shape_yx)


def crop_box(volume: NDArray[Any], head: Mask, preparation: Preparation) -> Box:
    """The box that the preparation keeps of a volume (Z, Y, X); all slices stay."""
    whole = ((0, volume.shape[0]), (0, volume.shape[1]), (0, volume.shape[2]))
    if preparation.crop == "none":
        return whole
    if preparation.crop == "nonzero":
        return whole[0], *box_of(volume != volume.flat[0])[1:]
    return whole[0], *square_box(box_of(head), preparation.margin)[1:]


def _grid_shape(box: Box, geometry: Geometry, preparation: Preparation) -> tuple[int, int]:
    if preparation.long_side is not None:
        return preparation.long_side, preparation.long_side
    native_y, native_x = (stop - start for start, stop in box[1:])
    if preparation.spacing_yx_mm is None:
        return native_y, native_x
    _, row, column = slice_order(preparation.slice_axis)
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
    outside of the crop it is 0. The axes are the file's again.
    """
    order = slice_order(way_back.slice_axis)
    shape = [way_back.geometry.shape_zyx[i] for i in order]
    (_, _), *box_yx = way_back.box_zyx
    shape_yx = (box_yx[0][1] - box_yx[0][0], box_yx[1][1] - box_yx[1][0])
    resized = _resize_back(probability.float(), shape_yx)
    whole = torch.zeros(probability.shape[0], *shape)
    inside = [(max(start, 0), min(stop, size)) for (start, stop), size in zip(box_yx, shape[1:], strict=True)]
    (y0, y1), (x0, x1) = inside
    top, left = box_yx[0][0], box_yx[1][0]
    whole[..., y0:y1, x0:x1] = resized[..., y0 - top : y1 - top, x0 - left : x1 - left]
    return whole.permute(0, *(1 + order.index(axis) for axis in range(3))).contiguous()


def _resize_back(probability: Tensor, shape_yx: tuple[int, int]) -> Tensor:
    size = tuple(probability.shape[-2:])
    if size == shape_yx:
        return probability
    if shape_yx[0] <= size[0] and shape_yx[1] <= size[1]:
        return area_mean(probability, shape_yx)
    return torch.nn.functional.interpolate(probability, shape_yx, mode="bilinear", align_corners=False)


def preprocess_case(files: CaseFiles, labels: Labels | None, preparation: Preparation) -> PreprocessedCase:
    """A case read from its files, on the network's grid."""
    channels, mask = read_case(files, labels)
    geometry = channels[0].geometry
    reference = None if mask is None else mask.array.astype(np.uint8)
    image, prepared, way_back = prepare([c.array for c in channels], geometry, preparation, reference)
    facts = CaseFacts(files.name, files.subject, way_back, made_from(files, preparation))
    return PreprocessedCase(facts, image, prepared, reference)


def made_from(files: CaseFiles, preparation: Preparation) -> dict[str, Any]:
    """What a preprocessed case depends on: compared to see whether it must be made again."""
    paths: list[Path] = [*files.images, *([files.label] if files.label else [])]
    return {"preparation": preparation.to_dict(), "files": {p.name: _stamp(p) for p in paths}}


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
