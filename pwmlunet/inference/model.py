"""TrainedModel: the model folder, exactly what is shared with others."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pwmlunet.config import did_you_mean, join
from pwmlunet.data.dataset import FOLDER_NAME, Labels
from pwmlunet.data.workspace import Workspace, is_called
from pwmlunet.errors import PwmlError
from pwmlunet.files import read_json, replacing
from pwmlunet.inference.postprocessing import SETTINGS, Postprocessing
from pwmlunet.networks.base import SegmentationNetwork
from pwmlunet.planning.alignment import REFERENCE, CoarseImage
from pwmlunet.planning.density import Density
from pwmlunet.planning.plan import Configuration, Plan, read_labels
from pwmlunet.planning.preprocessing import Preparation

ALL = "all"
"""The fold that trains on every case."""

DENSITY = "density.npz"
"""A fold's prior density, in its folder."""


@dataclass(frozen=True, eq=False)
class FoldNetwork:
    """What a fold's training made: a network, and the prior density it takes, if any."""

    network: SegmentationNetwork
    density: Density | None = None


@dataclass(frozen=True)
class TrainedModel:
    """A folder with plan.json, dataset.json, training.json, postprocessing.json and a folder for each fold."""

    folder: Path
    plan: Plan
    configuration: Configuration
    labels: Labels
    postprocessing: Postprocessing
    may_lack_channels: bool = False
    """Whether it was trained with channels left out at random, so that a case to predict may lack some."""

    @classmethod
    def open(cls, folder: Path) -> "TrainedModel":
        """The model in a folder.

        Raises:
            PwmlError: a file is missing or broken.
        """
        for name in ("plan.json", "dataset.json", "training.json"):
            if not (folder / name).is_file():
                raise PwmlError(f"{folder} is not a model folder: {name} is missing")
        plan = Plan.read(folder / "plan.json")
        recipe = read_json(folder / "training.json")
        chosen = recipe.get("configuration") if isinstance(recipe, dict) else None
        if not isinstance(chosen, str):
            raise PwmlError(f"{folder / 'training.json'} names no configuration: copy the model again")
        _, configuration = plan.configuration(chosen)
        postprocessing = folder / SETTINGS
        return cls(
            folder,
            plan,
            configuration,
            read_labels(folder / "dataset.json"),
            Postprocessing.read(postprocessing)
            if postprocessing.is_file()
            else Postprocessing(smallest_lesion_mm3=plan.smallest_lesion_mm3),
            _drops_channels(recipe),
        )

    @property
    def preparation(self) -> Preparation:
        """How the configuration's cases are prepared."""
        return self.plan.preparations[self.configuration.preparation]

    @property
    def n_channels(self) -> int:
        """How many of the dataset's channels the network sees; a prior is not counted."""
        return len(self.configuration.channels or self.plan.channel_names)

    @property
    def n_outputs(self) -> int:
        """How many maps the network makes: one for each target, or one for any lesion."""
        return len(self.labels.targets) if self.configuration.finds == "each" else 1

    @property
    def names_kinds(self) -> bool:
        """Whether the networks tell the targets apart."""
        return self.n_outputs == len(self.labels.targets)

    @property
    def unchosen(self) -> Postprocessing:
        """What makes masks until pwml_find_best has chosen."""
        return Postprocessing(smallest_lesion_mm3=self.plan.smallest_lesion_mm3)

    @property
    def reference(self) -> CoarseImage | None:
        """What cases are registered to; none where they are not."""
        return CoarseImage.read(self.folder / REFERENCE) if self.preparation.align == "rigid" else None

    def fold_folder(self, fold: str) -> Path:
        """Where a fold's files are."""
        return self.folder / f"fold_{fold}"

    def finished_folds(self) -> list[str]:
        """The folds whose training has ended, sorted."""
        return sorted(p.parent.name.removeprefix("fold_") for p in self.folder.glob("fold_*/weights.pt"))

    def build(self) -> SegmentationNetwork:
        """The configuration's network with random weights."""
        return self.configuration.network.build(self.n_channels, self.n_outputs)

    def density(self, fold: str) -> Density | None:
        """The prior density that a fold was trained with; none for a network that takes none.

        Raises:
            PwmlError: its file is missing or damaged.
        """
        if self.configuration.prior is None:
            return None
        path = self.fold_folder(fold) / DENSITY
        if not path.is_file():
            raise PwmlError(f"{path} is missing, without which its network cannot be asked: copy the model again, or train the fold again")  # fmt: skip
        return Density.read(path)

    def load(self, folds: Sequence[str] | None) -> list[FoldNetwork]:
        """The networks of the given folds (all finished ones by default), in evaluation mode.

        Raises:
            PwmlError: a fold is not trained to its end, or its weights are broken or another network's.
        """
        finished = self.finished_folds()
        chosen = list(folds) if folds else [f for f in finished if f != ALL] or finished
        missing = [fold for fold in chosen if fold not in finished]
        if missing or not chosen:
            raise PwmlError(
                f"{self.folder} has no finished fold {join(missing)} (finished: {join(finished) or 'none'}): run pwml_train"
            )
        return [self._load_fold(fold) for fold in chosen]

    def _load_fold(self, fold: str) -> FoldNetwork:
        path = self.fold_folder(fold) / "weights.pt"
        network = self.build()
        try:
            network.load_state_dict(load_tensors(path))
        except (RuntimeError, TypeError) as error:
            raise PwmlError(
                f"{path} belongs to another network than plan.json describes: train again"
            ) from error
        return FoldNetwork(network.eval(), self.density(fold))


def _drops_channels(recipe: dict[str, Any]) -> bool:
    augmentation = recipe.get("augmentation")
    share = augmentation.get("channel_dropout", 0) if isinstance(augmentation, dict) else 0
    return isinstance(share, int | float) and share > 0


def load_tensors(path: Path) -> Any:
    """The content of a .pt file; only tensors and plain values are accepted, never code.

    Raises:
        PwmlError: the file is missing, cut short or holds something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise PwmlError(f"{path} does not exist: train this fold first") from error
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        raise PwmlError(f"{path} is damaged or no checkpoint: delete it and train this fold again") from error


def save_tensors(path: Path, content: Any) -> None:
    """Writes a .pt file, whole or not at all."""
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch's writer turns a full disk into this
            raise PwmlError(f"cannot write {path}: is the disk full? Free some space and run the same command again") from error  # fmt: skip


def find_model(workspace: Workspace, dataset: str | None, run: str | None) -> TrainedModel:
    """The trained model of a dataset and run; without them the only one there is.

    Raises:
        PwmlError: there is none, or several: they are listed.
    """
    folders = [p.parent for p in sorted(workspace.results.glob("*/*/training.json"))]
    folders = [folder for folder in folders if FOLDER_NAME.fullmatch(folder.parent.name)]
    models = [folder for folder in folders if any(folder.glob("fold_*/weights.pt"))]
    if dataset is not None:
        known = {model.parent.name for model in models}
        models = [model for model in models if is_called(model.parent, dataset)]
        if not models:
            raise PwmlError(f"no trained model of dataset {dataset!r}{did_you_mean(dataset, known)}")
    if run is not None:
        known = {model.name for model in models}
        models = [model for model in models if model.name == run]
        if not models:
            raise PwmlError(f"no trained model {run!r}{did_you_mean(run, known)}")
    if not models:
        raise PwmlError(f"no trained model in {workspace.results}: run pwml_train, or name a folder with -m")
    if len(models) > 1:
        listed = "\n".join(f"  -d {m.parent.name} -c {m.name}" for m in models)
        raise PwmlError(f"there are several trained models; choose one:\n{listed}")
    return TrainedModel.open(models[0])
