"""Learning what candidates are: the recipe, the random changes of regions, the weights of classes, the steps."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample

from pwmlunet.config import Config
from pwmlunet.errors import PwmlError
from pwmlunet.inference.device import autocast, enough_memory, training_format
from pwmlunet.networks.correction import CorrectionConfig, CorrectionNetwork

REACH = 1.5
"""Side of the regions that are learned from, over that of the regions the network sees: turned by 45° or shifted, a
region still shows the image."""


_GRADIENT_NORM = 1.0  # gradients longer than this are shortened to it


@dataclass(frozen=True)
class CorrectionRecipe(Config):
    """How correction networks are trained; `correction/training.json` keeps it."""

    steps: int = 400
    """Steps, however many candidates there are."""
    batch_size: int = 32
    """Candidates in a step; all are seen once before any is seen again."""
    optimiser: Literal["adamw", "rmsprop"] = "adamw"
    """Adam with decoupled weight decay, or the paper's RMSProp with α .9."""
    learning_rate: float = 2e-3
    """The highest learning rate: it rises over `warmup_steps` and falls to 0 along a cosine."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = 1e-2
    """Weight decay."""
    weight_average: float = 0.98
    """Decay of the running mean of the weights, which is what is kept; 0 keeps the last weights."""
    class_balance: float = 0.5
    """How far classes weigh alike in the loss: 0 counts every candidate the same, 1 every class."""
    label_smoothing: float = 0.05
    """Share of the wanted probability that is spread over the classes that are there."""
    rotation_degrees: float = 180.0
    """Largest rotation either way, of each view in its own plane."""
    flip: bool = True
    """Mirror along each in-plane axis, and the order of neighbouring slices, half of the time each."""
    shift: float = 0.05
    """Largest shift along each axis, as a share of the region's side."""
    scaling: tuple[float, float] = (0.85, 1.18)
    """Smallest and largest factor by which a region is enlarged."""
    brightness: float = 0.02
    """Standard deviation of a shift of the intensities, which lie in [0, 1]; for each channel its own."""
    contrast: tuple[float, float] = (0.9, 1.1)
    """Smallest and largest factor of the contrast about a channel's mean."""
    gamma: tuple[float, float] = (0.9, 1.1)
    """Smallest and largest exponent of the intensities."""
    noise: float = 0.01
    """Largest standard deviation of added Gaussian noise."""
    channel_dropout: float | None = None
    """Share of candidates of which one or more of several channels, never all, are left out (0). Null for the run's."""
    seed: int = 0
    """Of the weights, the order and the random changes; the same seed gives the same network on a CPU."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto for a GPU where there is one."""

    def problems(self) -> Iterator[str]:
        """Values outside their range."""
        if self.steps < 1 or self.batch_size < 2:
            yield f"steps must be at least 1 and batch_size 2, not {self.steps} and {self.batch_size}"
        if self.learning_rate <= 0:
            yield f"learning_rate must be positive, not {self.learning_rate}"
        for name in (
            "warmup_steps",
            "weight_decay",
            "rotation_degrees",
            "shift",
            "brightness",
            "noise",
            "seed",
        ):
            if getattr(self, name) < 0:
                yield f"{name} cannot be negative"
        if not 0 <= (self.channel_dropout or 0) <= 1:
            yield f"channel_dropout must be from 0 to 1, not {self.channel_dropout}"
        for name in ("weight_average", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name} must be at least 0 and below 1, not {getattr(self, name)}"
        if not 0 <= self.class_balance <= 1:
            yield f"class_balance must be between 0 and 1, not {self.class_balance}"
        for name in ("scaling", "contrast", "gamma"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                yield f"{name} must be two positive numbers, the smaller one first, not {low}, {high}"


def learn(
    network_config: CorrectionConfig,
    regions: Tensor,
    classes: Tensor,
    n_classes: int,
    recipe: CorrectionRecipe,
    *,
    seed: int,
    device: torch.device,
) -> CorrectionNetwork:
    """The network that has learned the classes of candidates, on the device and ready to classify.

    Args:
        network_config: The network's sizes, and what it sees.
        regions: (N, V, C', Q, Q), Q = round(P · REACH): image channels in [0, 1], then mask, then probability.
        classes: (N,) integers below `n_classes`, 0 for no lesion; a class may be absent, and is then never named.
        n_classes: How many classes there are, class 0 included.
        recipe: How; its seed and device are the caller's to read.
        seed: Of everything random here; torch's own random numbers are left as they were.
        device: Where the network learns and stays.

    Raises:
        PwmlError: there are not two classes to tell apart, or the loss is not finite.
    """
    weights = class_weights(classes, n_classes, recipe.class_balance)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # of the first weights and of dropout
        network = network_config.build(regions.shape[2] - network_config.n_maps, n_classes).to(device)
        learning = _Learning(network, weights.to(device), recipe)
        generator = torch.Generator().manual_seed(seed)
        with enough_memory("take fewer candidates in a step (batch_size), or another device"):
            for chosen in _batches(len(classes), recipe, generator):
                wanted = classes[chosen].to(device, torch.long)
                seen = change(regions[chosen].to(device, torch.float32), network_config, recipe, generator)
                learning.step(seen, wanted)
    return learning.average.eval()


def class_weights(classes: Tensor, n_classes: int, balance: float) -> Tensor:
    """The weight of each class in the loss (n_classes,), n_c^−balance with a mean of 1 over the candidates; 0 if absent.

    Raises:
        PwmlError: there is no candidate, or all are of one class.
    """
    counts = torch.bincount(classes.long(), minlength=n_classes).float()
    if int((counts > 0).sum()) < 2:
        found = (
            f"all candidates are of class {int(classes[0])}" if len(classes) else "there are no candidates"
        )
        raise PwmlError(f"{found}, so there is nothing to tell apart: find more with a lower threshold, or train without a correction network")  # fmt: skip
    weights = torch.where(counts > 0, counts.clamp(min=1) ** -balance, 0.0)
    return weights * counts.sum() / (weights * counts).sum()


def weighted_loss(logits: Tensor, wanted: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """The mean of weighted cross-entropies; smoothing spreads probability over the classes that have a weight."""
    spread = (weights > 0).float() / (weights > 0).sum()
    target = (1 - smoothing) * nn.functional.one_hot(wanted, len(weights)) + smoothing * spread
    return (weights[wanted] * cross_entropy(logits.float(), target, reduction="none")).mean()


def change(
    regions: Tensor, config: CorrectionConfig, recipe: CorrectionRecipe, generator: torch.Generator
) -> Tensor:
    """Regions (B, V, C', P, P) for the network, from wider ones (B, V, C', Q, Q), changed at random as the recipe says."""
    moved = _move(regions, config, recipe, generator)
    image, maps = config.split(moved)
    return torch.cat((_recolour(image, recipe, generator), maps), 2)


def _move(
    regions: Tensor, config: CorrectionConfig, recipe: CorrectionRecipe, generator: torch.Generator
) -> Tensor:
    """Flips, rotation, scaling, shift and the crop to P × P as one interpolation."""
    n, n_views = regions.shape[:2]
    if recipe.flip and config.views == "slices":
        flipped = torch.rand(n, generator=generator) < 0.5
        regions = torch.where(_spread(flipped, regions), regions.flip(1), regions)
    n_planes = n_views if config.views == "planes" else 1  # neighbouring slices move together
    matrices = _matrices(n * n_planes, config.region_pixels / regions.shape[-1], recipe, generator)
    flat = regions.reshape(n * n_planes, -1, *regions.shape[3:])  # (B·planes, slices·C', Q, Q)
    shape = [len(flat), 1, config.region_pixels, config.region_pixels]
    grid = affine_grid(matrices.to(flat), shape, align_corners=False)
    moved = grid_sample(flat, grid, padding_mode="border", align_corners=False)
    return moved.view(*regions.shape[:3], *moved.shape[2:])


def _matrices(n: int, share: float, recipe: CorrectionRecipe, generator: torch.Generator) -> Tensor:
    """From a place in the network's region to the one in the wider region (n, 2, 3), both in units of half their side."""
    angle = _uniform(n, -recipe.rotation_degrees, recipe.rotation_degrees, generator) * math.pi / 180
    scale = share / torch.exp(
        _uniform(n, math.log(recipe.scaling[0]), math.log(recipe.scaling[1]), generator)
    )
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    flips = 1.0 - 2.0 * (torch.rand(2, n, generator=generator) < 0.5) * recipe.flip
    shifts = _uniform(2 * n, -recipe.shift, recipe.shift, generator).view(2, n) * 2 * share
    rows = ((flips[0] * cosine, -flips[0] * sine, shifts[0]), (flips[1] * sine, flips[1] * cosine, shifts[1]))
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _recolour(image: Tensor, recipe: CorrectionRecipe, generator: torch.Generator) -> Tensor:
    """Other intensities (B, V, C, P, P), of each channel by itself and alike in all views; some channels left out."""
    shape = (image.shape[0], 1, image.shape[2], 1, 1)

    def draw(low: float, high: float) -> Tensor:
        return (low + (high - low) * torch.rand(shape, generator=generator)).to(image)

    kept = _kept(image, recipe.channel_dropout or 0.0, generator)
    image = image.clamp(0, 1) ** draw(*map(math.log, recipe.gamma)).exp()
    mean = image.mean((1, 3, 4), keepdim=True)
    image = (image - mean) * draw(*map(math.log, recipe.contrast)).exp() + mean
    image = image + recipe.brightness * torch.randn(shape, generator=generator).to(image)
    noise = torch.randn(image.shape, generator=generator).to(image)
    return (image + draw(0, recipe.noise) * noise).clamp(0, 1) * kept


def _kept(image: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """1 for the channels that stay and 0 for those left out, (B, 1, C, 1, 1).

    Of a candidate that is chosen one channel stays of those that are there, another does not, and of the others half do.
    """
    present = image.amax((1, 3, 4), keepdim=True) > 0
    chosen = torch.rand(len(image), generator=generator).to(image).view(-1, 1, 1, 1, 1) < share
    draws = torch.rand(present.shape, generator=generator).to(image)
    last = draws == draws.where(present, -1.0).amax(2, keepdim=True)
    first = draws == draws.where(present, 2.0).amin(2, keepdim=True)
    stays = ~chosen | last | ((draws >= 0.5) & ~first)
    return (present & stays).to(image)


class _Learning:
    """A network, the running mean of its weights, and what changes both."""

    def __init__(self, network: CorrectionNetwork, weights: Tensor, recipe: CorrectionRecipe) -> None:
        self.network = network.train()
        self.average = copy.deepcopy(network).eval()
        self.weights = weights
        self.recipe = recipe
        self.optimiser = _optimiser(network, recipe)
        dtype = training_format(weights.device, "auto")
        self.dtype = torch.float32 if dtype == torch.float16 else dtype  # which would need its losses scaled
        self.n_steps = 0

    def step(self, regions: Tensor, wanted: Tensor) -> None:
        """One step down the loss of these regions."""
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        self.optimiser.zero_grad(set_to_none=True)
        with autocast(self.weights.device, self.dtype):
            logits = self.network(regions)
        loss = weighted_loss(logits, wanted, self.weights, self.recipe.label_smoothing)
        if not math.isfinite(value := float(loss.detach())):
            raise PwmlError(f"the loss of the correction network is {value} at step {self.n_steps}: look at the candidates' intensities, or take a lower learning_rate")  # fmt: skip
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), _GRADIENT_NORM)
        self.optimiser.step()
        self.n_steps += 1
        self._update_average()

    def _learning_rate(self) -> float:
        """Rising in the first steps, falling to 0 along a cosine."""
        warm = min(1.0, (self.n_steps + 1) / max(1, self.recipe.warmup_steps))
        return (
            self.recipe.learning_rate * warm * (1 + math.cos(math.pi * self.n_steps / self.recipe.steps)) / 2
        )

    @torch.no_grad()
    def _update_average(self) -> None:
        """Moves the averaged weights and statistics towards the current ones, faster in the beginning."""
        decay = min(self.recipe.weight_average, self.n_steps / (10 + self.n_steps))
        means, latest = self.average.state_dict(), self.network.state_dict()
        for name, mean in means.items():
            mean.lerp_(latest[name], 1 - decay) if mean.is_floating_point() else mean.copy_(latest[name])


def _optimiser(network: nn.Module, recipe: CorrectionRecipe) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimiser == "rmsprop":
        return torch.optim.RMSprop(network.parameters(), lr=rate, alpha=0.9, weight_decay=decay)
    return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)


def _batches(n: int, recipe: CorrectionRecipe, generator: torch.Generator) -> Iterator[Tensor]:
    """The numbers of the candidates of each step: all in a new order, again and again."""
    n_rounds = math.ceil(recipe.steps * recipe.batch_size / n)
    order = torch.cat([torch.randperm(n, generator=generator) for _ in range(n_rounds)])
    yield from torch.split(order[: recipe.steps * recipe.batch_size], recipe.batch_size)


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _spread(values: Tensor, image: Tensor) -> Tensor:
    return values.to(image.device)[:, None, None, None, None]
