"""Plan: everything that was decided about a dataset, each decision with its reason."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pwmlunet.config import Config, did_you_mean, join
from pwmlunet.data.dataset import Labels, read_dataset_json
from pwmlunet.errors import PwmlError
from pwmlunet.files import write_json
from pwmlunet.networks.base import NetworkConfig
from pwmlunet.networks.correction import CorrectionConfig
from pwmlunet.planning.density import DensityConfig
from pwmlunet.planning.fingerprint import ChannelFacts
from pwmlunet.planning.preprocessing import Preparation

PLANNED = (
    "trident",
    "resunet_2d",
    "unet_2d",
    "primary_2d",
    "two_stage",
    "priority_2d",
    "log_odds_2d",
    "resunet_3d",
)
"""The names of all configurations that a plan may have."""


@dataclass(frozen=True)
class Decision(Config):
    """One decision in words."""

    topic: str
    """What was decided about."""
    choice: str
    """What was decided."""
    reason: str
    """The rule and the facts behind it."""


@dataclass(frozen=True)
class ChannelTraits(Config):
    """What tells a channel from the others, over the training cases: three shapes of its intensities, and its level."""

    usual: tuple[float, float, float, float]
    """The medians."""
    spread: tuple[float, float, float, float]
    """How far cases lie from them: standard deviations, and more where cases are few."""


@dataclass(frozen=True)
class ExpectedInput(Config):
    """What images to predict should be like: those that the network was trained on."""

    spacing_low_zyx_mm: tuple[float, float, float]
    """The smallest spacing along each of the file's axes."""
    spacing_high_zyx_mm: tuple[float, float, float]
    """The largest."""
    channels: tuple[ChannelFacts, ...]
    """Medians over the training cases of the intensities inside the head."""
    lesion_quartiles_mm3: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    """Quartiles of the training lesions' volumes by target: the bins of scores by size."""
    traits: tuple[ChannelTraits, ...] = ()
    """What tells each of several channels from the others; empty for one, and in plans of older versions."""


@dataclass(frozen=True)
class Configuration(Config):
    """One way to train and predict: a network with its patches."""

    preparation: str
    """Which of the plan's preparations its cases have."""
    patch_size_yx: tuple[int, int]
    """In-plane size of a training patch, in pixels of the prepared grid."""
    batch_size: int
    """Patches in a training step."""
    network: NetworkConfig
    """The network."""
    slice_step: int = 1
    """Distance in slices between the neighbours that the network sees together."""
    tiles: Literal["slice", "patch", "trident"] = "slice"
    """Prediction of whole slices, of overlapping patches weighted by a Gaussian, or as Liu et al.'s code does."""
    patch_slices: int = 1
    """Slices that a training patch labels at once; more than one for networks of volumes."""
    prior: DensityConfig | None = None
    """How the prior density of lesions is made, for a network that takes one."""
    channels: tuple[int, ...] | None = None
    """Numbers of the dataset's channels that the network sees, rising; null for all."""
    loss: str = "sbfl"
    """What the network is trained by where nothing else is asked for."""
    finds: Literal["each", "any"] = "each"
    """One output for each target, or one for any lesion, which the first target stands for until a correction network
    names the kind."""

    def problems(self) -> Iterator[str]:
        """Sentences about values that contradict each other."""
        stride = self.network.stride
        if any(size < stride or size % stride for size in self.patch_size_yx):
            yield f"patch_size_yx {join(self.patch_size_yx)} must be multiples of the network's deepest stride, {stride}"
        if self.batch_size < 1 or self.slice_step < 1:
            yield "batch_size and slice_step must be at least 1"
        depth = self.network.slice_stride
        if self.patch_slices < depth or self.patch_slices % depth:
            yield f"patch_slices {self.patch_slices} must be a multiple of the network's stride through slices, {depth}"
        if self.patch_slices > 1 and (self.network.n_slices > 1 or self.slice_step > 1):
            yield "patch_slices above 1 is for networks of volumes: n_slices and slice_step must be 1"
        if self.network.takes_prior and self.prior is None:
            yield 'the network takes a prior density: say how it is made ("prior": {} for the defaults)'
        if self.prior is not None and not self.network.takes_prior:
            yield 'the network takes no prior density: remove "prior", or choose a network of type priority'
        yield from _channel_problems(self.channels)


def see(image: Any, configuration: Configuration) -> Any:
    """The channels of an array or tensor (C, …) that a configuration's network sees; a view where they are evenly spaced."""
    numbers = configuration.channels
    if numbers is None:
        return image
    steps = {after - before for before, after in pairwise(numbers)} or {1}
    return image[numbers[0] : numbers[-1] + 1 : steps.pop()] if len(steps) == 1 else image[list(numbers)]


def _channel_problems(channels: tuple[int, ...] | None) -> Iterator[str]:
    """Sentences about numbers of channels that no image can have."""
    if channels is None:
        return
    if not channels or channels[0] < 0 or any(after <= before for before, after in pairwise(channels)):
        yield f"channels [{join(channels)}] must be rising numbers from 0 on, one at least; null means all"


@dataclass(frozen=True)
class Plan(Config):
    """A dataset's preparations and configurations.

    In `plan.json` a configuration may inherit: {"inherits": "trident", "network": {"width": 64}} is the
    configuration trident but for the network's width.
    """

    dataset: str
    """The raw dataset's folder name."""
    channel_names: tuple[str, ...]
    """In the order of the image files."""
    default: str
    """The configuration that is meant where none is named."""
    preparations: dict[str, Preparation]
    """By name; configurations share them, so that cases are prepared once."""
    configurations: dict[str, Configuration]
    """By name."""
    expected_input: ExpectedInput
    """What images to predict should be like."""
    n_folds: int = 5
    """Folds of subjects; fewer where there are fewer subjects."""
    smallest_lesion_mm3: float = 0.0
    """Smaller components of a prediction are removed until pwml_find_best knows better (mm² for 2-D images)."""
    correction: CorrectionConfig | None = None
    """The network that judges candidates after any configuration; null where none was planned."""
    decisions: tuple[Decision, ...] = field(default=())
    """Why the plan is as it is; for people, nothing reads it."""

    def problems(self) -> Iterator[str]:
        """Sentences about values that contradict each other."""
        if self.default not in self.configurations:
            yield f"default {self.default!r} is not a configuration{did_you_mean(self.default, self.configurations)}"
        for name, configuration in self.configurations.items():
            if configuration.preparation not in self.preparations:
                yield f"configuration {name!r} names the preparation {configuration.preparation!r}, which is not there"
            yield from self._unknown_channels(f"configuration {name!r}", configuration.channels)
        if self.correction is not None:
            yield from self._unknown_channels("correction", self.correction.channels)
        for name, preparation in self.preparations.items():
            if len(preparation.normalisation) != len(self.channel_names):
                yield f"preparation {name!r} needs one normalisation for each of {len(self.channel_names)} channels"

    def _unknown_channels(self, what: str, channels: tuple[int, ...] | None) -> Iterator[str]:
        known = join(f"{number} ({name})" for number, name in enumerate(self.channel_names))
        for number in channels or ():
            if number >= len(self.channel_names):
                yield f"{what} sees channel {number}, which is not there (known: {known})"

    @classmethod
    def from_dict(cls, values: Any, where: str) -> "Plan":
        """The plan in parsed JSON, inheritance resolved."""
        if isinstance(values, Mapping) and isinstance(values.get("configurations"), Mapping):
            raw = values["configurations"]
            values = {**values, "configurations": {name: _inherit(name, raw, where, ()) for name in raw}}
        return super().from_dict(values, where)

    def configuration(self, name: str | None) -> tuple[str, Configuration]:
        """A configuration by name, the default one without, and its name."""
        chosen = name or self.default
        if chosen not in self.configurations:
            if chosen in PLANNED:
                raise PwmlError(f"unknown configuration {chosen!r} (known: {join(self.configurations)}); a plan made by an older version may lack it: make a new one with --replan")  # fmt: skip
            raise PwmlError(f"unknown configuration {chosen!r}{did_you_mean(chosen, self.configurations)}")
        return chosen, self.configurations[chosen]


def _inherit(name: str, raw: Mapping[str, Any], where: str, children: tuple[str, ...]) -> Any:
    """A configuration's values laid over those of the one it inherits from."""
    own = raw[name]
    if not isinstance(own, Mapping) or "inherits" not in own:
        return own
    parent = str(own["inherits"])
    if parent not in raw:
        raise PwmlError(
            f"{where}: configuration {name!r} inherits from {parent!r}{did_you_mean(parent, raw)}"
        )
    if parent in (*children, name):
        raise PwmlError(f"{where}: configuration {name!r} inherits from itself")
    inherited = _inherit(parent, raw, where, (*children, name))
    return _overlay(inherited, {key: value for key, value in own.items() if key != "inherits"})


def _overlay(below: Any, above: Any) -> Any:
    """`above` where it says something, else `below`; a network of another type replaces it whole."""
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    if "type" in above and above["type"] != below.get("type"):
        return above
    return {**below, **{key: _overlay(below.get(key), value) for key, value in above.items()}}


def written_with_inheritance(plan: Plan, parents: Mapping[str, str]) -> dict[str, Any]:
    """The plan's JSON in which each configuration of `parents` says only what differs from its parent."""
    values = plan.to_dict()
    whole = values["configurations"]
    shown = {
        name: {"inherits": parents[name], **_differences(whole[parents[name]], whole[name])}
        if name in parents
        else whole[name]
        for name in whole
    }
    return {**values, "configurations": shown}


def _differences(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    if below.get("type") != above.get("type"):
        return dict(above)
    return {
        key: _differences(below[key], value) if isinstance(value, Mapping) else value
        for key, value in above.items()
        if value != below.get(key)
    }


def write_plan(path: Path, plan: Plan, parents: Mapping[str, str]) -> None:
    """Writes plan.json, configurations inheriting as `parents` (child → parent) says."""
    write_json(path, written_with_inheritance(plan, parents))


def read_labels(path: Path) -> Labels:
    """The labels in a dataset.json that was checked when the dataset was planned."""
    content = read_dataset_json(path)
    return Labels.from_json(content["labels"], content.get("regions_class_order"), str(path))
