"""Weights that a training begins from: another network's, laid over ours where name and shape agree."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pwmlunet.config import join
from pwmlunet.errors import PwmlError
from pwmlunet.files import explain
from pwmlunet.inference.model import ALL
from pwmlunet.training.run import RESUME, Run

logger = logging.getLogger(__name__)

_CHECKPOINT_KEYS = ("model", "state_dict")  # under which a checkpoint of other programs keeps its weights

_OTHER_NAMES = (
    (re.compile(r"^module\."), ""),  # of a network that several cards trained
    (re.compile(r"(inner|layer)_blocks\.(\d)\.0\."), r"\1_blocks.\2."),
    (re.compile(r"^rpn\.head\.conv\.(0\.0\.)?"), "rpn.conv."),
    *((re.compile(rf"mask_head\.{n}\.0\."), f"mask_head.mask_fcn{n + 1}.") for n in range(4)),
)
"""What torchvision calls our layers; in its later versions many are the first module of a block."""


@dataclass(frozen=True)
class Pretrained:
    """What became of the weights in a file."""

    path: Path
    """The file."""
    taken: tuple[str, ...]
    """Names of weights that the network has now, in the file and, where it is another, in the network."""
    left: tuple[str, ...]
    """Names of the others, each with the reason."""
    new: tuple[str, ...]
    """Names of the network's weights that the file has nothing for; counters of batches are no weights."""

    def log(self) -> None:
        """One line for everyone, and one for each name for the log file."""
        logger.info("begins from %s: %d weights taken, %d left, %d of the network are new (training.log names them)", self.path, len(self.taken), len(self.left), len(self.new))  # fmt: skip
        for kind, names in (("taken", self.taken), ("left", self.left), ("new", self.new)):
            for name in names:
                logger.debug("%s: %s", kind, name)


def is_begun(folder: Path) -> bool:
    """Whether a fold's training has saved anything to go on from, or has ended."""
    return any((folder / name).is_file() for name in (RESUME, "weights.pt"))


def check_pretrained(run: Run, folds: Sequence[str]) -> None:
    """Tries the weights that folds are to begin from, on a network without memory.

    Raises:
        PwmlError: as `load_pretrained`, or the weights have learned from cases that a fold holds out; not if every fold
            has begun, which never needs the file again.
    """
    path = run.config.pretrained
    todo = [fold for fold in folds if not is_begun(run.model.fold_folder(fold))]
    if path is None or not todo:
        return
    is_of_dataset = path.resolve().parent.parent.parent == run.model.folder.parent.resolve()
    learned = path.resolve().parent.name.removeprefix("fold_")
    if is_of_dataset and (told := [fold for fold in todo if fold not in (learned, ALL)]):
        raise PwmlError(f"{path} has learned from cases that fold {join(told)} holds out: begin each fold from the same fold of that run, or from another dataset's weights")  # fmt: skip
    with torch.device("meta"):
        network = run.model.build()
    load_pretrained(network, path)


def load_pretrained(network: nn.Module, path: Path) -> Pretrained:
    """Lays the weights in a file over those of a network, and returns what fitted.

    The file is of the whole network or of a part of it, such as its backbone: the part where most of it fits,
    by our names or by torchvision's. A layer is taken whole or not at all. A first convolution of
    another number of input channels gets the mean over the file's, times their number over ours, so that what
    it makes keeps its scale.

    Raises:
        PwmlError: the file cannot be read, holds more than tensors, or nothing in it fits.
    """
    ours = network.state_dict()
    given = _read(path)
    found, left = _match(given, _our_names(given, network), ours, _first_kernel(network))
    for name, reason in list(_torn(network, found)):
        left[found.pop(name)[0]] = reason
    if not found:
        raise PwmlError(f"nothing in {path} fits the network by name and shape: leave out --pretrained, or give weights of the same network or of its backbone")  # fmt: skip
    with torch.no_grad():
        for name, (_, value) in found.items():
            ours[name].copy_(value)
    return Pretrained(
        path,
        tuple(theirs if theirs == name else f"{theirs} as {name}" for name, (theirs, _) in found.items()),
        tuple(f"{theirs}: {reason}" for theirs, reason in left.items()),
        tuple(name for name, value in ours.items() if name not in found and value.is_floating_point()),
    )


_Found = dict[str, tuple[str, Tensor]]
"""By name in the network, the name in the file and the value."""


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; code in it is never run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise explain(error, path, "read") from error
    except Exception as error:  # torch raises half a dozen kinds for a damaged file
        raise PwmlError(f"{path} is damaged or holds more than weights: give --pretrained a file that torch.save made of a state_dict") from error  # fmt: skip
    for key in _CHECKPOINT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise PwmlError(f"{path} holds no weights by name: give --pretrained a file that torch.save made of a state_dict")  # fmt: skip
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _match(
    given: Mapping[str, Tensor], names: Mapping[str, str], ours: Mapping[str, Tensor], first: str | None
) -> tuple[_Found, dict[str, str]]:
    """What fits, and by name in the file why the others do not."""
    found: _Found = {}
    left: dict[str, str] = {}
    for name, value in given.items():
        known = names[name]
        if known not in ours:
            left[name] = "not in the network"
            continue
        fitted = _fit_channels(value, ours[known]) if known == first else value
        if fitted.shape != ours[known].shape:
            left[name] = f"{_shape(value)} in the file, {_shape(ours[known])} in the network"
        else:
            found[known] = name, fitted
    return found, left


def _our_names(given: Mapping[str, Tensor], network: nn.Module) -> dict[str, str]:
    """By name in the file, what it would be called in the part of the network where most of the file fits."""
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    names = {name: name if name in shapes else _translate(name) for name in given}
    parts = [f"{name}." if name else "" for name, _ in network.named_modules()]
    part = max(parts, key=lambda p: sum(shapes.get(p + names[n]) == v.shape for n, v in given.items()))
    return {theirs: part + name for theirs, name in names.items()}


def _translate(name: str) -> str:
    for theirs, ours in _OTHER_NAMES:
        name = theirs.sub(ours, name)
    return name


def _first_kernel(network: nn.Module) -> str | None:
    """The name of the weights that meet the image first."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            return f"{name}.weight"
    return None


def _fit_channels(kernel: Tensor, ours: Tensor) -> Tensor:
    """A kernel (out, in, …) for as many input channels as ours; itself where more than these differ."""
    if kernel.ndim != ours.ndim or kernel.shape == ours.shape or kernel[:, :1].shape != ours[:, :1].shape:
        return kernel
    mean = kernel.float().mean(1, keepdim=True)
    return mean.expand_as(ours) * (kernel.shape[1] / ours.shape[1])


def _torn(network: nn.Module, found: _Found) -> Iterator[tuple[str, str]]:
    """Names of found weights whose layer has others that were not found, and the reason to leave them."""
    for prefix, layer in network.named_modules():
        weights = {name for name, _ in layer.named_parameters(prefix, recurse=False)}
        missing = sorted(weights - found.keys())
        if missing:
            statistics = {name for name, _ in layer.named_buffers(prefix, recurse=False)}
            for name in sorted((weights | statistics) & found.keys()):
                yield name, f"nothing fits {join(missing)} of the same layer"


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))
