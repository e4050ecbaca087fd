"""One fold: draw, learn, look at the held-out cases, keep the best, go on where it stopped."""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pwmlunet.errors import PwmlError
from pwmlunet.evaluation.scores import CaseScores
from pwmlunet.files import make_folder
from pwmlunet.inference.device import (
    autocast,
    choose_device,
    enough_memory,
    keep_freed_memory,
    training_format,
)
from pwmlunet.inference.model import ALL, FoldNetwork, TrainedModel, load_tensors, save_tensors
from pwmlunet.networks.base import Batch, SegmentationNetwork
from pwmlunet.planning.density import Density
from pwmlunet.training.augmentation import Augmenter
from pwmlunet.training.batches import draw_batches, to_batch, training_cases
from pwmlunet.training.config import TrainingConfig
from pwmlunet.training.interruption import Stop, TrainingStoppedError, stopping_on_signals
from pwmlunet.training.losses import parse_loss
from pwmlunet.training.pretrained import is_begun, load_pretrained
from pwmlunet.training.progress import append_metrics, draw_progress, keep_metrics, logging_to
from pwmlunet.training.run import RESUME, Run, fold_density
from pwmlunet.training.sampling import PatchShape, TrainingCase
from pwmlunet.training.validation import look, validate

logger = logging.getLogger(__name__)

_FOLD_ALL_SEED = 1_000_003


class FoldTrainer:
    """Trains one fold of a run; the same call goes on where an earlier one stopped."""

    def __init__(self, run: Run, fold: str) -> None:
        self.run, self.fold, self.config = run, fold, run.config
        self.split = run.split(fold)
        self.folder = make_folder(run.model.fold_folder(fold))
        self.device = choose_device(run.config.device)
        self.dtype = training_format(self.device, run.config.precision)
        self.criterion = parse_loss(run.config.loss)
        self.augmenter = Augmenter(run.config.augmentation, run.model.n_channels)
        self.seed = run.config.seed * 1009 + (_FOLD_ALL_SEED if fold == ALL else int(fold))
        torch.manual_seed(self.seed)
        self.network = run.model.build().to(self.device)
        starts_from = None if is_begun(self.folder) else run.config.pretrained
        self.pretrained = load_pretrained(self.network, starts_from) if starts_from else None
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimiser = make_optimiser(self.network, run.config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.density: Density | None = None
        self.step = 0
        self.only_rich = run.config.curriculum
        self.best: dict[str, Any] = {"score": -1.0, "epoch": 0, "weights": None}
        self.plateau = {"lowest": math.inf, "since": 0, "factor": 1.0}
        self.losses: list[float] = []
        self.rows: list[dict[str, float]] = []

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return self.step // self.config.steps_per_epoch

    def train(self) -> list[CaseScores]:
        """Trains to the end and returns the scores of the held-out cases; none for a fold that was finished.

        Raises:
            TrainingStoppedError: a signal asked to stop.
            PwmlError: the loss is not finite, or a file cannot be read or written.
        """
        with logging_to(self.folder / "training.log"):
            if not (self.folder / "weights.pt").is_file():
                keep_freed_memory()
                self._resume()
                self.density = fold_density(self.run, self.fold)
                with stopping_on_signals() as stop:
                    self._train_epochs(stop)
                self._finish()
            elif (self.folder / "validation" / "summary.json").is_file():
                return []
            return validate(self.run, self.fold, self.device)

    def _train_epochs(self, stop: Stop) -> None:
        cases = training_cases(self.run, self.split.train, self.device, self.density)
        self.only_rich = self.only_rich and any(case.rich_slices for case in cases)
        losses_of = self._losses()
        batches = self._batches(cases)
        saved = time.monotonic()
        total = self.config.epochs * self.config.steps_per_epoch
        with tqdm(total=total, initial=self.step, desc=f"fold {self.fold}", unit="step", leave=False) as bar:
            while self.step < total:
                with enough_memory("take fewer patches in a step (--batch), or another --device"):
                    self.losses.append(self._train_step(next(batches), losses_of))
                bar.update()
                if self.step % self.config.steps_per_epoch == 0:
                    self._end_epoch(bar)
                if stop.asked or time.monotonic() - saved > self.config.save_every_seconds:
                    self._save()
                    saved = time.monotonic()
                if stop.asked:
                    raise TrainingStoppedError(
                        f"fold {self.fold} stopped at step {self.step} of {total} and was saved"
                    )

    def _batches(self, cases: Sequence[TrainingCase]) -> Iterator[dict[str, Any]]:
        """The batches from the current step on; none that was drawn ahead outlives the curriculum's first part."""
        while True:
            only_rich = self.only_rich
            drawn = draw_batches(self.run, cases, seed=self.seed, first=self.step, only_rich=only_rich)
            with closing(drawn):
                while self.only_rich == only_rich:
                    yield next(drawn)

    # one step

    def _train_step(self, drawn: dict[str, Any], losses_of: Callable[[Batch], dict[str, Tensor]]) -> float:
        model = self.run.model
        batch = to_batch(drawn, model.labels, self.device, model.configuration.finds)
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.step)
        torch.manual_seed(self.seed * 100_003 + self.step)  # of dropout
        batch = self.augmenter(batch, generator, torch.tensor(drawn["rich"]))
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        self.network.train()
        self.optimiser.zero_grad(set_to_none=True)
        with autocast(self.device, self.dtype):
            losses = losses_of(batch)
            loss = torch.stack(list(losses.values())).sum()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise PwmlError(f"the loss is {value} at step {self.step}: look at the patches ({'; '.join(drawn['where'])}), or lower --rate")  # fmt: skip
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.config.gradient_norm:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.step += 1
        self._update_average()
        return value

    def _learning_rate(self) -> float:
        config = self.config
        warm = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        if config.schedule == "cosine":
            done = self.step / (config.epochs * config.steps_per_epoch)
            return config.learning_rate * warm * (1 + math.cos(math.pi * done)) / 2
        return config.learning_rate * warm * self.plateau["factor"]

    @torch.no_grad()
    def _update_average(self) -> None:
        """Moves the averaged weights towards the current ones, faster in the beginning."""
        decay = min(self.config.weight_average, (1 + self.step) / (10 + self.step))
        for mean, now in zip(
            self.average.state_dict().values(), self.network.state_dict().values(), strict=True
        ):
            if mean.is_floating_point() and self.config.weight_average:
                mean.lerp_(now, 1 - decay)
            else:
                mean.copy_(now)

    def _losses(self) -> Callable[[Batch], dict[str, Tensor]]:
        """The network's losses, through torch.compile where a trial of it succeeds."""
        plain = _Losses(self.network, self.criterion)
        if self.device.type == "cuda":
            has_volumes = any(p.ndim == 5 for p in self.network.parameters())
            memory_format = torch.channels_last_3d if has_volumes else torch.channels_last
            self.network.to(memory_format=memory_format)  # type: ignore[call-overload]
        if not self.config.compile:
            return plain
        trial = _trial(self.run.model)
        state = copy.deepcopy(self.network.state_dict())
        try:
            compiled: Callable[[Batch], dict[str, Tensor]] = torch.compile(plain)
            total = torch.stack(list(compiled(_to(trial, self.device)).values())).sum()
            total.backward()  # type: ignore[no-untyped-call]
        except Exception as error:  # the compiler fails in many ways; training works without it
            logger.warning("torch.compile does not work here (%s); training without it", type(error).__name__)
            return plain
        finally:
            self.network.load_state_dict(state)
            self.network.zero_grad(set_to_none=True)
        return compiled

    # the end of an epoch

    def _end_epoch(self, bar: "tqdm[Any]") -> None:
        loss = float(np.mean(self.losses))
        self.losses = []
        row: dict[str, float] = {
            "epoch": self.epoch,
            "loss": loss,
            "learning_rate": self.optimiser.param_groups[0]["lr"],
        }
        if self.config.curriculum:
            row["only_rich_slices"] = int(self.only_rich)
        self._follow_plateau(loss)
        if self.epoch % self.config.validate_every == 0 or self.epoch == self.config.epochs:
            row |= self._look()
            bar.set_postfix(f1=f"{row['val_lesion_f1']:.2f}", refresh=False)
        self.rows.append(row)
        append_metrics(self.folder / "metrics.jsonl", row)
        if "val_lesion_f1" in row:
            title = f"{self.run.model.folder.name}, fold {self.fold}"
            draw_progress(self.folder / "progress.png", self.rows, title)
        logger.debug("epoch %d: %s", self.epoch, {k: round(v, 6) for k, v in row.items() if k != "epoch"})

    def _follow_plateau(self, loss: float) -> None:
        falls = loss < self.plateau["lowest"]
        self.plateau |= {"lowest": loss, "since": 0} if falls else {"since": self.plateau["since"] + 1}
        has_converged = self.plateau["since"] >= self.config.plateau_epochs
        if self.only_rich:
            if has_converged or self.epoch >= self.config.epochs // 2:
                self._take_all_slices(has_converged)
        elif has_converged and self.config.schedule == "plateau":
            self.plateau |= {"since": 0, "factor": self.plateau["factor"] / 2}

    def _take_all_slices(self, has_converged: bool) -> None:
        """Begins the curriculum's second part, whose loss is not compared with the first's."""
        self.only_rich = False
        self.plateau |= {"lowest": math.inf, "since": 0}
        reason = "the loss falls no more" if has_converged else "half of the epochs are over"
        logger.info("fold %s learns from all slices from epoch %d on: %s", self.fold, self.epoch + 1, reason)

    def _look(self) -> dict[str, float]:
        """Scores the held-out cases; keeps the weights where they are the best so far."""
        network = FoldNetwork(self.average, self.density)
        f1, dice = look(self.run, self.split.val, network, self.device)
        score = f1 + 1e-3 * dice
        if score >= self.best["score"]:
            weights = {k: v.cpu().clone() for k, v in self.average.state_dict().items()}
            self.best = {"score": score, "epoch": self.epoch, "weights": weights}
        return {"val_lesion_f1": f1, "val_dice": dice}

    # saving and going on

    def _save(self) -> None:
        state = {
            "step": self.step,
            "losses": self.losses,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "plateau": self.plateau,
            "only_rich": self.only_rich,
        }
        save_tensors(self.folder / RESUME, state)

    def _resume(self) -> None:
        path = self.folder / RESUME
        if not path.is_file():
            keep_metrics(self.folder / "metrics.jsonl", 0)
            if self.pretrained:
                self.pretrained.log()
            return
        state = load_tensors(path)
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimiser.load_state_dict(state["optimiser"])
            if state["scaler"]:  # empty where the run began without float16
                self.scaler.load_state_dict(state["scaler"])
            self.step, self.losses = state["step"], state["losses"]
            self.best, self.plateau = state["best"], state["plateau"]
            self.only_rich = state.get("only_rich", False)  # older files have none, nor a curriculum
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise PwmlError(
                f"{path} belongs to another network or version: delete it to start again"
            ) from error
        self.rows = keep_metrics(self.folder / "metrics.jsonl", self.epoch)
        logger.info("fold %s goes on at step %d", self.fold, self.step)

    def _finish(self) -> None:
        last = self.average.state_dict()
        held_out = self.config.checkpoint == "best" and self.fold != ALL  # `all` holds no case out
        save_tensors(self.folder / "weights.pt", self.best["weights"] if held_out else last)
        (self.folder / RESUME).unlink(missing_ok=True)
        draw_progress(
            self.folder / "progress.png", self.rows, f"{self.run.model.folder.name}, fold {self.fold}"
        )


class _Losses(nn.Module):
    """The network's losses as a module's forward, which is what torch.compile takes."""

    def __init__(self, network: SegmentationNetwork, criterion: Any) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.network.losses(batch, self.criterion)


def make_optimiser(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser; weight decay acts on convolution kernels alone, not on biases and normalisation."""
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [
        {"params": kernels, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9)
    if config.optimiser == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.learning_rate, alpha=0.9)
    kind = torch.optim.AdamW if config.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.learning_rate)


def _trial(model: TrainedModel) -> Batch:
    """A batch of two empty patches."""
    size = PatchShape.of(model.configuration)
    depth, *in_plane = size.size_zyx
    n_channels = model.n_channels + model.configuration.network.takes_prior
    known = torch.ones(2, 1, depth, *in_plane)
    image = torch.zeros(2, n_channels, depth + size.n_slices - 1, *in_plane)
    return Batch(image, known.expand(-1, model.n_outputs, -1, -1, -1), known)


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.image.to(device), batch.target.to(device), batch.valid.to(device))
