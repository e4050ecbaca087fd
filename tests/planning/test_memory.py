import pytest
import torch

from pwmlunet.networks.base import NetworkConfig
from pwmlunet.networks.priority import PriorityConfig
from pwmlunet.networks.resunet_3d import ResUNet3dConfig
from pwmlunet.networks.trident import TridentConfig
from pwmlunet.networks.unet import UNetConfig
from pwmlunet.planning import memory
from pwmlunet.planning.memory import training_bytes

FLOAT = 4


def kept_bytes(config: NetworkConfig, patch_zyx: tuple[int, int, int], n_batch: int) -> int:
    """What training_bytes counts beside its copies of parameters and transient buffers."""
    with torch.device("meta"):
        network = config.build(1, 1)
        batch = memory._empty_batch((n_batch, 1, *patch_zyx), 1, config.n_slices)
    parameters = memory._storages(list(network.parameters()))
    kept = memory._kept_for_backward(network, batch)
    return sum(size for storage, size in kept.items() if storage not in parameters)


def test_kept_maps_equal_a_count_by_hand() -> None:
    width, full, half = 16, 2 * 32 * 32, 2 * 16 * 16
    maps = [
        3 * full,  # image, target, valid
        4 * width * full,  # encoder, top: before and after each activation
        3 * width * half,  # pooled, with indices of eight bytes
        4 * 2 * width * half,  # encoder, bottom
        2 * width * full,  # joined
        4 * width * full,  # decoder
        full,  # logits
    ]
    statistics = 4 * (4 * width + 2 * 2 * width)  # batch and running mean and variance
    counted = kept_bytes(UNetConfig(width=width, n_stages=2), (1, 32, 32), 2)
    assert counted == FLOAT * (sum(maps) + statistics)


def test_kept_maps_of_a_volume_equal_a_count_by_hand() -> None:
    width, full, half = 16, 2 * 8 * 32 * 24, 2 * 4 * 16 * 12
    maps = [
        3 * full,  # image, target, valid
        full + 3 * width * full,  # first unit: the image normalised, before and after the activation, the sum
        2 * width * full,  # its sum, activated for both branches
        3 * 2 * width * half,  # second unit: before and after the activation, the sum
        2 * width * full,  # joined
        2 * 2 * width * full,  # joined, activated, and normalised for the shortcut
        3 * width * full,  # decoder: before and after the activation, the sum
        full,  # logits
    ]
    statistics = 4 * (1 + width + 4 * width + 5 * width)  # batch and running mean and variance
    config = ResUNet3dConfig(width=width, n_stages=2, norm="batch")
    assert kept_bytes(config, (8, 32, 24), 2) == FLOAT * (sum(maps) + statistics)


def test_a_prior_is_counted_as_a_channel() -> None:
    unet, priority = (kind(width=4, n_stages=2) for kind in (UNetConfig, PriorityConfig))
    more = training_bytes(priority, 2, 1, (1, 32, 32), 3) - training_bytes(unet, 2, 1, (1, 32, 32), 3)
    assert more == FLOAT * 2 * 3 * 32 * 32  # in the image and in the gate


def test_every_part_is_in_the_sum() -> None:
    config = TridentConfig(width=4, n_slices=3, n_stages=3)
    sizes = [p.numel() * FLOAT for p in config.build(1, 1).parameters()]
    joined = (2 * 4 + 3 * 4) * 3 * 32 * 32 * FLOAT  # what meets in the last decoder stage
    expected = kept_bytes(config, (3, 32, 32), 3) + 4 * sum(sizes) + 5 * joined + 2 * max(sizes)
    assert training_bytes(config, 1, 1, (3, 32, 32), 3) == expected


def test_it_grows_with_batch_patch_and_channels() -> None:
    config = TridentConfig(width=4, n_stages=3)
    small = training_bytes(config, 1, 1, (3, 64, 64), 2)
    assert 1.9 < training_bytes(config, 1, 1, (3, 64, 64), 4) / small < 2
    assert 3.5 < training_bytes(config, 1, 1, (3, 128, 128), 2) / small < 4
    assert training_bytes(config, 2, 1, (3, 64, 64), 2) > small
    assert training_bytes(config, 1, 2, (3, 64, 64), 2) > small


@pytest.mark.parametrize(
    "config",
    [TridentConfig(width=64), UNetConfig(width=64, n_stages=7), ResUNet3dConfig(width=64, n_flat_stages=2)],
)
def test_nothing_is_computed_or_held(config: NetworkConfig) -> None:
    assert training_bytes(config, 1, 1, (4, 128, 128), 2**13) > 2**40  # more than any machine has
