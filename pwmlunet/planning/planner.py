"""From the facts of a dataset and a memory budget to a plan, with the reasons."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.sizes import quartiles_mm3
from pwmlunet.networks.base import DenseConfig
from pwmlunet.networks.priority import PriorityConfig
from pwmlunet.networks.trident import TridentConfig
from pwmlunet.networks.two_stage import TwoStageConfig
from pwmlunet.networks.unet import UNetConfig
from pwmlunet.planning.budget import BATCH_3D, Budget, Step
from pwmlunet.planning.density import DensityConfig
from pwmlunet.planning.fingerprint import ChannelFacts, Fingerprint, channel_traits
from pwmlunet.planning.modality import recognise_ultrasound
from pwmlunet.planning.plan import ChannelTraits, Configuration, Decision, ExpectedInput, Plan
from pwmlunet.planning.preprocessing import Preparation
from pwmlunet.planning.rules import Rules, in_mm
from pwmlunet.planning.rules_correction import correction, primary_channels, tells_kinds_apart
from pwmlunet.planning.rules_mr import MrRules, find_slice_axis
from pwmlunet.planning.rules_ultrasound import UltrasoundRules

_LEAST_SPREAD, _SPREAD_OF_ONE = 0.03, 0.3  # of channels' traits, of which few cases show little
_PAPER_BATCH = 8  # Liu et al. 2019
_PRIMARY = "primary_2d"


def make_plan(fingerprint: Fingerprint, budget: Budget) -> Plan:
    """The plan for a dataset.

    Raises:
        PwmlError: no network fits the budget, or cases do not belong together.
    """
    rules = _choose_rules(fingerprint)
    preparation = rules.preparation()
    neighbours = rules.neighbours()
    n_stages = rules.n_stages(preparation)
    patch = rules.patch(preparation, 2 ** (n_stages - 1))
    prior, prior_helps = rules.prior(preparation)
    networks = _slice_networks(neighbours[0], rules.two_stage(preparation, patch, n_stages), prior)
    seen = primary_channels(rules)
    if tells_kinds_apart(rules):
        networks[_PRIMARY] = UNetConfig(n_stages=n_stages, head_convolutions=2)
    configurations = _slice_configurations(rules, budget, networks, patch, neighbours[1], prior, seen)
    widest = max(c.network.width for c in configurations.values() if isinstance(c.network, DenseConfig))
    configurations |= _volume_configuration(rules, budget, preparation, n_stages, widest)
    loss = rules.loss()
    configurations = {
        name: c if isinstance(c.network, TwoStageConfig) else replace(c, loss=loss)
        for name, c in configurations.items()
    }
    return Plan(
        fingerprint.dataset,
        fingerprint.channel_names,
        rules.default(prior_helps=prior_helps),
        {"slices": preparation},
        configurations,
        _expected_input(fingerprint),
        rules.n_folds(),
        rules.smallest_lesion_mm3(),
        correction(rules, neighbours[0]),
        tuple(rules.decisions),
    )


def parents_of(plan: Plan) -> dict[str, str]:
    """The configurations that plan.json writes as differences from another, and from which."""
    pairs = {"resunet_2d": "trident", "log_odds_2d": "priority_2d", _PRIMARY: "unet_2d"}
    there = plan.configurations
    return {child: parent for child, parent in pairs.items() if child in there and parent in there}


def _choose_rules(fingerprint: Fingerprint) -> Rules:
    is_ultrasound, reason = recognise_ultrasound(
        fingerprint.channel_names, [case.has_fan for case in fingerprint.cases]
    )
    modality = Decision("modality", "ultrasound" if is_ultrasound else "MR or like it", reason)
    if is_ultrasound:
        return UltrasoundRules(fingerprint, [modality])
    slice_axis, decision = find_slice_axis(fingerprint)
    return MrRules(fingerprint, slice_axis, [modality, decision])


def _slice_networks(
    n_slices: int, two_stage: TwoStageConfig, prior: DensityConfig | None
) -> dict[str, DenseConfig]:
    """The networks of slices by the name of their configuration, all as deep as the two-stage one."""
    n_stages = two_stage.n_stages
    trident = TridentConfig(n_slices=max(3, n_slices), n_stages=n_stages)
    networks: dict[str, DenseConfig] = {
        "trident": trident,
        "resunet_2d": replace(trident, n_slices=1),
        "unet_2d": UNetConfig(n_stages=n_stages),
        "two_stage": two_stage,
    }
    if prior is not None:
        networks["priority_2d"] = PriorityConfig(n_stages=n_stages)
        networks["log_odds_2d"] = PriorityConfig(n_stages=n_stages, enters="log_odds")
    return networks


def _slice_configurations(
    rules: Rules,
    budget: Budget,
    networks: Mapping[str, DenseConfig],
    patch: tuple[int, int],
    slice_step: int,
    prior: DensityConfig | None,
    primary: tuple[int, ...] | None,
) -> dict[str, Configuration]:
    """Networks of slices: the leading one decides the width, the others take it with as many patches as fit."""
    leading = next(name for name in rules.leading if name in networks)
    first = _widest(rules, budget, networks[leading], patch)
    configurations = {}
    for name, network in networks.items():
        step = first if name == leading else _most_patches(rules, budget, network, patch, first)
        if not budget.holds(step):
            rules.decide(name, "not planned", f"one patch needs {step.needed_gb:.2f} GB a step")
            continue
        if (step.width, step.batch_size) != (first.width, first.batch_size):
            rules.decide(name, f"{step.width} channels, batch {step.batch_size}", f"{step.needed_gb:.2f} GB a step: it keeps more for each patch")  # fmt: skip
        sized = replace(network, width=step.width, norm="instance" if step.batch_size == 1 else network.norm)
        density = prior if sized.takes_prior else None
        configurations[name] = Configuration(
            "slices",
            patch,
            step.batch_size,
            sized,
            slice_step if sized.n_slices > 1 else 1,
            prior=density,
            channels=primary if name == _PRIMARY else None,
            finds="any" if name == _PRIMARY else "each",
        )
    return configurations


def _widest(rules: Rules, budget: Budget, network: DenseConfig, patch: tuple[int, int]) -> Step:
    """The widest network whose step fits the budget, with the paper's batch if possible."""
    narrowest = budget.widths[-1]
    choices = [*((width, _PAPER_BATCH) for width in budget.widths), (narrowest, 4), (narrowest, 2)]
    patch_zyx = (network.n_slices, *patch)
    step = budget.first_that_fits(network, patch_zyx, len(rules.channel_names), choices)
    if not budget.holds(step):
        raise PwmlError(f"the smallest network needs {step.needed_gb:.2f} GB a step: raise --memory-gb")
    rules.decide("width and batch", f"{step.width} channels, batch {step.batch_size}", f"{step.needed_gb:.2f} GB a step, measured, of {budget.memory_gb:.3g} GB ({budget.reason})")  # fmt: skip
    return step


def _most_patches(
    rules: Rules, budget: Budget, network: DenseConfig, patch: tuple[int, int], first: Step
) -> Step:
    """The leading network's width with as many of its patches as fit; narrower where not even one does."""
    choices = [
        *((first.width, batch_size) for batch_size in (8, 4, 2, 1) if batch_size <= first.batch_size),
        *((width, 1) for width in budget.widths if width < first.width),
    ]
    patch_zyx = (network.n_slices, *patch)
    return budget.first_that_fits(network, patch_zyx, len(rules.channel_names), choices)


def _volume_configuration(
    rules: Rules, budget: Budget, preparation: Preparation, n_stages: int, widest: int
) -> dict[str, Configuration]:
    """The 3-D network with the largest patch that fits; none where there are few slices or little memory."""
    network = rules.volume(preparation, n_stages)
    if network is None:
        return {}
    spacing_zyx_mm = rules.grid_spacing_zyx_mm(preparation)
    shape_zyx = rules.grid_shape_zyx(preparation)
    step, patch_zyx = budget.fit_volume(network, spacing_zyx_mm, shape_zyx, len(rules.channel_names), widest)
    if not budget.holds(step):
        rules.decide("3-D network", "none", f"its smallest step needs {step.needed_gb:.2f} GB")
        return {}
    z, y, x = patch_zyx
    size_mm = in_mm([n * mm for n, mm in zip(patch_zyx, spacing_zyx_mm, strict=True)])
    flat = f"{network.n_flat_stages} of {n_stages - 1} halvings leave slices alone, which are thick or few" if network.n_flat_stages else "voxels are nearly cubes: every halving is of all axes"  # fmt: skip
    rules.decide("3-D network", f"patch {z} × {y} × {x}, {step.width} channels, batch {BATCH_3D}", f"{size_mm} mm, {step.needed_gb:.2f} GB a step; {flat}")  # fmt: skip
    sized = replace(network, width=step.width)
    return {"resunet_3d": Configuration("slices", (y, x), BATCH_3D, sized, patch_slices=z, tiles="patch")}


def _expected_input(fingerprint: Fingerprint) -> ExpectedInput:
    spacings = [case.geometry.spacing_zyx_mm for case in fingerprint.cases]
    (z0, y0, x0), (z1, y1, x1) = np.min(spacings, axis=0).tolist(), np.max(spacings, axis=0).tolist()
    n_channels = len(fingerprint.channel_names)
    channels = tuple(_median_facts([c.channels[i] for c in fingerprint.cases]) for i in range(n_channels))
    volumes: dict[str, list[float]] = {}
    for lesion in fingerprint.lesions:
        volumes.setdefault(lesion.target, []).append(lesion.volume_mm3)
    quartiles = {target: quartiles_mm3(sizes) for target, sizes in volumes.items()}
    traits = usual_traits([case.channels for case in fingerprint.cases]) if n_channels > 1 else ()
    return ExpectedInput((z0, y0, x0), (z1, y1, x1), channels, quartiles, traits)


def usual_traits(cases: Sequence[Sequence[ChannelFacts]]) -> tuple[ChannelTraits, ...]:
    """What tells the channels of some cases from each other, and how much of it is chance."""
    seen = np.array([channel_traits(facts) for facts in cases])  # (N, C, 4)
    unknown = _LEAST_SPREAD + _SPREAD_OF_ONE / len(seen)
    spreads = np.hypot(seen.std(0), unknown)
    return tuple(
        ChannelTraits(tuple(usual.tolist()), tuple(spread.tolist()))
        for usual, spread in zip(np.median(seen, 0), spreads, strict=True)
    )


def _median_facts(facts: Sequence[ChannelFacts]) -> ChannelFacts:
    rows = [(f.mean, f.std, *f.percentiles) for f in facts]
    mean, std, low, middle, high = np.median(rows, axis=0).tolist()
    return ChannelFacts(mean, std, (low, middle, high))
