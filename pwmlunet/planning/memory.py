"""How much memory a training step needs, counted on torch's meta device without computing anything."""

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from pwmlunet.networks.base import Batch, NetworkConfig, SegmentationNetwork

COPIES_OF_PARAMETERS = 4
"""Weights, gradients, and the two moments of Adam."""

TRANSIENT_MAPS, TRANSIENT_PARAMETERS = 5, 2
"""What a step needs for a moment (gradients of maps, a convolution's own layout of its operands, Adam's
fractions), in multiples of the largest map kept and of the largest parameter.

Source: peak resident memory of three steps with Adam (torch 2.13, CPU, one thread, oneDNN) less what is
counted here, over ten tridents and U-Nets, 8 to 64 wide, with batch and instance normalisation: 1.8 to 4.6
times the largest map where maps dominate, 1.5 to 1.8 times the largest parameter where parameters do. Over
five 3-D networks with an allocator that gives freed memory back: 2.8 to 3.7 times, and 2.1 times.

An allocator that keeps what is freed, as the C library's does while training on a CPU, holds more than a step
needs: up to 1.4 times what is counted here for slices, and 1.8 times for volumes.
"""


def training_bytes(
    config: NetworkConfig,
    n_channels: int,
    n_targets: int,
    patch_zyx: tuple[int, int, int],
    batch_size: int,
) -> int:
    """Bytes that training needs at its peak in float32; mixed precision needs less.

    The tensors that a step keeps for the backward pass, each storage once and the batch included, are
    counted and not estimated; copies of the parameters and transient buffers are added.

    Args:
        config: The network.
        n_channels: C, the channels of an image; the prior is added where the network takes one.
        n_targets: K, the targets.
        patch_zyx: Size of a patch; Z at least the network's slices and a multiple of its slice stride, Y and X
            multiples of its stride.
        batch_size: B, the patches of a step.
    """
    with torch.device("meta"):
        network = config.build(n_channels, n_targets)
        shape = (batch_size, n_channels + config.takes_prior, *patch_zyx)
        batch = _empty_batch(shape, n_targets, config.n_slices)
    parameters = _storages(list(network.parameters()))
    kept = _kept_for_backward(network, batch)
    maps = [size for storage, size in kept.items() if storage not in parameters]
    steady = COPIES_OF_PARAMETERS * sum(parameters.values()) + sum(maps)
    return steady + TRANSIENT_MAPS * max(maps) + TRANSIENT_PARAMETERS * max(parameters.values())


def _empty_batch(shape: tuple[int, int, int, int, int], n_targets: int, n_slices: int) -> Batch:
    n_batch, _, z, y, x = shape
    z_out = z - n_slices + 1
    return Batch(
        image=torch.empty(shape),
        target=torch.empty(n_batch, n_targets, z_out, y, x),
        valid=torch.empty(n_batch, 1, z_out, y, x),
    )


def _kept_for_backward(network: SegmentationNetwork, batch: Batch) -> dict[int, int]:
    """Bytes by storage of the batch and of all tensors that the graph of one step's losses holds."""
    kept = [batch.image, batch.target, batch.valid]

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        network.losses(batch, _cross_entropy)
    return _storages(kept)


def _storages(tensors: list[Tensor]) -> dict[int, int]:
    """Bytes by storage: tensors that share memory count once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage._cdata: storage.nbytes() for storage in storages}


def _cross_entropy(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """The plainest criterion: what a loss keeps, one map a target, is small beside the network's maps."""
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * valid).mean()
