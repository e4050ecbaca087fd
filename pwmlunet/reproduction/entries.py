"""What a study adds to a dataset's plan, as a person would, and the cases prepared for it."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pwmlunet.config import join
from pwmlunet.data.parallel import default_workers
from pwmlunet.data.splits import read_held_out
from pwmlunet.data.store import CaseStore
from pwmlunet.data.workspace import Workspace
from pwmlunet.errors import PwmlError
from pwmlunet.files import read_json, write_json
from pwmlunet.networks.base import DenseConfig
from pwmlunet.planning.pipeline import plan_and_preprocess
from pwmlunet.planning.plan import Plan
from pwmlunet.reproduction.study import Quick, Study

logger = logging.getLogger(__name__)

Entries = dict[str, dict[str, Any]]
"""What is added to a plan's preparations and configurations, by name."""

_QUICK = "_quick"


def prepare(workspace: Workspace, folder: Path, study: Study, quick: Quick | None) -> Plan:
    """The plan of a dataset with all that a study's runs need; its cases are prepared for them.

    Entries of the same name that are in the plan already are kept as they are.

    Raises:
        PwmlError: the plan lacks a configuration that only planning can make, or cases cannot be prepared.
    """
    path = folder / "plan.json"
    plan = Plan.read(path)
    if study.configurations:
        _check(plan, study, folder, quick)
        if _is_papers(study, quick):
            plan = _add(path, plan, paper_entries(plan, study))
        if quick is not None:
            plan = _add(path, plan, _narrow_entries(plan, study, quick))
    names = configurations_of(plan, study, quick)
    if missing := _unprepared(folder, plan, names):
        logger.info("cases are prepared for %s", join(missing))
        plan = plan_and_preprocess(workspace, folder.name, workers=default_workers()).plan
    if not set(names) <= plan.configurations.keys():
        raise PwmlError(f"{folder.name} changed and was planned again: run the same command once more")
    return plan


def quick_name(configuration: str, quick: Quick | None) -> str:
    """The name of a configuration, or of a run, as it is with or without --quick."""
    return configuration if quick is None else f"{configuration}{_QUICK}"


def configurations_of(plan: Plan, study: Study, quick: Quick | None) -> list[str]:
    """The plan's configurations that cases are prepared for: those of the runs, the default one without any."""
    return [quick_name(name, quick) for name in study.configurations] or [plan.default]


def _is_papers(study: Study, quick: Quick | None) -> bool:
    """Whether networks are made from the paper's entries, which --quick may find too large."""
    return not (quick and study.quick_parent)


def _check(plan: Plan, study: Study, folder: Path, quick: Quick | None) -> None:
    needed = study.planned.values() if _is_papers(study, quick) else [study.quick_parent]
    if missing := [name for name in needed if name not in plan.configurations]:
        raise PwmlError(f"{folder / 'plan.json'} has no configuration {join(missing)}, which {study.name} is made from: add it, or make a new plan with pwml_plan_and_preprocess -d {folder.name} --replan")  # fmt: skip


def paper_entries(plan: Plan, study: Study) -> Entries:
    """What a study adds to a plan: networks like planned ones, or all that its paper says."""
    if study.name in _PAPERS:
        return _PAPERS[study.name](plan, study)
    plain = {"prior_probability": 0.5}
    return {
        "configurations": {
            name: {"inherits": parent, "network": plain} for name, parent in study.planned.items()
        }
    }


def _entries_of_trident(plan: Plan, study: Study) -> Entries:
    """The preparation and the networks of Liu et al. 2019, with the plan's own direction of slices."""
    preparation = _square(plan, "mean_subtracted", margin=0.0, long_side=256)
    widest = {
        "preparation": "paper",
        "patch_size_yx": [128, 128],
        "batch_size": 8,
        "network": {"type": "trident", "width": 64, "n_stages": 4, "n_slices": 3, "prior_probability": 0.5},
        "slice_step": 1,
        "tiles": "trident",
    }
    configurations = {
        "paper_k64": widest,
        "paper_k32": {"inherits": "paper_k64", "network": {"width": 32}},
        "paper_resunet": {"inherits": "paper_k64", "network": {"n_slices": 1}},
    }
    return {"preparations": {"paper": preparation}, "configurations": configurations}


def _entries_of_rs_rcnn(plan: Plan, study: Study) -> Entries:
    """The preparation of Liu et al.'s RS-RCNN, its network, and what each row of the study has of its own."""
    network = {
        "type": "two_stage",
        "width": 64,
        "n_stages": 6,
        "backbone": "resnet101",
        "finest_stride": 4,
        "anchor_sizes": [8, 16, 32, 64, 128],
        "n_proposals": 50,
    }
    whole = {
        "preparation": "paper_rs_rcnn",
        "patch_size_yx": [512, 512],
        "batch_size": 2,
        "network": network,
        "tiles": "slice",
    }
    return {
        "preparations": {"paper_rs_rcnn": _square(plan, "zscore_head", margin=0.5, long_side=512)},
        "configurations": {"paper_rs_rcnn": whole} | _laid_over("paper_rs_rcnn", study),
    }


def _entries_of_fci_laci(plan: Plan, study: Study) -> Entries:
    """The first networks of Liu et al. 2021: a planned U-Net of five levels that sees what the plan's first one does."""
    parent, n_stages = study.planned["paper_task_a"], 5
    stride = 2 ** (n_stages - 1)
    primary = plan.configurations.get("primary_2d")
    task_a = {
        "inherits": parent,
        "patch_size_yx": [-(-n // stride) * stride for n in plan.configurations[parent].patch_size_yx],
        "channels": list(primary.channels) if primary and primary.channels else None,
        "network": {"n_stages": n_stages, "head_convolutions": 2},
    }
    configurations = {
        "paper_task_a": task_a,
        "paper_task_a_all": {"inherits": "paper_task_a", "channels": None},
        "paper_task_b": {"inherits": "paper_task_a", "finds": "any"},
    }
    return {"configurations": configurations}


_PAPERS: dict[str, Callable[[Plan, Study], Entries]] = {
    "trident": _entries_of_trident,
    "rs_rcnn": _entries_of_rs_rcnn,
    "fci_laci": _entries_of_fci_laci,
}


def _square(plan: Plan, normalisation: str, *, margin: float, long_side: int) -> dict[str, Any]:
    """A square around the head, with the plan's own direction of slices."""
    planned = plan.preparations[plan.configurations[plan.default].preparation]
    return {
        "slice_axis": planned.slice_axis,
        "crop": "head_square",
        "normalisation": [normalisation] * len(plan.channel_names),
        "margin": margin,
        "long_side": long_side,
    }


def _laid_over(parent: str, study: Study, suffix: str = "", **also: Any) -> dict[str, Any]:
    """By configuration, a parent with what a row's network has of its own."""
    return {
        f"{row.recipe.configuration}{suffix}": {"inherits": parent, "network": {**row.network, **also}}
        for row in study.rows
        if row.recipe
    }


def _narrow_entries(plan: Plan, study: Study, quick: Quick) -> Entries:
    """The study's configurations with the widest network as wide as `quick` says, the others in proportion."""
    if parent := study.quick_parent:
        width = min(quick.width, width_of(plan, parent))
        return {"configurations": _laid_over(parent, study, _QUICK, width=width)}
    widths = {name: width_of(plan, name) for name in study.configurations}
    factor = quick.width / max([quick.width, *widths.values()])
    narrow = {
        quick_name(name, quick): {"inherits": name, "network": {"width": max(1, round(width * factor))}}
        for name, width in widths.items()
    }
    return {"configurations": narrow}


def width_of(plan: Plan, configuration: str) -> int:
    """The width of a configuration's network."""
    network = plan.configurations[configuration].network
    assert isinstance(network, DenseConfig)  # all networks of the studies are
    return network.width


def _add(path: Path, plan: Plan, entries: Entries) -> Plan:
    """The plan with the entries that it lacks, which are written into plan.json."""
    content = read_json(path)
    lacking = {
        key: new
        for key, wanted in entries.items()
        if (new := {name: entry for name, entry in wanted.items() if name not in content[key]})
    }
    if not lacking:
        return plan
    for key, new in lacking.items():
        content[key] |= new
        logger.info("%s gets the %s %s", path, key, join(new))
    Plan.from_dict(content, str(path))  # what cannot be read is not written
    write_json(path, content)
    return Plan.read(path)


def _unprepared(folder: Path, plan: Plan, names: Sequence[str]) -> list[str]:
    """The preparations of some configurations that lack a case of the folds."""
    used = dict.fromkeys(plan.configurations[name].preparation for name in names)
    cases = read_held_out(folder / "splits.json").keys()
    return [name for name in used if not cases <= set(CaseStore(folder / name).names())]


def remarks_on_plan(plan: Plan, study: Study, quick: Quick | None = None) -> Iterator[str]:
    """What a reader must know of the plan that the rows are trained with, a sentence each."""
    if study.planned:
        yield from _as_planned(plan, study)
        if study.correction:
            yield from _seen(plan, study)
    elif study.configurations and _is_papers(study, quick):
        yield from _unlike_the_paper(plan, study)


def planned_network(plan: Plan, study: Study, quick: Quick) -> str:
    """What the networks of a study are made from with --quick, in words."""
    first = _flat(plan.to_dict()["configurations"][quick_name(study.configurations[0], quick)])
    sizes = {
        key: first[key]
        for key in ("network.backbone", "network.width", "network.anchor_sizes", "patch_size_yx")
    }
    return f"Networks are those of the planned {study.quick_parent} with what a row has of its own, instead of the paper's: {_in_words(sizes)}."


def _unlike_the_paper(plan: Plan, study: Study) -> Iterator[str]:
    """How the paper's entries, which may be edited, differ from those of `paper_entries`."""
    content = plan.to_dict()
    for key, entries in paper_entries(plan, study).items():
        papers = Plan.from_dict({**content, key: {**content[key], **entries}}, "the paper's plan").to_dict()
        for name in entries:
            if changed := _differing(content[key][name], papers[key][name]):
                yield f"{name} in plan.json is not the paper's: {changed}."


_SIZES = ("network.width", "network.n_stages", "network.norm", "batch_size", "patch_size_yx")
_KINDS = ("network.type", "network.enters", "prior", "channels", "finds")


def _as_planned(plan: Plan, study: Study) -> Iterator[str]:
    """The sizes that were planned, and in what else the networks that are compared differ."""
    first, *others = study.configurations
    content = plan.to_dict()["configurations"]
    sizes = {key: value for key, value in _flat(content[first]).items() if key in _SIZES}
    yield f"{first} was planned with {_in_words(sizes)}."
    for other in others:
        if changed := _differing(content[other], content[first], but=_KINDS):
            yield f"{other} differs from {first} in more than its kind: {changed}."


def _seen(plan: Plan, study: Study) -> Iterator[str]:
    """The channels that the first networks see, and what the second ones do."""
    for name in study.configurations:
        yield f"{name} sees {_channels(plan, plan.configurations[name].channels)}."
    if study.corrected and (second := plan.correction):
        maps = {"the candidate's mask": second.sees_mask, "the first network's probability": second.sees_probability}  # fmt: skip
        others = [words for words, is_seen in maps.items() if is_seen]
        yield f"A second network sees {join([_channels(plan, second.channels), *others])} in squares of {second.region_mm:g} mm; the paper's sees T1 FLAIR alone, in squares of 32 pixels."


def _channels(plan: Plan, numbers: Sequence[int] | None) -> str:
    return join(plan.channel_names if numbers is None else [plan.channel_names[n] for n in numbers])


def _differing(here: Mapping[str, Any], there: Mapping[str, Any], but: tuple[str, ...] = ()) -> str:
    """In words, the values that are others there; those whose keys begin as `but` says do not count."""
    known = _flat(there)
    return _in_words({k: v for k, v in _flat(here).items() if v != known.get(k) and not k.startswith(but)})


def _in_words(values: Mapping[str, Any]) -> str:
    return join(f"{k} {join(v) if isinstance(v, list) else v}" for k, v in values.items())


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with their keys in a row: network.width."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
