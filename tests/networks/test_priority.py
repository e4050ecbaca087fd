import math

import pytest
import torch
from torch import Tensor, nn

from pwmlunet.errors import PwmlError
from pwmlunet.networks.base import NetworkConfig
from pwmlunet.networks.priority import LEAST_DENSITY, PriorityConfig, PriorityUNet, gate
from pwmlunet.networks.unet import UNetConfig


def built(config: PriorityConfig) -> PriorityUNet:
    torch.manual_seed(0)
    network = config.build(2, 3).eval()
    nn.init.normal_(network.unet.get_submodule("head").weight)  # type: ignore[arg-type]  # not near 0, so that maps matter
    return network


def with_prior(image: Tensor, prior: Tensor | float) -> Tensor:
    return torch.cat((image, torch.as_tensor(prior).expand_as(image[:, :1])), 1)


def random_image() -> Tensor:
    return torch.randn(2, 2, 3, 8, 12, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_density_of_one_leaves_the_unet() -> None:
    network = built(PriorityConfig(width=4, n_stages=3))
    unet = UNetConfig(width=4, n_stages=3).build(2, 3).eval()
    unet.load_state_dict(network.unet.state_dict())
    image = random_image()
    assert torch.equal(network(with_prior(image, 1.0)), unet(image))
    assert not torch.allclose(network(with_prior(image, 0.9)), unet(image))


def test_a_gate_multiplies_by_the_mean_density_of_each_pixel() -> None:
    density = torch.tensor([[1.0, 0.6, 0, 0], [0.2, 0.2, 0, 0.4]]).view(1, 1, 2, 4)
    levels = [torch.full((1, 3, 2, 4), 2.0), torch.full((1, 5, 1, 2), 10.0), torch.full((1, 7, 1, 1), 7.0)]
    full, half, deepest = gate(levels, density)
    assert torch.equal(full, 2 * density.expand(1, 3, 2, 4))
    torch.testing.assert_close(half, torch.tensor([5.0, 1.0]).expand(1, 5, 1, 2))
    assert torch.equal(deepest, torch.full((1, 7, 1, 1), 7.0))


@torch.no_grad()
def test_a_density_of_zero_leaves_what_the_deepest_level_carries() -> None:
    network = built(PriorityConfig(width=4, n_stages=3))
    levels = network.unet.encode(random_image().transpose(1, 2).flatten(0, 1))
    others = [torch.randn_like(level) for level in levels]
    nothing = torch.zeros(6, 1, 8, 12)
    gated = network.unet.decode(gate([*levels[:-1], levels[-1]], nothing))
    assert torch.equal(gated, network.unet.decode(gate([*others[:-1], levels[-1]], nothing)))
    assert not torch.allclose(gated, network.unet.decode(gate([*levels[:-1], others[-1]], nothing)))


@torch.no_grad()
def test_a_gate_acts_where_its_density_is() -> None:
    network = built(PriorityConfig(width=4, n_stages=2))
    image, prior = random_image(), torch.ones(2, 1, 3, 8, 12)
    before = network(with_prior(image, prior))
    prior[0, :, 1, :, :2] = 0
    changed = (network(with_prior(image, prior)) != before).any(1)
    assert changed[0, 1, :, :2].all()
    changed[0, 1, :, :8] = False
    assert not changed.any()


@torch.no_grad()
def test_log_odds_shift_logits_by_the_logarithm() -> None:
    network = built(PriorityConfig(width=4, n_stages=3, enters="log_odds"))
    image = random_image()
    plain = network(with_prior(image, 1.0))
    prior = torch.rand(2, 1, 3, 8, 12, generator=torch.Generator().manual_seed(2)) + 0.01
    torch.testing.assert_close(network(with_prior(image, prior)), plain + prior.log())
    floor = math.log(LEAST_DENSITY)
    torch.testing.assert_close(network(with_prior(image, 0.0)), plain + floor)


def test_a_channel_is_heard_by_weights_of_its_own() -> None:
    gates, channel = (PriorityConfig(width=4, n_stages=3, enters=enters) for enters in ("gates", "channel"))
    n_gates, n_channel = (sum(p.numel() for p in c.build(2, 1).parameters()) for c in (gates, channel))
    assert n_channel - n_gates == 9 * 4
    assert n_gates == sum(p.numel() for p in UNetConfig(width=4, n_stages=3).build(2, 1).parameters())
    image = random_image()
    network = built(channel)
    assert not torch.allclose(network(with_prior(image, 0.0)), network(with_prior(image, 1.0)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gates_keep_the_format_of_what_they_weigh(dtype: torch.dtype) -> None:
    levels = [torch.ones(1, 2, 8 // 2**level, 8 // 2**level, dtype=dtype) for level in range(3)]
    assert [level.dtype for level in gate(levels, torch.rand(1, 1, 8, 8))] == [dtype] * 3


def test_an_unknown_way_in_is_named() -> None:
    with pytest.raises(PwmlError, match=r"here.*enters must be one of gates, channel, log_odds, not 'skips'"):
        NetworkConfig.from_dict({"type": "priority", "enters": "skips"}, "here")
