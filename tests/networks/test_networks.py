from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pwmlunet.errors import PwmlError
from pwmlunet.networks import NETWORKS
from pwmlunet.networks.base import Batch, DenseConfig, NetworkConfig, SegmentationNetwork
from pwmlunet.networks.blocks import to_slices, to_volume, windows
from pwmlunet.networks.priority import PriorityConfig
from pwmlunet.networks.resunet_3d import ResUNet3dConfig
from pwmlunet.networks.trident import TridentConfig
from pwmlunet.networks.two_stage import TwoStageConfig
from pwmlunet.networks.unet import UNetConfig

N_CHANNELS, N_TARGETS = 2, 3

SMALL: dict[str, NetworkConfig] = {
    "priority": PriorityConfig(width=4, n_stages=3),
    "priority, channel": PriorityConfig(width=4, n_stages=2, enters="channel"),
    "priority, log-odds": PriorityConfig(width=3, n_stages=3, enters="log_odds", norm="instance"),
    "resunet 3-D": ResUNet3dConfig(width=3, n_stages=3),
    "resunet 3-D, thick slices": ResUNet3dConfig(width=3, n_stages=4, n_flat_stages=2, norm="batch"),
    "resunet 3-D, no slice pooled": ResUNet3dConfig(
        width=4, n_stages=3, n_flat_stages=2, deep_supervision=False, dropout=0.2
    ),
    "trident": TridentConfig(width=4, n_stages=3),
    "trident of one": TridentConfig(width=4, n_stages=2, n_slices=1),
    "trident of five": TridentConfig(width=3, n_stages=3, n_slices=5, norm="instance", dropout=0.2),
    "two-stage": TwoStageConfig(width=4, n_stages=3, anchor_sizes=(3.0, 6.0), n_proposals=12, n_regions=6),
    "two-stage, as published": TwoStageConfig(
        width=3, n_stages=3, norm="instance", finest_stride=4, enlargement=1.0, mask_head="mask_rcnn"
    ),
    "unet": UNetConfig(width=4, n_stages=3),
    "unet, instance": UNetConfig(width=3, n_stages=4, norm="instance", dropout=0.2),
    "unet, two convolutions at the end": UNetConfig(width=4, n_stages=3, head_convolutions=2),
}


def test_every_network_is_tried() -> None:
    assert {type(config) for config in SMALL.values()} == set(NETWORKS.values())


@pytest.fixture(params=SMALL)
def config(request: pytest.FixtureRequest) -> NetworkConfig:
    return SMALL[request.param]


@pytest.fixture
def network(config: NetworkConfig) -> SegmentationNetwork:
    torch.manual_seed(0)
    return config.build(N_CHANNELS, N_TARGETS)


def random_image(config: NetworkConfig, n_batch: int, n_outputs: int) -> Tensor:
    """An image whose output has n_outputs slices; a network that halves slices gets as many voxels at its bottom."""
    generator = torch.Generator().manual_seed(1)
    n_slices = n_outputs * config.slice_stride + config.n_slices - 1
    image = torch.randn(
        n_batch, N_CHANNELS, n_slices, 2 * config.stride, 3 * config.stride, generator=generator
    )
    prior = torch.rand(image[:, :1].shape, generator=generator)
    return torch.cat((image, prior), 1) if config.takes_prior else image


def skip_volumes(config: NetworkConfig) -> None:
    if isinstance(config, ResUNet3dConfig):
        pytest.skip("in volumes all slices meet: see test_resunet_3d")


def random_batch(config: NetworkConfig) -> Batch:
    image = random_image(config, 2, 1)
    target = (image[:, :1, : config.slice_stride] > 1).float().expand(-1, N_TARGETS, -1, -1, -1)
    return Batch(image, target, torch.ones_like(target[:, :1]))


def criterion(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (loss * valid).sum() / valid.sum().clamp_min(1)


@pytest.mark.parametrize("n_outputs", [1, 4])
def test_probabilities_have_the_shape_of_the_image_less_its_windows(
    config: NetworkConfig, network: SegmentationNetwork, n_outputs: int
) -> None:
    probability = network.eval().segment(random_image(config, 2, n_outputs))
    n_slices = n_outputs * config.slice_stride
    assert probability.shape == (2, N_TARGETS, n_slices, 2 * config.stride, 3 * config.stride)
    assert probability.dtype == torch.float32
    assert 0 <= probability.min() < probability.max() < 1


@torch.no_grad()
@pytest.mark.parametrize("n_batch", [1, 2])
def test_a_run_of_slices_equals_its_windows_one_by_one(
    config: NetworkConfig, network: SegmentationNetwork, n_batch: int
) -> None:
    skip_volumes(config)
    image = random_image(config, n_batch, 4)
    network.eval()
    single = [network.segment(image[:, :, i : i + config.n_slices]) for i in range(4)]
    torch.testing.assert_close(network.segment(image), torch.cat(single, 2))
    assert not torch.allclose(single[0], single[1])


@torch.no_grad()
def test_a_slice_hears_its_window_and_no_other(config: NetworkConfig, network: SegmentationNetwork) -> None:
    skip_volumes(config)
    image = random_image(config, 1, 3)
    network.eval()
    before = network.segment(image)
    for z in range(image.shape[2]):
        changed = image.clone()
        changed[:, :, z] += 1
        heard = (network.segment(changed) != before).flatten(3).any(3)[0].any(0).tolist()
        assert heard == [i <= z < i + config.n_slices for i in range(3)]


@pytest.mark.parametrize("content", ["lesions", "no lesions", "all ignored"])
def test_losses_and_gradients_are_finite(
    config: NetworkConfig, network: SegmentationNetwork, content: str
) -> None:
    batch = random_batch(config)
    if content == "no lesions":
        batch.target = torch.zeros_like(batch.target)
    if content == "all ignored":
        batch.valid = torch.zeros_like(batch.valid)
    losses = network.losses(batch, criterion)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    assert all(g is not None and g.isfinite().all() for g in gradients.values()), gradients.keys()
    heard = any(bool(g.any()) for g in gradients.values() if g is not None)
    assert heard == (content != "all ignored")


def test_training_lowers_the_loss(config: NetworkConfig, network: SegmentationNetwork) -> None:
    torch.manual_seed(2)
    batch = random_batch(config)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    values = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = torch.stack(list(network.losses(batch, criterion).values())).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        values.append(float(loss.detach()))
    assert values[-1] < 0.8 * values[0]


def test_an_untrained_network_expects_few_lesions(config: NetworkConfig) -> None:
    assert isinstance(config, DenseConfig)
    network = replace(config, prior_probability=0.03).build(N_CHANNELS, N_TARGETS)
    image = random_image(config, 2, 1)
    if config.takes_prior:
        image[:, -1] = 1  # where lesions are most expected
    probability = network.segment(image)
    if isinstance(config, TwoStageConfig):  # a mask within a region makes less of it
        assert 0.01 < probability.max() < 0.033
    else:
        assert probability.mean().item() == pytest.approx(0.03, rel=0.2)


def test_a_config_survives_json(config: NetworkConfig, tmp_path: Path) -> None:
    config.write(tmp_path / "network.json")
    assert NetworkConfig.read(tmp_path / "network.json") == config


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("width", 0), ("n_stages", 1), ("n_stages", 8), ("n_slices", 2), ("n_slices", -1)],
        *[("dropout", 1.0), ("dropout", -0.1), ("prior_probability", 0.0), ("prior_probability", 1)],
        ("norm", "layer"),
    ],
)
def test_a_wrong_choice_is_named(name: str, value: object) -> None:
    with pytest.raises(PwmlError, match=f"here.*{name} must be"):
        NetworkConfig.from_dict({"type": "trident", name: value}, "here")


def test_a_prior_is_not_counted_as_a_channel(config: NetworkConfig, network: SegmentationNetwork) -> None:
    image = torch.zeros_like(random_image(config, 1, 1))
    assert image.shape[1] == N_CHANNELS + config.takes_prior
    network.segment(image)
    with pytest.raises(RuntimeError):
        network.segment(image[:, 1:])


@pytest.mark.parametrize(("n_slices", "n_parameters"), [(3, 67_349_315), (1, 16_462_403)])
def test_trident_has_the_published_size(n_slices: int, n_parameters: int) -> None:
    with torch.device("meta"):
        network = TridentConfig(width=64, n_slices=n_slices).build(1, 1)
    assert sum(p.numel() for p in network.parameters()) == n_parameters


def test_unet_has_the_size_of_its_layers() -> None:
    network = UNetConfig(width=2, n_stages=2).build(1, 1)
    convolutions = (9 + 1) * 2 + (18 + 1) * 2 + (18 + 1) * 4 + (36 + 1) * 4 + (36 + 1) * 2 + (18 + 1) * 2
    norms = 2 * (2 + 2 + 4 + 4 + 2 + 2)
    up_and_head = (4 * 4 + 1) * 2 + 2 + 1
    assert sum(p.numel() for p in network.parameters()) == convolutions + norms + up_and_head


@pytest.mark.parametrize(("width", "n_parameters"), [(64, 31_046_529), (32, 7_766_465)])
def test_the_primary_network_of_five_levels_has_the_size_of_its_layers(width: int, n_parameters: int) -> None:
    def unit(n_in: int, n_out: int) -> int:
        return (9 * n_in + 1) * n_out + (9 * n_out + 1) * n_out + 2 * 2 * n_out

    a, b, c, d, e = (width * 2**level for level in range(5))
    down = unit(1, a) + unit(a, b) + unit(b, c) + unit(c, d) + unit(d, e)
    up = sum(
        (4 * below + 1) * above + unit(below, above) for below, above in ((e, d), (d, c), (c, b), (b, a))
    )
    assert down + up + (a + 1) * a + (a + 1) == n_parameters
    with torch.device("meta"):
        network = UNetConfig(width=width, n_stages=5, head_convolutions=2).build(1, 1)
    assert sum(p.numel() for p in network.parameters()) == n_parameters
    last = list(network.get_submodule("head").children())
    assert [type(layer).__name__ for layer in last] == ["Conv2d", "ReLU", "Conv2d"]


@pytest.mark.parametrize("number", [0, 3])
def test_another_number_of_convolutions_at_the_end_is_told(number: int) -> None:
    with pytest.raises(PwmlError, match=f"head_convolutions must be 1 or 2, not {number}"):
        NetworkConfig.from_dict({"type": "unet", "head_convolutions": number}, "here")


def test_batch_statistics_are_those_of_all_slices() -> None:
    network = TridentConfig(width=2, n_stages=2).build(1, 1)
    image = torch.randn(2, 1, 3, 8, 8) + torch.arange(3.0).view(1, 1, 3, 1, 1)
    network.segment(image)
    norm = network.get_submodule("encoder.0.shortcut.0")
    assert float(norm.running_mean) == pytest.approx(0.1 * float(image.mean()), rel=1e-5)  # type: ignore[arg-type]


def test_slices_and_volumes() -> None:
    volume = torch.arange(2 * 3 * 4 * 5 * 6).view(2, 3, 4, 5, 6)
    slices = to_slices(volume)
    assert torch.equal(slices[5], volume[1, :, 1])
    assert torch.equal(to_volume(slices, 2), volume)


def test_windows_join_slices_in_order() -> None:
    slices = torch.arange(2 * 4 * 3 * 1 * 2).view(2 * 4, 3, 1, 2)  # B = 2, Z = 4
    joined = windows(slices, 2, 3)
    assert joined.shape == (2 * 2, 3 * 3, 1, 2)
    for window, first in enumerate([0, 1, 4, 5]):
        assert torch.equal(joined[window], torch.cat(list(slices[first : first + 3])))


@pytest.mark.parametrize(("n_batch", "n_slices"), [(2, 4), (1, 3)])
def test_windows_copy_nothing_in_training_and_prediction(n_batch: int, n_slices: int) -> None:
    slices = torch.zeros(n_batch * 4, 3, 5, 6)
    assert windows(slices, n_batch, n_slices).data_ptr() == slices.data_ptr()
