import pytest
import torch
from torch import Tensor, nn

from pwmlunet.errors import PwmlError
from pwmlunet.networks.base import Batch, NetworkConfig
from pwmlunet.networks.resunet_3d import ResUNet3d, ResUNet3dConfig, shrink_target

DEEP = ResUNet3dConfig(width=2, n_stages=4)
THICK = ResUNet3dConfig(width=2, n_stages=4, n_flat_stages=1)


def mean_logit(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    return logits.mean()


@pytest.mark.parametrize(
    ("n_flat", "stride_zyx"), [(0, (8, 8, 8)), (1, (4, 8, 8)), (2, (2, 8, 8)), (3, (1, 8, 8))]
)
def test_flat_stages_leave_slices_alone(n_flat: int, stride_zyx: tuple[int, int, int]) -> None:
    config = ResUNet3dConfig(width=2, n_stages=4, n_flat_stages=n_flat)
    features = torch.randn(1, 1, 8, 24, 16)
    network = config.build(1, 1)
    flat = []
    for stage in network.encoder:
        features = stage(features)
        flat.append({m.kernel_size[0] for m in stage.modules() if isinstance(m, nn.Conv3d)} == {1})
    assert features.shape == (1, 16, 8 // stride_zyx[0], 24 // stride_zyx[1], 16 // stride_zyx[2])
    assert flat == [stage < n_flat for stage in range(4)]
    assert (config.slice_stride, config.stride, config.n_slices) == (stride_zyx[0], 8, 1)


@torch.no_grad()
@pytest.mark.parametrize(("n_flat", "reach"), [(0, 5), (1, 5), (2, 2)])
def test_neighbouring_slices_are_heard_and_all_are_labelled(n_flat: int, reach: int) -> None:
    torch.manual_seed(0)
    network = ResUNet3dConfig(width=4, n_stages=3, n_flat_stages=n_flat, norm="batch").build(1, 2).eval()
    image = torch.randn(1, 1, 16, 8, 12)
    before = network.segment(image)
    assert before.shape == (1, 2, 16, 8, 12)
    image[:, :, 5, 4, 4] += 3
    heard = (network.segment(image) != before).flatten(3).any(3)[0].any(0)
    assert heard[5 - reach : 5 + reach + 1].all()
    assert heard.sum() == 2 * reach + 1 or n_flat < 2  # flat down to the bottom, which has two convolutions


def test_deep_supervision_names_and_weights_every_map_of_the_decoder() -> None:
    network = DEEP.build(1, 1)
    for level, head in enumerate(network.heads):
        nn.init.zeros_(head.weight)  # type: ignore[arg-type]
        nn.init.constant_(head.bias, 10.0**level)  # type: ignore[arg-type]
    image = torch.zeros(1, 1, 8, 16, 16)
    losses = network.losses(Batch(image, image, torch.ones_like(image)), mean_logit)
    assert {name: float(loss.detach()) for name, loss in losses.items()} == pytest.approx(
        {"segmentation": 4 / 7, "deep_1": 2 / 7 * 10, "deep_2": 1 / 7 * 100}
    )
    assert float(network(image).mean().detach()) == 1


def test_without_deep_supervision_there_is_one_head() -> None:
    network = ResUNet3dConfig(width=2, n_stages=4, deep_supervision=False).build(1, 1)
    image = torch.zeros(1, 1, 8, 16, 16)
    losses = network.losses(Batch(image, image, torch.ones_like(image)), mean_logit)
    assert list(losses) == ["segmentation"]
    assert float(losses["segmentation"].detach()) == pytest.approx(float(network(image).mean().detach()))
    assert len(network.heads) == 1


@pytest.mark.parametrize("config", [DEEP, THICK])
def test_a_lesion_of_one_voxel_survives_at_every_level(config: ResUNet3dConfig) -> None:
    target = torch.zeros(2, 3, 8, 16, 24)
    target[1, 2, 5, 11, 19] = 1
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        seen.append((logits, target, valid))
        return logits.mean()

    image = torch.zeros(2, 1, 8, 16, 24)
    config.build(1, 3).losses(Batch(image, target, torch.ones_like(image)), record)
    stride = torch.tensor([1, 1, 1])
    for level, (logits, small, valid) in enumerate(seen):
        stride *= torch.tensor(config.strides[level - 1]) if level else 1
        where = (torch.tensor([5, 11, 19]) // stride).tolist()
        assert small.nonzero().tolist() == [[1, 2, *where]]
        assert logits.shape == small.shape
        assert valid.shape == (2, 1, *small.shape[2:])
        assert valid.all()
    assert len(seen) == 3


def test_a_block_counts_if_it_holds_a_target_or_is_known() -> None:
    #             ignored, target  | ignored         | known           | target, all known | ignored target
    target = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]).view(1, 1, 1, 1, 10)
    valid = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 1.0]]).view(1, 1, 1, 1, 10)
    small, known = shrink_target(target, valid, (1, 1, 2))
    assert small.flatten().tolist() == [1, 0, 0, 1, 0]
    assert known.flatten().tolist() == [1, 0, 1, 1, 0]


def test_a_target_of_any_class_makes_a_block_known() -> None:
    target = torch.zeros(1, 2, 2, 2, 2)
    target[0, 1, 1, 0, 1] = 1
    valid = torch.ones(1, 1, 2, 2, 2)
    valid[0, 0, 0, 0, 0] = 0
    small, known = shrink_target(target, valid, (2, 2, 2))
    assert small.flatten().tolist() == [0, 1]
    assert known.flatten().tolist() == [1]


@pytest.mark.parametrize(("n_flat", "k0", "k1", "up"), [(0, 27, 27, 8), (1, 9, 27, 4)])
def test_it_has_the_size_of_its_layers(n_flat: int, k0: int, k1: int, up: int) -> None:
    network = ResUNet3dConfig(width=2, n_stages=2, n_flat_stages=n_flat).build(1, 1)
    stem = (k0 + 1) * 2 + 2 * 2 + (2 * k0 + 1) * 2 + 2 * 1 + (1 + 1) * 2
    encoder = 2 * 2 + (2 * k1 + 1) * 4 + 2 * 4 + (4 * k1 + 1) * 4 + 2 * 2 + (2 + 1) * 4
    up_convolution = (4 * up + 1) * 2
    decoder = 2 * 4 + (4 * k0 + 1) * 2 + 2 * 2 + (2 * k0 + 1) * 2 + 2 * 4 + (4 + 1) * 2
    head = 2 + 1
    n_parameters = sum(p.numel() for p in network.parameters())
    assert n_parameters == stem + encoder + up_convolution + decoder + head


def test_every_head_expects_few_lesions() -> None:
    network = ResUNet3dConfig(width=2, n_stages=4, prior_probability=0.1).build(1, 2)
    assert isinstance(network, ResUNet3d)
    for head in network.heads:
        assert torch.sigmoid(head.bias).tolist() == pytest.approx([0.1, 0.1])  # type: ignore[arg-type]


@pytest.mark.parametrize("n_flat", [-1, 4])
def test_flat_stages_beyond_the_network_are_named(n_flat: int) -> None:
    with pytest.raises(PwmlError, match="here: n_flat_stages must be 0 to 3 with 4 stages"):
        NetworkConfig.from_dict({"type": "resunet_3d", "n_flat_stages": n_flat}, "here")
