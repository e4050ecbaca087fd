"""Random changes of training patches, for a whole batch at once and on the training device."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import conv2d, grid_sample, interpolate, pad

from pwmlunet.networks.base import Batch
from pwmlunet.training.config import AugmentationConfig
from pwmlunet.training.pasting import paste_lesions

_ELASTIC_GRID = 16  # pixels between the nodes of the displacement


class Augmenter:
    """Changes a batch; all slices of a patch move together, and so do target and valid.

    Channels beyond the first `n_channels`, a prior density, move too and are left as they are otherwise.
    Patches from rich slices (`rich`, (B,)) may be rotated in their own way.
    Random numbers come from one CPU generator, so that a batch is changed alike on every device; only
    noise is drawn on the device itself.
    """

    def __init__(self, config: AugmentationConfig, n_channels: int | None = None) -> None:
        self.config = config
        self.n_channels = n_channels

    def __call__(self, batch: Batch, generator: torch.Generator, rich: Tensor | None = None) -> Batch:
        """The changed batch; the given one is left as it is."""
        config, n = self.config, self.n_channels
        if config.paste_probability:
            shown = Batch(batch.image[:, :n], batch.target, batch.valid)
            pasted = paste_lesions(shown, config.paste_probability, generator)
            image = batch.image.clone()
            image[:, :n] = pasted.image
            batch = Batch(image, pasted.target, pasted.valid)
        moved, target, valid = self._move(batch, generator, rich)
        image = moved[:, :n]
        steps: list[tuple[float, Callable[[Tensor, torch.Generator], Tensor]]] = [
            (config.blur_probability, self._blur),
            (config.low_resolution_probability, self._low_resolution),
            (config.gamma_probability, self._gamma),
            (config.contrast_probability, self._contrast),
            (config.brightness_probability, self._brightness),
            (config.noise_probability, self._noise),
        ]
        for probability, step in steps:
            chosen = torch.rand(len(image), generator=generator) < probability
            if chosen.any():
                image[chosen] = step(image[chosen], generator)
        if config.channel_dropout:
            image[self._left_out(len(image), image.shape[1], generator)] = 0.0
        return Batch(moved, target, valid)

    def _left_out(self, n: int, n_channels: int, generator: torch.Generator) -> Tensor:
        """Which channels of which patches are left out, (B, C): one or more of a patch, never all."""
        chosen = torch.rand(n, generator=generator) < self.config.channel_dropout
        how_many = torch.randint(1, n_channels, (n,), generator=generator)
        places = torch.rand(n, n_channels, generator=generator).argsort(1).argsort(1)
        return chosen[:, None] & (places < how_many[:, None])

    def _move(
        self, batch: Batch, generator: torch.Generator, rich: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Flips, rotation, scaling and deformation as one interpolation."""
        labels = torch.cat([batch.target, batch.valid], 1)
        image, labels = self._flip_slices(batch.image, labels, generator)
        n, device = len(image), image.device
        grid = self._grid(n, image.shape[-2], image.shape[-1], generator, rich).to(device)
        # (B, C, Z, Y, X) → (B, C·Z, Y, X): one grid for all channels and slices of a patch
        moved = grid_sample(image.flatten(1, 2), grid, padding_mode="border", align_corners=False)
        labelled = grid_sample(labels.flatten(1, 2), grid, padding_mode="border", align_corners=False)
        labelled = labelled.view_as(labels)
        target, valid = labelled[:, :-1], (labelled[:, -1:] > 0.999).to(labels)
        return moved.view_as(image), target, valid

    def _flip_slices(
        self, image: Tensor, labels: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        if not self.config.flip or image.shape[2] == 1:
            return image.clone(), labels
        chosen = (torch.rand(len(image), generator=generator) < 0.5).to(image.device)
        chosen = chosen[:, None, None, None, None]
        return torch.where(chosen, image.flip(2), image), torch.where(chosen, labels.flip(2), labels)

    def _grid(
        self, n: int, height: int, width: int, generator: torch.Generator, rich: Tensor | None
    ) -> Tensor:
        """Where each output pixel comes from, (B, Y, X, 2) in units of half an image, x first."""
        config = self.config
        angle = self._angles(n, generator, rich)
        scale = torch.exp(_uniform(n, math.log(config.scaling[0]), math.log(config.scaling[1]), generator))
        scale = torch.where(torch.rand(n, generator=generator) < config.scaling_probability, scale, 1.0)
        flips = 1.0 - 2.0 * (torch.rand(2, n, generator=generator) < 0.5) * config.flip
        cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
        zero = torch.zeros(n)
        rows = [
            torch.stack([cosine * flips[0], -sine * height / width * flips[0], zero], 1),
            torch.stack([sine * width / height * flips[1], cosine * flips[1], zero], 1),
        ]
        grid = torch.nn.functional.affine_grid(
            torch.stack(rows, 1), [n, 1, height, width], align_corners=False
        )
        chosen = torch.rand(n, generator=generator) < config.elastic_probability
        if chosen.any():
            grid[chosen] += self._displacement(int(chosen.sum()), height, width, generator)
        return grid

    def _angles(self, n: int, generator: torch.Generator, rich: Tensor | None) -> Tensor:
        """The rotation of each patch in radians."""
        config = self.config
        angle = _uniform(n, -config.rotation_degrees, config.rotation_degrees, generator) * math.pi / 180
        angle = angle * (torch.rand(n, generator=generator) < config.rotation_probability)
        if config.rich_rotation_degrees is None or rich is None:
            return angle
        size = _uniform(n, *config.rich_rotation_degrees, generator) * math.pi / 180
        either_way = 1.0 - 2.0 * (torch.rand(n, generator=generator) < 0.5)
        return torch.where(rich, size * either_way, angle)

    def _displacement(self, n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        nodes = (max(2, height // _ELASTIC_GRID), max(2, width // _ELASTIC_GRID))
        coarse = torch.randn(n, 2, *nodes, generator=generator) * self.config.elastic_pixels
        smooth = interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
        return smooth.permute(0, 2, 3, 1) * torch.tensor([2 / width, 2 / height])

    def _blur(self, image: Tensor, generator: torch.Generator) -> Tensor:
        sigma = _uniform(len(image), *self.config.blur_pixels, generator)
        radius = math.ceil(3 * self.config.blur_pixels[1])
        place = torch.arange(-radius, radius + 1)
        kernel = torch.exp(-0.5 * (place / sigma[:, None]) ** 2)
        kernel = (kernel / kernel.sum(1, keepdim=True)).to(image)
        # (b, C, T, Y, X) → (C·T, b, Y, X): a group for each patch, as each has its own kernel
        slices = pad(image.flatten(1, 2).transpose(0, 1), (radius,) * 4, mode="replicate")
        slices = conv2d(slices, kernel[:, None, :, None], groups=len(image))
        slices = conv2d(slices, kernel[:, None, None, :], groups=len(image))
        return slices.transpose(0, 1).view_as(image)

    def _low_resolution(self, image: Tensor, generator: torch.Generator) -> Tensor:
        factors = _uniform(len(image), *self.config.low_resolution, generator)
        return torch.stack([_coarsen(patch, float(f)) for patch, f in zip(image, factors, strict=True)])

    def _gamma(self, image: Tensor, generator: torch.Generator) -> Tensor:
        gamma = _spread(_uniform(len(image), *self.config.gamma, generator), image)
        low = image.amin((2, 3, 4), keepdim=True)
        size = (image.amax((2, 3, 4), keepdim=True) - low).clamp(min=1e-6)
        return ((image - low) / size).clamp(min=0).pow(gamma) * size + low

    def _contrast(self, image: Tensor, generator: torch.Generator) -> Tensor:
        factor = _spread(_uniform(len(image), *self.config.contrast, generator), image)
        mean = image.mean((2, 3, 4), keepdim=True)
        return (image - mean) * factor + mean

    def _brightness(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return image + _spread(torch.randn(len(image), generator=generator) * self.config.brightness, image)

    def _noise(self, image: Tensor, generator: torch.Generator) -> Tensor:
        sigma = _spread(_uniform(len(image), 0.0, self.config.noise, generator), image)
        on_device = torch.Generator(image.device)
        on_device.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        return image + torch.randn(image.shape, generator=on_device, device=image.device) * sigma


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _spread(values: Tensor, image: Tensor) -> Tensor:
    """One value a patch, shaped to meet (b, C, T, Y, X)."""
    return values.to(image)[:, None, None, None, None]


def _coarsen(patch: Tensor, factor: float) -> Tensor:
    size = patch.shape[-2:]
    small = [max(2, round(s * factor)) for s in size]
    shrunk = interpolate(patch, small, mode="bilinear", align_corners=False)
    return interpolate(shrunk, list(size), mode="bilinear", align_corners=False)
