"""TrainingConfig: the recipe of a training."""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from pwmlunet.config import Config
from pwmlunet.inference.device import Precision


@dataclass(frozen=True)
class AugmentationConfig(Config):
    """Random changes of training patches; a probability of 0 switches one off."""

    flip: bool = True
    """Mirror along each in-plane axis, and the order of the slices, half of the time each."""
    rotation_probability: float = 0.5
    """Share of patches that are rotated in the plane."""
    rotation_degrees: float = 20.0
    """Largest rotation either way."""
    scaling_probability: float = 0.5
    """Share of patches that are enlarged or shrunk."""
    scaling: tuple[float, float] = (0.8, 1.25)
    """Smallest and largest factor."""
    elastic_probability: float = 0.2
    """Share of patches that are deformed smoothly."""
    elastic_pixels: float = 3.0
    """Standard deviation of the displacement, which is drawn every 16 pixels and smooth between."""
    brightness_probability: float = 0.5
    """Share of patches whose intensities are shifted."""
    brightness: float = 0.2
    """Standard deviation of the shift, in standard deviations of the image."""
    contrast_probability: float = 0.5
    """Share of patches whose contrast is changed about their mean."""
    contrast: tuple[float, float] = (0.7, 1.4)
    """Smallest and largest factor."""
    gamma_probability: float = 0.3
    """Share of patches with a gamma curve over their range."""
    gamma: tuple[float, float] = (0.7, 1.5)
    """Smallest and largest exponent."""
    noise_probability: float = 0.3
    """Share of patches with added Gaussian noise."""
    noise: float = 0.15
    """Largest standard deviation of the noise."""
    blur_probability: float = 0.2
    """Share of patches that are smoothed by a Gaussian."""
    blur_pixels: tuple[float, float] = (0.4, 1.0)
    """Smallest and largest standard deviation."""
    low_resolution_probability: float = 0.15
    """Share of patches that are shrunk and enlarged again."""
    low_resolution: tuple[float, float] = (0.5, 0.9)
    """Smallest and largest factor."""
    paste_probability: float = 0.0
    """Share of lesion-free patches into which another patch's lesion is pasted."""
    channel_dropout: float = 0.0
    """Share of patches in which one or more of several channels, never all, are left out (zero, as prediction fills a
    channel that a case lacks)."""
    rich_rotation_degrees: tuple[float, float] | None = None
    """Smallest and largest rotation, either way, of every patch from a slice rich in tiny lesions, such as [5, 10]; null
    rotates these as the others."""

    def problems(self) -> Iterator[str]:
        """Values outside their range."""
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_probability") and not 0 <= value <= 1:
                yield f"{item.name} must be between 0 and 1, not {value}"
        for name in ("scaling", "contrast", "gamma", "blur_pixels", "low_resolution"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                yield f"{name} must be two positive numbers, the smaller one first, not {low}, {high}"
        if not 0 <= self.channel_dropout <= 1:
            yield f"channel_dropout must be between 0 and 1, not {self.channel_dropout}"
        low, high = self.rich_rotation_degrees or (0.0, 0.0)
        if not 0 <= low <= high <= 180:
            yield f"rich_rotation_degrees must be two numbers from 0 to 180, the smaller one first, not {low}, {high}"


@dataclass(frozen=True)
class TrainingConfig(Config):
    """How a network is trained; `training.json` keeps it beside the weights."""

    configuration: str
    """The plan's configuration."""
    loss: str = ""
    """A loss or a weighted sum: "sbfl + 0.5*dice"; empty takes the plan's."""
    epochs: int = 40
    """Epochs; an epoch is a number of steps, not a pass over the data."""
    steps_per_epoch: int = 25
    """Steps in an epoch."""
    batch_size: int | None = None
    """Patches in a step; null takes the plan's."""
    optimiser: Literal["adamw", "adam", "sgd", "rmsprop"] = "adamw"
    """Adam with decoupled weight decay, Adam, stochastic gradient descent with momentum .9, or RMSprop with alpha .9."""
    learning_rate: float = 2e-3
    """The highest learning rate."""
    weight_decay: float = 1e-2
    """Weight decay."""
    schedule: Literal["cosine", "constant", "plateau"] = "cosine"
    """Falling to 0 along a cosine; constant; or halved when the loss has not fallen for `plateau_epochs`."""
    plateau_epochs: int = 5
    """Epochs without a lower loss after which the schedule "plateau" halves the rate, or the curriculum goes on."""
    warmup_steps: int = 25
    """Steps over which the learning rate rises from 0."""
    gradient_norm: float = 1.0
    """Gradients longer than this are shortened to it; 0 leaves them."""
    weight_average: float = 0.99
    """Decay of the running mean of the weights, which is what is kept; 0 keeps the last weights."""
    lesion_share: float = 0.6
    """Share of patches drawn around a lesion; the others hold none where possible."""
    curriculum: bool = False
    """Whether patches with a lesion come from the slices richest in tiny lesions until the loss has not fallen for
    `plateau_epochs`, half of the epochs at most, and from all slices after that."""
    checkpoint: Literal["best", "last"] = "best"
    """Which weights are kept: the best on the held-out slices by lesion F1, or the last."""
    validate_every: int = 5
    """Epochs between two looks at the held-out slices."""
    save_every_seconds: float = 300.0
    """Seconds between two saves of everything that is needed to go on."""
    seed: int = 0
    """Of the weights, the patches and their augmentation; the same seed gives the same run on a CPU."""
    pretrained: Path | None = None
    """A file of weights that the first step starts from, as far as they fit; read when a training begins, and never again."""
    workers: int = 0
    """Processes that draw patches; 0 draws them in the training process."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto for a GPU where there is one."""
    precision: Precision = "auto"
    """Format of the network's arithmetic."""
    compile: bool = False
    """Whether torch.compile is tried; without it when the trial fails."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Random changes of the patches."""

    def problems(self) -> Iterator[str]:
        """Values outside their range."""
        from pwmlunet.training.losses import parse_loss

        if self.loss:
            parse_loss(self.loss)
        for name in ("epochs", "steps_per_epoch", "plateau_epochs", "validate_every"):
            if getattr(self, name) < 1:
                yield f"{name} must be at least 1, not {getattr(self, name)}"
        if self.curriculum and self.epochs < 2:
            yield "curriculum needs two epochs or more: one for each of its parts"
        if self.batch_size is not None and self.batch_size < 1:
            yield f"batch_size must be at least 1, not {self.batch_size}"
        if self.learning_rate <= 0:
            yield f"learning_rate must be positive, not {self.learning_rate}"
        if self.weight_decay < 0 or self.gradient_norm < 0:
            yield "weight_decay and gradient_norm cannot be negative"
        if not 0 <= self.lesion_share <= 1:
            yield f"lesion_share must be between 0 and 1, not {self.lesion_share}"
        if not 0 <= self.weight_average < 1:
            yield f"weight_average must be at least 0 and below 1, not {self.weight_average}"
        if self.workers < 0 or self.seed < 0:
            yield "workers and seed cannot be negative"


_PAPER_AUGMENTATION = replace(
    AugmentationConfig(),
    rotation_degrees=10.0,
    scaling=(0.95, 1.05),
    elastic_probability=0.0,
    brightness_probability=0.0,
    contrast=(0.8, 1.2),
    gamma_probability=0.0,
    noise_probability=0.0,
    blur_probability=0.0,
    low_resolution_probability=0.0,
)

RECIPES = {
    "default": TrainingConfig(""),
    "trident_paper": TrainingConfig(
        "",
        loss="sbfl",
        epochs=50,
        steps_per_epoch=50,
        batch_size=8,
        optimiser="adam",
        learning_rate=2e-4,
        weight_decay=0.0,
        schedule="plateau",
        warmup_steps=0,
        gradient_norm=0.0,
        weight_average=0.0,
        lesion_share=1.0,
        augmentation=_PAPER_AUGMENTATION,
    ),
}
"""Recipes by name: the one the evidence supports, and that of Liu et al. 2019."""
