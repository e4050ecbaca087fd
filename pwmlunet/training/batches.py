"""From preprocessed cases to batches on the training device."""

import logging
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from torch import Tensor

from pwmlunet.data.dataset import Labels
from pwmlunet.networks.base import Batch
from pwmlunet.planning.density import Density
from pwmlunet.planning.plan import see
from pwmlunet.planning.workers import free_bytes
from pwmlunet.training.rich_slices import mark_rich_slices
from pwmlunet.training.run import Run, densities_of_others
from pwmlunet.training.sampling import PatchLoader, PatchSampler, PatchShape, TrainingCase, training_case

logger = logging.getLogger(__name__)

_HELD_SHARE = 0.3  # of a device's free memory that cases may take


def training_cases(
    run: Run, names: Sequence[str], device: torch.device, density: Density | None = None
) -> list[TrainingCase]:
    """The cases to learn from, held on the training device where they fit, else read patch by patch.

    Each is seen with the prior density of the other subjects, as a new subject will be.
    """
    priors = densities_of_others(run, names, density) if density else {}
    stored = [run.store.read(name) for name in names]
    stored = [replace(case, image=see(case.image, run.model.configuration)) for case in stored]
    cases = [training_case(case, run.model.labels, priors.get(case.facts.subject)) for case in stored]
    if run.config.curriculum or run.config.augmentation.rich_rotation_degrees:
        cases = mark_rich_slices(cases)
    n_bytes = sum(case.image.nbytes + case.mask.nbytes for case in cases)
    if n_bytes > _HELD_SHARE * _free_bytes(device):
        logger.info("%.1f GB of cases are read from disk patch by patch", n_bytes / 1e9)
        return cases
    logger.info("%.2f GB of cases are held on %s", n_bytes / 1e9, device)
    return [_hold(case, device) for case in cases]


def draw_batches(
    run: Run, cases: Sequence[TrainingCase], *, seed: int, first: int, only_rich: bool = False
) -> Generator[dict[str, Any], None, None]:
    """The batches from number `first` on, drawn by worker processes where asked for and while they live.

    Closing it ends the processes. With `only_rich`, patches with a lesion are drawn in rich slices alone.
    """
    number = first
    workers = 0 if isinstance(cases[0].image, Tensor) else run.config.workers  # tensors are on a card already
    shape = PatchShape.of(run.model.configuration)
    sampler = PatchSampler(cases, shape.size_zyx, run.config.lesion_share, only_rich=only_rich)
    if workers:
        loader = _loader(run, sampler, seed=seed, first=first, workers=workers)
        try:
            for batch in MultiThreadedAugmenter(loader, None, workers, seeds=list(range(workers))):
                yield batch
                number += 1
        except RuntimeError as error:
            logger.warning("%s Patches are drawn in this process from now on.", error)
    yield from SingleThreadedAugmenter(_loader(run, sampler, seed=seed, first=number, workers=0), None)


def _loader(run: Run, sampler: PatchSampler, *, seed: int, first: int, workers: int) -> PatchLoader:
    configuration = run.model.configuration
    return PatchLoader(
        sampler,
        PatchShape.of(configuration),
        batch_size=run.config.batch_size or configuration.batch_size,
        seed=seed,
        first_batch=first,
        workers=workers,
    )


def to_batch(
    drawn: dict[str, Any], labels: Labels, device: torch.device, finds: Literal["each", "any"] = "each"
) -> Batch:
    """A drawn batch as tensors on the device: targets (B, K, Z', Y, X), valid where the label is known.

    For a network that finds any lesion, K is 1: the union of the targets.
    """
    image = torch.as_tensor(drawn["image"]).to(device, non_blocking=True).float()
    mask = torch.as_tensor(drawn["mask"]).to(device, non_blocking=True)[:, None]
    target = torch.cat(
        [sum((mask == v for v in t.values), torch.zeros_like(mask)) for t in labels.targets], 1
    )
    if finds == "any":
        target = target.amax(1, keepdim=True)
    valid = torch.ones_like(mask) if labels.ignore is None else mask != labels.ignore
    return Batch(image, target.float(), valid.float())


def _hold(case: TrainingCase, device: torch.device) -> TrainingCase:
    image, mask = np.array(case.image), np.array(case.mask)
    if device.type == "cpu":
        return replace(case, image=image, mask=mask)
    return replace(case, image=torch.from_numpy(image).to(device), mask=torch.from_numpy(mask).to(device))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_bytes()
